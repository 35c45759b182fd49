"""Replaying a firmware log against quoted PCRs."""

import json
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import EvidenceRejected, RejectReason
from attestation.model import PcrBank
from attestation.simulator.software_host import (
    COMMAND_LINE,
    Measured,
    extended,
    honest_events,
    make_legacy_log,
    make_log,
)
from attestation.verifier.log_description import describe_log
from attestation.verifier.quirks import Quirk
from attestation.verifier.replay import check_replay, check_startup_locality, measured_boot
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType as Type

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
PCRS = (0, 2, 4, 5, 7, 9, 11)
EVENTS = honest_events()


def check(
    log_events: list[Measured],
    quoted: dict[int, bytes],
    *,
    banks: tuple[str, ...] = ("sha256", "sha384"),
    bank: PcrBank = PcrBank.SHA256,
    quirks: tuple[Quirk, ...] = (),
) -> None:
    """Hold a log of these events against quoted PCRs."""
    boot = measured_boot(parse_event_log(make_log(log_events, banks)), bank, quoted)
    check_replay(boot, quoted, quirks)


def pcrs(events: list[Measured], bank: str = "sha256", locality: int = 0) -> dict[int, bytes]:
    """Quoted PCRs after these events."""
    values = extended(events, bank, locality)
    return {pcr: values[pcr] for pcr in PCRS}


def refused(log_events: list[Measured], quoted: dict[int, bytes], **options: Any) -> EvidenceRejected:
    """Why such a log is refused."""
    with pytest.raises(EvidenceRejected) as caught:
        check(log_events, quoted, **options)
    return caught.value


@pytest.mark.parametrize("bank", list(PcrBank))
def test_an_honest_log_explains_the_pcrs(bank: PcrBank) -> None:
    """Extending the log's events gives the PCRs of either bank."""
    check(EVENTS, pcrs(EVENTS, bank.value), bank=bank)


@pytest.mark.parametrize("edit", ["dropped", "doubled", "swapped", "added"])
def test_a_log_that_tells_another_story_is_refused(edit: str) -> None:
    """T4: an event dropped, doubled, moved or added no longer explains the PCR."""
    events = list(EVENTS)
    at = next(i for i, event in enumerate(events) if event.pcr == 9)
    if edit == "dropped":
        del events[at]
    elif edit == "doubled":
        events.insert(at, events[at])
    elif edit == "swapped":
        events[at], events[at + 1] = events[at + 1], events[at]
    else:
        events.insert(at, Measured(9, Type.EV_EVENT_TAG, b"more"))
    rejection = refused(events, pcrs(EVENTS))
    assert (rejection.reason, rejection.event) == (RejectReason.LOG_DOES_NOT_REPLAY, "PCR 9")
    assert rejection.expected == pcrs(EVENTS)[9].hex()


def test_a_changed_digest_is_refused() -> None:
    """A digest that was not extended does not replay."""
    changed = honest_events(command_line=f"{COMMAND_LINE} init=/bin/sh")
    assert refused(changed, pcrs(EVENTS)).reason is RejectReason.LOG_DOES_NOT_REPLAY


def test_events_of_no_action_are_never_extended() -> None:
    """EV_NO_ACTION says something and extends nothing, whatever PCR it names."""
    check([Measured(4, Type.EV_NO_ACTION, b"note"), *EVENTS], pcrs(EVENTS))


@pytest.mark.parametrize("locality", [3, 4])
def test_pcr_0_starts_from_the_startup_locality(locality: int) -> None:
    """The locality that the log states is PCR 0's first value; another one does not replay."""
    stated = Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    check([stated, *EVENTS], pcrs(EVENTS, locality=locality))
    assert refused([stated, *EVENTS], pcrs(EVENTS)).event == "PCR 0"
    assert refused(list(EVENTS), pcrs(EVENTS, locality=locality)).event == "PCR 0"


def test_an_h_crtm_is_extended_into_pcr_0_from_4() -> None:
    """An H-CRTM's digest is extended, and PCR 0 starts at 4."""
    events = [Measured(0, Type.EV_EFI_HCRTM_EVENT, b"HCRTM", b"code"), *EVENTS]
    check(events, pcrs(events, locality=4))


def test_a_pcr_that_the_log_is_silent_about_is_refused() -> None:
    """A quoted PCR without events is refused, extended or not."""
    silent = [event for event in EVENTS if event.pcr != 11]
    assert refused(silent, pcrs(EVENTS)).reason is RejectReason.UNMEASURED_PCR
    assert refused(silent, pcrs(silent)).reason is RejectReason.UNMEASURED_PCR


def test_a_bank_that_was_never_extended_is_refused() -> None:
    """Zero PCRs with events in the log mean that the firmware does not measure into this bank."""
    rejection = refused(list(EVENTS), dict.fromkeys(PCRS, bytes(32)))
    assert rejection.reason is RejectReason.LOG_DOES_NOT_REPLAY
    assert "never extended" in rejection.expected


