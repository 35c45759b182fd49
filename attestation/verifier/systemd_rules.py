"""Judge what systemd says that it measured after the firmware's log ended.

That a record replays proves only that something was extended: a host could pass off a last event of the firmware's log,
such as a further initial RAM disk in PCR 9 or another command line in PCR 12, as a record of systemd's, and the rest
would still equal a reference. So each PCR has the few records that may be there, and what they may say:

* PCR 9: registers in NV memory that were set up, in words that are neither an archive nor a command line;
* PCR 11: the boot phases, which nothing else of a boot is equal to;
* PCR 15: the system's own identity, of which no reference speaks.

Nothing is allowed in PCRs 12 and 13, where the boot loader's stub measures what was added to a boot.
Source: systemd, docs/TPM2_PCR_MEASUREMENTS.md.

Pure: no clock, randomness, I/O or logging.
"""

import re
from collections.abc import Mapping
from typing import Final

from attestation.errors import EvidenceRejected, RejectReason
from attestation.wire.systemd_log import OPAQUE_EVENTS, PHASE, STRING_EVENTS, ContinuedBoot, SystemdRecord

PHASES: Final = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")
_REGISTER_EVENTS: Final = ("nvpcr-init", "nvpcr-separator")
_REGISTER_WORDS: Final = re.compile(r"nvpcr-[!-~]{1,1024}")
_IDENTITY_EVENTS: Final = STRING_EVENTS | OPAQUE_EVENTS
_ALLOWED: Final[Mapping[int, str]] = {
    9: "a register in NV memory, set up",
    11: "one of the boot phases " + ", ".join(PHASES),
    15: "a record of a type that is known",
}


def check_systemd_records(continued: ContinuedBoot) -> None:
    """Check that each proven record is one that may be there.

    Args:
        continued: What a quote proves of a log whose string digests were checked.

    Raises:
        EvidenceRejected: EVENT_TYPE_NOT_ALLOWED.
    """
    for record in continued.records:
        if not _is_allowed(record):
            raise EvidenceRejected(
                RejectReason.EVENT_TYPE_NOT_ALLOWED,
                "systemd's log has a record that may not be there",
                expected=_ALLOWED.get(record.pcr or 0, "no record of this PCR"),
                seen=f"{record.event_type or 'no type'} {record.string[:200]!r}",
                event=f"systemd record {record.number}, PCR {record.pcr}",
            )


def _is_allowed(record: SystemdRecord) -> bool:
    if record.pcr == 9:
        return record.event_type in _REGISTER_EVENTS and _REGISTER_WORDS.fullmatch(record.string) is not None
    if record.pcr == 11:
        return record.event_type == PHASE and record.string in PHASES
    return record.pcr == 15 and record.event_type in _IDENTITY_EVENTS
