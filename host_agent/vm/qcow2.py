"""qcow2 headers: parse one strictly, make an empty image.

What is made has version 3, clusters of 64 KiB, nothing allocated, and optionally a LUKS header before its data.
The tables that map clusters are QEMU's business: neither read nor checked here.

Source: QEMU ``docs/interop/qcow2.txt``.
Pure: bytes in, bytes out. ``FormatError`` is the only error that bytes from outside can raise.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from host_agent.errors import FormatError

MAGIC: Final = b"QFI\xfb"
MOST_HEADER_BYTES: Final = 2 << 20
"""Header and extensions lie in the first cluster, and no cluster is larger."""
MOST_VIRTUAL_BYTES: Final = 64 << 40

_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_V3_HEADER_SIZE: Final = _V2.size + _V3.size
_HEADER_SIZE: Final = _V3_HEADER_SIZE + 8
_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE: Final = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _EXTENDED_L2
_EXTENSION_END: Final = 0
_EXTENSION_ENCRYPTION: Final = 0x0537BE77
_EXTENSION_DATA_FILE: Final = 0x44415441
_MOST_BACKING_NAME: Final = 1023
_CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << _CLUSTER_BITS
_REFCOUNT_ORDER: Final = 4
_L2_REACH: Final = _CLUSTER // 8 * _CLUSTER
"""Bytes of disk that one entry of the L1 table maps."""


class Encryption(IntEnum):
    """How the data is encrypted, by the number in the header."""

    NONE = 0
    AES = 1
    LUKS = 2


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What a header says."""

    version: int
    virtual_size: int
    """Bytes of the disk."""
    backing_file: str
    """Name of the image that this one is a difference to; empty if it stands alone."""
    encryption: Encryption
    luks_offset: int
    """Where in the file the LUKS header lies; 0 without one."""
    luks_length: int
    external_data: bool
    """Whether the data lies in another file."""
    corrupt: bool
    """Whether QEMU found it damaged and marked it so."""


def parse_header(blob: bytes) -> Qcow2Header:
    """Parse the header and its extensions.

    Args:
        blob: The file's first bytes: its first cluster, or all of it if shorter.

    Raises:
        FormatError: Truncated, not qcow2 of version 2 or 3, a field out of its range, or an unknown incompatible
            feature.
    """
    if len(blob) < _V2.size or blob[:4] != MAGIC:
        raise FormatError("not a qcow2 header")
    _, version, backing_offset, backing_size, cluster_bits, size, crypt, *_ = _V2.unpack_from(blob)
    if version not in (2, 3):
        raise FormatError(f"unknown qcow2 version {version}")
    if not 9 <= cluster_bits <= 21:
        raise FormatError(f"impossible qcow2 cluster size: 2^{cluster_bits}")
    if not 0 < size <= MOST_VIRTUAL_BYTES:
        raise FormatError(f"the virtual size is {size} bytes; 1 to {MOST_VIRTUAL_BYTES} are supported")
    if crypt not in set(Encryption):
        raise FormatError(f"unknown qcow2 encryption method {crypt}")
    incompatible, start = _parse_features(blob, version)
    first_cluster = blob[: 1 << cluster_bits]
    backing = _backing_name(first_cluster, backing_offset, backing_size)
    extensions = _parse_extensions(first_cluster[:backing_offset] if backing else first_cluster, start)
    luks_offset = luks_length = 0
    if crypt == Encryption.LUKS:
        luks_offset, luks_length = _luks_place(extensions, 1 << cluster_bits)
    return Qcow2Header(
        version,
        size,
        backing,
        Encryption(crypt),
        luks_offset,
        luks_length,
        bool(incompatible & _EXTERNAL_DATA) or _EXTENSION_DATA_FILE in extensions,
        bool(incompatible & _CORRUPT),
    )


