"""Show KMIP messages to people, and read what was shown (``garant inspect kmip``).

One item a line, indented by its depth: tag, type, value. Keys, passwords and data are shown as stars unless asked for;
such a text cannot be encoded again.

    Response Message (Structure)
      Response Header (Structure)
        Protocol Version (Structure)
          Protocol Version Major (Integer): 1

Pure: bytes and text in, text and bytes out. :class:`TtlvError` is the only error.
"""

import datetime
import json
import re
from enum import IntEnum
from typing import Final

from keyprovider.errors import TtlvError
from keyprovider.kmip.tag_names import NAME_OF_TAG, TAG_OF_NAME
from keyprovider.kmip.tags import (
    Algorithm,
    BlockCipherMode,
    KeyState,
    ObjectType,
    Operation,
    QueryFunction,
    ResultReason,
    ResultStatus,
    RevocationReason,
    Tag,
)
from keyprovider.kmip.ttlv import MAX_DEPTH, Item, ItemType, decode, encode

_SECRET_TAGS: Final = frozenset({Tag.KEY_MATERIAL, Tag.PASSWORD, Tag.DATA})
_HIDDEN: Final = "***"
_INDENT: Final = 2
_LINE: Final = re.compile(r"( *)([^()]+?) \(([A-Za-z ]+)\)(?:: (.*))?")
_HEX_TEXT: Final = re.compile(rb"[0-9A-Fa-f\s:]+")
_NAME_OF_TYPE: Final = {kind: kind.name.replace("_", " ").title() for kind in ItemType}
_TYPE_OF_NAME: Final = {name: kind for kind, name in _NAME_OF_TYPE.items()}
_ENUMERATIONS: Final[dict[int, type[IntEnum]]] = {
    Tag.OPERATION: Operation,
    Tag.RESULT_STATUS: ResultStatus,
    Tag.RESULT_REASON: ResultReason,
    Tag.STATE: KeyState,
    Tag.OBJECT_TYPE: ObjectType,
    Tag.CRYPTOGRAPHIC_ALGORITHM: Algorithm,
    Tag.BLOCK_CIPHER_MODE: BlockCipherMode,
    Tag.QUERY_FUNCTION: QueryFunction,
    Tag.REVOCATION_REASON_CODE: RevocationReason,
}


def describe(capture: bytes, *, show_secrets: bool = False) -> str:
    """Messages as text.

    Args:
        capture: One or more messages on end, binary or in hexadecimal (white space and colons are let pass).
        show_secrets: Show keys, passwords and data too.

    Raises:
        TtlvError: Not TTLV.
    """
    lines: list[str] = []
    for message in _messages(_binary(capture)):
        _describe(decode(message), 0, lines, show_secrets)
    return "\n".join(lines) + "\n"


def encode_description(text: str) -> bytes:
    """The messages that :func:`describe` would show so, binary.

    Raises:
        TtlvError: A line is not as described, or a value was not shown.
    """
    stack: list[tuple[int, ItemType, list[Item]]] = [(0, ItemType.STRUCTURE, [])]
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        depth, tag, kind, value = _parse_line(line, number)
        if depth > len(stack) - 1 or depth > MAX_DEPTH:
            raise TtlvError(f"line {number} is indented deeper than a structure before it")
        while len(stack) - 1 > depth:
            _close(stack)
        if kind is ItemType.STRUCTURE and not value:
            stack.append((tag, kind, []))
        else:
            stack[-1][2].append(Item(tag, kind, _parse_value(kind, value, number)))
    while len(stack) > 1:
        _close(stack)
    return b"".join(bytes(encode(item)) for item in stack[0][2])


def _close(stack: list[tuple[int, ItemType, list[Item]]]) -> None:
    tag, kind, children = stack.pop()
    stack[-1][2].append(Item(tag, kind, tuple(children)))


def _binary(capture: bytes) -> bytes:
    if not _HEX_TEXT.fullmatch(capture):
        return capture
    try:
        return bytes.fromhex(capture.decode("ascii").replace(":", ""))
    except ValueError as exc:
        raise TtlvError("hexadecimal text with an odd digit") from exc


def _messages(data: bytes) -> list[bytes]:
    messages, start = [], 0
    while start < len(data):
        length = int.from_bytes(data[start + 4 : start + 8], "big")
        end = start + 8 + length + -length % 8
        messages.append(data[start:end])
        start = end
    return messages or [b""]


def _describe(item: Item, depth: int, lines: list[str], show_secrets: bool) -> None:
    name = NAME_OF_TAG.get(item.tag, f"{item.tag:#08x}")
    line = f"{' ' * _INDENT * depth}{name} ({_NAME_OF_TYPE[item.type]})"
    if item.tag in _SECRET_TAGS and not show_secrets:
        lines.append(f"{line}: {_HIDDEN}")
    elif isinstance(item.value, tuple):
        lines.append(line)
        for child in item.value:
            _describe(child, depth + 1, lines, show_secrets)
    else:
        lines.append(f"{line}: {_value_text(item)}")


def _value_text(item: Item) -> str:
    value = item.value
    if item.type is ItemType.ENUMERATION and isinstance(value, int):
        names = _ENUMERATIONS.get(item.tag)
        if names is not None and value in names._value2member_map_:
            return f"{value:#010x} {names(value).name}"
        return f"{value:#010x}"
    if item.type is ItemType.DATE_TIME and isinstance(value, int):
        return f"{value}{_date(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, memoryview | bytes):
        return bytes(value).hex()
    return json.dumps(value)


def _date(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime(" %Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return ""


def _parse_line(line: str, number: int) -> tuple[int, int, ItemType, str]:
    match = _LINE.fullmatch(line.rstrip())
    if match is None:
        raise TtlvError(f"line {number} is not 'Tag (Type): value'")
    indent, name, kind_name, value = match.groups()
    kind = _TYPE_OF_NAME.get(kind_name)
    if kind is None or len(indent) % _INDENT:
        raise TtlvError(f"line {number}: no type {kind_name!r}, or odd indentation")
    tag = TAG_OF_NAME.get(name)
    if tag is None:
        try:
            tag = int(name, 16)
        except ValueError as exc:
            raise TtlvError(f"line {number}: no tag {name!r}") from exc
    return len(indent) // _INDENT, tag, kind, value or ""


def _parse_value(kind: ItemType, value: str, number: int) -> str | int | bytes | bool:
    if value == _HIDDEN:
        raise TtlvError(f"line {number}: the value was not shown, so it cannot be encoded")
    try:
        if kind is ItemType.STRUCTURE:
            raise ValueError("a structure has items below it")
        if kind is ItemType.BYTE_STRING:
            return bytes.fromhex(value)
        if kind is ItemType.BOOLEAN:
            return {"true": True, "false": False}[value]
        if kind is ItemType.TEXT_STRING:
            text = json.loads(value)
            if not isinstance(text, str):
                raise ValueError("no text")
            return text
        return int(value.split(" ")[0], 0)
    except (ValueError, KeyError) as exc:
        raise TtlvError(f"line {number}: not a value of type {_NAME_OF_TYPE[kind]}") from exc
