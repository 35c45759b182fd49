"""The encrypted state file of swtpm: parse, verify, rekey (swtpm 0.7 ``src/swtpm/swtpm_nvstore.c``).

A file is a header and records, big-endian throughout:

    header   u8 version = 2, u8 minimum version ≤ 2, u16 header size = 10, u16 flags, u32 size of header and records
    record   u16 tag, u32 length, value
    tags     1 clear · 2 AES-256-CBC(key, IV = ivec[:16], padded) · 3 HMAC-SHA256(key, 2 ‖ 6) · 6 ivec
    padding  as PKCS #7, but to a multiple of the key's 32 bytes: 1 to 32 bytes that hold their own number

A state under a migration key (flags 2, 4, 16) never lies on disk and is refused here. The format has no protection
against an older file with the right key: whoever needs freshness keeps a counter or hash elsewhere.

Pure: bytes in, bytes out; the IV is passed in. ``StateError`` is the only error that bytes from outside can raise.
"""

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from swtpm.errors import StateError, StateReason

STATE_FILE = "tpm2-00.permall"
"""Name of the permanent state's file in a TPM's state directory."""
KEY_SIZE = 32
IV_SIZE = 32
MAX_STATE_SIZE = 1 << 20
"""Several times what a TPM with all its NV memory in use needs (about 0.2 MiB); bounds what is read into memory."""

Key = bytes | bytearray | memoryview

_VERSION = 2
_HEADER_SIZE = 10
_RECORD_SIZE = 6
_BLOCK = 16
_PADDED_TO = 32
_HMAC_SIZE = 32
_FLAG_ENCRYPTED = 0x1
_FLAG_ENCRYPTED_256 = 0x8
_TAG_CLEAR, _TAG_ENCRYPTED, _TAG_HMAC, _TAG_IV = 1, 2, 3, 6
_TPM_MAGIC = bytes.fromhex("ab364723")
"""PERSISTENT_ALL_MAGIC of libtpms, after the 2-byte version of the state inside."""


@dataclass(frozen=True, slots=True)
class EncryptedState:
    """Records of an encrypted state file; nothing is authentic before ``verify_state``."""

    untrusted_ciphertext: bytes
    """A positive multiple of 16 bytes."""
    untrusted_hmac: bytes
    """32 bytes."""
    untrusted_iv: bytes
    """32 bytes, of which CBC uses the first 16 and the HMAC all."""


def parse_state(blob: bytes) -> EncryptedState:
    """Read an encrypted state file strictly.

    Raises:
        StateError: TRUNCATED, NOT_SWTPM_STATE, UNSUPPORTED, NOT_ENCRYPTED or MALFORMED.
    """
    flags = _header_flags(blob)
    if not flags & _FLAG_ENCRYPTED:
        raise StateError(StateReason.NOT_ENCRYPTED, "the state is stored in clear")
    if flags != _FLAG_ENCRYPTED | _FLAG_ENCRYPTED_256:
        raise StateError(StateReason.UNSUPPORTED, f"expected AES-256 without a migration key, seen flags {flags:#x}")
    records = _records(blob)
    if set(records) != {_TAG_ENCRYPTED, _TAG_HMAC, _TAG_IV}:
        raise StateError(StateReason.MALFORMED, f"expected records 2, 3 and 6, seen {sorted(records)}")
    ciphertext, mac, iv = (records[tag] for tag in (_TAG_ENCRYPTED, _TAG_HMAC, _TAG_IV))
    if not ciphertext or len(ciphertext) % _BLOCK or len(mac) != _HMAC_SIZE or len(iv) != IV_SIZE:
        raise StateError(StateReason.MALFORMED, "a record has the wrong length")
    return EncryptedState(ciphertext, mac, iv)


def parse_clear_state(blob: bytes) -> bytes:
    """Read a state file that is stored in clear, and return the state.

    Raises:
        StateError: TRUNCATED, NOT_SWTPM_STATE, UNSUPPORTED, ENCRYPTED or MALFORMED.
    """
    flags = _header_flags(blob)
    if flags & _FLAG_ENCRYPTED:
        raise StateError(StateReason.ENCRYPTED, "the state is encrypted and no key was given")
    if flags:
        raise StateError(StateReason.UNSUPPORTED, f"expected no flags, seen {flags:#x}")
    records = _records(blob)
    if set(records) != {_TAG_CLEAR}:
        raise StateError(StateReason.MALFORMED, f"expected record 1, seen {sorted(records)}")
    _require_tpm_state(records[_TAG_CLEAR])
    return records[_TAG_CLEAR]


def verify_state(blob: bytes, key: Key) -> None:
    """Check that a state file is whole, authentic under ``key``, and holds a TPM.

    Args:
        blob: Content of the state file, as read; nothing in it is believed yet.
        key: 32 bytes, as swtpm gets them.

    Raises:
        StateError: As ``parse_state``; then WRONG_KEY (another key, or the file was changed: an HMAC cannot tell
            which), or MALFORMED.
        ValueError: The key has not 32 bytes.
    """
    _wipe(_decrypt(blob, key))


