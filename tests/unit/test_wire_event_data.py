"""Words for events."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.simulator.software_host import COMMAND_LINE, honest_events, image, make_log, tagged, variable
from attestation.wire.event_data import (
    EFI_GLOBAL_VARIABLE,
    MAX_DESCRIPTION,
    UNDECODABLE,
    EfiVariable,
    command_line_digests,
    describe_data,
    event_place,
    is_command_line,
    parse_efi_variable,
)
from attestation.wire.event_log import Event, parse_event_log
from attestation.wire.event_types import EventType as Type


def load_option(description: str, path: bytes = b"") -> bytes:
    """EFI_LOAD_OPTION."""
    return struct.pack("<IH", 1, len(path)) + f"{description}\0".encode("utf-16-le") + path


GPT = b"EFI PART" + bytes(48) + bytes(range(16)) + bytes(20) + struct.pack("<Q", 2)
PARTITION = struct.pack("<BBHI", 4, 1, 42, 3) + bytes(16) + bytes(range(16)) + b"\2\2"
FIRMWARE_FILE = struct.pack("<BBH", 4, 6, 20) + bytes(range(16))


@pytest.mark.parametrize(
    ("event_type", "data", "text"),
    [
        (Type.EV_SEPARATOR, b"\0\0\0\0", "separator 00000000"),
        (Type.EV_SEPARATOR, b"\0", UNDECODABLE),
        (Type.EV_EFI_ACTION, b"Calling EFI Application", "Calling EFI Application"),
        (Type.EV_S_CRTM_VERSION, "v1.0\0".encode("utf-16-le"), "v1.0"),
        (Type.EV_S_CRTM_VERSION, b"\0\0", "0000"),
        (Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\1"), "SecureBoot: 01"),
        (Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("PK", b""), "PK: empty"),
        (Type.EV_EFI_VARIABLE_DRIVER_CONFIG, b"short", UNDECODABLE),
        (Type.EV_EFI_VARIABLE_BOOT, variable("BootOrder", b"\1\0\x0a\0"), "BootOrder: 0001, 000A"),
        (Type.EV_EFI_VARIABLE_BOOT, variable("Boot0001", load_option("debian")), "Boot0001: debian"),
        (
            Type.EV_EFI_VARIABLE_BOOT2,
            variable("Boot0001", load_option("UiApp", FIRMWARE_FILE)),
            "Boot0001: UiApp firmware file 03020100-0504-0706-0809-0a0b0c0d0e0f",
        ),
        (Type.EV_EFI_VARIABLE_BOOT, variable("Boot0001", load_option("a" * 1025)), UNDECODABLE),
        (Type.EV_EFI_VARIABLE_BOOT, variable("Boot0001", b"\0\0\0\0\0\0a"), UNDECODABLE),
        (Type.EV_EFI_BOOT_SERVICES_APPLICATION, image("\\EFI\\A.EFI"), "image \\EFI\\A.EFI (4096 bytes)"),
        (
            Type.EV_EFI_BOOT_SERVICES_DRIVER,
            struct.pack("<QQQQ", 0, 7, 0, len(PARTITION)) + PARTITION,
            "image partition 3 (03020100-0504-0706-0809-0a0b0c0d0e0f) (7 bytes)",
        ),
        (Type.EV_EFI_RUNTIME_SERVICES_DRIVER, struct.pack("<QQQQ", 0, 7, 0, 0), "image without a path (7 bytes)"),
        (Type.EV_EFI_BOOT_SERVICES_APPLICATION, struct.pack("<QQQQ", 0, 7, 0, 9), UNDECODABLE),
        (
            Type.EV_EVENT_TAG,
            tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"),
            "kernel command line (LOADED_IMAGE::LoadOptions)",
        ),
        (Type.EV_EVENT_TAG, tagged(7, b"Linux initrd\0"), "tag 0x00000007: Linux initrd"),
        (Type.EV_EVENT_TAG, b"\7\0\0\0\xff\0\0\0x", UNDECODABLE),
        (Type.EV_IPL, b"grub_cmd: linux /vmlinuz quiet\0", "grub_cmd: linux /vmlinuz quiet"),
        (Type.EV_IPL, ".cmdline\0".encode("utf-16-le"), "kernel command line (section .cmdline)"),
        (Type.EV_IPL, "quiet splash\0".encode("utf-16-le"), "quiet splash"),
        (Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, struct.pack("<QQ", 0x820000, 10), "firmware blob at 0x820000 (10 bytes)"),
        (Type.EV_POST_CODE, b"POST CODE", "POST CODE"),
        (Type.EV_POST_CODE, struct.pack("<QQ", 16, 10), "firmware blob at 0x10 (10 bytes)"),
        (Type.EV_EFI_GPT_EVENT, GPT, "partition table 03020100-0504-0706-0809-0a0b0c0d0e0f with 2 partitions"),
        (Type.EV_EFI_GPT_EVENT, bytes(100), UNDECODABLE),
        (Type.EV_NO_ACTION, b"StartupLocality\0\3", "startup locality 3"),
        (Type.EV_NO_ACTION, b"Spec ID Event03\0more", "log format Spec ID Event03"),
        (Type.EV_NO_ACTION, b"SP800-155 Event\0more", "SP800-155 Event"),
        (Type.EV_CPU_MICROCODE, b"\1\2", "0102"),
        (Type.EV_CPU_MICROCODE, bytes(40), f"{bytes(32).hex()}… (40 bytes)"),
        (0x12345678, b"\1", "01"),
    ],
)
def test_events_are_put_into_words(event_type: int, data: bytes, text: str) -> None:
    """Each kind of data that people ask about is decoded; what is not as promised says so."""
    assert describe_data(event_type, data) == text


def test_long_variables_are_shown_by_size_and_hash() -> None:
    """A key database is not printed, but told apart."""
    words = describe_data(Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("db", bytes(100)))
    assert words.startswith("db: 100 bytes, sha256 cd00e292c5970d3c")


def test_terminals_are_safe_from_descriptions() -> None:
    """Control characters never reach a terminal, and no description is endless."""
    assert "\x1b" not in describe_data(Type.EV_EFI_BOOT_SERVICES_APPLICATION, image("\x1b[2J"))
    assert "\n" not in describe_data(Type.EV_IPL, b"two\nlines")
    assert len(describe_data(Type.EV_IPL, b"a" * 5000)) == MAX_DESCRIPTION


def test_variables_parse_strictly() -> None:
    """A variable is its GUID, name and data; another length is refused."""
    assert parse_efi_variable(variable("PK", b"x")) == EfiVariable(EFI_GLOBAL_VARIABLE, "PK", b"x")
    for data in (variable("PK", b"x") + b"\0", variable("PK", b"x")[:-1], variable("a" * 1025, b"")):
        with pytest.raises(WireError):
            parse_efi_variable(data)
    with pytest.raises(WireError, match="UTF-16"):
        parse_efi_variable(variable("PK", b"x").replace("PK".encode("utf-16-le"), b"\x00\xd8\x00\xd8"))


def test_the_command_line_is_found_in_both_forms() -> None:
    """The EFI stub's event and the UKI section's events name the command line; its digests are known for a text."""
    events = parse_event_log(make_log(honest_events())).events
    found = [event for event in events if is_command_line(event)]
    assert [event.pcr for event in found] == [11, 11, 9]
    digests = command_line_digests(COMMAND_LINE, "sha256")
    assert [event.digests[0] in digests for event in found] == [False, True, True]
    assert event_place(found[2]) == f"event {found[2].number}, PCR 9, EV_EVENT_TAG"


@settings(deadline=None)
@given(st.sampled_from([*Type, 0x77]), st.binary(max_size=200))
def test_nothing_escapes(event_type: int, data: bytes) -> None:
    """Any data of any type gets a printable line."""
    words = describe_data(event_type, data)
    assert words.isprintable()
    assert isinstance(is_command_line(Event(0, 0, event_type, (), data)), bool)


@settings(deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["Boot0000", "BootOrder", "db"]))
def test_nothing_escapes_from_variables(data: bytes, name: str) -> None:
    """Any content of a variable gets a printable line."""
    assert describe_data(Type.EV_EFI_VARIABLE_BOOT, variable(name, data)).isprintable()


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_nothing_escapes_from_device_paths(path: bytes) -> None:
    """Any device path gets a printable line."""
    data = struct.pack("<QQQQ", 0, 1, 0, len(path)) + path
    assert describe_data(Type.EV_EFI_BOOT_SERVICES_APPLICATION, data).isprintable()
