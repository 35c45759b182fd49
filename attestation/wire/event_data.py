"""Say in words what an event of a firmware log is about (TCG PC Client Platform Firmware Profile 1.06, 10.4 and 10.5).

For people only, except :func:`parse_efi_variable`: for many types the digest does not cover the data, so nothing
may be decided on a description. Descriptions hold no control characters and at most ``MAX_DESCRIPTION`` characters.
Pure: bytes in, text out. :func:`describe_event` raises nothing.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from attestation.errors import WireError
from attestation.wire.event_log import Event
from attestation.wire.event_types import EventType, event_type_name
from attestation.wire.reader import Reader

MAX_DESCRIPTION: Final = 1024
UNDECODABLE: Final = "undecodable"
LOAD_OPTIONS: Final = "LOADED_IMAGE::LoadOptions"
"""What Linux' EFI stub calls the kernel command line in its event of PCR 9."""
COMMAND_LINE_SECTION: Final = ".cmdline"
"""What systemd's stub calls the kernel command line in its events of PCR 11."""
EFI_GLOBAL_VARIABLE: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
EFI_IMAGE_SECURITY_DATABASE: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
_MAX_NAME_CHARACTERS: Final = 1024
_MAX_PATH_NODES: Final = 64
_HEX_BYTES: Final = 32
_SHORT_VARIABLE: Final = 8
_END_OF_PATH: Final = 0x7F
_FILE_PATH_NODE: Final = (4, 4)
_FIRMWARE_FILE_NODE: Final = (4, 6)
_HARD_DRIVE_NODE: Final = (4, 1)


@dataclass(frozen=True, slots=True)
class EfiVariable:
    """UEFI_VARIABLE_DATA (10.4.2)."""

    guid: bytes
    """16 bytes as UEFI lays them out: ``UUID(bytes_le=…)``."""
    name: str
    data: bytes


def parse_efi_variable(data: bytes) -> EfiVariable:
    """Parse UEFI_VARIABLE_DATA.

    Raises:
        WireError: Not one.
    """
    reader = Reader(data, byte_order="little")
    guid = reader.take(16)
    characters, size = reader.u64(), reader.u64()
    if characters > _MAX_NAME_CHARACTERS:
        raise WireError(f"a variable's name has at most {_MAX_NAME_CHARACTERS} characters, not {characters}")
    name = _utf16(reader.take(2 * characters))
    content = reader.take(size)
    reader.finish()
    return EfiVariable(guid, name, content)


def describe_event(event: Event) -> str:
    """What the event says of itself, in one line; ``undecodable`` where it is not what its type promises."""
    return describe_data(event.type, event.data)


def describe_data(event_type: int, data: bytes) -> str:
    """As :func:`describe_event`, of the data alone."""
    try:
        describe = _DESCRIBE.get(event_type, _hex)
        return _printable(describe(data))
    except WireError:
        return UNDECODABLE


def event_place(event: Event) -> str:
    """Where the event is, such as "event 34, PCR 9, EV_EVENT_TAG"."""
    return f"event {event.number}, PCR {event.pcr}, {event_type_name(event.type)}"


def is_command_line(event: Event) -> bool:
    """Whether the event measures the kernel command line (Linux' EFI stub, or systemd's stub's section)."""
    if event.type == EventType.EV_EVENT_TAG:
        return event.data[8:].rstrip(b"\0") == LOAD_OPTIONS.encode()
    # systemd's stub measures a section twice: its name, then its content. Both events carry the name as data.
    return event.type == EventType.EV_IPL and event.data == f"{COMMAND_LINE_SECTION}\0".encode("utf-16-le")


def command_line_digests(text: str, hash_name: str) -> tuple[bytes, ...]:
    """Digests that a kernel command line has: as UTF-16 with its end (EFI stub), as UTF-8 (section of a UKI)."""
    forms = (f"{text}\0".encode("utf-16-le", "surrogatepass"), text.encode("utf-8", "surrogatepass"))
    return tuple(hashlib.new(hash_name, form).digest() for form in forms)


def _utf16(data: bytes) -> str:
    try:
        return data.decode("utf-16-le")
    except UnicodeDecodeError as exc:
        raise WireError("not UTF-16") from exc


def _printable(text: str) -> str:
    """Keep what is safe on a terminal and in a log."""
    text = text.rstrip("\0")
    if len(text) > MAX_DESCRIPTION:
        text = text[: MAX_DESCRIPTION - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _hex(data: bytes) -> str:
    return data.hex() if len(data) <= _HEX_BYTES else f"{data[:_HEX_BYTES].hex()}… ({len(data)} bytes)"


def _text(data: bytes) -> str:
    """ASCII or UTF-16 text, or hexadecimal where it is neither."""
    ascii_text = data.rstrip(b"\0")
    if ascii_text and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in ascii_text):
        return ascii_text.decode("ascii")
    if len(data) >= 2 and len(data) % 2 == 0:
        try:
            text = data.decode("utf-16-le").rstrip("\0")
        except UnicodeDecodeError:
            return _hex(data)
        if text and text.isprintable() and text.isascii():
            return text
    return _hex(data)


def _separator(data: bytes) -> str:
    return f"separator {data.hex()}" if len(data) == 4 else UNDECODABLE


def _variable(data: bytes) -> str:
    variable = parse_efi_variable(data)
    if not variable.data:
        return f"{variable.name}: empty"
    if variable.name == "BootOrder" and len(variable.data) % 2 == 0:
        numbers = (int.from_bytes(variable.data[at : at + 2], "little") for at in range(0, len(variable.data), 2))
        return f"{variable.name}: {', '.join(f'{number:04X}' for number in numbers)}"
    if variable.name.startswith("Boot") and variable.guid == EFI_GLOBAL_VARIABLE:
        return f"{variable.name}: {_load_option(variable.data)}"
    if len(variable.data) <= _SHORT_VARIABLE:
        return f"{variable.name}: {variable.data.hex()}"
    return f"{variable.name}: {len(variable.data)} bytes, sha256 {hashlib.sha256(variable.data).hexdigest()}"


