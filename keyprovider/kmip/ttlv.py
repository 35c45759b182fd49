"""TTLV, KMIP's encoding: tag (3 bytes), type (1), length (4), value padded to 8 bytes. All big-endian.

Source: OASIS KMIP Specification 1.4, section 9.1; type Date-Time Extended from 2.0, section 9.
Strict: bounded size and depth, lengths inside the parent, fixed-size types checked, padding zero, booleans 0 or 1, text
UTF-8, nothing after the item. ``TtlvError`` is the only error that leaves this module.

Byte strings are decoded as views of the buffer that was passed in, so that a key inside can be taken from there and the
buffer wiped: no copy of it is made here.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

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
_FIXED: Final = {
    ItemType.INTEGER: struct.Struct(">i"),
    ItemType.ENUMERATION: struct.Struct(">I"),
    ItemType.INTERVAL: struct.Struct(">I"),
    ItemType.LONG_INTEGER: struct.Struct(">q"),
    ItemType.DATE_TIME: struct.Struct(">q"),
    ItemType.DATE_TIME_EXTENDED: struct.Struct(">q"),
    ItemType.BOOLEAN: struct.Struct(">Q"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One tagged value. A structure's value is a tuple of items; a byte string's a view of the decoded buffer."""

    tag: int
    type: ItemType
    value: "tuple[Item, ...] | int | bool | str | bytes | memoryview"

    def __repr__(self) -> str:
        """Without the value: it may be a key."""
        return f"Item(tag={self.tag:#08x}, type={self.type.name})"


def encode(item: Item) -> bytes:
    """Encode one item.

    Raises:
        TtlvError: A value does not fit its type, or the message is too large or too deep.
    """
    out = bytearray()
    _write(item, out, MAX_DEPTH)
    if len(out) > MAX_BYTES:
        raise TtlvError(f"message of {len(out)} bytes; at most {MAX_BYTES}")
    return bytes(out)


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
    if kind is None:
        raise TtlvError(f"unknown type {tag_type & 0xFF} at byte {start}")
    stop = body + length
    if stop > end:
        raise TtlvError(f"item at byte {start} says {length} bytes, its parent has {end - body}")
    fixed = _FIXED.get(kind)
    if fixed is not None:
        if length != fixed.size:
            raise TtlvError(f"{kind.name} of {length} bytes at byte {start}; expected {fixed.size}")
        number: int = fixed.unpack_from(view, body)[0]
        if kind is ItemType.BOOLEAN:
            if number > 1:
                raise TtlvError(f"boolean {number} at byte {start}")
            return Item(tag, kind, number == 1), stop
        return Item(tag, kind, number), _skip_padding(view, stop, end)
    if kind is ItemType.STRUCTURE:
        return Item(tag, kind, _read_all(view, body, stop, depth - 1)), stop
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


def _write(item: Item, out: bytearray, depth: int) -> None:
    if depth <= 0:
        raise TtlvError(f"nested deeper than {MAX_DEPTH}")
    if not 0 < item.tag < 1 << 24:
        raise TtlvError(f"tag {item.tag:#x} does not fit 3 bytes")
    start = len(out)
    out += bytes(8)
    try:
        _write_value(item, out, depth)
    except (struct.error, TypeError, AttributeError, UnicodeEncodeError, OverflowError) as exc:
        raise TtlvError(f"the value of tag {item.tag:#08x} does not fit {item.type.name}") from exc
    length = len(out) - start - 8
    _HEADER.pack_into(out, start, item.tag << 8 | item.type, length)
    out += _PADDING[-length % 8]


def _write_value(item: Item, out: bytearray, depth: int) -> None:
    value = item.value
    fixed = _FIXED.get(item.type)
    if fixed is not None:
        if item.type is ItemType.BOOLEAN and not isinstance(value, bool):
            raise TypeError("a boolean is True or False")
        out += fixed.pack(value)
    elif item.type is ItemType.STRUCTURE:
        if not isinstance(value, tuple):
            raise TypeError("a structure's value is a tuple of items")
        for child in value:
            _write(child, out, depth - 1)
    elif item.type is ItemType.TEXT_STRING:
        if not isinstance(value, str):
            raise TypeError("a text's value is a str")
        out += value.encode()
    elif item.type is ItemType.BYTE_STRING:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError("a byte string's value is bytes")
        out += value
    else:
        if not isinstance(value, int):
            raise TypeError("a big integer's value is an int")
        size = (value.bit_length() // 8 // 8 + 1) * 8
        out += value.to_bytes(size, "big", signed=True)
