"""Parse signatures: TPMT_SIGNATURE (TPM 2.0 Part 2, 11.3.4) by RSASSA, RSAPSS and ECDSA.

Pure: bytes in, frozen values out. Lets no error out but ``WireError``. The algorithms that a signature names are
claims; a verifier compares them with those of the key.
"""

from dataclasses import dataclass
from typing import Final

from attestation.errors import WireError
from attestation.wire.reader import Reader
from attestation.wire.tpm_algorithms import TpmAlgorithm, algorithm, hash_algorithm

MAX_SIGNATURE_SIZE: Final = 1024
_MAX_RSA_SIZE: Final = 512
_MAX_COORDINATE_SIZE: Final = 48


@dataclass(frozen=True, slots=True)
class UnverifiedRsaSignature:
    """An RSA signature, as claimed."""

    scheme: TpmAlgorithm
    hash: TpmAlgorithm
    value: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedEcdsaSignature:
    """An ECDSA signature, as claimed."""

    scheme: TpmAlgorithm
    hash: TpmAlgorithm
    r: int
    s: int


def parse_tpm_signature(data: bytes) -> UnverifiedRsaSignature | UnverifiedEcdsaSignature:
    """Parse a marshalled TPMT_SIGNATURE of at most 1 KiB.

    Raises:
        WireError: Not one, or by another scheme.
    """
    if len(data) > MAX_SIGNATURE_SIZE:
        raise WireError(f"a signature has at most {MAX_SIGNATURE_SIZE} bytes, not {len(data)}")
    reader = Reader(data)
    scheme = algorithm(reader.u16())
    if scheme is TpmAlgorithm.ECDSA:
        hash_id = hash_algorithm(reader.u16())
        r = int.from_bytes(reader.tpm2b(_MAX_COORDINATE_SIZE), "big")
        s = int.from_bytes(reader.tpm2b(_MAX_COORDINATE_SIZE), "big")
        reader.finish()
        return UnverifiedEcdsaSignature(scheme, hash_id, r, s)
    if scheme in (TpmAlgorithm.RSASSA, TpmAlgorithm.RSAPSS):
        hash_id = hash_algorithm(reader.u16())
        value = reader.tpm2b(_MAX_RSA_SIZE)
        reader.finish()
        return UnverifiedRsaSignature(scheme, hash_id, value)
    raise WireError(f"signatures by {scheme.name} are not supported")
