"""The strict parser of the kernel's list of measured files."""

import contextlib
import hashlib
import struct
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.wire.ima_log import (
    MAX_ENTRIES,
    MAX_LIST_SIZE,
    MAX_TEMPLATE_DATA,
    VIOLATION,
    ImaEntry,
    ImaMeasurement,
    ImaTemplate,
    iter_ima_log,
    measurement,
    parse_ima_signature,
)

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "ovmf"
DIGEST = hashlib.sha256(b"content").digest()
D_NG = b"sha256:\0" + DIGEST


def fields(*parts: bytes) -> bytes:
    """Template data: each field with its length before it."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def entry(template: str, data: bytes, *, pcr: int = 10, shown: bytes | None = None) -> bytes:
    """One entry of any template but the oldest."""
    name = template.encode()
    start = struct.pack("<I", pcr) + (hashlib.sha1(data, usedforsecurity=False).digest() if shown is None else shown)
    return start + struct.pack("<I", len(name)) + name + struct.pack("<I", len(data)) + data


def old_entry(digest: bytes, name: bytes) -> bytes:
    """One entry of the oldest template."""
    hashed = hashlib.sha1(digest + name.ljust(256, b"\0"), usedforsecurity=False).digest()
    return struct.pack("<I", 10) + hashed + b"\3\0\0\0ima" + digest + struct.pack("<I", len(name)) + name


ENTRIES = (
    old_entry(bytes(range(20)), b"/init"),
    entry("ima-ng", fields(D_NG, b"/usr/bin/dash\0")),
    entry("ima-sig", fields(D_NG, b"/usr/bin/cat\0", b"")),
    entry("ima-sig", fields(D_NG, b"/usr/bin/cut\0", b"\3\2signature")),
    entry("ima-buf", fields(D_NG, b"kexec-cmdline\0", b"content")),
    entry("ima-ngv2", fields(b"ima:" + D_NG, b"/usr/bin/ip\0")),
    entry("ima-sigv2", fields(b"verity:" + D_NG, b"/usr/bin/mv\0", b"")),
    entry("ima-ng", fields(b"sha1:\0" + bytes(20), b"/var/log/x\0"), shown=VIOLATION),
)
LIST = b"".join(ENTRIES)


def read(data: bytes) -> list[tuple[ImaEntry, ImaMeasurement]]:
    """The whole list, and what is in its entries."""
    return [(found, measurement(found)) for found in iter_ima_log(data)]


def test_each_template_gives_its_fields() -> None:
    """Name, digest, signature and buffer come out as the kernel put them in, in order."""
    found = read(LIST)
    assert [item.number for item, _ in found] == list(range(len(ENTRIES)))
    assert {item.pcr for item, _ in found} == {10}
    assert [(m.name, m.algorithm, m.signature, m.buffer) for _, m in found] == [
        (b"/init", "sha1", b"", None),
        (b"/usr/bin/dash", "sha256", b"", None),
        (b"/usr/bin/cat", "sha256", b"", None),
        (b"/usr/bin/cut", "sha256", b"\3\2signature", None),
        (b"kexec-cmdline", "sha256", b"", b"content"),
        (b"/usr/bin/ip", "sha256", b"", None),
        (b"/usr/bin/mv", "verity:sha256", b"", None),
        (b"/var/log/x", "", b"", None),
    ]
    assert [m.digest for _, m in found] == [bytes(range(20)), *[DIGEST] * 6, b""]


def test_what_the_template_hash_covers_comes_out() -> None:
    """For every template, SHA-1 of the data is what the list shows, padding of the oldest included."""
    for item, _ in read(LIST)[:-1]:
        assert hashlib.sha1(item.data, usedforsecurity=False).digest() == item.template_hash


def test_a_later_part_counts_on() -> None:
    """Entries of a later part keep their numbers in the host's whole list."""
    assert [item.number for item in iter_ima_log(ENTRIES[1] * 2, first=40)] == [40, 41]


def test_an_empty_list_has_no_entries() -> None:
    """Nothing is a list without entries."""
    assert list(iter_ima_log(b"")) == []


def test_entries_come_one_by_one() -> None:
    """A malformed end is met only when it is reached: nothing is gathered before."""
    entries = iter_ima_log(ENTRIES[1] + b"\xff" * 40)
    assert next(entries).number == 0
    with pytest.raises(WireError, match="entry 1"):
        next(entries)


