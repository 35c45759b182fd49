"""The rules for events: what replays may still lie about types, data and separators."""

from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import EvidenceRejected, RejectReason
from attestation.model import PcrBank
from attestation.simulator.software_host import (
    SECURITY_DATABASE,
    ZERO_SEPARATOR,
    Measured,
    honest_events,
    image,
    make_log,
    variable,
)
from attestation.verifier.event_rules import check_event_rules, check_secure_boot
from attestation.verifier.quirks import QUIRKS, Quirk
from attestation.verifier.replay import MeasuredBoot, measured_boot
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType as Type

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
EVENTS = honest_events()
SEPARATOR_7 = next(i for i, event in enumerate(EVENTS) if event.pcr == 7 and event.type == Type.EV_SEPARATOR)
READY = next(i for i, event in enumerate(EVENTS) if event.pcr == 4)
APPLICATION = next(i for i, e in enumerate(EVENTS) if e.type == Type.EV_EFI_BOOT_SERVICES_APPLICATION)


def boot(events: list[Measured], bank: PcrBank = PcrBank.SHA256) -> MeasuredBoot:
    """What a log of these events says of PCRs 0 to 15."""
    return measured_boot(parse_event_log(make_log(events, ("sha256", "sha384"))), bank, range(16))


def refused(events: list[Measured], *quirks: Quirk) -> RejectReason:
    """Why a boot of these events is refused, in either bank."""
    reasons = set()
    for bank in PcrBank:
        with pytest.raises(EvidenceRejected) as caught:
            check_event_rules(boot(events, bank), quirks)
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
    return reasons.pop()


def insecure(events: list[Measured]) -> EvidenceRejected:
    """How Secure Boot is found not to be in force, after all other rules passed."""
    check_event_rules(boot(events))
    with pytest.raises(EvidenceRejected) as caught:
        check_secure_boot(boot(events))
    assert caught.value.reason is RejectReason.SECURE_BOOT_REQUIRED
    return caught.value


def edited(at: int, *events: Measured, remove: int = 1) -> list[Measured]:
    """The honest events with some of them replaced."""
    return [*EVENTS[:at], *events, *EVENTS[at + remove :]]


@pytest.mark.parametrize("bank", list(PcrBank))
def test_an_honest_boot_keeps_the_rules(bank: PcrBank) -> None:
    """A unified kernel's boot under OVMF, Secure Boot on or off, breaks no rule."""
    check_event_rules(boot(EVENTS, bank))
    check_secure_boot(boot(EVENTS, bank))
    check_event_rules(boot(honest_events(secure_boot=False), bank))


@pytest.mark.parametrize(
    ("at", "other"),
    [
        (0, Type.EV_IPL),
        (1, Type.EV_EFI_BOOT_SERVICES_APPLICATION),
        (2, Type.EV_EVENT_TAG),
        (APPLICATION, Type.EV_EFI_BOOT_SERVICES_DRIVER),
        (len(EVENTS) - 3, Type.EV_EFI_ACTION),
        (0, 0x12345678),
    ],
)
def test_a_type_that_its_pcr_may_not_have_is_refused(at: int, other: int) -> None:
    """The type is not covered by the digest, so each PCR has an allow-list; unknown types are on none."""
    assert refused(edited(at, replace(EVENTS[at], type=other))) is RejectReason.EVENT_TYPE_NOT_ALLOWED


@pytest.mark.parametrize(
    "event",
    [
        Measured(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16)),
        Measured(2, Type.EV_EFI_BOOT_SERVICES_DRIVER, image("a"), b"a"),
        Measured(3, Type.EV_EVENT_TAG, b"a"),
        Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("dbr", b"a", SECURITY_DATABASE)),
        Measured(10, Type.EV_EFI_ACTION, b"a"),
        Measured(9, Type.EV_SEPARATOR, ZERO_SEPARATOR),
    ],
    ids=lambda event: f"PCR {event.pcr}",
)
def test_a_type_may_be_right_only_before_the_separator(event: Measured) -> None:
    """What configures the firmware comes before its separator; the system's PCRs have their own two types."""
    assert refused([*EVENTS, event]) is RejectReason.EVENT_TYPE_NOT_ALLOWED


def test_an_authority_before_the_separator_is_refused() -> None:
    """A moved separator does not turn configuration into what was used to verify."""
    authority = next(event for event in EVENTS if event.type == Type.EV_EFI_VARIABLE_AUTHORITY)
    assert refused(edited(SEPARATOR_7, authority, remove=0)) is RejectReason.EVENT_TYPE_NOT_ALLOWED


