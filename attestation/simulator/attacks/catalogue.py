"""All attacks, in the order in which a host could try them."""

from attestation.simulator.attacks import boot, enrolment, event_log, quote
from attestation.simulator.attacks.attack import Attack

CATALOGUE: tuple[Attack, ...] = (*enrolment.ATTACKS, *quote.ATTACKS, *event_log.ATTACKS, *boot.ATTACKS)
"""Each is refused, for exactly its ``expected`` reason, by a service under ``attack.strict_policy``."""
