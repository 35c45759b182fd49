"""TTLV, KMIP's encoding: tag (3 bytes), type (1), length (4), value padded to 8 bytes. All big-endian.

Source: OASIS KMIP Specification 1.4, section 9.1; type Date-Time Extended from 2.0, section 9.
Strict: bounded size and depth, lengths inside the parent, fixed-size types checked, padding zero, booleans 0 or 1, text
UTF-8, nothing after the item. ``TtlvError`` is the only error that leaves this module.

Byte strings are decoded as views of the buffer that was passed in, so that a key inside can be taken from there and the
buffer wiped: no copy of it is made here.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from keyprovider.errors import TtlvError

MAX_BYTES: Final = 1 << 20
"""Largest message read or written (KMIP names no limit; servers use 1 MiB or less)."""
MAX_DEPTH: Final = 32
_HEADER = struct.Struct(">II")
_PADDING = tuple(bytes(size) for size in range(8))


class ItemType(IntEnum):
    """Type of an item (KMIP 1.4, 9.1.1.2)."""

    STRUCTURE = 1
    INTEGER = 2
    LONG_INTEGER = 3
    BIG_INTEGER = 4
    ENUMERATION = 5
    BOOLEAN = 6
    TEXT_STRING = 7
    BYTE_STRING = 8
    DATE_TIME = 9
    INTERVAL = 10
    DATE_TIME_EXTENDED = 11


_TYPES: Final = {member.value: member for member in ItemType}
_SIGNED_4, _UNSIGNED_4, _SIGNED_8 = struct.Struct(">iI"), struct.Struct(">II"), struct.Struct(">q")
_NARROW: Final = {
    ItemType.INTEGER: _SIGNED_4,
    ItemType.ENUMERATION: _UNSIGNED_4,
    ItemType.INTERVAL: _UNSIGNED_4,
}
"""Types of 4 bytes, with the padding that follows them."""
_WIDE: Final = {
    ItemType.LONG_INTEGER: _SIGNED_8,
    ItemType.DATE_TIME: _SIGNED_8,
    ItemType.DATE_TIME_EXTENDED: _SIGNED_8,
    ItemType.BOOLEAN: struct.Struct(">Q"),
}


class Item(NamedTuple):
    """One tagged value. A structure's value is a tuple of items; a byte string's a view of the decoded buffer.

    A named tuple, not a dataclass: it is made in half the time, and decoding makes little else.
    """

    tag: int
    type: ItemType
    value: "tuple[Item, ...] | int | bool | str | bytes | memoryview"

    def __repr__(self) -> str:
        """Without the value: it may be a key."""
        return f"Item(tag={self.tag:#08x}, type={self.type.name})"


def encode(item: Item) -> bytearray:
    """Encode one item, into a buffer that the caller may wipe.

    A byte string that is given as a ``memoryview`` is copied last, when the buffer no longer grows and thus no longer
    moves: a key that is sent lies in memory once.

    Raises:
        TtlvError: A value does not fit its type, or the message is too large or too deep.
    """
    out = bytearray()
    late: list[tuple[int, memoryview]] = []
    _write(item, out, MAX_DEPTH, late)
    if len(out) > MAX_BYTES:
        raise TtlvError(f"message of {len(out)} bytes; at most {MAX_BYTES}")
    for offset, view in late:
        out[offset : offset + len(view)] = view
    return out


def decode(data: bytes | bytearray | memoryview) -> Item:
    """Decode exactly one item.

    Raises:
        TtlvError: Not TTLV, too large, too deep, or more than one item.
    """
    if len(data) > MAX_BYTES:
        raise TtlvError(f"message of {len(data)} bytes; at most {MAX_BYTES} are read")
    view = memoryview(data).cast("B")
    item, end = _read(view, 0, len(view), MAX_DEPTH)
    if end != len(view):
        raise TtlvError(f"{len(view) - end} bytes after the message")
    return item


def message_size(header: bytes) -> int:
    """How long the message is that begins with these 8 bytes, header included.

    Raises:
        TtlvError: It is no structure, or longer than is read.
    """
    if len(header) != _HEADER.size:
        raise TtlvError(f"a message begins with {_HEADER.size} bytes, got {len(header)}")
    tag_type, length = _HEADER.unpack(header)
    if tag_type & 0xFF != ItemType.STRUCTURE:
        raise TtlvError("a message is a structure")
    size: int = _HEADER.size + length
    if size > MAX_BYTES or length % 8:
        raise TtlvError(f"message of {size} bytes; at most {MAX_BYTES}, a multiple of 8, are read")
    return size


def _read(view: memoryview, start: int, end: int, depth: int) -> tuple[Item, int]:
    body = start + 8
    if body > end:
        raise TtlvError(f"expected an item at byte {start}, found {end - start} bytes")
    tag_type, length = _HEADER.unpack_from(view, start)
    kind = _TYPES.get(tag_type & 0xFF)
    tag = tag_type >> 8
    stop = body + length
    if kind is None or not tag:
        raise TtlvError(f"unknown type {tag_type & 0xFF} or no tag at byte {start}")
    if stop > end:
        raise TtlvError(f"item at byte {start} says {length} bytes, its parent has {end - body}")
    if kind is ItemType.STRUCTURE:
        return Item(tag, kind, _read_all(view, body, stop, depth - 1)), stop
    narrow = _NARROW.get(kind)
    if narrow is not None:
        if length != 4 or body + 8 > end:
            raise TtlvError(f"{kind.name} of {length} bytes at byte {start}; expected 4, padded to 8")
        number, padding = narrow.unpack_from(view, body)
        if padding:
            raise TtlvError(f"expected 4 zero bytes of padding at byte {stop}")
        return Item(tag, kind, number), body + 8
    wide = _WIDE.get(kind)
    if wide is not None:
        if length != 8:
            raise TtlvError(f"{kind.name} of {length} bytes at byte {start}; expected 8")
        (number,) = wide.unpack_from(view, body)
        if kind is not ItemType.BOOLEAN:
            return Item(tag, kind, number), stop
        if number > 1:
            raise TtlvError(f"boolean {number} at byte {start}")
        return Item(tag, kind, number == 1), stop
    return Item(tag, kind, _variable(kind, view[body:stop], start)), _skip_padding(view, stop, end)


def _read_all(view: memoryview, start: int, end: int, depth: int) -> tuple[Item, ...]:
    if depth <= 0:
        raise TtlvError(f"nested deeper than {MAX_DEPTH}")
    items = []
    while start < end:
        item, start = _read(view, start, end, depth)
        items.append(item)
    return tuple(items)


def _variable(kind: ItemType, body: memoryview, start: int) -> int | str | memoryview:
    if kind is ItemType.BYTE_STRING:
        return body
    if kind is ItemType.BIG_INTEGER:
        if not len(body) or len(body) % 8:
            raise TtlvError(f"big integer of {len(body)} bytes at byte {start}; expected a multiple of 8")
        return int.from_bytes(body, "big", signed=True)
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as exc:
        raise TtlvError(f"text at byte {start} is not UTF-8") from exc


def _skip_padding(view: memoryview, stop: int, end: int) -> int:
    padding = -stop % 8
    after = stop + padding
    if padding and (after > end or view[stop:after] != _PADDING[padding]):
        raise TtlvError(f"expected {padding} zero bytes of padding at byte {stop}")
    return after


def _write(item: Item, out: bytearray, depth: int, late: list[tuple[int, memoryview]]) -> None:
    if depth <= 0:
        raise TtlvError(f"nested deeper than {MAX_DEPTH}")
    if not 0 < item.tag < 1 << 24:
        raise TtlvError(f"tag {item.tag:#x} does not fit 3 bytes")
    start = len(out)
    out += bytes(8)
    try:
        _write_value(item, out, depth, late)
    except (struct.error, TypeError, AttributeError, UnicodeEncodeError, OverflowError) as exc:
        raise TtlvError(f"the value of tag {item.tag:#08x} does not fit {item.type.name}") from exc
    length = len(out) - start - 8
    _HEADER.pack_into(out, start, item.tag << 8 | item.type, length)
    out += _PADDING[-length % 8]


def _write_value(item: Item, out: bytearray, depth: int, late: list[tuple[int, memoryview]]) -> None:
    value = item.value
    if (narrow := _NARROW.get(item.type)) is not None:
        out += narrow.pack(value, 0)[:4]
    elif (wide := _WIDE.get(item.type)) is not None:
        if item.type is ItemType.BOOLEAN and not isinstance(value, bool):
            raise TypeError("a boolean is True or False")
        out += wide.pack(value)
    elif item.type is ItemType.STRUCTURE:
        if not isinstance(value, tuple):
            raise TypeError("a structure's value is a tuple of items")
        for child in value:
            _write(child, out, depth - 1, late)
    elif item.type is ItemType.TEXT_STRING:
        if not isinstance(value, str):
            raise TypeError("a text's value is a str")
        out += value.encode()
    elif item.type is ItemType.BYTE_STRING:
        if isinstance(value, memoryview):
            late.append((len(out), value))
            out += bytes(len(value))
        elif isinstance(value, bytes):
            out += value
        else:
            raise TypeError("a byte string's value is bytes")
    else:
        if not isinstance(value, int):
            raise TypeError("a big integer's value is an int")
        size = (value.bit_length() // 8 // 8 + 1) * 8
        out += value.to_bytes(size, "big", signed=True)