def test_an_application_before_the_firmware_calls_one_is_refused() -> None:
    """PCR 4 has an application only after the firmware's action, which is known by its digest; a quirk lifts it."""
    without = edited(READY)
    assert refused(without) is RejectReason.EVENT_TYPE_NOT_ALLOWED
    check_event_rules(boot(without), (Quirk.APPLICATION_BEFORE_READY_TO_BOOT,))
    other = edited(READY, replace(EVENTS[READY], data=b"Booting of EFI Application"))
    assert refused(other) is RejectReason.EVENT_TYPE_NOT_ALLOWED


@pytest.mark.parametrize(
    "at",
    [i for i, e in enumerate(EVENTS) if e.content is None],
    ids=lambda at: f"{at}-{Type(EVENTS[at].type).name}",
)
def test_data_that_the_digest_does_not_cover_is_refused(at: int) -> None:
    """For every type whose digest is that of its data, other data is refused: an action, a variable, a version."""
    changed = replace(EVENTS[at], data=EVENTS[at].data[:-1] + b"?", content=EVENTS[at].data)
    assert refused(edited(at, changed)) is RejectReason.EVENT_DATA_MISMATCH


def test_data_of_images_decides_nothing() -> None:
    """An application's data may say anything: only its digest counts, against a reference."""
    check_event_rules(boot(edited(APPLICATION, replace(EVENTS[APPLICATION], data=b"any path"))))


@pytest.mark.parametrize(
    "changed",
    [
        variable("SecureBoot", b"\2"),
        variable("SecureBoot", b"\1\1"),
        variable("SecureBoot", b""),
        variable("PK", b"other"),
        b"no variable",
    ],
    ids=["two", "long", "empty", "PK twice", "malformed"],
)
def test_variables_that_no_firmware_writes_are_refused(changed: bytes) -> None:
    """SecureBoot is 0 or 1, each variable comes once, and each parses."""
    assert refused(edited(2, replace(EVENTS[2], data=changed))) is RejectReason.EVENT_DATA_MISMATCH


def test_an_empty_secure_boot_variable_needs_its_quirk_and_means_off() -> None:
    """Firmware that measures SecureBoot without a value is tolerated by name, and never counts as secure."""
    events = edited(2, replace(EVENTS[2], data=variable("SecureBoot", b"")))
    check_event_rules(boot(events), (Quirk.EMPTY_SECURE_BOOT_VARIABLE,))
    with pytest.raises(EvidenceRejected):
        check_secure_boot(boot(events))


def test_an_old_shims_authority_needs_its_quirk() -> None:
    """The digest that leaves out the last byte passes by name only, and no other digest does."""
    data = variable("Shim", b"certificate") + b"\0"
    shim = Measured(7, Type.EV_EFI_VARIABLE_AUTHORITY, data, data[:-1])
    assert refused([*EVENTS, shim]) is RejectReason.EVENT_DATA_MISMATCH
    check_event_rules(boot([*EVENTS, shim]), (Quirk.OLD_SHIM_AUTHORITY,))
    assert refused([*EVENTS, replace(shim, content=data[:-2])], *Quirk) is RejectReason.EVENT_DATA_MISMATCH


@pytest.mark.parametrize("pcr", range(8))
def test_a_missing_separator_is_refused(pcr: int) -> None:
    """Each firmware PCR has a separator, in which nothing is hidden."""
    alone = [event for event in EVENTS if event.pcr == pcr and event.type != Type.EV_SEPARATOR]
    alone = [event for event in alone if event.type != Type.EV_EFI_VARIABLE_AUTHORITY]
    single = replace_pcrs(boot(alone), pcr)
    with pytest.raises(EvidenceRejected) as caught:
        check_event_rules(single)
    assert caught.value.reason is RejectReason.BAD_SEPARATOR


def replace_pcrs(whole: MeasuredBoot, pcr: int) -> MeasuredBoot:
    """The boot as a policy sees it that demands one PCR."""
    return replace(whole, events={pcr: whole.events[pcr]})


def test_a_doubled_separator_is_refused() -> None:
    """Two separators would make two ends of the firmware's part."""
    assert refused([*EVENTS, Measured(7, Type.EV_SEPARATOR, ZERO_SEPARATOR)]) is RejectReason.BAD_SEPARATOR


def test_a_separator_under_another_type_is_refused() -> None:
    """A separator is known by its digest, whatever type the log gives it."""
    hidden = Measured(7, Type.EV_EFI_ACTION, ZERO_SEPARATOR)
    assert refused(edited(SEPARATOR_7, hidden, EVENTS[SEPARATOR_7])) is RejectReason.BAD_SEPARATOR
    blob = Measured(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), b"\xff\xff\xff\xff")
    assert refused(edited(1, blob)) is RejectReason.BAD_SEPARATOR


