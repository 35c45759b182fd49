"""Recorded boots, and how to put one into a software TPM.

A recording is what a real boot of OVMF left behind: its measurement log and the PCR values that the machine's TPM
held. Played into a fresh software TPM, the log's events give the same PCRs, so that the TPM's quotes are genuine quotes
over the values of a real boot. ``recordings/README.md`` says how the recordings were made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Self

from attestation.errors import NotFound, WireError
from attestation.model import PcrBank
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType

IMA_PCR = 10
"""Extended by the kernel's IMA, which keeps a log of its own; firmware's log does not account for it."""

Extend = Callable[[int, Mapping[PcrBank, bytes]], None]
"""Extends one PCR with a digest for each bank; ``attestation.attester.tpm.Tpm.extend`` is one."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded boot."""

    log: bytes
    """As ``/sys/kernel/security/tpm0/binary_bios_measurements`` gave it."""
    pcrs: Mapping[int, bytes]
    """SHA-256 bank after the boot, by index: PCRs 0 to 23 without IMA's."""
    command_line: str
    """What the kernel was booted with."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the recordings there are."""
        return tuple(
            sorted(entry.name for entry in files(__package__).joinpath("recordings").iterdir() if entry.is_dir())
        )

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a recording of this package.

        Raises:
            NotFound: There is none of that name.
        """
        if name not in cls.names():
            raise NotFound(f"there is no recording {name!r}, only {', '.join(cls.names())}")
        directory = files(__package__) / "recordings" / name
        lines = (line.split() for line in (directory / "pcrs-sha256.txt").read_text().splitlines())
        pcrs = {int(index): bytes.fromhex(value) for index, value in lines}
        del pcrs[IMA_PCR]
        command_line = (directory / "command-line.txt").read_text().rstrip("\n")
        return cls((directory / "binary_bios_measurements").read_bytes(), pcrs, command_line)


def play(recording: Recording, extend: Extend) -> None:
    """Extend every event of a recorded log, in order, as the firmware did.

    Args:
        recording: Its log's banks are extended; ``recording.pcrs`` is not looked at.
        extend: Of a TPM whose PCRs are as TPM2_Startup(CLEAR) leaves them and which has the log's banks.

    Raises:
        WireError: The log is malformed, has no bank that is known here, or tells of a start that no
            TPM2_Extend can give (startup locality other than 0: PCR 0 would begin with another value).
        attestation.errors.TpmError: As ``extend`` raises.
    """
    log = parse_event_log(recording.log)
    if log.startup_locality != 0:
        raise WireError(f"a boot from startup locality {log.startup_locality} cannot be played")
    positions = {bank: position for bank in PcrBank if (position := log.bank_position(bank.value)) is not None}
    if not positions:
        raise WireError(f"the log has no bank of {', '.join(PcrBank)}")
    for event in log.events:
        # EV_NO_ACTION records information; the profile says that it is never extended (10.4.1).
        if event.type != EventType.EV_NO_ACTION:
            extend(event.pcr, {bank: event.digests[position] for bank, position in positions.items()})
