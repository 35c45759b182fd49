"""Reference boots: capture, keeping, and telling where another boot differs."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import EvidenceRejected, PolicyRejected, RejectReason
from attestation.model import PcrBank
from attestation.simulator.software_host import COMMAND_LINE, Measured, honest_events, make_log
from attestation.verifier.quirks import Quirk
from attestation.verifier.reference import MAX_REFERENCE_SIZE, ReferenceBoot, best_match, compare
from attestation.verifier.replay import MeasuredBoot, measured_boot
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType as Type

PCRS = (0, 2, 4, 7, 9, 11)
EVENTS = honest_events()
LOG = make_log(EVENTS)
REFERENCE = ReferenceBoot.from_log("golden", LOG, PcrBank.SHA256, PCRS, command_line=COMMAND_LINE)
EVIL = f"{COMMAND_LINE} init=/bin/sh"
KERNEL = next(i for i, event in enumerate(EVENTS) if event.type == Type.EV_EFI_BOOT_SERVICES_APPLICATION)


def boot(events: list[Measured], pcrs: tuple[int, ...] = PCRS, bank: PcrBank = PcrBank.SHA256) -> MeasuredBoot:
    """What a log of these events says of the demanded PCRs."""
    return measured_boot(parse_event_log(make_log(events, ("sha256", "sha384"))), bank, pcrs)


def test_a_boot_equals_the_reference_captured_from_it() -> None:
    """R-TA-4: the same events in the same order are the same boot, whatever the other banks of the log."""
    assert compare(REFERENCE, boot(EVENTS)) is None
    match = best_match([REFERENCE], boot(EVENTS))
    assert (match.reference.name, match.mismatches) == ("golden", ())


def test_order_between_pcrs_is_free() -> None:
    """Only the order within a PCR is protected, so only that is compared."""
    assert compare(REFERENCE, boot(sorted(EVENTS, key=lambda event: event.pcr))) is None


def test_a_reference_survives_keeping() -> None:
    """JSON and back gives an equal reference and an equal text."""
    text = REFERENCE.to_json()
    assert ReferenceBoot.from_json(text) == REFERENCE
    assert ReferenceBoot.from_json(text).to_json() == text
    assert compare(ReferenceBoot.from_json(text), boot(EVENTS)) is None


def test_only_the_demanded_pcrs_are_kept() -> None:
    """A reference speaks for its PCRs and no other."""
    assert {event.pcr for event in REFERENCE.events} == set(PCRS)
    assert "certificates" not in REFERENCE.to_json()


def test_the_first_difference_is_named() -> None:
    """B-3: event, PCR, type, what was expected and what was seen."""
    changed = [*EVENTS[:KERNEL], replace(EVENTS[KERNEL], content=b"another kernel"), *EVENTS[KERNEL + 1 :]]
    mismatch = compare(REFERENCE, boot(changed))
    assert mismatch is not None
    assert (mismatch.number, mismatch.pcr) == (KERNEL + 1, 4)
    assert mismatch.place == f"event {KERNEL + 1}, PCR 4, EV_EFI_BOOT_SERVICES_APPLICATION"
    assert EVENTS[KERNEL].digest("sha256").hex() in mismatch.expected
    assert changed[KERNEL].digest("sha256").hex() in mismatch.seen
    assert "\\EFI\\BOOT\\BOOTX64.EFI" in mismatch.seen


def test_a_changed_command_line_is_shown_in_words() -> None:
    """Where both texts are known by their digests, a changed kernel command line is shown as text."""
    mismatches = best_match([REFERENCE], boot(honest_events(EVIL)), EVIL).mismatches
    assert [mismatch.pcr for mismatch in mismatches] == [11, 9]
    for mismatch in mismatches:
        assert f'"{COMMAND_LINE}"' in mismatch.expected
        assert f'"{EVIL}"' in mismatch.seen


def test_a_claimed_command_line_that_was_not_measured_is_not_shown() -> None:
    """A host cannot put words into the result: a text is shown only beside its own digest."""
    mismatches = best_match([REFERENCE], boot(honest_events(EVIL)), COMMAND_LINE).mismatches
    assert all(COMMAND_LINE not in mismatch.seen for mismatch in mismatches)
    assert all("kernel command line" in mismatch.seen for mismatch in mismatches)


def test_a_missing_event_is_a_difference() -> None:
    """A boot that stops short of the reference differs."""
    mismatch = compare(REFERENCE, boot([event for event in EVENTS if event.data != EVENTS[-3].data]))
    assert mismatch is not None
    assert (mismatch.pcr, mismatch.seen, mismatch.place) == (9, "no further event", "PCR 9, after its last event")
    assert "Linux initrd" in mismatch.expected


def test_an_event_more_is_a_difference() -> None:
    """A boot that goes on after the reference differs."""
    mismatch = compare(REFERENCE, boot([*EVENTS, Measured(9, Type.EV_EVENT_TAG, b"more")]))
    assert mismatch is not None
    assert (mismatch.pcr, mismatch.expected) == (9, "no further event")


def test_another_type_is_a_difference() -> None:
    """The same digest under another type is another event."""
    at = len(EVENTS) - 3
    mismatch = compare(REFERENCE, boot([*EVENTS[:at], replace(EVENTS[at], type=Type.EV_IPL), *EVENTS[at + 1 :]]))
    assert mismatch is not None
    assert mismatch.seen.startswith("EV_IPL")
    assert mismatch.expected.startswith("EV_EVENT_TAG")


def test_another_startup_locality_is_a_difference() -> None:
    """T16: the same events after a reset of the TPM alone are another boot, where PCR 0 is demanded."""
    stated = Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0\3")
    reference = ReferenceBoot.from_log("locality-3", make_log([stated, *EVENTS]), PcrBank.SHA256, PCRS)
    assert ReferenceBoot.from_json(reference.to_json()).startup_locality == 3
    assert compare(reference, boot([stated, *EVENTS])) is None
    match = best_match([reference], boot(EVENTS))
    assert [(m.place, m.expected, m.seen) for m in match.mismatches] == [
        ("PCR 0, first value", "startup locality 3", "startup locality 0")
    ]
    assert compare(reference, boot(EVENTS, pcrs=(4, 7))) is None


def test_the_nearest_reference_explains_a_refusal() -> None:
    """Of several references, the one that agrees longest is held against the boot, wherever it is in the list."""
    far = ReferenceBoot.from_log("far", make_log(honest_events(secure_boot=False)), PcrBank.SHA256, PCRS)
    for references in ([far, REFERENCE], [REFERENCE, far]):
        assert best_match(references, boot(honest_events(EVIL))).reference.name == "golden"
        assert best_match(references, boot(honest_events(secure_boot=False))).reference.name == "far"


def test_no_reference_for_these_pcrs_is_refused() -> None:
    """Nothing is trusted by default: no reference, or one for fewer PCRs or another bank, trusts no boot."""
    other_bank = ReferenceBoot.from_log("other", make_log(EVENTS, ("sha384",)), PcrBank.SHA384, PCRS)
    fewer = ReferenceBoot.from_log("fewer", LOG, PcrBank.SHA256, PCRS[:-1])
    for references in ([], [other_bank], [fewer]):
        with pytest.raises(EvidenceRejected) as caught:
            best_match(references, boot(EVENTS))
        assert caught.value.reason is RejectReason.NO_ACTIVE_REFERENCE
    more = ReferenceBoot.from_log("more", LOG, PcrBank.SHA256, (*PCRS, 5))
    assert best_match([fewer, more], boot(EVENTS)).reference.name == "more"


def test_a_log_is_captured_only_if_a_boot_like_it_could_be_trusted() -> None:
    """A log that does not parse, is silent about a PCR, or breaks a rule is no reference; nor is another text."""
    with pytest.raises(PolicyRejected, match="does not parse"):
        ReferenceBoot.from_log("golden", LOG + b"\0", PcrBank.SHA256, PCRS)
    with pytest.raises(PolicyRejected, match="no event for PCR 12"):
        ReferenceBoot.from_log("golden", LOG, PcrBank.SHA256, (*PCRS, 12))
    with pytest.raises(PolicyRejected, match="does not cover"):
        ReferenceBoot.from_log("golden", LOG, PcrBank.SHA384, PCRS)
    with pytest.raises(PolicyRejected, match="does not measure"):
        ReferenceBoot.from_log("golden", LOG, PcrBank.SHA256, PCRS, command_line="quiet")
    early = make_log([event for event in EVENTS if event.type != Type.EV_EFI_ACTION])
    with pytest.raises(PolicyRejected, match="never be trusted"):
        ReferenceBoot.from_log("golden", early, PcrBank.SHA256, PCRS)
    quirk = (Quirk.APPLICATION_BEFORE_READY_TO_BOOT,)
    assert ReferenceBoot.from_log("golden", early, PcrBank.SHA256, PCRS, quirks=quirk).name == "golden"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a b"},
        {"bank": "sha1"},
        {"pcrs": []},
        {"pcrs": [0, 2, 4, 7, 9]},
        {"pcrs": [0, 2, 4, 7, 9, 11, 12]},
        {"events": []},
        {"bank": "sha384"},
        {"startup_locality": 5},
        {"colour": 1},
        {"command_line": 1},
    ],
    ids=str,
)
def test_a_document_that_is_no_reference_is_refused(change: dict[str, object]) -> None:
    """What is kept is read back strictly: no unknown field, no event of another PCR or bank."""
    document = json.loads(REFERENCE.to_json())
    with pytest.raises(PolicyRejected):
        ReferenceBoot.from_json(json.dumps({**document, **change}))


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "../golden", "golden\n"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """A reference that could not be kept is not captured."""
    with pytest.raises(PolicyRejected, match="name"):
        ReferenceBoot.from_log(name, LOG, PcrBank.SHA256, PCRS)


def test_an_endless_command_line_is_refused() -> None:
    """A kernel command line has the kernel's bound."""
    endless = make_log(honest_events("a" * 4097))
    with pytest.raises(PolicyRejected, match="at most 4096"):
        ReferenceBoot.from_log("golden", endless, PcrBank.SHA256, PCRS, command_line="a" * 4097)


def test_a_document_without_end_is_not_read() -> None:
    """A text beyond the bound is refused before it is parsed."""
    with pytest.raises(PolicyRejected, match="at most"):
        ReferenceBoot.from_json(" " * (MAX_REFERENCE_SIZE + 1))


@settings(deadline=None)
@given(st.text(max_size=100))
def test_any_text_is_refused(text: str) -> None:
    """Nothing but PolicyRejected escapes."""
    with pytest.raises(PolicyRejected):
        ReferenceBoot.from_json(text)
