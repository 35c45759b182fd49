"""A wrapped key as it lies beside a VM: version of the primary key (4 bytes, big-endian) ‖ what the backend made.

The software backend makes an ``envelope.wrap``: 65 bytes in all for a 32-byte key. A changed version selects another
primary key, which does not open it.
Pure: no clock, randomness, I/O or logging.
"""

from typing import Final

from keyprovider.errors import EnvelopeError

_VERSION_SIZE: Final = 4


def join_version(version: int, blob: bytes) -> bytes:
    """Put a primary key's version before what the backend made."""
    return version.to_bytes(_VERSION_SIZE, "big") + blob


def split_version(wrapped: bytes) -> tuple[int, bytes]:
    """Undo :func:`join_version`.

    Raises:
        EnvelopeError: Too short.
    """
    if len(wrapped) <= _VERSION_SIZE:
        raise EnvelopeError(f"a wrapped key has more than {_VERSION_SIZE} bytes, not {len(wrapped)}")
    return int.from_bytes(wrapped[:_VERSION_SIZE], "big"), wrapped[_VERSION_SIZE:]
