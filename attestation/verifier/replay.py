"""Replay a firmware log, to see whether it explains the quoted PCRs (TCG PC Client Platform Firmware Profile 1.06, 10).

A PCR is believed to hold what the log says only if extending the log's events, in order, gives the quoted value.
EV_NO_ACTION is never extended (10.4.3). PCR 0 starts at the locality of TPM2_Startup, or at 4 after an H-CRTM
(10.4.5.3). Only demanded PCRs are looked at: the rest of a log is an unsigned story.

Pure: no clock, randomness, I/O or logging.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from attestation.errors import EvidenceRejected, RejectReason
from attestation.model import PcrBank
from attestation.verifier.quirks import Quirk
from attestation.wire.event_log import Event, EventLog
from attestation.wire.event_types import EventType
from attestation.wire.systemd_log import SYSTEMD_PCRS, ContinuedBoot, SystemdLog, continue_boot

if TYPE_CHECKING:
    from hashlib import _Hash

EXIT_BOOT_SERVICES: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
"""EV_EFI_ACTION events of PCR 5 that end the firmware's part (10.4.4)."""
_EXIT_BOOT_SERVICES_PCR: Final = 5

HASHES: Final[Mapping[str, "Callable[[bytes], _Hash]"]] = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}
"""Constructors; calling one is half the price of ``hashlib.new``."""


@dataclass(frozen=True, slots=True)
class MeasuredBoot:
    """The part of a log that can be held against one bank: the extended events of the demanded PCRs."""

    bank: PcrBank
    position: int
    """Where in ``Event.digests`` this bank's digest is."""
    startup_locality: int
    events: Mapping[int, tuple[Event, ...]]
    """For each demanded PCR, ascending, its events in order; empty where the log has none."""


def measured_boot(log: EventLog, bank: PcrBank, pcrs: Collection[int]) -> MeasuredBoot:
    """Pick what the log says of ``pcrs``.

    Raises:
        EvidenceRejected: LOG_DOES_NOT_REPLAY: the log does not cover the bank.
    """
    position = log.bank_position(bank.value)
    if position is None:
        raise EvidenceRejected(
            RejectReason.LOG_DOES_NOT_REPLAY,
            "the log does not cover the demanded bank",
            expected=bank.value,
            seen=", ".join(algorithm.name for algorithm in log.algorithms),
        )
    events: dict[int, list[Event]] = {pcr: [] for pcr in sorted(pcrs)}
    no_action = int(EventType.EV_NO_ACTION)
    for event in log.events:
        if event.pcr in events and event.type != no_action:
            events[event.pcr].append(event)
    return MeasuredBoot(bank, position, log.startup_locality, {pcr: tuple(found) for pcr, found in events.items()})


def replay(
    events: Mapping[int, Collection[Event]], position: int, bank_name: str, startup_locality: int
) -> dict[int, bytes]:
    """Extend each PCR's events, in order.

    Args:
        events: Extended events (no EV_NO_ACTION) by PCR.
        position: Where in ``Event.digests`` the bank's digest is.
        bank_name: A key of ``HASHES``.
        startup_locality: First value of PCR 0.

    Returns:
        The resulting value of each PCR.
    """
    hash_function = HASHES[bank_name]
    size = hash_function(b"").digest_size
    values = {}
    for pcr, measured in events.items():
        value = (startup_locality if pcr == 0 else 0).to_bytes(size, "big")
        for event in measured:
            value = hash_function(value + event.digests[position]).digest()
        values[pcr] = value
    return values


def check_replay(
    boot: MeasuredBoot,
    quoted: Mapping[int, bytes],
    quirks: Collection[Quirk] = (),
    *,
    systemd: SystemdLog | None = None,
) -> ContinuedBoot | None:
    """Check that the firmware's log explains every quoted PCR, for some together with systemd's.

    Args:
        boot: What the log says of the demanded PCRs.
        quoted: Their values as a TPM signed them; the same PCRs.
        quirks: Oddities that the policy allows.
        systemd: Where the policy has systemd's log explain what came after the firmware's: that log.

    Returns:
        The part of systemd's log that the quote proves; None without one.

    Raises:
        EvidenceRejected: LOG_DOES_NOT_REPLAY, then UNMEASURED_PCR: a demanded PCR of which the log says nothing.
    """
    computed = replay(boot.events, boot.position, boot.bank.value, boot.startup_locality)
    for pcr, value in computed.items():
        if not boot.events[pcr] or value == quoted[pcr] or (systemd is not None and pcr in SYSTEMD_PCRS):
            continue
        if Quirk.MISSING_EXIT_BOOT_SERVICES in quirks and _with_exit(boot, pcr, value) == quoted[pcr]:
            continue
        unextended = not any(quoted[pcr])
        raise EvidenceRejected(
            RejectReason.LOG_DOES_NOT_REPLAY,
            f"the log does not explain PCR {pcr}",
            expected=quoted[pcr].hex() + (" (the bank was never extended)" if unextended else ""),
            seen=value.hex(),
            event=f"PCR {pcr}",
        )
    continued = None if systemd is None else _continue(boot, computed, quoted, systemd)
    for pcr, events in boot.events.items():
        if not events:
            raise EvidenceRejected(
                RejectReason.UNMEASURED_PCR,
                f"the log has no event for PCR {pcr}",
                expected=f"events that explain {quoted[pcr].hex()}",
                seen="none",
                event=f"PCR {pcr}",
            )
    return continued


def _continue(
    boot: MeasuredBoot, computed: Mapping[int, bytes], quoted: Mapping[int, bytes], systemd: SystemdLog
) -> ContinuedBoot:
    continued = continue_boot(systemd, bank_name=boot.bank.value, start=computed, quoted=quoted)
    if continued is None:
        later = sorted(SYSTEMD_PCRS & quoted.keys())
        raise EvidenceRejected(
            RejectReason.LOG_DOES_NOT_REPLAY,
            "the firmware's log and systemd's do not explain these PCRs together",
            expected=", ".join(f"PCR {pcr} {quoted[pcr].hex()}" for pcr in later),
            seen=f"no part of systemd's {len(systemd.records)} records leads there from what the firmware's log gives",
            event="systemd's log",
        )
    return continued


def check_startup_locality(boot: MeasuredBoot, required: int | None) -> None:
    """Check from which locality the TPM was started. That PCR 0 replays proves what the log says of it.

    Raises:
        EvidenceRejected: WRONG_STARTUP_LOCALITY.
    """
    if required is not None and (boot.startup_locality != required or 0 not in boot.events):
        raise EvidenceRejected(
            RejectReason.WRONG_STARTUP_LOCALITY,
            "the TPM was started from another locality: it may have been reset alone",
            expected=str(required),
            seen=str(boot.startup_locality),
            event="PCR 0",
        )


def _with_exit(boot: MeasuredBoot, pcr: int, value: bytes) -> bytes | None:
    """Value of PCR 5 after the ExitBootServices events that a log cut early lacks."""
    if pcr != _EXIT_BOOT_SERVICES_PCR or any(event.data in EXIT_BOOT_SERVICES for event in boot.events[pcr]):
        return None
    hash_function = HASHES[boot.bank.value]
    for action in EXIT_BOOT_SERVICES:
        value = hash_function(value + hash_function(action).digest()).digest()
    return value
