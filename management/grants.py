"""Placement grants that this server signs (two-party release, B-19).

A grant says that a VM is placed on a host. With it, and with its own attestation, that host gets the VM's keys; the
management server gets nothing. Pure: time, ids and the key are passed in.
"""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId
from keyprovider.grant import PlacementGrant, sign_grant

GRANT_LIFETIME_SECONDS = 120
"""Long enough for a host to attest anew first, short enough that a withdrawn placement ends soon."""


@dataclass(frozen=True, slots=True)
class GrantSigner:
    """The management server as the trust authority knows it."""

    principal: str
    """Name that a trust administrator registered."""
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, *, vm_id: str, host_id: HostId, generation: int, grant_id: str, now: int) -> str:
        """Sign a grant for ``vm_id`` on ``host_id``.

        Args:
            vm_id: RFC 9562 text form.
            host_id: The host that the VM is placed on.
            generation: Greater than that of any grant for this VM before.
            grant_id: Unique.
            now: Seconds since the epoch.
        """
        grant = PlacementGrant(
            grant_id=grant_id,
            principal=self.principal,
            vm_id=vm_id,
            host_id=host_id,
            generation=generation,
            issued_at=now,
            expires_at=now + GRANT_LIFETIME_SECONDS,
        )
        return sign_grant(grant, self.key)
