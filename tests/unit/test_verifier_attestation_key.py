"""Which attestation keys are accepted."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.errors import EnrollmentReason, EnrollmentRejected
from attestation.verifier.attestation_key import read_attestation_key

FIXED_TPM, ST_CLEAR, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 2, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, FIRMWARE_LIMITED, SVN_LIMITED = 1 << 6, 1 << 7, 1 << 8, 1 << 9
NO_DA, ENCRYPTED_DUPLICATION = 1 << 10, 1 << 11
RESTRICTED, DECRYPT, SIGN, X509_SIGN = 1 << 16, 1 << 17, 1 << 18, 1 << 19
GOOD = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | RESTRICTED | SIGN
SHA1, SHA256, SHA384, SHA512 = 4, 0xB, 0xC, 0xD
NULL, RSASSA, RSAPSS, OAEP, ECDSA, ECDH = 0x10, 0x14, 0x16, 0x17, 0x18, 0x19
AES_128_CFB = "0006 0080 0043"


def ecc(
    *,
    attributes: int = GOOD,
    name_alg: int = SHA256,
    scheme: str = "0018 000b",
    symmetric: str = "0010",
    curve: ec.EllipticCurve | None = None,
) -> bytes:
    """TPMT_PUBLIC of an ECC key."""
    curve = curve or ec.SECP256R1()
    numbers = ec.derive_private_key(12345, curve).public_key().public_numbers()
    size = curve.key_size // 8
    head = bytes.fromhex(f"0023 {name_alg:04x} {attributes:08x} 0000 {symmetric} {scheme}")
    curve_id = b"\0\3" if size == 32 else b"\0\4"
    point = b"".join(size.to_bytes(2, "big") + value.to_bytes(size, "big") for value in (numbers.x, numbers.y))
    return head + curve_id + b"\0\x10" + point


_MODULUS = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n.to_bytes(256, "big")


def rsa_area(*, scheme: str = "0014 000b", exponent: int = 0) -> bytes:
    """TPMT_PUBLIC of an RSA key."""
    head = bytes.fromhex(f"0001 000b {GOOD:08x} 0000 0010 {scheme} 0800 {exponent:08x} 0100")
    return head + _MODULUS


def refusal(area: bytes) -> EnrollmentReason:
    """Why a public area is refused."""
    with pytest.raises(EnrollmentRejected) as caught:
        read_attestation_key(area)
    return caught.value.reason


@pytest.mark.parametrize(
    "area",
    [
        ecc(),
        ecc(attributes=GOOD | NO_DA),
        ecc(attributes=GOOD & ~USER_WITH_AUTH | ADMIN_WITH_POLICY | ST_CLEAR),
        ecc(curve=ec.SECP384R1(), scheme="0018 000c", name_alg=SHA384),
        rsa_area(),
        rsa_area(scheme="0016 000b"),
        rsa_area(exponent=65537),
    ],
    ids=["P-256", "no DA", "policy", "P-384", "RSASSA", "RSAPSS", "exponent spelled out"],
)
def test_restricted_signing_keys_are_accepted(area: bytes) -> None:
    """Keys that sign only what their TPM made are what quotes need."""
    assert read_attestation_key(area).encoded == area


@pytest.mark.parametrize(
    "missing",
    [FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, RESTRICTED, SIGN],
    ids=["fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "sign"],
)
def test_each_attribute_is_needed(missing: int) -> None:
    """An unrestricted key signs forged quotes; a key that can leave its TPM proves nothing of it."""
    assert refusal(ecc(attributes=GOOD & ~missing)) is EnrollmentReason.AK_ATTRIBUTES


@pytest.mark.parametrize(
    "excess",
    [DECRYPT, ENCRYPTED_DUPLICATION, X509_SIGN, FIRMWARE_LIMITED, SVN_LIMITED],
    ids=["decrypt", "encryptedDuplication", "x509sign", "firmwareLimited", "svnLimited"],
)
def test_no_other_attribute_is_accepted(excess: int) -> None:
    """What is not known to be harmless is refused."""
    assert refusal(ecc(attributes=GOOD | excess)) is EnrollmentReason.AK_ATTRIBUTES


@pytest.mark.parametrize(
    "area",
    [
        ecc(name_alg=SHA1),
        ecc(symmetric=AES_128_CFB),
        ecc(scheme="0010"),
        ecc(scheme="0018 0004"),
        ecc(scheme="0019 000b"),
        ecc(scheme="0014 000b"),
        rsa_area(scheme="0010"),
        rsa_area(scheme="0017 000b"),
        rsa_area(scheme="0018 000b"),
        rsa_area(scheme="0014 0004"),
        rsa_area(exponent=3),
    ],
    ids=[
        "name by SHA-1",
        "symmetric",
        "no scheme",
        "ECDSA with SHA-1",
        "ECDH",
        "RSASSA of an ECC key",
        "RSA without scheme",
        "OAEP",
        "ECDSA of an RSA key",
        "RSASSA with SHA-1",
        "exponent 3",
    ],
)
def test_weak_or_foreign_algorithms_are_refused(area: bytes) -> None:
    """One signature scheme, one hash of the SHA-2 family, fixed in the key itself."""
    assert refusal(area) is EnrollmentReason.AK_ALGORITHM


@pytest.mark.parametrize("area", [b"", b"\0", ecc()[:-1], ecc() + b"\0", bytes(2000)])
def test_malformed_areas_are_refused(area: bytes) -> None:
    """Nothing but a whole public area is read."""
    assert refusal(area) is EnrollmentReason.MALFORMED_REQUEST