def test_a_log_without_the_bank_is_refused() -> None:
    """A SHA-1 log explains no SHA-256 PCR."""
    assert refused(list(EVENTS), pcrs(EVENTS), banks=("sha1",)).reason is RejectReason.LOG_DOES_NOT_REPLAY
    with pytest.raises(EvidenceRejected) as caught:
        measured_boot(parse_event_log(make_legacy_log(EVENTS)), PcrBank.SHA256, PCRS)
    assert (caught.value.expected, caught.value.seen) == ("sha256", "sha1")


def test_a_log_cut_before_exit_boot_services_needs_its_quirk() -> None:
    """The two last events of PCR 5 may be missing only where the policy says so, and only those."""
    cut = EVENTS[:-2]
    assert refused(cut, pcrs(EVENTS)).event == "PCR 5"
    check(cut, pcrs(EVENTS), quirks=(Quirk.MISSING_EXIT_BOOT_SERVICES,))
    half = EVENTS[:-1]
    assert refused(half, pcrs(EVENTS), quirks=(Quirk.MISSING_EXIT_BOOT_SERVICES,)).event == "PCR 5"
    shorter = [event for event in cut if event.pcr != 9]
    shorter.append(EVENTS[-4])
    assert refused(shorter, pcrs(EVENTS), quirks=(Quirk.MISSING_EXIT_BOOT_SERVICES,)).event == "PCR 9"


def test_a_required_startup_locality_is_held() -> None:
    """A TPM reset alone cannot pass for a reboot where the policy demands a locality."""
    boot = measured_boot(parse_event_log(make_log(EVENTS)), PcrBank.SHA256, PCRS)
    check_startup_locality(boot, None)
    check_startup_locality(boot, 0)
    with pytest.raises(EvidenceRejected) as caught:
        check_startup_locality(boot, 3)
    assert caught.value.reason is RejectReason.WRONG_STARTUP_LOCALITY
    without_pcr_0 = measured_boot(parse_event_log(make_log(EVENTS)), PcrBank.SHA256, (4,))
    with pytest.raises(EvidenceRejected):
        check_startup_locality(without_pcr_0, 0)


def test_a_log_is_described() -> None:
    """The description holds banks, events and the PCRs that the log explains, as JSON can carry them."""
    described = json.loads(json.dumps(describe_log(make_log(EVENTS, ("sha1", "sha256")))))
    assert described["banks"] == ["sha1", "sha256"]
    assert described["startup_locality"] == 0
    assert described["pcrs"]["sha256"] == {
        str(pcr): value.hex() for pcr, value in extended(EVENTS).items() if any(event.pcr == pcr for event in EVENTS)
    }
    events = described["events"]
    assert [event["index"] for event in events] == list(range(len(EVENTS) + 1))
    by_type = {event["type"]: event for event in events}
    assert by_type["EV_EFI_ACTION"]["digest_matches_data"] is True
    assert by_type["EV_EFI_BOOT_SERVICES_APPLICATION"]["digest_matches_data"] is False
    assert by_type["EV_EVENT_TAG"]["digests"]["sha256"] == EVENTS[-3].digest("sha256").hex()
    assert by_type["EV_S_CRTM_VERSION"]["pcr"] == 0


def test_a_sha1_log_is_described() -> None:
    """The older format has one bank."""
    described = describe_log(make_legacy_log(EVENTS))
    assert list(described["pcrs"]) == ["sha1"]
    assert described["pcrs"]["sha1"]["4"] == extended(EVENTS, "sha1")[4].hex()


def recorded_logs() -> list[Any]:
    """Logs of other projects, with the PCRs that were recorded with them."""
    index = VECTORS / "eventlogs" / "index.json"
    if not index.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the collection of recorded logs is not here"))]
    return [pytest.param(entry, id=entry["file"]) for entry in json.loads(index.read_text()) if entry["pcrs"]]


@pytest.mark.parametrize("entry", recorded_logs())
def test_recorded_logs_replay_to_their_recorded_pcrs(entry: dict[str, Any]) -> None:
    """Logs of real machines replay, in every bank, to what their TPMs held."""
    described = describe_log((VECTORS / "eventlogs" / entry["file"]).read_bytes())
    assert len(described["events"]) == entry["events"]
    assert described["startup_locality"] == entry["startup_locality"]
    for bank, values in entry["pcrs"].items():
        assert {pcr: described["pcrs"][bank][pcr] for pcr in values} == values


def ovmf_boots() -> list[Any]:
    """Boots under OVMF and SeaBIOS, one directory each."""
    boots = sorted(path.parent for path in VECTORS.glob("ovmf/*/binary_bios_measurements"))
    skip = pytest.param(None, marks=pytest.mark.skip(reason="the collection of recorded boots is not here"))
    return [pytest.param(boot, id=boot.name) for boot in boots] or [skip]


@pytest.mark.parametrize("boot", ovmf_boots())
def test_recorded_boots_replay_to_their_pcrs(boot: Path) -> None:
    """Logs of virtual machines replay to the PCRs read in the same boot."""
    described = describe_log((boot / "binary_bios_measurements").read_bytes())
    for file in boot.glob("pcrs-*.txt"):
        recorded = dict(line.split() for line in file.read_text().splitlines())
        for pcr, value in described["pcrs"][file.stem.removeprefix("pcrs-")].items():
            assert value == recorded[pcr].lower()
