"""What a quote's extraData binds: the transcript that attester and verifier both compute.

extraData = SHA-256 of these fields, each with a 4-byte big-endian length before it, in this order:
label ‖ nonce ‖ thumbprint of the TLS key ‖ thumbprint of the HPKE key ‖ hash of the TCG log ‖ hash of the IMA log ‖
hash of the systemd log ‖ host id ‖ service key ‖ audience. A log that is not sent is a field of length 0.

Source: this project's design, published with vectors in ``docs/vectors/quote-binding.json``.
Pure: no clock, randomness, I/O or logging.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId, HpkeKem, LogKind

LABEL = b"garant/quote/v1"
LOG_ORDER = (LogKind.TCG, LogKind.IMA, LogKind.SYSTEMD)


def tls_thumbprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """Thumbprint of a P-256 key as RFC 7638 defines it for JWK: 32 bytes.

    Raises:
        ValueError: The key is not on P-256.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"the TLS key must be on P-256, not {key.curve.name}")
    numbers = key.public_numbers()
    x, y = (_base64url(value.to_bytes(32, "big")) for value in (numbers.x, numbers.y))
    return hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest()


def hpke_thumbprint(kem: HpkeKem, public_key: bytes) -> bytes:
    """SHA-256 of the KEM's 2-byte id and the public key as RFC 9180 serialises it: 32 bytes."""
    return hashlib.sha256(kem.to_bytes(2, "big") + public_key).digest()


@dataclass(frozen=True, slots=True)
class QuoteBinding:
    """Everything that a quote vouches for beside the PCRs."""

    nonce: bytes
    """32 bytes of the challenge."""
    tls_thumbprint: bytes
    """32 bytes."""
    hpke_thumbprint: bytes
    """32 bytes."""
    log_hashes: Mapping[LogKind, bytes]
    """SHA-256 of each log that is sent."""
    host_id: HostId
    service_key: bytes
    """SHA-256 of the attestation service's token-signing SubjectPublicKeyInfo, 32 bytes."""
    audience: str

    def __post_init__(self) -> None:
        """Refuse wrong lengths.

        Raises:
            ValueError: A field that must have 32 bytes has not.
        """
        fixed = (self.nonce, self.tls_thumbprint, self.hpke_thumbprint, self.service_key, *self.log_hashes.values())
        if any(len(value) != 32 for value in fixed):
            raise ValueError("nonce, thumbprints, log hashes and service key have 32 bytes each")

    def extra_data(self) -> bytes:
        """The 32 bytes for TPM2_Quote's qualifyingData."""
        logs = (self.log_hashes.get(kind, b"") for kind in LOG_ORDER)
        transcript = hashlib.sha256()
        for field in (
            LABEL,
            self.nonce,
            self.tls_thumbprint,
            self.hpke_thumbprint,
            *logs,
            bytes.fromhex(self.host_id.text),
            self.service_key,
            self.audience.encode(),
        ):
            transcript.update(len(field).to_bytes(4, "big") + field)
        return transcript.digest()


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