def test_a_digest_of_an_unknown_algorithm_is_carried() -> None:
    """An algorithm that nobody here computes does not hide the rest of the list."""
    found = measurement(next(iter_ima_log(entry("ima-ng", fields(b"sm3:\0" + bytes(32), b"/x\0")))))
    assert (found.algorithm, found.digest) == ("sm3", bytes(32))
    typed = measurement(next(iter_ima_log(entry("ima-ngv2", fields(b"verity:sm3:\0" + bytes(32), b"/x\0")))))
    assert typed.algorithm == "verity:sm3"


MALFORMED = [
    (entry("ima-ng", b"", pcr=24), "PCR 24"),
    (entry("ima-ng", b"", pcr=0xFFFFFFFF), "PCR 4294967295"),
    (entry("evm-sig", fields(D_NG, b"/x\0")), "template that is not supported"),
    (struct.pack("<I20sI", 10, bytes(20), 0xFFFFFFFF) + b"x", "template that is not supported"),
    (struct.pack(">I", 10) + ENTRIES[1][4:], "PCR 167772160"),
    (entry("ima-ng", fields(D_NG)), "fewer than 2 fields"),
    (entry("ima-ng", b""), "fewer than 2 fields"),
    (entry("ima-ng", fields(D_NG, b"/x\0", b"")), "its fields announce"),
    (entry("ima-ng", fields(D_NG, b"/x\0") + b"\0"), "its fields announce"),
    (entry("ima-ng", fields(D_NG, b"/x\0")[:-1]), "its fields announce"),
    (entry("ima-sig", fields(D_NG, b"/x\0")), "fewer than 3 fields"),
    (entry("ima-ng", struct.pack("<I", 0xFFFFFFFF) + D_NG), "fewer than 2 fields"),
    (entry("ima-ng", fields(D_NG, b"/x")), "NUL"),
    (entry("ima-ng", fields(D_NG, b"/x\0/y\0")), "NUL"),
    (entry("ima-ng", fields(D_NG, b"\0")), "NUL"),
    (entry("ima-ng", fields(D_NG, b"")), "NUL"),
    (entry("ima-ng", fields(D_NG, b"x" * 4097 + b"\0")), "4096"),
    (entry("ima-ng", fields(DIGEST, b"/x\0")), "without its algorithm"),
    (entry("ima-ng", fields(b"sha256:" + DIGEST, b"/x\0")), "without its algorithm"),
    (entry("ima-ng", fields(b"ima:" + D_NG, b"/x\0")), "without its algorithm"),
    (entry("ima-ngv2", fields(D_NG, b"/x\0")), "without its algorithm"),
    (entry("ima-ngv2", fields(b"evm:" + D_NG, b"/x\0")), "without its algorithm"),
    (entry("ima-ng", fields(b":\0" + DIGEST, b"/x\0")), "odd name"),
    (entry("ima-ng", fields(b"SHA 256:\0" + DIGEST, b"/x\0")), "odd name"),
    (entry("ima-ng", fields(D_NG[:-1], b"/x\0")), "sha256 digest of 31 bytes"),
    (entry("ima-ng", fields(D_NG + b"\0", b"/x\0")), "sha256 digest of 33 bytes"),
    (entry("ima-ng", fields(b"sm3:\0" + bytes(65), b"/x\0")), "sm3 digest of 65 bytes"),
    (entry("ima-sig", fields(D_NG, b"/x\0", bytes(8193))), "signature of 8193 bytes"),
    (ENTRIES[1][:-50] + struct.pack("<I", 0xFFFFFFFF), "cut off|announces"),
    (old_entry(bytes(20), b"x" * 256), "name of 256 bytes"),
    (old_entry(bytes(20), b"/x\0y"), "name with a NUL"),
    (entry("ima-buf", bytes(MAX_TEMPLATE_DATA + 1)), "announces 131073 bytes"),
]


