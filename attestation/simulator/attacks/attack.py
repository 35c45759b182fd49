"""What an attack is, and the policy that all of them are run against."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from attestation.errors import ChallengeReason, EnrollmentReason, RejectReason
from attestation.simulator.lying_host import HonestHost
from attestation.simulator.software_host import Measured, honest_events
from attestation.wire.event_types import EventType

Reason = EnrollmentReason | ChallengeReason | RejectReason
PCRS = (0, 2, 4, 7, 9, 11)
DENIED_FIRMWARE = 0x1111222233334444
LOCALITY = 3


class Stage(StrEnum):
    """Which half of a host's way into trust the lie is told in."""

    ENROLLMENT = "enrollment"
    """The host lies from its first call on."""
    ATTESTATION = "attestation"
    """The host enrolled and attested honestly, and lies from then on."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to lie, and what an attestation service must say to it."""

    name: str
    """Words with dashes; unique."""
    description: str
    """What goes wrong where this is believed."""
    expected: Reason
    lie: Callable[[HonestHost], HonestHost]
    stage: Stage = Stage.ATTESTATION


def strict_policy(version: int) -> str:
    """The policy that the catalogue's reasons are for: every demand that a policy can make of firmware is made."""
    return json.dumps(
        {
            "name": "attacks",
            "version": version,
            "bank": "sha256",
            "pcrs": PCRS,
            "secure_boot": {"required": True},
            "required_startup_locality": LOCALITY,
            "denied_firmware": [f"{DENIED_FIRMWARE:016x}"],
            "safe_clock_required": True,
        }
    )


def golden_events() -> list[Measured]:
    """The boot that is trusted: a TPM started from locality 3, and a unified kernel image under Secure Boot."""
    return [Measured(0, EventType.EV_NO_ACTION, b"StartupLocality\0" + bytes([LOCALITY])), *honest_events()]
