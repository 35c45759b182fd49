"""Key derivation keys, and how hosts wrap KEKs under them (R-NAT-3).

Beside a VM lies, for each KEK, 82 bytes: version (1 byte, 0x01) ‖ KDK version (4 bytes, big-endian) ‖ KDK key id
(16 bytes) ‖ ``envelope.wrap`` of the KEK (61 bytes). The wrapping key is HKDF-SHA-256 of the KDK
(``envelope.derive``: label ``native/wrap``, salt = key id ‖ KDK version): a blob whose head was changed names another
KDK or derives another wrapping key, and does not open. Vectors: ``docs/vectors/native-key.json``.

Pure: the nonce is passed in; no clock, I/O or logging.
"""

import uuid
from dataclasses import dataclass
from typing import Final

from keyprovider.envelope import WrapContext, derive_key, unwrap_key, wrap_key
from keyprovider.envelope.transcript import transcript
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

KDK_SIZE: Final = 32
KEK_SIZE: Final = 32
MAX_VERSION: Final = (1 << 32) - 1
WRAP_LABEL: Final = "native/wrap"
_FORMAT: Final = b"\x01"
_HEAD_SIZE: Final = len(_FORMAT) + 4 + 16
BLOB_SIZE: Final = _HEAD_SIZE + 1 + 12 + KEK_SIZE + 16


@dataclass(frozen=True, slots=True)
class KdkName:
    """Which key: the id is unique everywhere, the version counts the provider's keys from 1."""

    provider: str
    key_id: uuid.UUID
    version: int

    def __post_init__(self) -> None:
        """Refuse versions that have no encoding.

        Raises:
            ValueError: Not 1 to 2^32 - 1.
        """
        if not 1 <= self.version <= MAX_VERSION:
            raise ValueError(f"a KDK has a version from 1 to {MAX_VERSION}, not {self.version}")

    def head(self) -> bytes:
        """What stands before a KEK that was wrapped under it, 21 bytes."""
        return _FORMAT + self.version.to_bytes(4, "big") + self.key_id.bytes


@dataclass(frozen=True, slots=True, eq=False)
class Kdk:
    """A key derivation key. Whoever makes one closes it."""

    name: KdkName
    key: SecretKey

    def __post_init__(self) -> None:
        """Refuse keys of another size.

        Raises:
            ValueError: Not 32 bytes.
        """
        if len(self.key) != KDK_SIZE:
            raise ValueError(f"a KDK has {KDK_SIZE} bytes, not {len(self.key)}")

    def copy(self) -> "Kdk":
        """The same key in memory of its own."""

        def write(page: memoryview) -> None:
            page[:] = self.key.view()

        return Kdk(self.name, SecretKey.written_by(KDK_SIZE, write))

    def close(self) -> None:
        """Wipe it."""
        self.key.close()


def kdk_of(blob: bytes, provider: str) -> KdkName:
    """Under which KDK of ``provider`` a blob says it was wrapped; :func:`unwrap_kek` proves it.

    Raises:
        EnvelopeError: Another length, an unknown format, or version 0.
    """
    if len(blob) != BLOB_SIZE:
        raise EnvelopeError(f"a KEK of a native provider has {BLOB_SIZE} bytes, not {len(blob)}")
    if blob[:1] != _FORMAT:
        raise EnvelopeError(f"unknown version of a native provider's KEK: {blob[0]}")
    try:
        return KdkName(provider, uuid.UUID(bytes=blob[5:_HEAD_SIZE]), int.from_bytes(blob[1:5], "big"))
    except ValueError as exc:
        raise EnvelopeError(str(exc)) from exc


def wrap_kek(kdk: Kdk, kek: SecretKey, context: WrapContext, *, nonce: bytes) -> bytes:
    """Wrap a KEK under a KDK.

    Args:
        kdk: Of the provider that the context names.
        kek: 32 bytes.
        context: What the KEK belongs to.
        nonce: 12 random bytes, never used before with this KDK.

    Returns:
        82 bytes.

    Raises:
        ValueError: A wrong size, or the context is another provider's.
    """
    if len(kek) != KEK_SIZE:
        raise ValueError(f"a KEK has {KEK_SIZE} bytes, not {len(kek)}")
    if context.provider != kdk.name.provider:
        raise ValueError(f"expected a context of provider {kdk.name.provider!r}, got {context.provider!r}")
    with _wrapping_key(kdk) as wrapping:
        return kdk.name.head() + wrap_key(wrapping, kek, context, nonce=nonce)


def unwrap_kek(kdk: Kdk, blob: bytes, context: WrapContext) -> SecretKey:
    """Open what :func:`wrap_kek` made.

    Raises:
        EnvelopeError: Malformed, wrapped under another KDK than ``kdk``, or not for this context.
    """
    if kdk_of(blob, context.provider) != kdk.name:
        raise EnvelopeError(f"the KEK was not wrapped under version {kdk.name.version} of {kdk.name.provider!r}")
    with _wrapping_key(kdk) as wrapping:
        return unwrap_key(wrapping, blob[_HEAD_SIZE:], context)


def push_info(name: KdkName, host: str) -> bytes:
    """What a KDK is sealed for on its way to a host: HPKE ``info``.

    Fields in order: label ``garant/native-push/v1``, provider, key id (16 bytes), version (4 bytes, big-endian), name
    of the host.

    Raises:
        ValueError: A text has no UTF-8 form.
    """
    fields = (name.provider, name.key_id.bytes, name.version.to_bytes(4, "big"), host)
    return transcript("garant/native-push/v1", fields)


def _wrapping_key(kdk: Kdk) -> SecretKey:
    return derive_key(kdk.key, WRAP_LABEL, salt=kdk.name.key_id.bytes + kdk.name.version.to_bytes(4, "big"))