def make_empty_image(virtual_size: int, luks_header: bytes = b"") -> bytes:
    """Make an image in which nothing is allocated.

    Args:
        virtual_size: Bytes of the disk: a multiple of 512, at most 64 TiB.
        luks_header: A whole LUKS header; empty for a disk in clear.

    Returns:
        The whole file.

    Raises:
        ValueError: The size is out of range.
    """
    if not 0 < virtual_size <= MOST_VIRTUAL_BYTES or virtual_size % 512:
        raise ValueError(f"a disk has a multiple of 512 bytes, at most {MOST_VIRTUAL_BYTES}, not {virtual_size}")
    l1_entries = -(-virtual_size // _L2_REACH)
    l1_clusters = -(-l1_entries * 8 // _CLUSTER)
    luks_clusters = -(-len(luks_header) // _CLUSTER)
    # header, refcount table, refcount block, L1 table, LUKS header
    luks_start = 3 + l1_clusters
    clusters = luks_start + luks_clusters
    image = bytearray(clusters * _CLUSTER)
    crypt = Encryption.LUKS if luks_header else Encryption.NONE
    _V2.pack_into(
        image, 0, MAGIC, 3, 0, 0, _CLUSTER_BITS, virtual_size, crypt, l1_entries, 3 * _CLUSTER, _CLUSTER, 1, 0, 0
    )
    _V3.pack_into(image, _V2.size, 0, 0, 0, _REFCOUNT_ORDER, _HEADER_SIZE)
    if luks_header:
        place = (luks_start * _CLUSTER, len(luks_header))
        struct.pack_into(">IIQQ", image, _HEADER_SIZE, _EXTENSION_ENCRYPTION, 16, *place)
        image[luks_start * _CLUSTER : luks_start * _CLUSTER + len(luks_header)] = luks_header
    struct.pack_into(">Q", image, _CLUSTER, 2 * _CLUSTER)
    struct.pack_into(f">{clusters}H", image, 2 * _CLUSTER, *[1] * clusters)
    return bytes(image)


def _parse_features(blob: bytes, version: int) -> tuple[int, int]:
    if version == 2:
        return 0, _V2.size
    if len(blob) < _V3_HEADER_SIZE:
        raise FormatError("the qcow2 header is cut short")
    incompatible, _, _, refcount_order, header_size = _V3.unpack_from(blob, _V2.size)
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise FormatError(f"unknown incompatible qcow2 features: {incompatible & ~_KNOWN_INCOMPATIBLE:#x}")
    if refcount_order > 6:
        raise FormatError(f"impossible qcow2 refcount order {refcount_order}")
    if header_size < _V3_HEADER_SIZE or header_size % 8 or header_size > len(blob):
        raise FormatError(f"impossible qcow2 header size {header_size}")
    return incompatible, header_size


def _backing_name(cluster: bytes, offset: int, size: int) -> str:
    if offset == 0:
        return ""
    if not 0 < size <= _MOST_BACKING_NAME or offset > len(cluster) - size:
        raise FormatError("the name of the qcow2 backing file lies outside the header")
    return cluster[offset : offset + size].decode(errors="replace")


def _parse_extensions(cluster: bytes, start: int) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    while start + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, start)
        if kind == _EXTENSION_END:
            break
        if length > len(cluster) - start - 8:
            raise FormatError(f"qcow2 header extension {kind:#x} runs out of the header")
        if kind in extensions:
            raise FormatError(f"qcow2 header extension {kind:#x} occurs twice")
        extensions[kind] = cluster[start + 8 : start + 8 + length]
        start += 8 + (length + 7) // 8 * 8
    return extensions


def _luks_place(extensions: dict[int, bytes], cluster_size: int) -> tuple[int, int]:
    pointer = extensions.get(_EXTENSION_ENCRYPTION, b"")
    if len(pointer) != 16:
        raise FormatError("the qcow2 header does not say where its LUKS header lies")
    offset, length = struct.unpack(">QQ", pointer)
    if not 0 < offset < 1 << 63 or offset % cluster_size or not 0 < length < 1 << 32:
        raise FormatError("the LUKS header lies at an impossible place")
    return offset, length
