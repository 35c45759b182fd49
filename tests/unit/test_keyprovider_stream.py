"""Encrypted files: the STREAM construction."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyprovider.envelope import decrypt_stream, encrypt_stream
from keyprovider.envelope.stream import CHUNK_SIZE
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

KEY = SecretKey.adopt(b"a key for encrypted files, known")
OTHER_KEY = SecretKey.adopt(b"another key for encrypted files.")
SALT = bytes(range(32))
HEADER = 41
SEALED_CHUNK = CHUNK_SIZE + 16


class _Trickle(io.BytesIO):
    """A file that gives and takes a little at a time, as pipes do."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 70_001) if size and size > 0 else size)

    def write(self, content: object, /) -> int:
        return super().write(memoryview(content)[:50_003])  # type: ignore[arg-type]


def _encrypt(plain: bytes, *, label: str = "nvram", salt: bytes = SALT) -> bytes:
    target = io.BytesIO()
    encrypt_stream(KEY, io.BytesIO(plain), target, label=label, salt=salt)
    return target.getvalue()


def _decrypt(sealed: bytes, *, label: str = "nvram", key: SecretKey = KEY) -> bytes:
    target = io.BytesIO()
    decrypt_stream(key, io.BytesIO(sealed), target, label=label)
    return target.getvalue()


def _plain(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
def test_files_of_every_length_come_back(size: int) -> None:
    """Lengths around chunk boundaries survive the round trip, with 16 bytes more per chunk."""
    sealed = _encrypt(_plain(size))
    assert len(sealed) == HEADER + size + 16 * max(1, -(-size // CHUNK_SIZE))
    assert _decrypt(sealed) == _plain(size)


def test_files_that_read_and_write_short_are_handled() -> None:
    """Pipes that give less than asked change nothing."""
    plain = _plain(CHUNK_SIZE + 17)
    sealed, opened = _Trickle(), _Trickle()
    encrypt_stream(KEY, _Trickle(plain), sealed, label="nvram", salt=SALT)
    assert sealed.getvalue() == _encrypt(plain)
    decrypt_stream(KEY, _Trickle(sealed.getvalue()), opened, label="nvram")
    assert opened.getvalue() == plain


def test_truncation_is_refused_at_chunk_boundaries_and_within() -> None:
    """A shortened file is refused wherever it was cut, the last whole chunk's end included."""
    sealed = _encrypt(_plain(2 * CHUNK_SIZE + 5))
    for length in (
        0,
        HEADER - 1,
        HEADER,
        HEADER + 8,
        HEADER + SEALED_CHUNK,
        HEADER + 2 * SEALED_CHUNK,
        len(sealed) - 1,
    ):
        with pytest.raises(EnvelopeError):
            _decrypt(sealed[:length])


def test_every_truncation_of_a_small_file_is_refused() -> None:
    """No proper beginning of a small file opens."""
    sealed = _encrypt(b"small")
    for length in range(len(sealed)):
        with pytest.raises(EnvelopeError):
            _decrypt(sealed[:length])


def test_trailing_bytes_are_refused() -> None:
    """A file continued by anything is refused."""
    for plain in (b"", b"small", _plain(CHUNK_SIZE)):
        with pytest.raises(EnvelopeError):
            _decrypt(_encrypt(plain) + b"\0")
        with pytest.raises(EnvelopeError):
            _decrypt(_encrypt(plain) + bytes(16))


def test_reordered_chunks_are_refused() -> None:
    """Two chunks of one file in the other order are refused."""
    sealed = _encrypt(_plain(3 * CHUNK_SIZE))
    first, second = (sealed[HEADER + n * SEALED_CHUNK :][:SEALED_CHUNK] for n in (0, 1))
    with pytest.raises(EnvelopeError, match="chunk 0"):
        _decrypt(sealed[:HEADER] + second + first + sealed[HEADER + 2 * SEALED_CHUNK :])


def test_a_chunk_of_another_file_is_refused_and_not_written() -> None:
    """Swapping a chunk in from a file of the same key is refused, and nothing of it reaches the target."""
    ours, theirs = _encrypt(_plain(2 * CHUNK_SIZE)), _encrypt(_plain(2 * CHUNK_SIZE), salt=bytes(32))
    target = io.BytesIO()
    with pytest.raises(EnvelopeError, match="chunk 1"):
        decrypt_stream(
            KEY,
            io.BytesIO(ours[: HEADER + SEALED_CHUNK] + theirs[HEADER + SEALED_CHUNK :]),
            target,
            label="nvram",
        )
    assert target.getvalue() == _plain(CHUNK_SIZE)


def test_another_key_label_or_salt_is_refused() -> None:
    """A file opens only with its key, as its kind of file, under its own header."""
    sealed = _encrypt(b"content")
    with pytest.raises(EnvelopeError):
        _decrypt(sealed, key=OTHER_KEY)
    with pytest.raises(EnvelopeError):
        _decrypt(sealed, label="configuration")
    changed = bytearray(sealed)
    changed[HEADER - 1] ^= 1
    with pytest.raises(EnvelopeError):
        _decrypt(bytes(changed))


def test_every_changed_byte_is_refused() -> None:
    """Header, ciphertext and tag are all covered."""
    sealed = _encrypt(b"content")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x80
        with pytest.raises(EnvelopeError):
            _decrypt(bytes(changed))


def test_a_salt_of_another_size_is_refused() -> None:
    """32 bytes, or it is a mistake of the caller."""
    with pytest.raises(ValueError, match="32 bytes"):
        _encrypt(b"", salt=bytes(16))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"GRNTFILE\x01" + tail))
def test_decrypting_anything_raises_envelope_errors_only(sealed: bytes) -> None:
    """No input makes another error escape (fuzz)."""
    with pytest.raises(EnvelopeError):
        _decrypt(sealed)