def _load_option(data: bytes) -> str:
    """EFI_LOAD_OPTION: attributes, length of the path, description, path (UEFI 2.10, 3.1.3)."""
    reader = Reader(data, byte_order="little")
    reader.u32()
    path_size = reader.u16()
    description = b""
    while (character := reader.take(2)) != b"\0\0":
        description += character
        if len(description) > 2 * _MAX_NAME_CHARACTERS:
            raise WireError("a load option's description has no end")
    path = _device_path(reader.take(path_size))
    return f"{_utf16(description)} {path}".rstrip()


def _image(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT (10.4.2.3): address, length, link address, device path."""
    reader = Reader(data, byte_order="little")
    reader.u64()
    size = reader.u64()
    reader.u64()
    path = _device_path(reader.take(reader.u64()))
    reader.finish()
    return f"image {path or 'without a path'} ({size} bytes)"


def _device_path(data: bytes) -> str:
    """Words for the nodes that tell people something: file, partition, firmware file."""
    reader = Reader(data, byte_order="little")
    parts: list[str] = []
    for _ in range(_MAX_PATH_NODES):
        if not reader.remaining:
            break
        node_type, subtype, size = reader.u8(), reader.u8(), reader.u16()
        content = reader.take(size - 4)
        if node_type == _END_OF_PATH:
            break
        if (node_type, subtype) == _FILE_PATH_NODE:
            parts.append(_utf16(content).rstrip("\0"))
        elif (node_type, subtype) == _FIRMWARE_FILE_NODE and len(content) == 16:
            parts.append(f"firmware file {UUID(bytes_le=content)}")
        elif (node_type, subtype) == _HARD_DRIVE_NODE and len(content) == 38:
            parts.append(f"partition {int.from_bytes(content[:4], 'little')} ({UUID(bytes_le=content[20:36])})")
    return " ".join(parts)


def _tag(data: bytes) -> str:
    """TCG_PCClientTaggedEvent (10.4.2.1): id, size, data."""
    reader = Reader(data, byte_order="little")
    tag = reader.u32()
    content = reader.take(reader.u32())
    reader.finish()
    text = _text(content)
    if text == LOAD_OPTIONS:
        return f"kernel command line ({LOAD_OPTIONS})"
    return f"tag 0x{tag:08x}: {text}"


def _boot_loader_text(data: bytes) -> str:
    """What a boot loader or systemd's stub says that it measured."""
    text = _text(data)
    return f"kernel command line (section {text})" if text == COMMAND_LINE_SECTION else text


def _firmware_blob(data: bytes) -> str:
    """UEFI_PLATFORM_FIRMWARE_BLOB: base address, length."""
    reader = Reader(data, byte_order="little")
    base, size = reader.u64(), reader.u64()
    reader.finish()
    return f"firmware blob at 0x{base:x} ({size} bytes)"


def _post_code(data: bytes) -> str:
    try:
        return _firmware_blob(data)
    except WireError:
        return _text(data)


def _gpt(data: bytes) -> str:
    """UEFI_GPT_DATA: EFI_PARTITION_TABLE_HEADER (92 bytes), count, entries (10.4.2.4)."""
    reader = Reader(data, byte_order="little")
    header = reader.take(92)
    if not header.startswith(b"EFI PART"):
        raise WireError("no partition table")
    return f"partition table {UUID(bytes_le=header[56:72])} with {reader.u64()} partitions"


def _no_action(data: bytes) -> str:
    signature = data[:16].rstrip(b"\0")
    if signature.startswith(b"Spec ID Event"):
        return f"log format {_text(signature)}"
    if signature == b"StartupLocality" and len(data) == 17:
        return f"startup locality {data[16]}"
    return _text(signature) if signature else _hex(data)


_DESCRIBE: Final[Mapping[int, Callable[[bytes], str]]] = {
    EventType.EV_NO_ACTION: _no_action,
    EventType.EV_SEPARATOR: _separator,
    EventType.EV_EVENT_TAG: _tag,
    EventType.EV_POST_CODE: _post_code,
    EventType.EV_EFI_VARIABLE_DRIVER_CONFIG: _variable,
    EventType.EV_EFI_VARIABLE_BOOT: _variable,
    EventType.EV_EFI_VARIABLE_BOOT2: _variable,
    EventType.EV_EFI_VARIABLE_AUTHORITY: _variable,
    EventType.EV_EFI_BOOT_SERVICES_APPLICATION: _image,
    EventType.EV_EFI_BOOT_SERVICES_DRIVER: _image,
    EventType.EV_EFI_RUNTIME_SERVICES_DRIVER: _image,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB: _firmware_blob,
    EventType.EV_EFI_GPT_EVENT: _gpt,
    EventType.EV_ACTION: _text,
    EventType.EV_EFI_ACTION: _text,
    EventType.EV_IPL: _boot_loader_text,
    EventType.EV_IPL_PARTITION_DATA: _text,
    EventType.EV_S_CRTM_CONTENTS: _text,
    EventType.EV_S_CRTM_VERSION: _text,
    EventType.EV_NONHOST_INFO: _text,
    EventType.EV_COMPACT_HASH: _text,
    EventType.EV_OMIT_BOOT_DEVICE_EVENTS: _text,
    EventType.EV_EFI_HCRTM_EVENT: _text,
}
