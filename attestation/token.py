"""What the attestation service signs: tokens for trusted hosts, and the revocation heartbeat.

The token is an EAR (draft-ietf-rats-ear-04), an EAT profile (RFC 9711) in a JWT, ES256, bound to the host's TLS key by
``cnf.jkt`` (RFC 7800, RFC 9449) and naming the HPKE key that secrets for this host are sealed to. The heartbeat is a
JWS that anyone may deliver. Only ``verify_token`` and ``verify_heartbeat`` construct the verified types.

Pure: time and keys are passed in.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import TokenReason, TokenRejected
from attestation.model import BootIdentity, HostId, HpkeKem
from serving.errors import JwsError
from serving.jws import sign, verify

TOKEN_TYPE = "eat+jwt"  # noqa: S105 - a media type (RFC 9782)
HEARTBEAT_TYPE = "garant-heartbeat+jws"
PROFILE = "tag:github.com,2023:veraison/ear"
"""EAR's profile string, pinned."""
VERIFIER = {"developer": "Garant", "build": "garant-attestation 1"}
AFFIRMING = 2
"""EAR tier: the only one a token is issued for."""
MAX_CLOCK_SKEW_SECONDS = 30


PublicKeys = Mapping[str, ec.EllipticCurvePublicKey]
"""Public keys by key id (``serving.jws.key_id``)."""


def issuer_of(site: str) -> str:
    """Issuer of a site's tokens (``iss``): the identity of its attestation service, whichever replica signs."""
    return f"spiffe://{site}/attestation-service"


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token says. As such not proven; see ``VerifiedToken``."""

    token_id: str
    issuer: str
    audience: str
    host_id: HostId
    host_name: str
    cluster: str
    issued_at: int
    """Seconds since the epoch."""
    expires_at: int
    """Seconds since the epoch."""
    tls_thumbprint: bytes
    """RFC 7638 thumbprint of the host's TLS key, 32 bytes."""
    hpke_kem: HpkeKem
    hpke_public_key: bytes
    boot: BootIdentity
    reference: str
    """Name of the reference boot that the evidence equals."""
    evidence_digest: bytes
    """SHA-256 over the evidence, 32 bytes."""
    policy_version: int
    policy_hash: bytes
    """SHA-256 of the policy's canonical JSON, 32 bytes."""
    epoch: int
    """Revocation epoch at issue."""


@dataclass(frozen=True, slots=True)
class VerifiedToken(TokenClaims):
    """Claims of a token whose signature, type, issuer, audience and times were checked."""


@dataclass(frozen=True, slots=True)
class HeartbeatClaims:
    """What a heartbeat says. As such not proven; see ``VerifiedHeartbeat``."""

    epoch: int
    """Tokens of an older epoch are void."""
    revoked: frozenset[HostId]
    """Hosts that get nothing, whatever they show."""
    policy_version: int
    issued_at: int
    """Seconds since the epoch."""
    expires_at: int
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class VerifiedHeartbeat(HeartbeatClaims):
    """A heartbeat whose signature, type and times were checked."""


def mint_token(claims: TokenClaims, key: ec.EllipticCurvePrivateKey) -> str:
    """Sign a token. Only a host whose appraisal was affirming gets one."""
    host = {
        "ear.status": AFFIRMING,
        "ear.trustworthiness-vector": {"instance-identity": 2, "executables": 3, "configuration": 2},
        "ear.appraisal-policy-id": f"policy:{claims.policy_version}",
    }
    payload = {
        "eat_profile": PROFILE,
        "ear.verifier-id": VERIFIER,
        "submods": {"host": host},
        "iss": claims.issuer,
        "aud": claims.audience,
        "sub": claims.host_id.text,
        "jti": claims.token_id,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
        "cnf": {"jkt": _encode(claims.tls_thumbprint)},
        "garant_hpke": {"kem": int(claims.hpke_kem), "key": _encode(claims.hpke_public_key)},
        "garant_boot": {"reset": claims.boot.reset_count, "restart": claims.boot.restart_count},
        "garant_host_name": claims.host_name,
        "garant_cluster": claims.cluster,
        "garant_reference": claims.reference,
        "garant_evidence": _encode(claims.evidence_digest),
        "garant_policy": {"version": claims.policy_version, "sha256": _encode(claims.policy_hash)},
        "garant_epoch": claims.epoch,
    }
    return sign(payload, key=key, typ=TOKEN_TYPE)


