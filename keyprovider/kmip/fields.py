"""Make items, and take what is asked for out of a structure.

Fields are found by tag. A field of another type, a missing one, or a second one where one is meant is refused. Fields
that nobody asks for are deliberately let pass: each minor version of KMIP adds some.
Pure. :class:`KmipMalformed` is the only error.
"""

from typing import TypeVar, cast

from keyprovider.errors import KmipMalformed
from keyprovider.kmip.tag_names import NAME_OF_TAG
from keyprovider.kmip.ttlv import Item, ItemType

Items = tuple[Item, ...]
Value = TypeVar("Value")


def structure(tag: int, *children: Item) -> Item:
    """A structure of these items."""
    return Item(tag, ItemType.STRUCTURE, children)


def text(tag: int, value: str) -> Item:
    """A text string."""
    return Item(tag, ItemType.TEXT_STRING, value)


def integer(tag: int, value: int) -> Item:
    """An integer of 32 bits."""
    return Item(tag, ItemType.INTEGER, int(value))


def enumeration(tag: int, value: int) -> Item:
    """An enumeration's value."""
    return Item(tag, ItemType.ENUMERATION, int(value))


def byte_string(tag: int, value: bytes | memoryview) -> Item:
    """A byte string; a view is copied into the message last (see ``ttlv.encode``)."""
    return Item(tag, ItemType.BYTE_STRING, value)


def children(item: Item, tag: int) -> Items:
    """The items inside a structure that must have this tag.

    Raises:
        KmipMalformed: Another tag, or no structure.
    """
    if item.tag != tag or not isinstance(item.value, tuple):
        raise KmipMalformed(f"expected the structure {name_of(tag)}, found {name_of(item.tag)}, {item.type.name}")
    return item.value


def find_structure(items: Items, tag: int) -> Items | None:
    """What is inside the structure of this tag, or nothing if there is none.

    Raises:
        KmipMalformed: Two of them, or no structure.
    """
    item = _only(items, tag, ItemType.STRUCTURE)
    return None if item is None else cast(Items, item.value)


def find_text(items: Items, tag: int) -> str | None:
    """The text of this tag, or nothing if there is none.

    Raises:
        KmipMalformed: Two of them, or no text.
    """
    item = _only(items, tag, ItemType.TEXT_STRING)
    return None if item is None else str(item.value)


def find_integer(items: Items, tag: int) -> int | None:
    """The integer of this tag, or nothing if there is none.

    Raises:
        KmipMalformed: Two of them, or no integer.
    """
    return _number(_only(items, tag, ItemType.INTEGER))


def find_enumeration(items: Items, tag: int) -> int | None:
    """The enumeration's value of this tag, or nothing if there is none.

    Raises:
        KmipMalformed: Two of them, or no enumeration.
    """
    return _number(_only(items, tag, ItemType.ENUMERATION))


def find_bytes(items: Items, tag: int) -> memoryview | None:
    """The byte string of this tag as a view of the message, or nothing if there is none.

    Raises:
        KmipMalformed: Two of them, or no byte string.
    """
    item = _only(items, tag, ItemType.BYTE_STRING)
    return None if item is None else cast(memoryview, item.value)


def required(value: Value | None, tag: int) -> Value:
    """The value, which must be there.

    Raises:
        KmipMalformed: It is not.
    """
    if value is None:
        raise KmipMalformed(f"{name_of(tag)} is missing")
    return value


def name_of(tag: int) -> str:
    """A tag's name for messages, or its number."""
    return NAME_OF_TAG.get(tag, f"{tag:#08x}")


def _number(item: Item | None) -> int | None:
    return None if item is None else cast(int, item.value)


def _only(items: Items, tag: int, kind: ItemType) -> Item | None:
    found = None
    for item in items:
        if item.tag == tag:
            if found is not None:
                raise KmipMalformed(f"{name_of(tag)} occurs twice")
            if item.type is not kind:
                raise KmipMalformed(f"{name_of(tag)} is {item.type.name}; expected {kind.name}")
            found = item
    return found
