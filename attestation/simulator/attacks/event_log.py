"""Attacks on the event log: malformed, another story than what was extended, or a story that breaks the rules."""

import struct
from collections.abc import Callable
from dataclasses import replace

from attestation.errors import EnrollmentReason, RejectReason
from attestation.simulator.attacks.attack import Attack
from attestation.simulator.attacks.edits import (
    Events,
    boots,
    change,
    command_line,
    content,
    drop,
    find,
    insert,
    redescribed,
    retyped,
    says,
    writes,
)
from attestation.simulator.software_host import (
    ZERO_SEPARATOR,
    Measured,
    header,
    image,
    make_legacy_log,
    make_log,
    record,
    spec_id,
    variable,
)
from attestation.wire.event_log import MAX_EVENTS, MAX_LOG_SIZE
from attestation.wire.event_types import EventType as Type
from garant.attestation.v1 import attestation_pb2 as pb

_BANKS = ("sha256", "sha384")
_EVIL = Measured(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, image("\\EFI\\evil.efi"), b"evil")


def _separator_first(events: Events) -> Events:
    place = find(events, 7, Type.EV_SEPARATOR)
    first = find(events, 7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG)
    return [*events[:first], events[place], *events[first:place], *events[place + 1 :]]


def _all_of(*pcrs: int) -> Callable[[Events], Events]:
    return lambda events: [event for event in events if event.pcr not in pcrs]


def _append(event: Measured) -> Callable[[bytes], bytes]:
    return lambda log: log + record(event, _BANKS)


def _unknown_algorithm(log: bytes) -> bytes:
    """The log's SHA-384 becomes an algorithm that nobody knows, in the events only."""
    return log[: len(header(spec_id(_BANKS)))] + log[len(header(spec_id(_BANKS))) :].replace(
        struct.pack("<H", 0x000C), struct.pack("<H", 0x7777), 1
    )


def _unsolicited(request: pb.AttestRequest) -> None:
    request.logs.append(pb.MeasurementLog(kind=pb.LOG_KIND_IMA, content=b"not asked for"))


def _no_log(request: pb.AttestRequest) -> None:
    del request.logs[:]


def _oversized(request: pb.AttestRequest) -> None:
    request.logs[0].content = bytes(MAX_LOG_SIZE + 1)


def _secure_boot(value: bytes) -> Callable[[Events], Events]:
    return change(
        7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, lambda event: replace(event, data=variable("SecureBoot", value))
    )


_MISSING, _REQUEST, _MALFORMED = (
    RejectReason.MISSING_LOG,
    EnrollmentReason.MALFORMED_REQUEST,
    RejectReason.MALFORMED_LOG,
)
_REPLAY, _UNMEASURED = RejectReason.LOG_DOES_NOT_REPLAY, RejectReason.UNMEASURED_PCR
_TYPE, _DATA = RejectReason.EVENT_TYPE_NOT_ALLOWED, RejectReason.EVENT_DATA_MISMATCH
_SEPARATOR, _INSECURE = RejectReason.BAD_SEPARATOR, RejectReason.SECURE_BOOT_REQUIRED
_OTHER_BOOT, _LOCALITY = RejectReason.REFERENCE_MISMATCH, RejectReason.WRONG_STARTUP_LOCALITY