def verify_token(text: str, *, keys: PublicKeys, issuer: str, audience: str, now: int) -> VerifiedToken:
    """Check a token.

    Args:
        text: Compact JWS.
        keys: Token-signing keys of the attestation service, pinned by a trust administrator.
        issuer: Expected ``iss``.
        audience: Expected ``aud``.
        now: Seconds since the epoch.

    Raises:
        TokenRejected: BAD_SIGNATURE (or malformed, unknown key, wrong type), MISSING_CLAIM, NOT_AFFIRMING,
            WRONG_ISSUER, WRONG_AUDIENCE, NOT_YET_VALID, EXPIRED, in that order.
    """
    payload = _payload(text, keys, TOKEN_TYPE)
    try:
        token = _token(payload)
        profile, status = payload["eat_profile"], payload["submods"]["host"]["ear.status"]
    except (KeyError, TypeError, ValueError) as exc:
        raise TokenRejected(TokenReason.MISSING_CLAIM, f"claim {exc} is missing or malformed") from exc
    if profile != PROFILE or status != AFFIRMING:
        raise TokenRejected(TokenReason.NOT_AFFIRMING, f"expected an affirming EAR, got {profile!r} with {status!r}")
    if token.issuer != issuer:
        raise TokenRejected(TokenReason.WRONG_ISSUER, f"expected issuer {issuer!r}, got {token.issuer!r}")
    if token.audience != audience:
        raise TokenRejected(TokenReason.WRONG_AUDIENCE, f"expected audience {audience!r}, got {token.audience!r}")
    _check_times(token.issued_at, token.expires_at, now)
    return token


def mint_heartbeat(claims: HeartbeatClaims, key: ec.EllipticCurvePrivateKey) -> str:
    """Sign a heartbeat."""
    payload = {
        "epoch": claims.epoch,
        "revoked": sorted(host.text for host in claims.revoked),
        "policy_version": claims.policy_version,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
    }
    return sign(payload, key=key, typ=HEARTBEAT_TYPE)


def verify_heartbeat(text: str, *, keys: PublicKeys, now: int) -> VerifiedHeartbeat:
    """Check a heartbeat.

    Raises:
        TokenRejected: BAD_SIGNATURE (or malformed, unknown key, wrong type), MISSING_CLAIM, NOT_YET_VALID, EXPIRED.
    """
    payload = _payload(text, keys, HEARTBEAT_TYPE)
    try:
        heartbeat = VerifiedHeartbeat(
            epoch=_integer(payload["epoch"]),
            revoked=frozenset(HostId(text) for text in payload["revoked"]),
            policy_version=_integer(payload["policy_version"]),
            issued_at=_integer(payload["iat"]),
            expires_at=_integer(payload["exp"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise TokenRejected(TokenReason.MISSING_CLAIM, f"claim {exc} is missing or malformed") from exc
    _check_times(heartbeat.issued_at, heartbeat.expires_at, now)
    return heartbeat


def _payload(text: str, keys: PublicKeys, typ: str) -> dict[str, Any]:
    try:
        return verify(text, keys=keys, typ=typ)
    except JwsError as exc:
        raise TokenRejected(TokenReason.BAD_SIGNATURE, str(exc)) from exc


def _token(payload: Mapping[str, Any]) -> VerifiedToken:
    return VerifiedToken(
        token_id=_text(payload["jti"]),
        issuer=_text(payload["iss"]),
        audience=_text(payload["aud"]),
        host_id=HostId(payload["sub"]),
        host_name=_text(payload["garant_host_name"]),
        cluster=_text(payload["garant_cluster"]),
        issued_at=_integer(payload["iat"]),
        expires_at=_integer(payload["exp"]),
        tls_thumbprint=_decode(payload["cnf"]["jkt"], 32),
        hpke_kem=HpkeKem(payload["garant_hpke"]["kem"]),
        hpke_public_key=_decode(payload["garant_hpke"]["key"]),
        boot=BootIdentity(_integer(payload["garant_boot"]["reset"]), _integer(payload["garant_boot"]["restart"])),
        reference=_text(payload["garant_reference"]),
        evidence_digest=_decode(payload["garant_evidence"], 32),
        policy_version=_integer(payload["garant_policy"]["version"]),
        policy_hash=_decode(payload["garant_policy"]["sha256"], 32),
        epoch=_integer(payload["garant_epoch"]),
    )


def _check_times(issued_at: int, expires_at: int, now: int) -> None:
    if issued_at > now + MAX_CLOCK_SKEW_SECONDS:
        raise TokenRejected(TokenReason.NOT_YET_VALID, f"issued at {issued_at}, {issued_at - now} s ahead of our clock")
    if now >= expires_at:
        raise TokenRejected(TokenReason.EXPIRED, f"expired {now - expires_at} s ago")


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("expected a number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
    return value


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decode(value: object, size: int | None = None) -> bytes:
    text = _text(value)
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if size is not None and len(data) != size:
        raise ValueError(f"expected {size} bytes, got {len(data)}")
    return data
