"""LUKS version 1 headers, as QEMU opens them: write one, parse one, take the master key out of one.

Only the one shape that disks of this product have: aes-xts-plain64, 512-bit master key, SHA-256, key slot 0. The
passphrase is the hexadecimal form of a 256-bit key, so that 1,000 PBKDF2 iterations are enough: they are no protection
against guessing, and need not be (NIST SP 800-132, 5.2 gives that floor).

A header is ``HEADER_SIZE`` bytes: the partition header (592 bytes) and the areas of eight key slots.
Changing a slot is not a recrypt: whoever had the old header and the old key still has the master key.

Source: LUKS On-Disk Format Specification, version 1.2.3.
Pure: randomness is passed in; no clock, I/O or logging. ``FormatError`` is the only error that bytes from outside can
raise.
"""

import hashlib
import hmac
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from host_agent.errors import FormatError
from keyprovider.keymaterial import SecretKey

KEY_SIZE: Final = 64
"""Bytes of the master key: two AES-256 keys of XTS."""
HEADER_SIZE: Final = 2 << 20
"""Bytes from the start of the header to the payload."""

_MAGIC: Final = b"LUKS\xba\xbe"
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_SLOTS: Final = 8
_SECTOR: Final = 512
_STRIPES: Final = 4000
_ENABLED: Final = 0x00AC71F3
_DISABLED: Final = 0x0000DEAD
_ITERATIONS: Final = 1000
_MOST_ITERATIONS: Final = 1_000_000
"""A header that asks for more would only hold the host up (2^32 iterations take an hour)."""
_SALT_SIZE: Final = 32
_DIGEST_SIZE: Final = 20
_MATERIAL_SIZE: Final = KEY_SIZE * _STRIPES
_FIRST_SLOT_SECTOR: Final = 8
_SLOT_SECTORS: Final = 504
"""Sectors between key slots: the material's 500, aligned to 4 KiB as cryptsetup does."""
_HASH_SIZE: Final = 32

Entropy = Callable[[int], bytes]
"""Gives that many random bytes (``os.urandom``)."""


@dataclass(frozen=True, slots=True)
class KeySlot:
    """An active key slot."""

    iterations: int
    salt: bytes
    material_offset: int
    """Bytes from the start of the header."""


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """What a partition header says; the key in it was not looked at."""

    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    payload_offset: int
    """Bytes from the start of the header."""
    slots: tuple[KeySlot, ...]


def make_header(master_key: SecretKey, passphrase: SecretKey, entropy: Entropy) -> bytes:
    """Make a header whose slot 0 holds ``master_key``.

    Args:
        master_key: 64 bytes.
        passphrase: UTF-8 text, as QEMU wants it.
        entropy: Source of salts and stripes.

    Returns:
        ``HEADER_SIZE`` bytes.

    Raises:
        ValueError: The master key has not 64 bytes.
    """
    if len(master_key) != KEY_SIZE:
        raise ValueError(f"a master key has {KEY_SIZE} bytes, not {len(master_key)}")
    digest_salt, slot_salt = entropy(_SALT_SIZE), entropy(_SALT_SIZE)
    identifier = str(uuid.UUID(bytes=entropy(16), version=4)).encode()
    header = bytearray(HEADER_SIZE)
    digest = hashlib.pbkdf2_hmac("sha256", master_key.view(), digest_salt, _ITERATIONS, _DIGEST_SIZE)
    _HEADER.pack_into(
        header,
        0,
        _MAGIC,
        1,
        b"aes",
        b"xts-plain64",
        b"sha256",
        HEADER_SIZE // _SECTOR,
        KEY_SIZE,
        digest,
        digest_salt,
        _ITERATIONS,
        identifier,
    )
    for number in range(_SLOTS):
        sector = _FIRST_SLOT_SECTOR + number * _SLOT_SECTORS
        active = number == 0
        state, iterations, salt = (_ENABLED, _ITERATIONS, slot_salt) if active else (_DISABLED, 0, bytes(_SALT_SIZE))
        _SLOT.pack_into(header, _HEADER.size + number * _SLOT.size, state, iterations, salt, sector, _STRIPES)
    with _slot_key(passphrase, slot_salt, _ITERATIONS) as slot_key:
        split = _split(master_key, entropy)
        start = _FIRST_SLOT_SECTOR * _SECTOR
        header[start : start + _MATERIAL_SIZE] = _cipher_sectors(slot_key, split, encrypt=True)
        split[:] = bytes(len(split))
    return bytes(header)


