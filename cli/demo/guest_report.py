"""What the demo's guest prints on its console, read strictly."""

import re
from dataclasses import dataclass

_HASH = re.compile(rb"^GARANT-HASH ([0-9a-f]{64})\r?$", re.MULTILINE)
_PCR = re.compile(rb"^GARANT-PCR ([0-9]+) ([0-9A-Fa-f]{64})\r?$", re.MULTILINE)
_TICK = re.compile(rb"^GARANT-TICK ([0-9]+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GuestReport:
    """A guest's words after one boot."""

    disk_hash: str
    """SHA-256 of what it read from the disk, hexadecimal."""
    pcrs: tuple[tuple[int, str], ...]
    """PCRs 0 to 7 of its own TPM, SHA-256 bank, hexadecimal."""

    @classmethod
    def read(cls, console: bytes) -> "GuestReport | None":
        """The report, once the console holds all of it."""
        found = _HASH.search(console)
        if found is None or b"GARANT-READY" not in console:
            return None
        pcrs = tuple((int(number), value.decode().lower()) for number, value in _PCR.findall(console))
        return cls(found[1].decode(), pcrs)


def ticks(console: bytes) -> int:
    """How often the guest has ticked: proof that it lives."""
    return len(_TICK.findall(console))
