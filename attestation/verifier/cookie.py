"""Cookies: the service's own state, carried by the host between two calls, so that any replica can answer the second.

A cookie is ``version (1) ‖ id (32) ‖ AES-256-GCM(expiry (8) ‖ payload)``. The key is derived for each cookie from its
random id (HKDF-SHA-256), so that no nonce can repeat however many cookies one master key makes; the purpose is part of
the derivation and of the associated data: a cookie of one purpose is none of another.

Whether a cookie was spent is the store's to say, by its id. Pure: time and randomness are passed in.
"""

from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import ChallengeReason, ChallengeRejected

ID_BYTES = 32
KEY_BYTES = 32
MAX_COOKIE_BYTES = 64 * 1024
_VERSION = b"\x01"
_NONCE = bytes(12)
"""Constant: each key encrypts one message."""
_TAG_BYTES = 16


class CookiePurpose(StrEnum):
    """What a cookie is for."""

    ENROLLMENT = "garant/cookie/enrollment/v1"
    CHALLENGE = "garant/cookie/challenge/v1"


@dataclass(frozen=True, slots=True)
class OpenedCookie:
    """A cookie that this service made, of the purpose asked for, and that has not expired. It may have been spent."""

    cookie_id: bytes
    """32 bytes."""
    expires_at: int
    """Seconds since the epoch."""
    payload: bytes


class CookieBox:
    """Seals and opens cookies under one master key, which all replicas share."""

    def __init__(self, key: bytes) -> None:
        """Use ``key``, 32 bytes.

        Raises:
            ValueError: It has another length.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a cookie key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def derive(self, label: bytes, context: bytes) -> bytes:
        """A secret of 32 bytes that only holders of the master key can compute."""
        return HKDF(hashes.SHA256(), 32, salt=context, info=label).derive(self._key)

    def seal(self, purpose: CookiePurpose, payload: bytes, *, cookie_id: bytes, expires_at: int) -> bytes:
        """Make a cookie.

        Args:
            purpose: What it is for.
            payload: State to carry; the host cannot read or change it.
            cookie_id: 32 random bytes, never used before.
            expires_at: Seconds since the epoch.
        """
        if len(cookie_id) != ID_BYTES:
            raise ValueError(f"a cookie id has {ID_BYTES} bytes, not {len(cookie_id)}")
        sealed = self._aead(purpose, cookie_id).encrypt(
            _NONCE, expires_at.to_bytes(8, "big") + payload, purpose.encode()
        )
        return _VERSION + cookie_id + sealed

    def open(self, purpose: CookiePurpose, cookie: bytes, *, now: int) -> OpenedCookie:
        """Open a cookie.

        Raises:
            ChallengeRejected: COOKIE_INVALID or CHALLENGE_EXPIRED, in that order.
        """
        header_bytes = len(_VERSION) + ID_BYTES
        if not header_bytes + 8 + _TAG_BYTES <= len(cookie) <= MAX_COOKIE_BYTES or not cookie.startswith(_VERSION):
            raise ChallengeRejected(ChallengeReason.COOKIE_INVALID, "this is not a cookie of this service")
        cookie_id = cookie[len(_VERSION) : header_bytes]
        try:
            opened = self._aead(purpose, cookie_id).decrypt(_NONCE, cookie[header_bytes:], purpose.encode())
        except InvalidTag as exc:
            message = "this is not a cookie that this service made for this call"
            raise ChallengeRejected(ChallengeReason.COOKIE_INVALID, message) from exc
        expires_at = int.from_bytes(opened[:8], "big")
        if now >= expires_at:
            raise ChallengeRejected(ChallengeReason.CHALLENGE_EXPIRED, f"expired {now - expires_at} s ago; ask anew")
        return OpenedCookie(cookie_id, expires_at, opened[8:])

    def _aead(self, purpose: CookiePurpose, cookie_id: bytes) -> AESGCM:
        return AESGCM(self.derive(purpose.encode(), cookie_id))
