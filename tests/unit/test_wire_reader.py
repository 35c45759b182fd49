"""The bounded reader."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.wire.reader import Reader


def test_reads_in_both_byte_orders() -> None:
    """Integers come out in the order the reader was made for."""
    data = b"\x01\x02\x00\x03\x04"
    assert Reader(data).u16() == 0x0102
    assert Reader(data, byte_order="little").u32() == 0x03000201


def test_a_sized_buffer_is_bounded() -> None:
    """A TPM2B longer than the caller allows is refused, even if its bytes are there."""
    assert Reader(b"\0\2ab").tpm2b(2) == b"ab"
    with pytest.raises(WireError, match="at most 1"):
        Reader(b"\0\2ab").tpm2b(1)


def test_a_negative_size_is_refused() -> None:
    """A length computed below zero never moves the reader back."""
    with pytest.raises(WireError):
        Reader(b"abc").take(-1)


def test_trailing_bytes_are_refused() -> None:
    """A structure ends where its buffer ends."""
    reader = Reader(b"abc")
    reader.take(2)
    with pytest.raises(WireError, match="1 bytes too many"):
        reader.finish()
    assert reader.rest() == b"c"
    reader.finish()


@settings(deadline=None)
@given(st.binary(max_size=64), st.lists(st.integers(min_value=0, max_value=12), max_size=12))
def test_never_reads_past_the_end(data: bytes, sizes: list[int]) -> None:
    """Whatever is asked for, what comes out are the buffer's bytes in order, or WireError."""
    reader = Reader(data)
    seen = b""
    for size in sizes:
        try:
            seen += reader.take(size)
        except WireError:
            assert size > reader.remaining
    assert data.startswith(seen)
    assert reader.offset == len(seen)
