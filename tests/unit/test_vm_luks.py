"""LUKS 1 headers: round trip, refusals, and that nothing but ``FormatError`` leaves the parser."""

import os
import struct
from binascii import hexlify
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.errors import FormatError
from host_agent.vm import luks
from keyprovider.keymaterial import SecretKey


def _passphrase(fill: int = 1) -> SecretKey:
    return SecretKey.adopt(hexlify(bytes([fill]) * 32))


def _header() -> bytes:
    return luks.make_header(SecretKey.adopt(bytes(range(64))), _passphrase(), Random(7).randbytes)  # noqa: S311


HEADER = _header()


def test_passphrase_gives_the_master_key_back() -> None:
    """A header opens with its passphrase and gives the master key that was put in."""
    opened = luks.open_header(HEADER, _passphrase())
    assert opened is not None
    assert opened.matches(SecretKey.adopt(bytes(range(64))))


def test_other_passphrase_gives_nothing() -> None:
    """A header does not open with another passphrase."""
    assert luks.open_header(HEADER, _passphrase(2)) is None


def test_header_says_what_qemu_needs() -> None:
    """Slot 0 alone is active, with the 1,000 iterations that a random passphrase needs."""
    header = luks.parse_header(HEADER)
    assert [(slot.iterations, slot.material_offset) for slot in header.slots] == [(1000, 4096)]
    assert header.payload_offset == luks.HEADER_SIZE == len(HEADER)
    assert header.uuid.count("-") == 4


def test_master_key_and_passphrase_are_not_in_the_header() -> None:
    """Neither the master key nor the passphrase lies in the header in clear (R-STD-5)."""
    assert bytes(range(32)) not in HEADER
    assert hexlify(bytes([1]) * 32)[:16] not in HEADER


def test_two_headers_share_nothing_random() -> None:
    """Salts and stripes are new each time: the same keys give another header."""
    again = luks.make_header(SecretKey.adopt(bytes(range(64))), _passphrase(), os.urandom)
    assert again[112:592] != HEADER[112:592]
    assert again[4096:8192] != HEADER[4096:8192]


def test_wrong_master_key_size_is_refused() -> None:
    """A master key that is not 64 bytes never gets into a header."""
    with pytest.raises(ValueError, match="64 bytes, not 32"):
        luks.make_header(SecretKey.random(32), _passphrase(), os.urandom)


@pytest.mark.parametrize(
    ("offset", "replacement", "message"),
    [
        (0, b"LUKX", "not a LUKS header"),
        (6, b"\x00\x02", "version 1"),
        (8, b"twofish\0", "aes-xts-plain64"),
        (40, b"cbc-essiv:sha256\0", "aes-xts-plain64"),
        (72, b"sha1\0\0", "SHA-256"),
        (104, struct.pack(">I", 4097), "longer than"),
        (104, struct.pack(">I", 0), "longer than"),
        (108, struct.pack(">I", 32), "512-bit"),
        (164, struct.pack(">I", 0xFFFFFFFF), "iterations"),
        (168, b"\xff" * 8, "malformed"),
        (208, struct.pack(">I", 5), "key slot 0"),
        (212, struct.pack(">I", 0xFFFFFFFF), "iterations"),
        (248, struct.pack(">I", 1 << 30), "outside"),
        (248, struct.pack(">I", 0), "outside"),
        (252, struct.pack(">I", 1), "key slot 0"),
    ],
)
def test_changed_field_is_refused(offset: int, replacement: bytes, message: str) -> None:
    """Each field that QEMU or we would trip over is refused, with what is wrong."""
    changed = HEADER[:offset] + replacement + HEADER[offset + len(replacement) :]
    with pytest.raises(FormatError, match=message):
        luks.parse_header(changed)


def test_changed_key_material_does_not_open() -> None:
    """One flipped bit among the 4,000 stripes is enough that no key comes out."""
    changed = bytearray(HEADER)
    changed[100_000] ^= 1
    assert luks.open_header(bytes(changed), _passphrase()) is None


@pytest.mark.parametrize("length", [0, 5, 591, 592, 200_000])
def test_truncated_header_is_refused(length: int) -> None:
    """A header that ends early is refused, wherever it ends."""
    with pytest.raises(FormatError, match="cut short"):
        luks.open_header(HEADER[:length], _passphrase())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=700))
def test_parser_lets_out_one_error_only_on_noise(blob: bytes) -> None:
    """Whatever the bytes, the parser answers or raises ``FormatError``."""
    try:
        luks.parse_header(blob)
    except FormatError:
        return


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 591), st.integers(0, 255)), min_size=1, max_size=6))
def test_parser_lets_out_one_error_only_on_edits(edits: list[tuple[int, int]]) -> None:
    """A genuine header with some bytes changed parses into values in range, or raises ``FormatError``."""
    changed = bytearray(HEADER[:592])
    for offset, value in edits:
        changed[offset] = value
    try:
        header = luks.parse_header(bytes(changed))
    except FormatError:
        return
    assert header.payload_offset <= luks.HEADER_SIZE
    assert all(slot.material_offset < header.payload_offset for slot in header.slots)
