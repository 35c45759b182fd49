"""Join tokens: an administrator's word that a named host may join, once.

A token is a JWS that the administrator signs with the key of their own client certificate, which travels inside.
It also carries what the host needs to reach and believe the server: its address and its CA certificate. So tokens are
made offline, and the server needs to remember only the ids of spent ones.
"""

import base64
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serving.errors import IdentityError, JoinTokenError, JwsError
from serving.identity import Role, prove_caller
from serving.jws import key_id, sign, verify

_TYPE = "garant-join+jwt"


@dataclass(frozen=True, slots=True)
class JoinInvitation:
    """What a join token says."""

    token_id: str
    """Unique; spent with its first use."""
    host_name: str
    cluster: str
    expires_at: int
    """Seconds since the epoch."""
    address: str
    """Where to join, ``address:port``."""
    ca_pem: bytes
    """CA certificate of the server there, PEM."""


def make_join_token(
    invitation: JoinInvitation, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> str:
    """Sign an invitation as the administrator who owns ``certificate`` and ``key``."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    payload = {
        "jti": invitation.token_id,
        "host": invitation.host_name,
        "cluster": invitation.cluster,
        "exp": invitation.expires_at,
        "address": invitation.address,
        "ca": invitation.ca_pem.decode(),
        "admin": base64.b64encode(der).decode(),
    }
    return sign(payload, key=key, typ=_TYPE)


def read_join_token(token: str) -> JoinInvitation:
    """Read a token as its holder, who got it from the administrator and has no means to check it.

    Raises:
        JoinTokenError: It is malformed.
    """
    payload = _unverified_payload(token)
    return _invitation(payload)


def verify_join_token(
    token: str, *, issuers: Mapping[Role, tuple[x509.Certificate, ...]], role: Role, now: datetime.datetime
) -> JoinInvitation:
    """Check a token as the server that is to be joined; whether it was spent is the caller's to check.

    Raises:
        JoinTokenError: Malformed, not by an administrator of ``role``, or expired.
    """
    payload = _unverified_payload(token)
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(str(payload.get("admin")), validate=True))
        caller = prove_caller(certificate, issuers, now)
        public_key = certificate.public_key()
        if caller.identity.role is not role or not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise JoinTokenError(f"the join token was signed by {caller.identity}, not by a {role}")
        invitation = _invitation(verify(token, keys={key_id(public_key): public_key}, typ=_TYPE))
    except (ValueError, x509.InvalidVersion, IdentityError, JwsError) as exc:
        raise JoinTokenError(f"the join token is not signed by a {role} of this site") from exc
    if now.timestamp() >= invitation.expires_at:
        raise JoinTokenError("the join token has expired; ask an administrator for a new one")
    return invitation


def _unverified_payload(token: str) -> dict[str, object]:
    try:
        part = token.split(".")[1]
        payload = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError) as exc:
        raise JoinTokenError("this is not a join token") from exc
    if not isinstance(payload, dict):
        raise JoinTokenError("this is not a join token")
    return payload


def _invitation(payload: Mapping[str, object]) -> JoinInvitation:
    texts = [payload.get(name) for name in ("jti", "host", "cluster", "address", "ca")]
    expires_at = payload.get("exp")
    if not isinstance(expires_at, int) or not all(isinstance(text, str) and text for text in texts):
        raise JoinTokenError("the join token lacks a field")
    token_id, host_name, cluster, address, ca_pem = (str(text) for text in texts)
    return JoinInvitation(token_id, host_name, cluster, expires_at, address, ca_pem.encode())
