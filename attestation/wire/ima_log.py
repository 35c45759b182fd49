"""Parse the kernel's list of measured files (Linux, security/integrity/ima: ima_fs.c, ima_template_lib.c), strictly.

The list is what ``/sys/kernel/security/ima/binary_runtime_measurements`` gives: entries in the order in which they were
extended, little-endian, each with a PCR, the SHA-1 of its template data, a template's name and the template's fields.
Entries come one by one from an iterator, so that a long list costs time and not memory; :func:`measurement` looks into
one of them.

Templates: ima, ima-ng, ima-sig, ima-buf, ima-ngv2, ima-sigv2. Refused: any other, sizes and counts over the bounds
below, an entry that is cut off, a field that is not exactly what its template says. A list of more than ``MAX_ENTRIES``
is refused after that many: a host whose list is longer sends what is new since the last time.

Pure: bytes in, values out. Lets no error out but ``WireError``.
"""

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from attestation.errors import WireError
from attestation.wire.event_log import PCR_COUNT

MAX_LIST_SIZE: Final = 32 * 1024 * 1024
MAX_ENTRIES: Final = 100_000
"""Of one list as sent. A server's whole boot measures some thousand files."""
MAX_TEMPLATE_DATA: Final = 128 * 1024
MAX_FILE_NAME: Final = 4096
"""PATH_MAX. The oldest template cuts names at 255."""
MAX_SIGNATURE: Final = 8 * 1024
MAX_DIGEST: Final = 64
TEMPLATE_HASH_SIZE: Final = 20
"""SHA-1: what the list shows for an entry, whichever banks the kernel extends."""
VIOLATION: Final = bytes(TEMPLATE_HASH_SIZE)
"""Template hash of an entry whose file changed while it was measured; the kernel extends FF..FF for it."""
BOOT_AGGREGATE: Final = b"boot_aggregate"
_MAX_NAME_OLD: Final = 255
# PCR, template hash, length of the template's name
_ENTRY_START: Final = struct.Struct("<I20sI")
_U32: Final = struct.Struct("<I")
_ALGORITHM_NAME: Final = re.compile(rb"[a-z0-9_-]{1,32}")
_DIGEST_TYPES: Final = (b"ima", b"verity")
_SIZES: Final = {name.encode(): hashlib.new(name).digest_size for name in ("sha1", "sha256", "sha384", "sha512")}
_SIGNATURE_START: Final = struct.Struct(">BBBIH")
_DIGITAL_SIGNATURE: Final = 3
_SIGNATURE_VERSION: Final = 2
_KERNEL_HASHES: Final[Mapping[int, str]] = {2: "sha1", 4: "sha256", 5: "sha384", 6: "sha512"}
"""``enum hash_algo`` of the kernel (include/uapi/linux/hash_info.h), as far as signatures here may use it."""


class ImaTemplate(StrEnum):
    """Template of an entry: which fields it has."""

    IMA = "ima"
    IMA_NG = "ima-ng"
    IMA_SIG = "ima-sig"
    IMA_BUF = "ima-buf"
    IMA_NGV2 = "ima-ngv2"
    IMA_SIGV2 = "ima-sigv2"


_TEMPLATES: Final[Mapping[bytes, ImaTemplate]] = {template.encode(): template for template in ImaTemplate}
_MAX_TEMPLATE_NAME: Final = max(map(len, _TEMPLATES))
_TYPED: Final = (ImaTemplate.IMA_NGV2, ImaTemplate.IMA_SIGV2)
_SIGNED: Final = (ImaTemplate.IMA_SIG, ImaTemplate.IMA_SIGV2)


class _Algorithm(NamedTuple):
    name: str
    size: int


_LABELS: Final[tuple[Mapping[bytes, _Algorithm], ...]] = (
    {name: _Algorithm(name.decode(), size) for name, size in _SIZES.items()},
    {
        # "ima:" is what the other templates mean without saying it.
        kind + b":" + name: _Algorithm(("verity:" if kind == b"verity" else "") + name.decode(), size)
        for kind in _DIGEST_TYPES
        for name, size in _SIZES.items()
    },
)
"""What stands before a digest: in templates without and with the digest's type."""


