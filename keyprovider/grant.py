"""Placement grants: the management server's word that a VM is placed on a host (two-party release, B-19).

A grant alone releases nothing; nor does an attested host without one. The management server's principal key signs it;
a trust administrator registered that key. Pure: time and keys are passed in.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId
from keyprovider.errors import GrantReason, GrantRejected
from serving.errors import JwsError
from serving.jws import sign, verify

GRANT_TYPE = "garant-grant+jws"
MAX_CLOCK_SKEW_SECONDS = 30


@dataclass(frozen=True, slots=True)
class PlacementGrant:
    """What a grant says. As such not proven; see ``VerifiedGrant``."""

    grant_id: str
    principal: str
    """Registered name of the management server."""
    vm_id: str
    """RFC 9562 text form."""
    host_id: HostId
    generation: int
    """Grows with every grant for this VM."""
    issued_at: int
    """Seconds since the epoch."""
    expires_at: int
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class VerifiedGrant(PlacementGrant):
    """A grant whose signature, type and times were checked."""


def sign_grant(grant: PlacementGrant, key: ec.EllipticCurvePrivateKey) -> str:
    """Sign a grant as the management server."""
    payload = {
        "jti": grant.grant_id,
        "iss": grant.principal,
        "vm": grant.vm_id,
        "host": grant.host_id.text,
        "generation": grant.generation,
        "iat": grant.issued_at,
        "exp": grant.expires_at,
    }
    return sign(payload, key=key, typ=GRANT_TYPE)


def verify_grant(text: str, *, principals: Mapping[str, ec.EllipticCurvePublicKey], now: int) -> VerifiedGrant:
    """Check a grant.

    Args:
        text: Compact JWS; empty is refused like any other malformed one.
        principals: Registered keys by key id (``serving.jws.key_id``).
        now: Seconds since the epoch.

    Raises:
        GrantRejected: MISSING, BAD_SIGNATURE (or malformed, or by nobody registered), MISSING_CLAIM, NOT_YET_VALID,
            EXPIRED, in that order.
    """
    if not text:
        raise GrantRejected(GrantReason.MISSING, "no placement grant was shown")
    try:
        payload = verify(text, keys=principals, typ=GRANT_TYPE)
    except JwsError as exc:
        raise GrantRejected(GrantReason.BAD_SIGNATURE, f"not a grant of a registered management server: {exc}") from exc
    try:
        numbers = [payload[name] for name in ("generation", "iat", "exp")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("expected numbers")
        grant = VerifiedGrant(
            grant_id=str(payload["jti"]),
            principal=str(payload["iss"]),
            vm_id=str(uuid.UUID(payload["vm"])),
            host_id=HostId(payload["host"]),
            generation=numbers[0],
            issued_at=numbers[1],
            expires_at=numbers[2],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise GrantRejected(GrantReason.MISSING_CLAIM, "a field of the grant is missing or malformed") from exc
    if grant.issued_at > now + MAX_CLOCK_SKEW_SECONDS:
        raise GrantRejected(
            GrantReason.NOT_YET_VALID, f"the grant was issued {grant.issued_at - now} s ahead of our clock"
        )
    if now >= grant.expires_at:
        raise GrantRejected(GrantReason.EXPIRED, f"the grant expired {now - grant.expires_at} s ago")
    return grant
