"""Reference boots: what a trusted boot looked like, event by event, and where another boot differs.

A reference is captured from the log of a boot that an administrator trusts. It holds, for each demanded PCR, the type
and digest of each event in order, and words for people; the log itself is not kept. A boot equals a reference if in
each demanded PCR the same events came in the same order, neither less nor more, and PCR 0 started from the same value.
The order between PCRs is free.

Serialised as canonical JSON (keys sorted, no white space), read back strictly.
Pure: no clock, randomness, I/O or logging.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from attestation.errors import EvidenceRejected, PolicyRejected, RejectReason, WireError
from attestation.model import PcrBank
from attestation.verifier.event_rules import check_event_rules
from attestation.verifier.policy import PolicyName
from attestation.verifier.quirks import Quirk
from attestation.verifier.replay import MeasuredBoot, measured_boot
from attestation.wire.event_data import MAX_DESCRIPTION, command_line_digests, describe_event, event_place
from attestation.wire.event_log import H_CRTM_LOCALITY, MAX_EVENTS, Event, parse_event_log
from attestation.wire.event_types import event_type_name

MAX_REFERENCE_SIZE: Final = 16 * 1024 * 1024
MAX_COMMAND_LINE: Final = 4096
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX_DIGEST: Final = r"^([0-9a-f]{64}|[0-9a-f]{96})$"


@dataclass(frozen=True, slots=True)
class ReferenceEvent:
    """One event of a trusted boot."""

    number: int
    """Its place in the log it was captured from."""
    pcr: int
    type: int
    digest: bytes
    description: str


@dataclass(frozen=True, slots=True)
class ReferenceBoot:
    """A boot to compare with."""

    name: str
    bank: PcrBank
    pcrs: tuple[int, ...]
    """The PCRs it speaks for, ascending."""
    events: tuple[ReferenceEvent, ...]
    """In the order of the log."""
    startup_locality: int = 0
    """What PCR 0 started from: with it, an equal boot has equal PCRs."""
    command_line: str = ""
    """Kernel command line, where it is known and its digest is among the events."""
    _by_pcr: Mapping[int, tuple[ReferenceEvent, ...]] = field(init=False, repr=False, compare=False)
    _expected: Mapping[int, tuple[tuple[int, bytes], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the events, so that comparing does not."""
        by_pcr = {pcr: tuple(event for event in self.events if event.pcr == pcr) for pcr in self.pcrs}
        expected = {pcr: tuple((event.type, event.digest) for event in events) for pcr, events in by_pcr.items()}
        object.__setattr__(self, "_by_pcr", MappingProxyType(by_pcr))
        object.__setattr__(self, "_expected", MappingProxyType(expected))

    @classmethod
    def from_log(
        cls,
        name: str,
        log: bytes,
        bank: PcrBank,
        pcrs: Collection[int],
        *,
        command_line: str = "",
        quirks: Collection[Quirk] = (),
    ) -> Self:
        """Capture a reference from the log of a trusted boot.

        Args:
            name: Letters, digits, dot, dash, underscore; 1 to 64.
            log: TCG event log, binary.
            bank: Bank whose digests to keep.
            pcrs: PCRs to speak for.
            command_line: Text of the kernel command line; logs hold only its digest.
            quirks: Oddities that the policy allows.

        Raises:
            PolicyRejected: The name is not one, the log does not parse, has no event for one of the PCRs, breaks an
                event rule, or does not measure that command line.
        """
        if not _NAME.fullmatch(name):
            raise PolicyRejected("a reference's name has 1 to 64 letters, digits, dots, dashes and underscores")
        if len(command_line) > MAX_COMMAND_LINE:
            raise PolicyRejected(f"a kernel command line has at most {MAX_COMMAND_LINE} characters")
        try:
            boot = measured_boot(parse_event_log(log), bank, pcrs)
            check_event_rules(boot, quirks)
        except WireError as exc:
            raise PolicyRejected(f"the log does not parse: {exc}") from exc
        except EvidenceRejected as exc:
            raise PolicyRejected(f"a boot like this would never be trusted: {exc} ({exc.event})") from exc
        silent = [pcr for pcr, events in boot.events.items() if not events]
        if silent:
            raise PolicyRejected(
                f"the log has no event for PCR {', '.join(map(str, silent))}, which the policy demands"
            )
        measured = sorted(
            (event for events in boot.events.values() for event in events), key=lambda event: event.number
        )
        events = tuple(
            ReferenceEvent(event.number, event.pcr, event.type, event.digests[boot.position], describe_event(event))
            for event in measured
        )
        if command_line:
            digests = command_line_digests(command_line, bank.value)
            if not any(event.digest in digests for event in events):
                raise PolicyRejected("the log does not measure this kernel command line")
        return cls(name, bank, tuple(boot.events), events, boot.startup_locality, command_line)

    def to_json(self) -> str:
        """Canonical JSON of the reference."""
        document = _ReferenceDocument(
            name=self.name,
            bank=self.bank,
            pcrs=self.pcrs,
            startup_locality=self.startup_locality,
            command_line=self.command_line,
            events=tuple(
                _EventDocument(
                    number=event.number,
                    pcr=event.pcr,
                    type=event.type,
                    digest=event.digest.hex(),
                    description=event.description,
                )
                for event in self.events
            ),
        )
        return json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            PolicyRejected: Not such a document.
        """
        if len(text) > MAX_REFERENCE_SIZE:
            raise PolicyRejected(f"a reference has at most {MAX_REFERENCE_SIZE} characters, not {len(text)}")
        try:
            document = _ReferenceDocument.model_validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PolicyRejected(f"not a reference: {where}: {first['msg']}") from exc
        events = tuple(
            ReferenceEvent(event.number, event.pcr, event.type, bytes.fromhex(event.digest), event.description)
            for event in document.events
        )
        if {event.pcr for event in events} != set(document.pcrs) or any(
            len(event.digest) != document.bank.digest_size for event in events
        ):
            raise PolicyRejected("not a reference: its events are not of its PCRs and bank")
        return cls(
            document.name, document.bank, document.pcrs, events, document.startup_locality, document.command_line
        )

    def speaks_for(self, boot: MeasuredBoot) -> bool:
        """Whether it holds the bank and all the PCRs that ``boot`` was reduced to."""
        return self.bank == boot.bank and self._expected.keys() >= boot.events.keys()

    def expected(self, pcr: int) -> tuple[tuple[int, bytes], ...]:
        """Type and digest of each event of a PCR, in order."""
        return self._expected[pcr]

    def events_of(self, pcr: int) -> tuple[ReferenceEvent, ...]:
        """Events of a PCR, in order."""
        return self._by_pcr[pcr]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a boot first differs from a reference in one PCR."""

    number: int
    """Place of the event in the boot's log; in the reference's where the boot lacks it."""
    pcr: int
    place: str
    """For people, such as "event 34, PCR 9, EV_EVENT_TAG"."""
    expected: str
    seen: str