class ImaEntry(NamedTuple):
    """One entry of a list. A tuple, and not a dataclass, because an appraisal makes many thousands of them."""

    number: int
    """Place in the host's whole list, from 0."""
    pcr: int
    template_hash: bytes
    """20 bytes, SHA-1; all zero for a violation."""
    template: ImaTemplate
    data: bytes
    """What the template hash covers: the template's data, for the oldest template in its padded form."""


class ImaMeasurement(NamedTuple):
    """What one entry says. A tuple for the same reason."""

    name: bytes
    """Path of a file, or name of a buffer; any bytes but NUL."""
    field: bytes
    """The digest as the kernel writes it, with its algorithm; of a violation it means nothing."""
    algorithm: str
    """Such as sha256, or verity:sha256; empty for a violation."""
    digest: bytes
    """Of the file or buffer; empty for a violation."""
    signature: bytes
    """As found at the file; empty without one."""
    buffer: bytes | None
    """What was measured where that is no file; None for files."""


@dataclass(frozen=True, slots=True)
class ImaSignature:
    """A file's signature, version 2 (``struct signature_v2_hdr``, security/integrity/integrity.h)."""

    hash_name: str
    """Hash of the file that was signed: a name of ``hashlib``."""
    key_id: bytes
    """4 bytes: the end of the signer's subject key identifier."""
    signature: bytes
    """RSASSA-PKCS1-v1_5, or DER of ECDSA."""


def iter_ima_log(data: bytes, *, first: int = 0) -> Iterator[ImaEntry]:
    """Read a list's entries, one by one.

    Args:
        data: At most 32 MiB; nothing, for a list without entries.
        first: Number of the first entry, where the list is a later part.

    Raises:
        WireError: Too long; or, from the iterator, at the entry that is malformed or one too many.
    """
    if len(data) > MAX_LIST_SIZE:
        raise WireError(f"a list has at most {MAX_LIST_SIZE} bytes, not {len(data)}")
    return _entries(data, first)


def _entries(data: bytes, first: int) -> Iterator[ImaEntry]:
    unpack, unpack_size, start_size = _ENTRY_START.unpack_from, _U32.unpack_from, _ENTRY_START.size
    templates, old = _TEMPLATES, ImaTemplate.IMA
    # ImaEntry(...) by its C half, as for events of the firmware's log.
    new_entry: Callable[[tuple[object, ...]], ImaEntry] = partial(tuple.__new__, ImaEntry)
    number, limit, offset, end = first, first + MAX_ENTRIES, 0, len(data)
    while offset < end:
        if number >= limit:
            raise WireError(f"a list has at most {MAX_ENTRIES} entries")
        if end - offset < start_size:
            raise WireError(f"entry {number} at offset {offset} is cut off")
        pcr, template_hash, name_size = unpack(data, offset)
        offset += start_size
        if pcr >= PCR_COUNT:
            raise WireError(f"entry {number} is of PCR {pcr}, which no PC has")
        template = templates.get(data[offset : offset + name_size]) if name_size <= _MAX_TEMPLATE_NAME else None
        if template is None:
            raise WireError(f"entry {number} has a template that is not supported")
        offset += name_size
        if template is old:
            content, offset = _read_old(data, offset, number)
        else:
            if end - offset < 4:
                raise WireError(f"entry {number} at offset {offset} is cut off")
            (size,) = unpack_size(data, offset)
            offset += 4
            if size > MAX_TEMPLATE_DATA or size > end - offset:
                raise WireError(f"entry {number} announces {size} bytes of data, {end - offset} are left")
            content = data[offset : offset + size]
            offset += size
        yield new_entry((number, pcr, template_hash, template, content))
        number += 1


def _read_old(data: bytes, offset: int, number: int) -> tuple[bytes, int]:
    """Read template "ima": a digest without its length, a name without its end; hashed with the name padded to 256."""
    if len(data) - offset < TEMPLATE_HASH_SIZE + 4:
        raise WireError(f"entry {number} at offset {offset} is cut off")
    digest = data[offset : offset + TEMPLATE_HASH_SIZE]
    offset += TEMPLATE_HASH_SIZE
    (size,) = _U32.unpack_from(data, offset)
    offset += 4
    if size > _MAX_NAME_OLD or size > len(data) - offset:
        raise WireError(f"entry {number} announces a name of {size} bytes, {len(data) - offset} are left")
    name = data[offset : offset + size]
    if b"\0" in name:
        raise WireError(f"entry {number} has a name with a NUL")
    return digest + name.ljust(_MAX_NAME_OLD + 1, b"\0"), offset + size


