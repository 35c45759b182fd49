"""Signed JSON documents: compact JWS, ES256 only (RFC 7515, RFC 7518 3.4).

The algorithm is fixed, the type is checked, and keys come from the caller, by key id: headers such as ``jwk``, ``jku``
and ``x5c`` are never read.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from serving.errors import JwsError

_ALGORITHM = "ES256"
_MAX_LENGTH = 64 * 1024


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Key id: the key's JWK thumbprint (RFC 7638), base64url.

    Raises:
        ValueError: The key is not on P-256.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"signing keys are on P-256, not {key.curve.name}")
    numbers = key.public_numbers()
    x, y = (_base64url(value.to_bytes(32, "big")) for value in (numbers.x, numbers.y))
    return _base64url(hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest())


def sign(payload: Mapping[str, Any], *, key: ec.EllipticCurvePrivateKey, typ: str) -> str:
    """Sign ``payload`` as a document of type ``typ``."""
    headers = {"typ": typ, "kid": key_id(key.public_key())}
    return jwt.api_jws.encode(
        json.dumps(payload, separators=(",", ":"), sort_keys=True).encode(), key, algorithm=_ALGORITHM, headers=headers
    )


def verify(text: str, *, keys: Mapping[str, ec.EllipticCurvePublicKey], typ: str) -> dict[str, Any]:
    """Return the payload of a document of type ``typ`` that one of ``keys`` signed.

    Times in the payload are the caller's to check.

    Raises:
        JwsError: Too long, malformed, of another type, by an unknown key, or the signature is wrong.
    """
    if len(text) > _MAX_LENGTH:
        raise JwsError(f"signed document of {len(text)} characters; at most {_MAX_LENGTH} are read")
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise JwsError("malformed signed document") from exc
    if header.get("typ") != typ:
        raise JwsError(f"expected a signed document of type {typ}, got {header.get('typ')!r}")
    key = keys.get(str(header.get("kid")))
    if key is None:
        raise JwsError(f"{typ} signed by an unknown key")
    try:
        payload = json.loads(jwt.api_jws.decode(text, key, algorithms=[_ALGORITHM]))
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise JwsError(f"{typ} with a wrong signature or payload") from exc
    if not isinstance(payload, dict):
        raise JwsError(f"the payload of {typ} is not an object")
    return payload


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
