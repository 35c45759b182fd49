"""Verifying tokens and grants once, not with every request.

A signature that was good stays good. What can change is decided anew each time: times, and whether the signer is still
registered; the rest is the business of ``trusted.release``.
"""

import threading
from collections import OrderedDict
from typing import Final, Generic, TypeVar

import jwt

from attestation.token import PublicKeys, VerifiedToken, verify_token
from keyprovider.errors import GrantReason, GrantRejected
from keyprovider.grant import VerifiedGrant, verify_grant
from keyprovider.trusted.directory import Directory, Snapshot

_REMEMBERED: Final = 4096
Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """The last documents verified, by their text; the oldest are forgotten."""

    def __init__(self, limit: int) -> None:
        """Remember at most ``limit``."""
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Value] = OrderedDict()

    def get(self, text: str) -> Value | None:
        """What was made of this very text, if remembered."""
        with self._lock:
            return self._values.get(text)

    def put(self, text: str, value: Value) -> None:
        """Remember what was made of this text."""
        with self._lock:
            self._values[text] = value
            if len(self._values) > self._limit:
                self._values.popitem(last=False)


class TokenVerifier:
    """Verifies tokens, and remembers which ones it verified: a host shows the same one for minutes.

    Only the signature and claims are remembered. Whether a token is still good is decided anew for each request.
    """

    def __init__(self, keys: PublicKeys, *, issuer: str, audience: str) -> None:
        """Believe tokens that ``issuer`` made with ``keys`` for ``audience``."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._verified = Remembered[VerifiedToken](_REMEMBERED)

    def verify(self, text: str, now: int) -> VerifiedToken:
        """Check a token's signature, type, issuer, audience and claims.

        Raises:
            TokenRejected: As ``verify_token``.
        """
        known = self._verified.get(text)
        if known is not None and now < known.expires_at:
            return known
        token = verify_token(text, keys=self._keys, issuer=self._issuer, audience=self._audience, now=now)
        self._verified.put(text, token)
        return token


class GrantVerifier:
    """Verifies placement grants, and remembers which ones: a power-on shows the same one for each component."""

    def __init__(self, directory: Directory) -> None:
        """Believe the principals in ``directory``."""
        self._directory = directory
        self._verified = Remembered[tuple[VerifiedGrant, str]](_REMEMBERED)

    def verify(self, text: str, now: int) -> VerifiedGrant:
        """Check a grant's signature, type and claims, and that its principal is registered now.

        Raises:
            GrantRejected: As ``verify_grant``; BAD_SIGNATURE also where a principal signed in another's name.
        """
        snapshot = self._directory.snapshot()
        known = self._verified.get(text)
        if known is not None and now < known[0].expires_at and known[1] in snapshot.principal_keys:
            return known[0]
        try:
            return self._verify(text, snapshot, now)
        except GrantRejected as exc:
            if exc.reason is not GrantReason.BAD_SIGNATURE:
                raise
        # Its principal may have been registered a moment ago, through another process.
        return self._verify(text, self._directory.snapshot(fresh=True), now)

    def _verify(self, text: str, snapshot: Snapshot, now: int) -> VerifiedGrant:
        grant = verify_grant(text, principals=snapshot.principal_keys, now=now)
        signer = jwt.get_unverified_header(text)["kid"]  # verified: it chose the key that the signature fits
        if snapshot.principal_names[signer] != grant.principal:
            raise GrantRejected(
                GrantReason.BAD_SIGNATURE,
                f"the grant names {grant.principal!r}, but {snapshot.principal_names[signer]!r} signed it",
            )
        self._verified.put(text, (grant, signer))
        return grant