def rekey_state(blob: bytes, old_key: Key, new_key: Key, iv: bytes) -> bytes:
    """Encrypt a state file anew.

    Args:
        blob: Content of the state file under ``old_key``.
        old_key: 32 bytes.
        new_key: 32 bytes.
        iv: 32 fresh random bytes.

    Returns:
        Content of the state file under ``new_key``. The caller must write it beside the old file and rename.

    Raises:
        StateError: As ``verify_state``.
        ValueError: A key or the IV has the wrong length.
    """
    _require_key(new_key)
    if len(iv) != IV_SIZE:
        raise ValueError(f"the IV must have {IV_SIZE} bytes, not {len(iv)}")
    clear = _decrypt(blob, old_key)
    padding = _PADDED_TO - len(clear) % _PADDED_TO
    clear.extend(bytes([padding]) * padding)
    try:
        encryptor = Cipher(algorithms.AES256(new_key), modes.CBC(iv[:_BLOCK])).encryptor()
        ciphertext = encryptor.update(clear) + encryptor.finalize()
    finally:
        _wipe(clear)
    mac = hmac.digest(new_key, ciphertext + iv, hashlib.sha256)
    records = ((_TAG_ENCRYPTED, ciphertext), (_TAG_HMAC, mac), (_TAG_IV, iv))
    body = b"".join(tag.to_bytes(2, "big") + len(value).to_bytes(4, "big") + value for tag, value in records)
    # The minimum version and header size are what every swtpm since 0.3 writes.
    flags = _FLAG_ENCRYPTED | _FLAG_ENCRYPTED_256
    header = bytes([_VERSION, 1]) + _HEADER_SIZE.to_bytes(2, "big") + flags.to_bytes(2, "big")
    return header + (_HEADER_SIZE + len(body)).to_bytes(4, "big") + body


def _header_flags(blob: bytes) -> int:
    if len(blob) < _HEADER_SIZE:
        raise StateError(StateReason.TRUNCATED, f"expected a header of {_HEADER_SIZE} bytes, seen {len(blob)} bytes")
    if len(blob) > MAX_STATE_SIZE:
        raise StateError(StateReason.NOT_SWTPM_STATE, f"expected at most {MAX_STATE_SIZE} bytes, seen {len(blob)}")
    version, minimum = blob[0], blob[1]
    header_size, total = int.from_bytes(blob[2:4], "big"), int.from_bytes(blob[6:10], "big")
    if header_size != _HEADER_SIZE or not 1 <= minimum <= version or total < _HEADER_SIZE:
        raise StateError(StateReason.NOT_SWTPM_STATE, "the header is not one that swtpm writes")
    if version != _VERSION:
        raise StateError(StateReason.UNSUPPORTED, f"expected format version {_VERSION}, seen {version}")
    if len(blob) < total:
        raise StateError(StateReason.TRUNCATED, f"expected {total} bytes, seen {len(blob)}")
    if len(blob) > total:
        raise StateError(StateReason.MALFORMED, f"{len(blob) - total} bytes after the end")
    return int.from_bytes(blob[4:6], "big")


def _records(blob: bytes) -> dict[int, bytes]:
    records: dict[int, bytes] = {}
    offset = _HEADER_SIZE
    while offset < len(blob):
        if len(blob) - offset < _RECORD_SIZE:
            raise StateError(StateReason.MALFORMED, f"half a record header at byte {offset}")
        tag = int.from_bytes(blob[offset : offset + 2], "big")
        length = int.from_bytes(blob[offset + 2 : offset + _RECORD_SIZE], "big")
        offset += _RECORD_SIZE
        if length > len(blob) - offset:
            raise StateError(StateReason.MALFORMED, f"record {tag} is longer than the file")
        if tag in records:
            raise StateError(StateReason.MALFORMED, f"record {tag} is there twice")
        records[tag] = blob[offset : offset + length]
        offset += length
    return records


def _decrypt(blob: bytes, key: Key) -> bytearray:
    """Return the state in clear, without padding; the caller wipes it."""
    _require_key(key)
    state = parse_state(blob)
    expected = hmac.digest(key, state.untrusted_ciphertext + state.untrusted_iv, hashlib.sha256)
    if not hmac.compare_digest(expected, state.untrusted_hmac):
        raise StateError(StateReason.WRONG_KEY, "the HMAC does not verify: another key, or the file was changed")
    decryptor = Cipher(algorithms.AES256(key), modes.CBC(state.untrusted_iv[:_BLOCK])).decryptor()
    # update_into asks for a block more than it writes.
    clear = bytearray(len(state.untrusted_ciphertext) + _BLOCK)
    del clear[decryptor.update_into(state.untrusted_ciphertext, clear) :]
    decryptor.finalize()
    padding = clear[-1]
    if not 1 <= padding <= _PADDED_TO or clear[-padding:] != bytes([padding]) * padding:
        _wipe(clear)
        raise StateError(StateReason.MALFORMED, "the padding is wrong although the HMAC verifies")
    del clear[-padding:]
    try:
        _require_tpm_state(clear)
    except StateError:
        _wipe(clear)
        raise
    return clear


def _require_tpm_state(clear: bytes | bytearray) -> None:
    if clear[2:6] != _TPM_MAGIC:
        raise StateError(StateReason.MALFORMED, "what the file holds is not the permanent state of a TPM 2.0")


def _require_key(key: Key) -> None:
    if len(key) != KEY_SIZE:
        raise ValueError(f"the state key must have {KEY_SIZE} bytes, not {len(key)}")


def _wipe(clear: bytearray) -> None:
    clear[:] = bytes(len(clear))