@pytest.mark.parametrize(("data", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_refuses_malformed_lists(data: bytes, reason: str) -> None:
    """PCRs of no PC, unknown templates, sizes beyond bounds, fields other than announced: each is refused."""
    with pytest.raises(WireError, match=reason):
        read(data)


def test_refuses_lists_beyond_the_bounds() -> None:
    """A list of half a million lines ends at the bound on entries, a longer one at its size: T15."""
    short = entry("ima-ng", fields(b"sha1:\0" + bytes(20), b"x\0"))
    entries = iter_ima_log(short * (MAX_LIST_SIZE // len(short)))
    assert sum(1 for _ in islice(entries, MAX_ENTRIES)) == MAX_ENTRIES
    with pytest.raises(WireError, match="at most 100000 entries"):
        next(entries)
    with pytest.raises(WireError, match="at most 33554432 bytes"):
        iter_ima_log(bytes(MAX_LIST_SIZE + 1))


def test_a_list_cut_anywhere_but_between_entries_is_refused() -> None:
    """Truncation at every byte: a WireError, or whole entries only."""
    whole = read(LIST)
    ends = {sum(map(len, ENTRIES[:count])) for count in range(len(ENTRIES) + 1)}
    for end in range(len(LIST)):
        if end in ends:
            found = read(LIST[:end])
            assert found == whole[: len(found)]
        else:
            with pytest.raises(WireError):
                read(LIST[:end])


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(LIST) * 8 - 1))
def test_bit_flips_give_wire_error_or_a_list(bit: int) -> None:
    """Nothing but WireError escapes when one bit is flipped."""
    flipped = bytearray(LIST)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        read(bytes(flipped))


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(item[:31] for item in ENTRIES), ENTRIES[3][:39]]))
def test_any_bytes_give_wire_error_or_a_list(tail: bytes, head: bytes) -> None:
    """Nothing but WireError escapes."""
    with contextlib.suppress(WireError):
        read(head + tail)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=90), max_size=4), st.sampled_from(list(ImaTemplate)[1:]))
def test_any_fields_give_wire_error_or_a_measurement(parts: list[bytes], template: ImaTemplate) -> None:
    """Nothing but WireError escapes from the fields of a well-formed entry."""
    with contextlib.suppress(WireError):
        read(entry(template.value, fields(*parts)))


SIGNATURE = bytes.fromhex("030204deadbeef0004") + b"SIGN"


def test_a_files_signature_parses() -> None:
    """Version, hash, key identifier and signature are where the kernel has them."""
    found = parse_ima_signature(SIGNATURE)
    assert (found.hash_name, found.key_id.hex(), found.signature) == ("sha256", "deadbeef", b"SIGN")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SIGNATURE[:9],
        SIGNATURE[:-1],
        SIGNATURE + b"\0",
        b"\5" + SIGNATURE[1:],
        b"\3\1" + SIGNATURE[2:],
        b"\3\3" + SIGNATURE[2:],
        b"\3\2\1" + SIGNATURE[3:],
        b"\3\2\x7f" + SIGNATURE[3:],
        SIGNATURE[:7] + b"\x20\x01" + bytes(8193),
    ],
)
def test_refuses_what_is_no_files_signature(data: bytes) -> None:
    """Other types and versions, hashes that are not supported, sizes other than announced: each is refused."""
    with pytest.raises(WireError):
        parse_ima_signature(data)


@settings(deadline=None)
@given(st.binary(max_size=40), st.sampled_from([b"", b"\3\2", SIGNATURE[:7]]))
def test_any_bytes_give_wire_error_or_a_signature(tail: bytes, head: bytes) -> None:
    """Nothing but WireError escapes."""
    with contextlib.suppress(WireError):
        parse_ima_signature(head + tail)


@pytest.mark.parametrize("boot", sorted(path.name for path in VECTORS.glob("*") if path.is_dir()))
def test_real_lists_parse_as_the_kernel_shows_them(boot: str) -> None:
    """The binary lists of real kernels give what their text form says."""
    lines = (VECTORS / boot / "ascii_runtime_measurements").read_text().splitlines()
    found = read((VECTORS / boot / "binary_runtime_measurements").read_bytes())
    assert len(found) == len(lines)
    for (item, measured), line in zip(found, lines, strict=True):
        shown = f"{item.pcr} {item.template_hash.hex()} {item.template.value} {measured.algorithm}:"
        assert f"{shown}{measured.digest.hex()} {measured.name.decode()}" == line.strip()
        assert hashlib.sha1(item.data, usedforsecurity=False).digest() == item.template_hash