def measurement(entry: ImaEntry) -> ImaMeasurement:
    """Look into an entry.

    Raises:
        WireError: Its fields are not exactly those of its template.
    """
    violation = entry.template_hash == VIOLATION
    if entry.template is ImaTemplate.IMA:
        digest = entry.data[:TEMPLATE_HASH_SIZE]
        name = entry.data[TEMPLATE_HASH_SIZE:].rstrip(b"\0")
        if violation:
            return ImaMeasurement(name, digest, "", b"", b"", None)
        return ImaMeasurement(name, b"sha1:\0" + digest, "sha1", digest, b"", None)
    typed = entry.template in _TYPED
    signature, buffer = b"", None
    if entry.template in _SIGNED:
        field, name, signature = _fields(entry, 3)
        if len(signature) > MAX_SIGNATURE:
            raise WireError(f"entry {entry.number} has a signature of {len(signature)} bytes")
    elif entry.template is ImaTemplate.IMA_BUF:
        field, name, buffer = _fields(entry, 3)
    else:
        field, name = _fields(entry, 2)
    if name.find(b"\0") != len(name) - 1 or not 1 < len(name) <= MAX_FILE_NAME + 1:
        raise WireError(f"entry {entry.number} has no name of 1 to {MAX_FILE_NAME} bytes with one NUL at its end")
    if violation:
        return ImaMeasurement(name[:-1], field, "", b"", signature, buffer)
    label, separator, digest = field.partition(b":\0")
    known = _LABELS[typed].get(label)
    if known is None or known.size != len(digest) or not separator:
        known = _other_algorithm(label, separator, digest, entry)
    return ImaMeasurement(name[:-1], field, known.name, digest, signature, buffer)


def _fields(entry: ImaEntry, count: int) -> list[bytes]:
    """The fields of all templates but the oldest: each a length, then so many bytes."""
    data, offset = entry.data, 0
    fields = []
    try:
        for _ in range(count):
            start = offset + 4
            offset = start + _U32.unpack_from(data, offset)[0]
            fields.append(data[start:offset])
    except struct.error as exc:
        raise WireError(f"entry {entry.number} has fewer than {count} fields") from exc
    if offset != len(data):
        raise WireError(f"entry {entry.number} has {len(data)} bytes of data, its fields announce {offset}")
    return fields


def _other_algorithm(label: bytes, separator: bytes, digest: bytes, entry: ImaEntry) -> _Algorithm:
    """Carry a digest whose algorithm is not known here; refuse one whose algorithm is, and is not of its size."""
    kind, typed, algorithm = label.rpartition(b":")
    if not separator or bool(typed) != (entry.template in _TYPED) or (typed and kind not in _DIGEST_TYPES):
        raise WireError(f"entry {entry.number} has a digest without its algorithm")
    if not _ALGORITHM_NAME.fullmatch(algorithm):
        raise WireError(f"entry {entry.number} has a digest of an algorithm with an odd name")
    if algorithm in _SIZES or not 0 < len(digest) <= MAX_DIGEST:
        raise WireError(f"entry {entry.number} has a {algorithm.decode()} digest of {len(digest)} bytes")
    return _Algorithm((label if kind == b"verity" else algorithm).decode(), len(digest))


def parse_ima_signature(data: bytes) -> ImaSignature:
    """Parse a file's signature, as the attribute ``security.ima`` and an entry of ima-sig hold it.

    Raises:
        WireError: Not a signature of version 2, or of a hash that is not supported.
    """
    if not _SIGNATURE_START.size < len(data) <= MAX_SIGNATURE:
        raise WireError(f"a file's signature has not {len(data)} bytes")
    kind, version, hash_id, key_id, size = _SIGNATURE_START.unpack_from(data)
    if (kind, version) != (_DIGITAL_SIGNATURE, _SIGNATURE_VERSION):
        raise WireError(f"a file's signature is of type 3, version 2, not of type {kind}, version {version}")
    if hash_id not in _KERNEL_HASHES:
        raise WireError(f"hash {hash_id} of the kernel is not supported in signatures")
    if size != len(data) - _SIGNATURE_START.size:
        raise WireError(f"a signature announces {size} bytes, {len(data) - _SIGNATURE_START.size} are there")
    return ImaSignature(_KERNEL_HASHES[hash_id], key_id.to_bytes(4, "big"), data[_SIGNATURE_START.size :])
