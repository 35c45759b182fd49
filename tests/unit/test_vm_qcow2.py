"""qcow2 headers: what we make, what we refuse, and that nothing but ``FormatError`` leaves the parser."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.errors import FormatError
from host_agent.vm import qcow2

IMAGE = qcow2.make_empty_image(10 << 20, b"L" * 70_000)


def _with(offset: int, replacement: bytes, image: bytes = IMAGE) -> bytes:
    return image[:offset] + replacement + image[offset + len(replacement) :]


def test_made_image_says_what_it_holds() -> None:
    """An empty image carries its size and the place of its LUKS header, and stands alone."""
    header = qcow2.parse_header(IMAGE)
    assert header == qcow2.Qcow2Header(3, 10 << 20, "", qcow2.Encryption.LUKS, 4 << 16, 70_000, False, False)
    assert IMAGE[header.luks_offset :][: header.luks_length] == b"L" * 70_000


def test_image_in_clear_has_no_luks_header() -> None:
    """Without a LUKS header the image is not encrypted, and says so."""
    header = qcow2.parse_header(qcow2.make_empty_image(512))
    assert (header.encryption, header.luks_length) == (qcow2.Encryption.NONE, 0)


@pytest.mark.parametrize("size", [0, -512, 511, qcow2.MOST_VIRTUAL_BYTES + 512])
def test_impossible_size_is_not_made(size: int) -> None:
    """A disk is a positive multiple of 512 bytes, up to 64 TiB."""
    with pytest.raises(ValueError, match="multiple of 512"):
        qcow2.make_empty_image(size)


def test_backing_file_is_named() -> None:
    """The name of a backing file comes out, so that a refusal can say it."""
    name = b"/base.qcow2"
    image = _with(300, name, _with(8, struct.pack(">QI", 300, len(name))))
    assert qcow2.parse_header(image).backing_file == "/base.qcow2"


@pytest.mark.parametrize(("bit", "field"), [(1, "corrupt"), (2, "external_data")])
def test_features_that_forbid_use_are_seen(bit: int, field: str) -> None:
    """The marks for damage and for data in another file are reported."""
    assert getattr(qcow2.parse_header(_with(72, struct.pack(">Q", 1 << bit))), field) is True


def test_data_file_name_alone_counts_as_external_data() -> None:
    """A data file that is named without its feature bit is still seen."""
    image = _with(112, struct.pack(">II8s", 0x44415441, 4, b"/x"), qcow2.make_empty_image(1 << 20))
    assert qcow2.parse_header(image).external_data


@pytest.mark.parametrize(
    ("offset", "replacement", "message"),
    [
        (0, b"QFI\x00", "not a qcow2 header"),
        (4, struct.pack(">I", 1), "unknown qcow2 version 1"),
        (8, struct.pack(">QI", 1 << 40, 5), "backing file lies outside"),
        (8, struct.pack(">QI", 300, 2000), "backing file lies outside"),
        (20, struct.pack(">I", 64), "cluster size"),
        (24, struct.pack(">Q", 0), "virtual size"),
        (24, struct.pack(">Q", 1 << 63), "virtual size"),
        (32, struct.pack(">I", 3), "encryption method 3"),
        (72, struct.pack(">Q", 1 << 40), "incompatible"),
        (96, struct.pack(">I", 7), "refcount order"),
        (100, struct.pack(">I", 96), "header size"),
        (100, struct.pack(">I", 1 << 30), "header size"),
        (112, struct.pack(">I", 1), "does not say where"),
        (116, struct.pack(">I", 1 << 31), "runs out"),
        (116, struct.pack(">I", 8), "does not say where"),
        (120, struct.pack(">Q", 17), "impossible place"),
        (120, struct.pack(">QQ", 1 << 16, 1 << 60), "impossible place"),
    ],
)
def test_changed_field_is_refused(offset: int, replacement: bytes, message: str) -> None:
    """Each field out of its range is refused, with what is wrong."""
    with pytest.raises(FormatError, match=message):
        qcow2.parse_header(_with(offset, replacement))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_parser_lets_out_one_error_only_on_noise(blob: bytes) -> None:
    """Whatever the bytes, the parser answers or raises ``FormatError``."""
    for candidate in (blob, qcow2.MAGIC + b"\0\0\0\x03" + blob):
        try:
            qcow2.parse_header(candidate)
        except FormatError:
            continue


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5),
    st.integers(0, 400),
)
def test_parser_lets_out_one_error_only_on_edits(edits: list[tuple[int, bytes]], cut: int) -> None:
    """A genuine header with fields changed and its end cut parses, or raises ``FormatError``."""
    image = IMAGE[:400]
    for offset, replacement in edits:
        image = _with(offset, replacement, image)
    try:
        header = qcow2.parse_header(image[: len(image) - cut])
    except FormatError:
        return
    assert 0 < header.virtual_size <= qcow2.MOST_VIRTUAL_BYTES
