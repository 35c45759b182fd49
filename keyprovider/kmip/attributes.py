"""Attributes of a key, as each major version of KMIP writes them (1.4, section 3 and 2.1.1; 2.1, section 4).

In 1.x an attribute is a structure of name, index and value, and whatever begins with "x-" is the client's own. In 2.x a
standard attribute is an item with its own tag, and the client's own are structures of vendor, name and value, where the
vendor "x" stands for 1.x's "x-" (2.1, 4.57). Here both are a name as in 1.x and a value.

Pure. :class:`KmipMalformed` is the only error of reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from keyprovider.errors import KmipMalformed
from keyprovider.kmip.fields import (
    Items,
    byte_string,
    enumeration,
    find_integer,
    find_structure,
    find_text,
    integer,
    name_of,
    required,
    structure,
    text,
)
from keyprovider.kmip.messages import ProtocolVersion
from keyprovider.kmip.tag_names import NAME_OF_TAG, TAG_OF_NAME
from keyprovider.kmip.tags import KeyState, Tag
from keyprovider.kmip.ttlv import Item, ItemType

CUSTOM_PREFIX: Final = "x-"
_NAME_VALUE, _NAME_TYPE, _NAME_TYPE_TEXT = TAG_OF_NAME["Name Value"], TAG_OF_NAME["Name Type"], 1

AttributeValue = str | int | bytes | None


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute's value.

    An enumeration or number is an ``int``; a name is its text; of other structures the value is not kept (None).
    When written, the Python type decides: ``IntEnum`` is an enumeration, other numbers are integers.
    """

    name: str
    value: AttributeValue
    index: int = 0
    """Which of several of the same name; 2.x writes none."""


def find_attribute(attributes: Sequence[Attribute], name: str) -> AttributeValue:
    """The value of the first attribute of this name, or nothing."""
    return next((attribute.value for attribute in attributes if attribute.name == name), None)


def key_state(attributes: Sequence[Attribute]) -> KeyState:
    """The state among these attributes.

    Raises:
        KmipMalformed: There is none, or it is no state.
    """
    value = find_attribute(attributes, "State")
    try:
        return KeyState(int(value or 0))
    except ValueError as exc:
        raise KmipMalformed("the key has no State, or one that KMIP does not know") from exc


def write_attribute(version: ProtocolVersion, attribute: Attribute) -> Item:
    """One attribute for a request."""
    name, value = attribute.name, attribute.value
    if version.major == 1:
        index = (integer(Tag.ATTRIBUTE_INDEX, attribute.index),) if attribute.index else ()
        return structure(
            Tag.ATTRIBUTE, text(Tag.ATTRIBUTE_NAME, name), *index, _value_item(Tag.ATTRIBUTE_VALUE, name, value)
        )
    if name.startswith(CUSTOM_PREFIX):
        vendor, own_name = text(Tag.VENDOR_IDENTIFICATION, "x"), text(Tag.ATTRIBUTE_NAME, name[len(CUSTOM_PREFIX) :])
        return structure(Tag.ATTRIBUTE, vendor, own_name, _value_item(Tag.ATTRIBUTE_VALUE, name, value))
    return _value_item(TAG_OF_NAME[name], name, value)


def write_template(version: ProtocolVersion, attributes: Sequence[Attribute]) -> Item:
    """The attributes of a key that is to be made."""
    tag = Tag.TEMPLATE_ATTRIBUTE if version.major == 1 else Tag.ATTRIBUTES
    return structure(tag, *(write_attribute(version, attribute) for attribute in attributes))


def write_reference(version: ProtocolVersion, name: str) -> Item:
    """The name of an attribute that is asked for."""
    if version.major == 1:
        return text(Tag.ATTRIBUTE_NAME, name)
    if name.startswith(CUSTOM_PREFIX):
        vendor, own_name = text(Tag.VENDOR_IDENTIFICATION, "x"), text(Tag.ATTRIBUTE_NAME, name[len(CUSTOM_PREFIX) :])
        return structure(Tag.ATTRIBUTE_REFERENCE, vendor, own_name)
    return enumeration(Tag.ATTRIBUTE_REFERENCE, TAG_OF_NAME[name])


def read_attributes(version: ProtocolVersion, payload: Items) -> tuple[Attribute, ...]:
    """The attributes in a response's payload.

    Raises:
        KmipMalformed: They are not attributes of this version.
    """
    if version.major == 1:
        return tuple(_read_1(item) for item in payload if item.tag == Tag.ATTRIBUTE)
    return tuple(_read_2(item) for item in required(find_structure(payload, Tag.ATTRIBUTES), Tag.ATTRIBUTES))


def read_references(version: ProtocolVersion, payload: Items) -> tuple[str, ...]:
    """The names of attributes in a response's payload.

    Raises:
        KmipMalformed: They are not names of this version.
    """
    if version.major == 1:
        return tuple(_text(item) for item in payload if item.tag == Tag.ATTRIBUTE_NAME)
    return tuple(_reference(item) for item in payload if item.tag == Tag.ATTRIBUTE_REFERENCE)


def _read_1(item: Item) -> Attribute:
    fields = _fields(item)
    name = required(find_text(fields, Tag.ATTRIBUTE_NAME), Tag.ATTRIBUTE_NAME)
    return Attribute(name, _attribute_value(fields), find_integer(fields, Tag.ATTRIBUTE_INDEX) or 0)


def _read_2(item: Item) -> Attribute:
    if item.tag != Tag.ATTRIBUTE:
        return Attribute(name_of(item.tag), _python_value(item))
    fields = _fields(item)
    return Attribute(_vendor_name(fields), _attribute_value(fields))


def _reference(item: Item) -> str:
    if item.type is ItemType.ENUMERATION and isinstance(item.value, int):
        return NAME_OF_TAG.get(item.value, f"{item.value:#08x}")
    return _vendor_name(_fields(item))


def _vendor_name(fields: Items) -> str:
    vendor = required(find_text(fields, Tag.VENDOR_IDENTIFICATION), Tag.VENDOR_IDENTIFICATION)
    return f"{vendor}-{required(find_text(fields, Tag.ATTRIBUTE_NAME), Tag.ATTRIBUTE_NAME)}"


def _fields(item: Item) -> Items:
    if not isinstance(item.value, tuple):
        raise KmipMalformed(f"{name_of(item.tag)} is {item.type.name}; expected STRUCTURE")
    return item.value


def _text(item: Item) -> str:
    if not isinstance(item.value, str):
        raise KmipMalformed(f"{name_of(item.tag)} is {item.type.name}; expected TEXT_STRING")
    return item.value


def _attribute_value(fields: Items) -> AttributeValue:
    values = [field for field in fields if field.tag == Tag.ATTRIBUTE_VALUE]
    if len(values) != 1:
        raise KmipMalformed(f"an attribute with {len(values)} values")
    return _python_value(values[0])


def _python_value(item: Item) -> AttributeValue:
    value = item.value
    if isinstance(value, tuple):
        return find_text(value, _NAME_VALUE)
    # Copied: the message it lies in is wiped.
    return bytes(value) if isinstance(value, memoryview) else value


def _value_item(tag: int, name: str, value: AttributeValue) -> Item:
    if name == "Name" and isinstance(value, str):
        return structure(tag, text(_NAME_VALUE, value), enumeration(_NAME_TYPE, _NAME_TYPE_TEXT))
    if isinstance(value, str):
        return text(tag, value)
    if isinstance(value, IntEnum) and not isinstance(value, IntFlag):
        return enumeration(tag, value)
    if isinstance(value, int):
        return integer(tag, value)
    return byte_string(tag, value or b"")