def parse_header(blob: bytes) -> LuksHeader:
    """Parse a partition header.

    Args:
        blob: At least the header's first 592 bytes.

    Raises:
        FormatError: Truncated, not LUKS 1, another cipher than ours, or a field out of its range.
    """
    if len(blob) < _HEADER.size + _SLOTS * _SLOT.size:
        raise FormatError("the LUKS header is cut short")
    magic, version, cipher, mode, hash_name, payload, key_size, digest, salt, iterations, identifier = (
        _HEADER.unpack_from(blob)
    )
    if magic != _MAGIC or version != 1:
        raise FormatError("not a LUKS header of version 1")
    shape = tuple(_text(field) for field in (cipher, mode, hash_name))
    if shape != ("aes", "xts-plain64", "sha256") or key_size != KEY_SIZE:
        raise FormatError("the LUKS header is not for aes-xts-plain64 with a 512-bit key and SHA-256")
    _require_iterations(iterations)
    if not 0 < payload * _SECTOR <= HEADER_SIZE:
        raise FormatError(f"the LUKS header is longer than {HEADER_SIZE} bytes")
    slots = tuple(slot for number in range(_SLOTS) if (slot := _parse_slot(blob, number, payload)))
    return LuksHeader(digest, salt, iterations, _text(identifier), payload * _SECTOR, slots)


def open_header(blob: bytes, passphrase: SecretKey) -> SecretKey | None:
    """Take the master key out of a header.

    Args:
        blob: The whole header up to its payload.
        passphrase: As given to ``make_header``.

    Returns:
        The master key, 64 bytes; None if no slot opens with the passphrase.

    Raises:
        FormatError: As ``parse_header``, or the blob ends before the areas of the key slots.
    """
    header = parse_header(blob)
    for slot in header.slots:
        material = blob[slot.material_offset : slot.material_offset + _MATERIAL_SIZE]
        if len(material) != _MATERIAL_SIZE:
            raise FormatError("the LUKS header is cut short")
        with _slot_key(passphrase, slot.salt, slot.iterations) as slot_key:
            split = bytearray(_cipher_sectors(slot_key, material, encrypt=False))
        candidate = _merge(split)
        split[:] = bytes(len(split))
        digest = hashlib.pbkdf2_hmac(
            "sha256", candidate.view(), header.digest_salt, header.digest_iterations, _DIGEST_SIZE
        )
        if hmac.compare_digest(digest, header.digest):
            return candidate
        candidate.close()
    return None


def _parse_slot(blob: bytes, number: int, payload_sectors: int) -> KeySlot | None:
    state, iterations, salt, sector, stripes = _SLOT.unpack_from(blob, _HEADER.size + number * _SLOT.size)
    if state == _DISABLED:
        return None
    if state != _ENABLED or stripes != _STRIPES:
        raise FormatError(f"key slot {number} of the LUKS header is malformed")
    _require_iterations(iterations)
    if not _FIRST_SLOT_SECTOR <= sector <= payload_sectors - _MATERIAL_SIZE // _SECTOR:
        raise FormatError(f"key slot {number} lies outside the LUKS header")
    return KeySlot(iterations, salt, sector * _SECTOR)


def _require_iterations(iterations: int) -> None:
    if not 1 <= iterations <= _MOST_ITERATIONS:
        raise FormatError(f"the LUKS header asks for {iterations} iterations, the limit is {_MOST_ITERATIONS}")


def _text(field: bytes) -> str:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0") or not text.isascii():
        raise FormatError("a name in the LUKS header is malformed")
    return text.decode()


def _slot_key(passphrase: SecretKey, salt: bytes, iterations: int) -> SecretKey:
    return SecretKey.adopt_result(hashlib.pbkdf2_hmac("sha256", passphrase.view(), salt, iterations, KEY_SIZE))


def _cipher_sectors(key: SecretKey, text: bytes | bytearray, *, encrypt: bool) -> bytes:
    """AES-XTS with the sector's number within the text as tweak ("plain64")."""
    parts = []
    algorithm = algorithms.AES(key.view())
    for number, offset in enumerate(range(0, len(text), _SECTOR)):
        cipher = Cipher(algorithm, modes.XTS(number.to_bytes(16, "little")))
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        parts.append(context.update(text[offset : offset + _SECTOR]))
    return b"".join(parts)


def _split(key: SecretKey, entropy: Entropy) -> bytearray:
    """Anti-forensic split (section 2.4): stripes that only together give the key."""
    stripes = bytearray(entropy(_MATERIAL_SIZE - KEY_SIZE))
    last = _fold(stripes)
    stripes += bytes(left ^ right for left, right in zip(last, key.view(), strict=True))
    return stripes


def _merge(stripes: bytearray) -> SecretKey:
    folded = _fold(stripes[:-KEY_SIZE])

    def write(page: memoryview) -> None:
        page[:] = bytes(left ^ right for left, right in zip(folded, stripes[-KEY_SIZE:], strict=True))

    return SecretKey.written_by(KEY_SIZE, write)


def _fold(stripes: bytearray) -> bytes:
    state = 0
    for offset in range(0, len(stripes), KEY_SIZE):
        mixed = (state ^ int.from_bytes(stripes[offset : offset + KEY_SIZE], "big")).to_bytes(KEY_SIZE, "big")
        state = int.from_bytes(
            b"".join(
                hashlib.sha256(index.to_bytes(4, "big") + mixed[start : start + _HASH_SIZE]).digest()
                for index, start in enumerate(range(0, KEY_SIZE, _HASH_SIZE))
            ),
            "big",
        )
    return state.to_bytes(KEY_SIZE, "big")
