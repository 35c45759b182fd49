"""Derive one key per use: HKDF-SHA-256 (RFC 5869), ``info`` = ``garant/`` label ``/v1``.

Every use has its own label (``vtpm-state``, ``luks-passphrase``, ``file/…``); a key is never used for two things.
Pure: no clock, randomness, I/O or logging.
"""

import re
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyprovider.keymaterial import SecretKey

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*")


def derive_key(key: SecretKey, label: str, *, salt: bytes = b"", size: int = 32) -> SecretKey:
    """Derive the key for the use that ``label`` names, straight into secret memory.

    Args:
        key: At least 16 bytes.
        label: Lower-case letters, digits and dashes; words separated by slashes.
        salt: Empty means a salt of zeros, as RFC 5869 has it.
        size: 1 to 128 bytes.

    Raises:
        ValueError: The key is too short, the label malformed, or the size out of range.
    """
    if len(key) < 16:
        raise ValueError(f"no key is derived from {len(key)} bytes; 16 or more are needed")
    if not _LABEL.fullmatch(label):
        raise ValueError(f"a label has lower-case words separated by slashes, not {label!r}")
    info = f"garant/{label}/v1".encode()
    return SecretKey.written_by(
        size, lambda page: HKDF(SHA256(), size, salt or None, info).derive_into(key.view(), page)
    )