_BYTES = (
    Attack(
        "no-log",
        "PCRs that nobody explains are believed",
        _MISSING,
        lambda host: replace(host, edit_binding=lambda b: replace(b, log_hashes={}), edit_evidence=_no_log),
    ),
    Attack("empty-log", "PCRs that nobody explains are believed", _MISSING, writes(lambda _: b"")),
    Attack(
        "unsolicited-log",
        "what nobody reads is bound, stored and believed",
        _REQUEST,
        lambda h: replace(h, edit_evidence=_unsolicited),
    ),
    Attack(
        "oversized-log",
        "memory is spent on what no firmware writes (T15)",
        _REQUEST,
        lambda h: replace(h, edit_evidence=_oversized),
    ),
    Attack(
        "log-of-too-many-events",
        "time is spent on what no firmware writes (T15)",
        _MALFORMED,
        says(lambda events: events + [events[-1]] * MAX_EVENTS),
    ),
    Attack(
        "log-cut-within-an-event", "half an event is taken for a whole one", _MALFORMED, writes(lambda log: log[:-1])
    ),
    Attack(
        "log-with-trailing-garbage",
        "two parsers read one log differently",
        _MALFORMED,
        writes(lambda log: log + b"\0\0\0"),
    ),
    Attack(
        "log-with-two-headers",
        "the second header redefines the digests that follow",
        _MALFORMED,
        writes(_append(Measured(0, Type.EV_NO_ACTION, spec_id(_BANKS)))),
    ),
    Attack(
        "log-with-an-unannounced-algorithm",
        "digests of unknown length move the parser",
        _MALFORMED,
        writes(_unknown_algorithm),
    ),
    Attack(
        "log-with-pcr-24",
        "an event of a PCR that no PC has",
        _MALFORMED,
        writes(_append(Measured(24, Type.EV_IPL, b"x"))),
    ),
    Attack(
        "log-of-an-unknown-format",
        "a log is read by guessing",
        _MALFORMED,
        writes(lambda log: log.replace(b"Spec ID Event03", b"Spec ID Event99", 1)),
    ),
    Attack("log-that-is-junk", "junk crashes who reads it (T15)", _MALFORMED, writes(lambda _: bytes(range(256)))),
    Attack(
        "late-startup-locality",
        "PCR 0's first value is redefined after it was extended",
        _MALFORMED,
        writes(_append(Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0\4"))),
    ),
)

_STORIES = (
    Attack(
        "log-without-an-event", "what the log leaves out is not missed", _REPLAY, says(drop(9, Type.EV_EVENT_TAG, 1))
    ),
    Attack(
        "log-of-the-reference-boot",
        "the good log is sent for a bad boot",
        _REPLAY,
        lambda host: host.log_bytes(lambda log: log).booting(command_line("init=/bin/sh")),
    ),
    Attack(
        "sha1-log",
        "digests that can be forged explain the boot",
        _REPLAY,
        lambda host: replace(host, boot=replace(host.boot, log=make_legacy_log(host.boot.events))),
    ),
    Attack(
        "log-of-another-bank",
        "the quoted bank is not the one that is explained",
        _REPLAY,
        lambda host: replace(host, boot=replace(host.boot, log=make_log(host.boot.events, ("sha384",)))),
    ),
    Attack(
        "log-in-another-order",
        "the order of what ran is not checked",
        _REPLAY,
        says(lambda events: [*events[:-4], events[-3], events[-4], *events[-2:]]),
    ),
    Attack(
        "log-that-adds-an-event",
        "the log tells of what never happened",
        _REPLAY,
        says(lambda events: [*events, Measured(11, Type.EV_IPL, b"x")]),
    ),
    Attack(
        "event-of-another-pcr",
        "an event moves to where nobody looks",
        _REPLAY,
        says(change(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, lambda e: replace(e, pcr=3))),
    ),
    Attack(
        "extended-event-as-information",
        "an event that was extended is declared not to count",
        _REPLAY,
        says(change(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, retyped(Type.EV_NO_ACTION))),
    ),
    Attack("quoted-pcr-absent-from-the-log", "a PCR that nobody explains is believed", _UNMEASURED, says(_all_of(11))),
    Attack("pcr-never-extended", "a bank or PCR that firmware never used is believed", _UNMEASURED, boots(_all_of(11))),
    Attack(
        "tpm-reset-alone",
        "a TPM that was reset alone replays a good boot",
        _LOCALITY,
        lambda host: replace(host, boot=replace(host.boot, events=host.boot.events[1:], startup_locality=0)),
    ),
    Attack(
        "invented-startup-locality",
        "a TPM that was reset alone says that it was not",
        _REPLAY,
        lambda host: replace(host, boot=replace(host.boot, startup_locality=0)),
    ),
)

_RULES = (
    Attack(
        "type-swapped-in-firmware",
        "a type that the digest does not cover decides",
        _TYPE,
        says(change(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, retyped(Type.EV_IPL))),
    ),
    Attack(
        "application-as-an-action",
        "an application passes for a remark",
        _DATA,
        says(change(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, retyped(Type.EV_EFI_ACTION))),
    ),
    Attack(
        "authority-as-configuration",
        "what verified an image passes for a setting",
        _TYPE,
        says(change(7, Type.EV_EFI_VARIABLE_AUTHORITY, retyped(Type.EV_EFI_VARIABLE_DRIVER_CONFIG))),
    ),
    Attack(
        "unknown-event-type",
        "what nobody knows is passed over",
        _TYPE,
        says(change(11, Type.EV_IPL, retyped(0x7777))),
    ),
    Attack("moved-separator", "settings change after firmware decided", _TYPE, boots(_separator_first)),
    Attack(
        "application-before-ready-to-boot",
        "something ran before firmware began to boot",
        _TYPE,
        boots(insert(4, Type.EV_EFI_ACTION, _EVIL)),
    ),
    Attack(
        "event-after-the-separator-of-firmware",
        "firmware is extended by who comes after it",
        _TYPE,
        boots(
            insert(0, Type.EV_SEPARATOR, Measured(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), b"x"), after=True)
        ),
    ),
    Attack(
        "application-described-as-another",
        "data that the digest does not cover decides",
        _OTHER_BOOT,
        boots(change(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, content(b"evil"))),
    ),
    Attack(
        "secure-boot-claimed",
        "the log says that Secure Boot was on",
        _DATA,
        lambda host: host.booting(_secure_boot(b"\0")).logging(
            change(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, redescribed(variable("SecureBoot", b"\1")))
        ),
    ),
    Attack("secure-boot-neither-on-nor-off", "any value that is not off is on", _DATA, boots(_secure_boot(b"\2"))),
    Attack(
        "secure-boot-measured-twice",
        "the later value wins, or the earlier",
        _DATA,
        boots(
            insert(7, Type.EV_SEPARATOR, Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\1")))
        ),
    ),
    Attack(
        "variable-that-is-none",
        "junk is read as a setting",
        _DATA,
        boots(insert(7, Type.EV_SEPARATOR, Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, b"junk"))),
    ),
    Attack(
        "doubled-separator",
        "a second boot begins where the first was good",
        _SEPARATOR,
        boots(insert(4, Type.EV_SEPARATOR, Measured(4, Type.EV_SEPARATOR, ZERO_SEPARATOR))),
    ),
    Attack("missing-separator", "firmware never handed over", _SEPARATOR, boots(drop(4, Type.EV_SEPARATOR))),
    Attack(
        "separator-in-disguise",
        "a separator passes for something else",
        _SEPARATOR,
        boots(insert(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, Measured(4, Type.EV_IPL, b"kernel", ZERO_SEPARATOR))),
    ),
    Attack(
        "something-else-as-a-separator",
        "something else passes for a separator",
        _SEPARATOR,
        boots(change(2, Type.EV_SEPARATOR, lambda e: replace(e, data=b"evil"))),
    ),
    Attack(
        "separator-after-an-error",
        "firmware that failed passes for firmware that ended",
        _SEPARATOR,
        boots(change(2, Type.EV_SEPARATOR, lambda e: replace(e, data=b"\1\0\0\0"))),
    ),
)

ATTACKS = _BYTES + _STORIES + _RULES
"""Attacks on the event log."""