@pytest.mark.parametrize("data", [b"\1\0\0\0", b"\0\0\0\0\0", b"", b"\2\0\0\0"])
def test_a_separator_of_an_error_or_of_nothing_is_refused(data: bytes) -> None:
    """Only 00000000 and ffffffff end the firmware's part well."""
    assert refused(edited(SEPARATOR_7, Measured(7, Type.EV_SEPARATOR, data))) is RejectReason.BAD_SEPARATOR


def test_an_error_digest_under_another_type_is_refused() -> None:
    """The separator that follows a firmware error is refused under any type."""
    hidden = Measured(0, Type.EV_POST_CODE, b"POST", b"\1\0\0\0")
    assert refused(edited(1, hidden)) is RejectReason.BAD_SEPARATOR


def test_both_good_separators_pass() -> None:
    """BIOS writes ffffffff where UEFI writes 00000000."""
    check_event_rules(boot(edited(SEPARATOR_7, Measured(7, Type.EV_SEPARATOR, b"\xff\xff\xff\xff"))))


def test_secure_boot_off_is_refused() -> None:
    """SecureBoot must be 1, and must be there."""
    off = insecure(edited(2, replace(EVENTS[2], data=variable("SecureBoot", b"\0"))))
    assert (off.expected, off.seen) == ("SecureBoot: 01", "SecureBoot: 00")
    assert insecure(edited(2)).seen == "no SecureBoot variable"


def test_a_secure_boot_variable_of_another_owner_does_not_count() -> None:
    """A variable is its GUID and name; the same name of another GUID is another variable."""
    other = replace(EVENTS[2], data=variable("SecureBoot", b"\1", SECURITY_DATABASE))
    assert insecure(edited(2, other)).seen == "no SecureBoot variable"


@pytest.mark.parametrize("at", [3, 4, 5], ids=["PK", "KEK", "db"])
def test_secure_boot_without_enrolled_keys_is_refused(at: int) -> None:
    """SecureBoot without PK, KEK or db protects nothing."""
    name = ("PK", "KEK", "db")[at - 3]
    guid = EVENTS[at].data[:16]
    assert insecure(edited(at)).expected == f"{name} enrolled"
    assert insecure(edited(at, replace(EVENTS[at], data=variable(name, b"", guid)))).expected == f"{name} enrolled"


def test_secure_boot_without_an_authority_is_refused() -> None:
    """Something of db must have let a boot loader run."""
    without = [event for event in EVENTS if event.type != Type.EV_EFI_VARIABLE_AUTHORITY]
    assert insecure(without).expected.startswith("an authority")


@pytest.mark.parametrize(
    "data",
    [variable("SbatLevel", b"sbat,1"), variable("db", b"certificate"), variable("db", b"", SECURITY_DATABASE), b"db"],
    ids=["shim's", "another db", "empty", "malformed"],
)
def test_only_an_authority_of_db_counts(data: bytes) -> None:
    """An authority that a boot loader names does not show that firmware verified the boot loader."""
    events = [event for event in EVENTS if event.type != Type.EV_EFI_VARIABLE_AUTHORITY]
    assert insecure([*events, Measured(7, Type.EV_EFI_VARIABLE_AUTHORITY, data)]).seen == "none"


@pytest.mark.parametrize("action", [b"UEFI Debug Mode", b"DMA Protection Disabled"])
def test_debugging_and_open_dma_are_refused(action: bytes) -> None:
    """Actions that say that protection was off are known by their digest."""
    event = Measured(7, Type.EV_EFI_ACTION, action)
    assert insecure(edited(SEPARATOR_7, event, EVENTS[SEPARATOR_7])).seen == action.decode()


def test_every_quirk_is_explained() -> None:
    """Each quirk is a row of the table, and off by default."""
    assert set(QUIRKS) == set(Quirk)


@pytest.mark.parametrize(
    ("name", "secure", "quirks"),
    [
        ("ovmf-nosb-uki-python", False, ()),
        ("ovmf-secureboot-uki-python", True, ()),
        ("ovmf-nosb-direct-kernel", False, (Quirk.APPLICATION_BEFORE_READY_TO_BOOT,)),
        ("seabios-direct-kernel", False, ()),
    ],
)
def test_recorded_boots_keep_the_rules(name: str, secure: bool, quirks: tuple[Quirk, ...]) -> None:
    """Boots of virtual machines pass, and Secure Boot is in force where it was."""
    path = VECTORS / "ovmf" / name / "binary_bios_measurements"
    if not path.is_file():
        pytest.skip("the collection of recorded boots is not here")
    recorded = measured_boot(parse_event_log(path.read_bytes()), PcrBank.SHA256, range(16))
    check_event_rules(recorded, quirks)
    if secure:
        check_secure_boot(recorded)
    else:
        with pytest.raises(EvidenceRejected):
            check_secure_boot(recorded)
