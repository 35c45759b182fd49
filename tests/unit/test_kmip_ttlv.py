"""TTLV codec: what goes in comes out, and nothing malformed does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyprovider.errors import TtlvError
from keyprovider.kmip.ttlv import MAX_BYTES, MAX_DEPTH, Item, ItemType, decode, encode, message_size

# Examples of KMIP 1.4, section 9.1.2, with tag 0x420020.
SPECIFICATION = [
    (ItemType.INTEGER, 8, "42002002000000040000000800000000"),
    (ItemType.LONG_INTEGER, 123456789000000000, "420020030000000801B69B4BA5749200"),
    (
        ItemType.BIG_INTEGER,
        1234567890000000000000000000,
        "42002004000000100000000003FD35EB6BC2DF4618080000",
    ),
    (ItemType.ENUMERATION, 255, "4200200500000004000000FF00000000"),
    (ItemType.BOOLEAN, True, "42002006000000080000000000000001"),
    (ItemType.TEXT_STRING, "Hello World", "420020070000000B48656C6C6F20576F726C640000000000"),
    (ItemType.BYTE_STRING, b"\x01\x02\x03", "42002008000000030102030000000000"),
    (ItemType.DATE_TIME, 0x47DA67F8, "42002009000000080000000047DA67F8"),
    (ItemType.INTERVAL, 864000, "4200200A00000004000D2F0000000000"),
]

_tags = st.integers(1, 0xFFFFFF)
_leaves = st.one_of(
    st.builds(Item, _tags, st.just(ItemType.INTEGER), st.integers(-(2**31), 2**31 - 1)),
    st.builds(Item, _tags, st.just(ItemType.LONG_INTEGER), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Item, _tags, st.just(ItemType.BIG_INTEGER), st.integers(-(2**200), 2**200)),
    st.builds(Item, _tags, st.just(ItemType.ENUMERATION), st.integers(0, 2**32 - 1)),
    st.builds(Item, _tags, st.just(ItemType.BOOLEAN), st.booleans()),
    st.builds(Item, _tags, st.just(ItemType.TEXT_STRING), st.text(max_size=40)),
    st.builds(Item, _tags, st.just(ItemType.BYTE_STRING), st.binary(max_size=40)),
    st.builds(Item, _tags, st.just(ItemType.DATE_TIME), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Item, _tags, st.just(ItemType.INTERVAL), st.integers(0, 2**32 - 1)),
)
_items = st.recursive(
    _leaves,
    lambda children: st.builds(Item, _tags, st.just(ItemType.STRUCTURE), st.lists(children, max_size=5).map(tuple)),
    max_leaves=20,
)


@pytest.mark.parametrize(("kind", "value", "encoded"), SPECIFICATION, ids=lambda value: str(value)[:24])
def test_examples_of_the_specification(kind: ItemType, value: int | str | bytes, encoded: str) -> None:
    """Each example of the specification encodes and decodes as printed there."""
    item = Item(0x420020, kind, value)
    assert encode(item).hex().upper() == encoded
    assert decode(bytes.fromhex(encoded)) == item


@given(_items)
def test_round_trip(item: Item) -> None:
    """What was encoded decodes to the same item, and encodes to the same bytes again."""
    data = encode(item)
    assert decode(data) == item
    assert encode(decode(data)) == data


@given(st.binary(max_size=200))
def test_only_ttlv_error_leaves_the_decoder(data: bytes) -> None:
    """Whatever comes in, the decoder raises its one error or none."""
    try:
        decode(data)
    except TtlvError:
        return


@given(_items, st.data())
def test_changed_messages_decode_or_are_refused(item: Item, data: st.DataObject) -> None:
    """A message with one byte changed decodes to something, or raises the one error."""
    message = bytearray(encode(item))
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode(message)
    except TtlvError:
        return


@given(_items)
def test_every_truncation_is_refused(item: Item) -> None:
    """A message that ends early is refused, wherever it ends."""
    message = encode(item)
    for end in range(len(message)):
        with pytest.raises(TtlvError):
            decode(message[:end])


@pytest.mark.parametrize(
    "encoded",
    [
        "42002002000000040000000800000001",  # padding not zero
        "42002006000000080000000000000002",  # boolean 2
        "4200200200000008000000080000000A",  # integer of 8 bytes
        "4200200C00000004000000FF00000000",  # unknown type
        "42002007000000028080000000000000",  # not UTF-8
        "4200200400000004000000FF00000000",  # big integer of 4 bytes
        "42002001000000084200200200000004",  # child longer than its parent
        "4200200200000004000000080000000000",  # a byte too many
    ],
)
def test_malformed_items_are_refused(encoded: str) -> None:
    """Padding, fixed sizes, booleans, text and lengths are checked, and nothing may follow."""
    with pytest.raises(TtlvError):
        decode(bytes.fromhex(encoded))


def test_nesting_is_bounded() -> None:
    """A message nested too deeply is refused when read and when written."""
    item = Item(1, ItemType.INTEGER, 1)
    data = bytes(encode(item))
    for _ in range(MAX_DEPTH + 1):
        item = Item(1, ItemType.STRUCTURE, (item,))
        data = bytes.fromhex("00000101") + len(data).to_bytes(4, "big") + data
    with pytest.raises(TtlvError, match="deeper"):
        encode(item)
    with pytest.raises(TtlvError, match="deeper"):
        decode(data)


def test_size_is_bounded_before_anything_is_read() -> None:
    """A header that announces more than the limit is refused, and so is such a message."""
    with pytest.raises(TtlvError, match="at most"):
        message_size(bytes.fromhex("42007B01") + (MAX_BYTES).to_bytes(4, "big"))
    with pytest.raises(TtlvError, match="at most"):
        decode(bytes(MAX_BYTES + 8))
    assert message_size(bytes.fromhex("42007B0100000010")) == 24


def test_repr_shows_no_value() -> None:
    """An item's repr does not show its value, which may be a key."""
    assert "secret" not in repr(Item(0x420043, ItemType.BYTE_STRING, b"secret"))


def test_byte_strings_are_views_of_the_buffer() -> None:
    """A decoded byte string is a view: wiping the buffer wipes it."""
    buffer = bytearray(encode(Item(0x420043, ItemType.BYTE_STRING, b"0123456789abcdef")))
    item = decode(buffer)
    buffer[8:24] = bytes(16)
    assert item.value == bytes(16)
