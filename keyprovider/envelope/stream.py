"""Encrypt files of any length: AES-256-GCM in chunks, the STREAM construction (Hoang et al., CRYPTO 2015).

A sealed file is a header of 41 bytes, magic ``GRNTFILE`` ‖ version (1 byte, 0x01) ‖ salt (32 bytes), and chunks: up to
1 MiB of plaintext each, followed by its 16-byte tag. Every chunk but the last is full; the last is empty only where the
whole file is.
File key: HKDF of the caller's key, label ``file/`` + the caller's label, with the salt.
Nonce of a chunk: its number (11 bytes, big-endian) ‖ 0x01 for the last, 0x00 before. Associated data: the header.
So truncation, reordering, swapping between files and trailing bytes are refused.
Vectors: ``docs/vectors/sealed-file.json``.

Nothing is written before its chunk was verified. But chunks come one by one: a caller writes to a temporary file and
renames it only when the whole stream was good.
Source and target are passed in; no clock, randomness or logging.
"""

from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyprovider.envelope.derive import derive_key
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

CHUNK_SIZE: Final = 1 << 20
SALT_SIZE: Final = 32
_MAGIC: Final = b"GRNTFILE\x01"
_TAG_SIZE: Final = 16
_HEADER_SIZE: Final = len(_MAGIC) + SALT_SIZE


def encrypt_stream(key: SecretKey, source: BinaryIO, target: BinaryIO, *, label: str, salt: bytes) -> None:
    """Encrypt all that ``source`` gives until its end into ``target``.

    Args:
        key: At least 16 bytes.
        source: Read to its end.
        target: Receives header and chunks.
        label: What kind of file it is (as in :func:`~keyprovider.envelope.derive.derive_key`).
        salt: 32 random bytes, new for every file.

    Raises:
        ValueError: The salt has not 32 bytes, or the label is malformed.
        OSError: As the files raise it.
    """
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes, not {len(salt)}")
    header = _MAGIC + salt
    with derive_key(key, f"file/{label}", salt=salt) as file_key:
        cipher = AESGCM(file_key.view())
        _write_all(target, header)
        ahead = _Lookahead(source, CHUNK_SIZE)
        for number, (chunk, last) in enumerate(ahead):
            _write_all(target, cipher.encrypt(_nonce(number, last), chunk, header))


def decrypt_stream(key: SecretKey, source: BinaryIO, target: BinaryIO, *, label: str) -> None:
    """Decrypt what :func:`encrypt_stream` made; a chunk is written only after it was verified.

    Raises:
        ValueError: The label is malformed.
        EnvelopeError: Not a sealed file, or truncated, reordered, changed, continued, or of another key or label.
            What was written up to there is a genuine beginning, to be thrown away.
        OSError: As the files raise it.
    """
    header = _read_up_to(source, _HEADER_SIZE)
    if len(header) != _HEADER_SIZE or not header.startswith(_MAGIC):
        raise EnvelopeError("not a sealed file of version 1")
    with derive_key(key, f"file/{label}", salt=header[len(_MAGIC) :]) as file_key:
        cipher = AESGCM(file_key.view())
        for number, (chunk, last) in enumerate(_Lookahead(source, CHUNK_SIZE + _TAG_SIZE)):
            if number and len(chunk) <= _TAG_SIZE:
                raise EnvelopeError(f"chunk {number} of the sealed file is cut short")
            try:
                plain = cipher.decrypt(_nonce(number, last), chunk, header)
            except InvalidTag as exc:
                raise EnvelopeError(f"chunk {number} of the sealed file was not written with this key here") from exc
            _write_all(target, plain)


class _Lookahead:
    """Chunks of a file, each with whether it is the last; at least one, which may be empty."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._size = size
        self._next: bytes | None = None
        self._started = False

    def __iter__(self) -> "_Lookahead":
        return self

    def __next__(self) -> tuple[bytes, bool]:
        if not self._started:
            self._started = True
            self._next = _read_up_to(self._source, self._size)
        chunk = self._next
        if chunk is None:
            raise StopIteration
        self._next = _read_up_to(self._source, self._size) if len(chunk) == self._size else None
        if not self._next:
            self._next = None
        return chunk, self._next is None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _read_up_to(source: BinaryIO, size: int) -> bytes:
    first = source.read(size)
    if len(first) in (0, size):
        return first
    parts, missing = [first], size - len(first)
    while missing and (part := source.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _write_all(target: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[target.write(rest) :]