@dataclass(frozen=True, slots=True)
class Match:
    """The reference that a boot equals, or comes nearest to."""

    reference: ReferenceBoot
    mismatches: tuple[Mismatch, ...]
    """Empty where equal; else the first difference in each PCR that differs, in the order of the log."""


def compare(reference: ReferenceBoot, boot: MeasuredBoot, untrusted_command_line: str = "") -> Mismatch | None:
    """The first event in which a boot differs from a reference; None where they are equal.

    Args:
        reference: One that speaks for the boot's bank and PCRs.
        boot: The boot, of which every PCR replays.
        untrusted_command_line: What the host says its kernel command line is; named only if its digest is right.
    """
    return next(iter(_mismatches(reference, boot, untrusted_command_line)), None)


def best_match(references: Sequence[ReferenceBoot], boot: MeasuredBoot, untrusted_command_line: str = "") -> Match:
    """The reference that the boot equals or, where it equals none, agrees with longest.

    Raises:
        EvidenceRejected: NO_ACTIVE_REFERENCE: none speaks for the boot's bank and PCRs.
    """
    seen = {
        pcr: tuple([(event.type, event.digests[boot.position]) for event in events])
        for pcr, events in boot.events.items()
    }
    candidates = [reference for reference in references if reference.speaks_for(boot)]
    if not candidates:
        raise EvidenceRejected(
            RejectReason.NO_ACTIVE_REFERENCE,
            "no reference boot is in force for these PCRs",
            expected=f"a reference for {boot.bank}: {','.join(map(str, boot.events))}",
            seen=f"{len(references)} for other PCRs or banks" if references else "none",
        )
    for reference in candidates:
        if not _starts_elsewhere(reference, boot) and all(reference.expected(pcr) == seen[pcr] for pcr in seen):
            return Match(reference, ())
    nearest = max(candidates, key=lambda reference: sum(_agreement(reference.expected(pcr), seen[pcr]) for pcr in seen))
    return Match(nearest, _mismatches(nearest, boot, untrusted_command_line))


