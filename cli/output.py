"""What the ``garant`` command prints: tables for people, JSON for programs.

Texts come from elsewhere (a VM's name, a host's reason), so in tables nothing in them is taken for markup, and control
characters and marks that turn the direction of text are shown as escapes. JSON carries them escaped, too.
"""

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message

Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]
"""What JSON can say."""
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNTRUNCATED_WIDTH = 10_000


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


def plain(message: "Message") -> dict[str, Plain]:
    """A protobuf message with all its fields: enums as short lower-case names, times as ISO 8601, bytes as hex."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    return {field.name: _plain_field(field, message) for field in fields}


def _plain_field(field: "FieldDescriptor", owner: "Message") -> Plain:
    value = getattr(owner, field.name)
    if field.is_repeated:
        return [_plain_value(field, item) for item in value]
    if field.message_type is not None and not owner.HasField(field.name):
        return None
    return _plain_value(field, value)


def _plain_value(field: "FieldDescriptor", value: Any) -> Plain:
    if field.message_type is not None:
        is_time = field.message_type.full_name == "google.protobuf.Timestamp"
        return str(value.ToJsonString()) if is_time else plain(value)
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot print a {type(value).__name__}")


def _enum_name(enum: "EnumDescriptor", number: int) -> str:
    value = enum.values_by_number.get(number)
    if value is None:
        return f"unknown ({number})"
    # POWER_STATE_ON of PowerState is "on": the prefix is the enum's name, as the style guide has it.
    prefix = "".join(f"_{c}" if c.isupper() else c for c in enum.name).lstrip("_").upper() + "_"
    return str(value.name).removeprefix(prefix).lower().replace("_", "-")


def visible(text: str) -> str:
    """The text with control characters and direction marks as escapes, for a terminal."""
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTION_MARKS:
        return character.encode("unicode_escape").decode()
    return character


def print_json(value: Plain) -> None:
    """Print a JSON document."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Plain]], *, empty: str) -> None:
    """Print one row for each mapping.

    Args:
        columns: Keys to show; headings are made from them.
        rows: What to show.
        empty: What to say where there are none, on standard error.
    """
    if not rows:
        print(empty, file=sys.stderr)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(_cell(row.get(column)))) for column in columns))
    _print(table)


def print_record(record: Mapping[str, Plain]) -> None:
    """Print one thing, a line for each of its fields; nested ones are left to tables of their own."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in record.items():
        if not isinstance(value, Mapping | list):
            table.add_row(name.replace("_", " "), Text(visible(_cell(value))))
    _print(table)


def _cell(value: Plain) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_cell(item) for item in value)
    return str(value)


def _print(renderable: object) -> None:
    from rich.console import Console

    # Into a pipe or a file nothing is folded: a program may read it line by line.
    width = None if sys.stdout.isatty() else _UNTRUNCATED_WIDTH
    console = Console(width=width, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    # Padding to the right edge is of no use.
    for line in capture.get().splitlines():
        print(line.rstrip())
