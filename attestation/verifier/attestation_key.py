"""Which attestation keys are accepted: a restricted signing key that was made in this TPM and cannot leave it.

``restricted`` is what makes a quote worth anything: an unrestricted key of a genuine TPM passes credential activation
and then signs a forged TPMS_ATTEST. That the key lives in the endorsement hierarchy cannot be seen here; every quote's
qualifiedSigner shows it (``attestation.verifier.quote``).

Source: TPM 2.0 Part 2, 8.3 (TPMA_OBJECT); Part 1, 25.1.5 (restricted signing keys).
Pure: no clock, randomness, I/O or logging.
"""

from attestation.errors import EnrollmentReason, EnrollmentRejected, WireError
from attestation.wire.tpm_algorithms import TpmAlgorithm
from attestation.wire.tpm_public import ObjectAttributes, RsaParameters, TpmPublic, parse_tpm_public

_REQUIRED = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
_OPTIONAL = (
    ObjectAttributes.USER_WITH_AUTH
    | ObjectAttributes.ADMIN_WITH_POLICY
    | ObjectAttributes.NO_DA
    | ObjectAttributes.ST_CLEAR
)
"""How a key may be used does not matter to who trusts its signatures. All else is refused: decrypt,
encryptedDuplication, x509Sign, and what later revisions add."""
_SCHEMES = (TpmAlgorithm.ECDSA, TpmAlgorithm.RSASSA, TpmAlgorithm.RSAPSS)
_HASHES = (TpmAlgorithm.SHA256, TpmAlgorithm.SHA384, TpmAlgorithm.SHA512)
_EXPONENT = 65537


def read_attestation_key(public_area: bytes) -> TpmPublic:
    """Check the public area of an attestation key.

    Args:
        public_area: TPMT_PUBLIC.

    Raises:
        EnrollmentRejected: MALFORMED_REQUEST, AK_ATTRIBUTES or AK_ALGORITHM, in that order.
    """
    try:
        key = parse_tpm_public(public_area)
    except WireError as exc:
        message = f"the attestation key's public area is malformed: {exc}"
        raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message) from exc
    missing, excess = _REQUIRED & ~key.attributes, key.attributes & ~(_REQUIRED | _OPTIONAL)
    if missing or excess:
        message = f"the attestation key lacks {missing.name or 'nothing'} and must not have {excess.name or 'more'}"
        raise EnrollmentRejected(EnrollmentReason.AK_ATTRIBUTES, message)
    problem = _algorithm_problem(key)
    if problem is not None:
        raise EnrollmentRejected(EnrollmentReason.AK_ALGORITHM, f"the attestation key {problem}")
    return key


def _algorithm_problem(key: TpmPublic) -> str | None:
    if key.name_algorithm not in _HASHES:
        return f"is named by {key.name_algorithm.name}, not by SHA-256 or better"
    if key.symmetric is not None:
        return "has a symmetric algorithm, as only keys that decrypt do"
    if key.scheme is None or key.scheme.algorithm not in _SCHEMES or key.scheme.hash not in _HASHES:
        return "is not bound to one signature scheme with SHA-256 or better"
    if isinstance(key.parameters, RsaParameters):
        fits, is_sound = key.scheme.algorithm is not TpmAlgorithm.ECDSA, key.parameters.exponent == _EXPONENT
    else:
        fits, is_sound = key.scheme.algorithm is TpmAlgorithm.ECDSA, True
    if not fits:
        return f"is {key.key_type.name}, which {key.scheme.algorithm.name} is not for"
    return None if is_sound else "has an unusual RSA exponent"