def _starts_elsewhere(reference: ReferenceBoot, boot: MeasuredBoot) -> bool:
    """Whether PCR 0 started from another value, as after a reset of the TPM alone."""
    return 0 in boot.events and boot.startup_locality != reference.startup_locality


def _agreement(expected: tuple[tuple[int, bytes], ...], seen: tuple[tuple[int, bytes], ...]) -> int:
    """How many events agree before the first that does not."""
    length = 0
    for one, other in zip(expected, seen, strict=False):
        if one != other:
            break
        length += 1
    return length


def _mismatches(reference: ReferenceBoot, boot: MeasuredBoot, untrusted_command_line: str) -> tuple[Mismatch, ...]:
    found = []
    if _starts_elsewhere(reference, boot):
        expected_start = f"startup locality {reference.startup_locality}"
        found.append(Mismatch(0, 0, "PCR 0, first value", expected_start, f"startup locality {boot.startup_locality}"))
    for pcr, events in boot.events.items():
        seen = tuple((event.type, event.digests[boot.position]) for event in events)
        expected = reference.expected(pcr)
        if seen == expected:
            continue
        at = _agreement(expected, seen)
        wanted = reference.events_of(pcr)[at] if at < len(expected) else None
        event = events[at] if at < len(events) else None
        found.append(_mismatch(reference, boot, wanted, event, untrusted_command_line))
    return tuple(sorted(found, key=lambda mismatch: mismatch.number))


def _mismatch(
    reference: ReferenceBoot,
    boot: MeasuredBoot,
    wanted: ReferenceEvent | None,
    event: Event | None,
    untrusted_command_line: str,
) -> Mismatch:
    pcr, number = (event.pcr, event.number) if event else (wanted.pcr, wanted.number) if wanted else (0, 0)
    expected = "no further event"
    if wanted:
        expected = _words(wanted.type, wanted.description, wanted.digest, boot.bank, reference.command_line)
    seen = "no further event"
    if event:
        digest = event.digests[boot.position]
        seen = _words(event.type, describe_event(event), digest, boot.bank, untrusted_command_line)
    place = event_place(event) if event else f"PCR {pcr}, after its last event"
    return Mismatch(number, pcr, place, expected, seen)


def _words(event_type: int, description: str, digest: bytes, bank: PcrBank, command_line: str) -> str:
    """An event for people; a command line only if this very event measured it."""
    known = bool(command_line) and digest in command_line_digests(command_line, bank.value)
    text = f' "{command_line}"' if known else ""
    return f"{event_type_name(event_type)} {description}{text}, {bank} {digest.hex()}"


class _EventDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    number: int = Field(ge=0, le=MAX_EVENTS)
    pcr: int = Field(ge=0, le=15)
    type: int = Field(ge=0, le=0xFFFFFFFF)
    digest: Annotated[str, StringConstraints(pattern=_HEX_DIGEST)]
    description: str = Field(max_length=MAX_DESCRIPTION)


class _ReferenceDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: PolicyName
    bank: PcrBank
    pcrs: tuple[Annotated[int, Field(ge=0, le=15)], ...] = Field(min_length=1, max_length=16)
    startup_locality: int = Field(ge=0, le=H_CRTM_LOCALITY)
    command_line: str = Field(default="", max_length=MAX_COMMAND_LINE)
    events: tuple[_EventDocument, ...] = Field(min_length=1, max_length=MAX_EVENTS)
