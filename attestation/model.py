"""Values that every part of attestation speaks in.

Pure and frozen. Nothing here was checked by being constructed, except for shape: lengths, ranges, digits.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self

_HOST_ID = re.compile(r"[0-9a-f]{64}")


class PcrBank(StrEnum):
    """Bank of platform configuration registers, by the hash it extends with."""

    SHA256 = "sha256"
    SHA384 = "sha384"

    @property
    def digest_size(self) -> int:
        """Length of one PCR value in bytes."""
        return hashlib.new(self.value).digest_size


class LogKind(StrEnum):
    """Kind of measurement log, in the order the quote binding lists them."""

    TCG = "tcg"
    IMA = "ima"
    SYSTEMD = "systemd"


class HpkeKem(IntEnum):
    """Key encapsulation mechanism, by its registered id (RFC 9180, 7.1; IANA HPKE registry)."""

    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A


class EkTemplate(StrEnum):
    """Template of an endorsement key (TCG EK Credential Profile 2.x, annex B)."""

    RSA_2048_LOW = "rsa-2048-low"
    ECC_P256_LOW = "ecc-p256-low"
    RSA_2048_HIGH = "rsa-2048-high"
    ECC_P256_HIGH = "ecc-p256-high"
    ECC_P384_HIGH = "ecc-p384-high"
    RSA_3072_HIGH = "rsa-3072-high"


class AdmissionState(StrEnum):
    """Where a host stands with the trust authority."""

    REQUESTED = "requested"
    APPROVED = "approved"
    ACTIVE = "active"
    BANNED = "banned"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, order=True)
class HostId:
    """SHA-256 of the endorsement key's SubjectPublicKeyInfo (re-encoded from TPMT_PUBLIC), as 64 hex digits."""

    text: str

    def __post_init__(self) -> None:
        """Refuse anything that is not 64 lower-case hexadecimal digits.

        Raises:
            ValueError: Otherwise.
        """
        if not _HOST_ID.fullmatch(self.text):
            raise ValueError("a host id is 64 lower-case hexadecimal digits")

    @classmethod
    def of_spki(cls, spki: bytes) -> Self:
        """Identify the TPM whose endorsement key has this SubjectPublicKeyInfo (DER)."""
        return cls(hashlib.sha256(spki).hexdigest())

    def __str__(self) -> str:
        """The digits."""
        return self.text


@dataclass(frozen=True, slots=True)
class BootIdentity:
    """Which boot of a TPM: TPMS_CLOCK_INFO's counters (TPM 2.0 Part 2, 10.11.1)."""

    reset_count: int
    restart_count: int
