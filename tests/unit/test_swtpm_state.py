"""The encrypted state format: parse, verify, rekey."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given
from hypothesis import strategies as st

from swtpm.errors import StateError, StateReason
from swtpm.state import parse_clear_state, parse_state, rekey_state, verify_state

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
IV = bytes(range(100, 132))
CLEAR = bytes.fromhex("0003ab3647230003") + b"permanent state" * 20


def record(tag: int, value: bytes) -> bytes:
    """Marshal one record."""
    return tag.to_bytes(2, "big") + len(value).to_bytes(4, "big") + value


def blob(*records: bytes, flags: int = 9, version: int = 2) -> bytes:
    """Marshal a state file."""
    body = b"".join(records)
    return bytes([version, 1, 0, 10]) + flags.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + body


def encrypted(clear: bytes = CLEAR, key: bytes = KEY) -> bytes:
    """Encrypt as swtpm does, written apart from the code under test."""
    padding = 32 - len(clear) % 32
    encryptor = Cipher(algorithms.AES(key), modes.CBC(IV[:16])).encryptor()
    ciphertext = encryptor.update(clear + bytes([padding]) * padding) + encryptor.finalize()
    mac = hmac.new(key, ciphertext + IV, hashlib.sha256).digest()
    return blob(record(2, ciphertext), record(3, mac), record(6, IV))


def test_verifies_with_its_key() -> None:
    """A whole state verifies with its key, whatever buffer the key is in (R-OP-4)."""
    for key in (KEY, bytearray(KEY), memoryview(KEY)):
        verify_state(encrypted(), key)


@pytest.mark.parametrize("length", [len(CLEAR), 32, 16, 31, 17, 33])
def test_rekey_changes_key_only(length: int) -> None:
    """A rekeyed state opens with the new key, holds the same, and is refused under the old one (R-OP-4)."""
    clear = CLEAR[:length].ljust(length, b"\0")
    rekeyed = rekey_state(encrypted(clear), KEY, OTHER_KEY, IV)
    assert rekeyed == encrypted(clear, OTHER_KEY)
    verify_state(rekeyed, OTHER_KEY)
    with pytest.raises(StateError) as refused:
        verify_state(rekeyed, KEY)
    assert refused.value.reason is StateReason.WRONG_KEY


def test_rekey_refuses_wrong_old_key() -> None:
    """A state is not rekeyed with a key that does not open it."""
    with pytest.raises(StateError) as refused:
        rekey_state(encrypted(), OTHER_KEY, KEY, IV)
    assert refused.value.reason is StateReason.WRONG_KEY


@pytest.mark.parametrize("keys", [(KEY[:16], KEY, IV), (KEY, KEY[:16], IV), (KEY, KEY, IV[:16])])
def test_wrong_lengths_are_programming_errors(keys: tuple[bytes, bytes, bytes]) -> None:
    """Keys and IV of another length than 32 are refused before anything is read."""
    with pytest.raises(ValueError, match="32"):
        rekey_state(encrypted(), *keys)


MALFORMED = {
    "empty": (b"", StateReason.TRUNCATED),
    "half a header": (encrypted()[:9], StateReason.TRUNCATED),
    "header only": (encrypted()[:10], StateReason.TRUNCATED),
    "last byte missing": (encrypted()[:-1], StateReason.TRUNCATED),
    "byte after the end": (encrypted() + b"\0", StateReason.MALFORMED),
    "another format": (b"\x7fELF" + bytes(100), StateReason.NOT_SWTPM_STATE),
    "too large": (encrypted() + bytes(1 << 20), StateReason.NOT_SWTPM_STATE),
    "newer format": (blob(version=3), StateReason.UNSUPPORTED),
    "in clear": (blob(record(1, CLEAR), flags=0), StateReason.NOT_ENCRYPTED),
    "128-bit key": (blob(flags=1), StateReason.UNSUPPORTED),
    "under a migration key": (blob(flags=0x1F), StateReason.UNSUPPORTED),
    "no records": (blob(), StateReason.MALFORMED),
    "no HMAC": (blob(record(2, bytes(16)), record(6, IV)), StateReason.MALFORMED),
    "record twice": (blob(record(2, bytes(16)), record(2, bytes(16)), record(6, IV)), StateReason.MALFORMED),
    "unknown record": (
        blob(record(2, bytes(16)), record(3, IV), record(6, IV), record(9, b"")),
        StateReason.MALFORMED,
    ),
    "half a record header": (blob(record(2, bytes(16)), b"\0\3\0"), StateReason.MALFORMED),
    "record longer than the file": (blob(b"\0\2\xff\xff\xff\xff"), StateReason.MALFORMED),
    "ciphertext of no blocks": (blob(record(2, b""), record(3, IV), record(6, IV)), StateReason.MALFORMED),
    "ciphertext of half blocks": (blob(record(2, bytes(24)), record(3, IV), record(6, IV)), StateReason.MALFORMED),
    "short IV": (blob(record(2, bytes(16)), record(3, IV), record(6, IV[:16])), StateReason.MALFORMED),
    "not a TPM inside": (encrypted(b"something else"), StateReason.MALFORMED),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses_what_is_not_whole(name: str) -> None:
    """Each way in which a file is not a whole encrypted state has its reason."""
    content, reason = MALFORMED[name]
    with pytest.raises(StateError) as refused:
        verify_state(content, KEY)
    assert refused.value.reason is reason


@given(st.integers(0, len(encrypted()) * 8 - 1))
def test_every_bit_counts(bit: int) -> None:
    """No single bit of a state can be changed without refusal."""
    changed = bytearray(encrypted())
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StateError):
        verify_state(bytes(changed), KEY)


@given(st.binary(max_size=300))
@example(blob(record(1, b""), flags=0))
def test_nothing_else_escapes(content: bytes) -> None:
    """Whatever bytes a file holds, the parsers raise StateError and nothing else."""
    for parse in (parse_state, parse_clear_state, lambda data: verify_state(data, KEY)):
        with pytest.raises(StateError):
            parse(content)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.binary(max_size=64)), max_size=5), st.integers(0, 31))
def test_nothing_else_escapes_from_records(records: list[tuple[int, bytes]], flags: int) -> None:
    """Well-formed records of any kind and size raise StateError and nothing else."""
    content = blob(*(record(tag, value) for tag, value in records), flags=flags)
    with pytest.raises(StateError):
        verify_state(content, KEY)


def test_clear_state_is_read() -> None:
    """A state in clear is returned as it is."""
    assert parse_clear_state(blob(record(1, CLEAR), flags=0)) == CLEAR


def test_clear_parser_refuses_encrypted_state() -> None:
    """An encrypted state without its key is refused, not guessed at."""
    with pytest.raises(StateError) as refused:
        parse_clear_state(encrypted())
    assert refused.value.reason is StateReason.ENCRYPTED


@pytest.mark.parametrize("padding", [b"\0" * 32, b"\x21" * 32 + b"\x21", b"\x01\x02", b"\x05\x04\x04\x04"])
def test_wrong_padding_is_refused(padding: bytes) -> None:
    """A state whose padding is not what swtpm writes is refused even if the HMAC verifies."""
    clear = CLEAR + b"\xee" * (-(len(CLEAR) + len(padding)) % 16) + padding
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV[:16])).encryptor()
    ciphertext = encryptor.update(clear) + encryptor.finalize()
    mac = hmac.new(KEY, ciphertext + IV, hashlib.sha256).digest()
    with pytest.raises(StateError) as refused:
        verify_state(blob(record(2, ciphertext), record(3, mac), record(6, IV)), KEY)
    assert refused.value.reason is StateReason.MALFORMED
