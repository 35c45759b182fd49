"""Parse public areas of TPM keys: TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4) of RSA and ECC keys.

Strict: no trailing bytes, no reserved attribute, no algorithm that is not in the tables, no point off the curve.
That a key parses says nothing about whose it is; ``attestation.verifier`` decides that.
Pure: bytes in, frozen values out. Lets no error out but ``WireError``.
"""

from dataclasses import dataclass, field
from enum import IntFlag
from functools import lru_cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import WireError
from attestation.wire.reader import Reader
from attestation.wire.tpm_algorithms import TpmAlgorithm, TpmCurve, algorithm, digest, hash_algorithm

MAX_PUBLIC_SIZE: Final = 1024
MAX_POLICY_SIZE: Final = 64
TPM_RH_ENDORSEMENT: Final = 0x4000000B
_RSA_KEY_BITS: Final = (2048, 3072, 4096)
_AES_KEY_BITS: Final = (128, 192, 256)
_DEFAULT_EXPONENT: Final = 65537
_SCHEMES_WITH_HASH: Final = (
    TpmAlgorithm.RSASSA,
    TpmAlgorithm.RSAPSS,
    TpmAlgorithm.OAEP,
    TpmAlgorithm.ECDSA,
    TpmAlgorithm.ECDH,
)
_CACHED_KEYS: Final = 4096

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class ObjectAttributes(IntFlag):
    """TPMA_OBJECT (TPM 2.0 Part 2, 8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


_KNOWN_ATTRIBUTES: Final = sum(ObjectAttributes)


@dataclass(frozen=True, slots=True)
class Symmetric:
    """TPMT_SYM_DEF_OBJECT of a key that protects others."""

    algorithm: TpmAlgorithm
    key_bits: int
    mode: TpmAlgorithm


@dataclass(frozen=True, slots=True)
class Scheme:
    """The one scheme a key may be used with; ``hash`` is NULL where the scheme has none."""

    algorithm: TpmAlgorithm
    hash: TpmAlgorithm


@dataclass(frozen=True, slots=True)
class RsaParameters:
    """What is particular to an RSA key."""

    key_bits: int
    exponent: int
    modulus: bytes


@dataclass(frozen=True, slots=True)
class EccParameters:
    """What is particular to a key on an elliptic curve; coordinates may lack leading zeros, as TPMs write them."""

    curve: TpmCurve
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True)
class TpmPublic:
    """Public area of a TPM key. Only :func:`parse_tpm_public` makes one."""

    encoded: bytes
    name_algorithm: TpmAlgorithm
    attributes: ObjectAttributes
    auth_policy: bytes
    symmetric: Symmetric | None
    scheme: Scheme | None
    parameters: RsaParameters | EccParameters
    name: bytes
    """nameAlg ‖ H(public area) (TPM 2.0 Part 1, 16)."""
    endorsement_qualified_name: bytes
    """Its qualified name if it is a primary key of the endorsement hierarchy (TPM 2.0 Part 1, 16 and 26.5)."""
    _key: PublicKey = field(repr=False, compare=False)

    @property
    def key_type(self) -> TpmAlgorithm:
        """RSA or ECC."""
        return TpmAlgorithm.RSA if isinstance(self.parameters, RsaParameters) else TpmAlgorithm.ECC

    def to_public_key(self) -> PublicKey:
        """The key, ready to verify or encrypt with; made once, when parsed."""
        return self._key

    def spki(self) -> bytes:
        """SubjectPublicKeyInfo in canonical DER: rsaEncryption, or a named curve and an uncompressed point."""
        return self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=_CACHED_KEYS)
def parse_tpm_public(data: bytes) -> TpmPublic:
    """Parse a marshalled TPMT_PUBLIC. Results are kept, so that a known key costs a dictionary look-up.

    Args:
        data: At most 1 KiB.

    Raises:
        WireError: Not the public area of an RSA key (2048, 3072, 4096 bit) or of an ECC key (P-256, P-384).
    """
    if len(data) > MAX_PUBLIC_SIZE:
        raise WireError(f"a public area has at most {MAX_PUBLIC_SIZE} bytes, not {len(data)}")
    reader = Reader(data)
    key_type = algorithm(reader.u16())
    name_algorithm = hash_algorithm(reader.u16())
    attribute_bits = reader.u32()
    if attribute_bits & ~_KNOWN_ATTRIBUTES:
        raise WireError(f"reserved attribute bits are set: 0x{attribute_bits & ~_KNOWN_ATTRIBUTES:08x}")
    auth_policy = reader.tpm2b(MAX_POLICY_SIZE)
    if key_type not in (TpmAlgorithm.RSA, TpmAlgorithm.ECC):
        raise WireError(f"a key of type {key_type.name} is not supported")
    symmetric = _read_symmetric(reader)
    scheme = _read_scheme(reader)
    parameters: RsaParameters | EccParameters
    if key_type is TpmAlgorithm.RSA:
        parameters = _read_rsa(reader)
        key: PublicKey = _rsa_key(parameters)
    else:
        parameters = _read_ecc(reader)
        key = _ecc_key(parameters)
    reader.finish()
    prefix = name_algorithm.to_bytes(2, "big")
    name = prefix + digest(name_algorithm, data)
    return TpmPublic(
        encoded=data,
        name_algorithm=name_algorithm,
        attributes=ObjectAttributes(attribute_bits),
        auth_policy=auth_policy,
        symmetric=symmetric,
        scheme=scheme,
        parameters=parameters,
        name=name,
        endorsement_qualified_name=prefix + digest(name_algorithm, TPM_RH_ENDORSEMENT.to_bytes(4, "big") + name),
        _key=key,
    )


def _read_symmetric(reader: Reader) -> Symmetric | None:
    cipher = algorithm(reader.u16())
    if cipher is TpmAlgorithm.NULL:
        return None
    key_bits = reader.u16()
    mode = algorithm(reader.u16())
    if cipher is not TpmAlgorithm.AES or mode is not TpmAlgorithm.CFB or key_bits not in _AES_KEY_BITS:
        raise WireError(f"symmetric protection {cipher.name}-{key_bits}-{mode.name} is not supported")
    return Symmetric(cipher, key_bits, mode)


def _read_scheme(reader: Reader) -> Scheme | None:
    scheme = algorithm(reader.u16())
    if scheme is TpmAlgorithm.NULL:
        return None
    if scheme is TpmAlgorithm.RSAES:
        return Scheme(scheme, TpmAlgorithm.NULL)
    if scheme not in _SCHEMES_WITH_HASH:
        raise WireError(f"scheme {scheme.name} is not supported")
    return Scheme(scheme, hash_algorithm(reader.u16()))


def _read_rsa(reader: Reader) -> RsaParameters:
    key_bits = reader.u16()
    if key_bits not in _RSA_KEY_BITS:
        raise WireError(f"RSA keys of {key_bits} bit are not supported")
    exponent = reader.u32() or _DEFAULT_EXPONENT
    modulus = reader.tpm2b(key_bits // 8)
    if len(modulus) * 8 != key_bits or not modulus[0] & 0x80:
        raise WireError(f"the modulus has not {key_bits} bit")
    return RsaParameters(key_bits, exponent, modulus)


def _read_ecc(reader: Reader) -> EccParameters:
    curve_id = reader.u16()
    try:
        curve = TpmCurve(curve_id)
    except ValueError as exc:
        raise WireError(f"curve 0x{curve_id:04x} is not supported") from exc
    if reader.u16() != TpmAlgorithm.NULL:
        raise WireError("a key derivation scheme in a public area is not supported")
    size = 32 if curve is TpmCurve.NIST_P256 else 48
    return EccParameters(curve, reader.tpm2b(size), reader.tpm2b(size))


def _rsa_key(parameters: RsaParameters) -> rsa.RSAPublicKey:
    try:
        return rsa.RSAPublicNumbers(parameters.exponent, int.from_bytes(parameters.modulus, "big")).public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise WireError("not an RSA public key") from exc


def _ecc_key(parameters: EccParameters) -> ec.EllipticCurvePublicKey:
    curve = ec.SECP256R1() if parameters.curve is TpmCurve.NIST_P256 else ec.SECP384R1()
    x, y = int.from_bytes(parameters.x, "big"), int.from_bytes(parameters.y, "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise WireError(f"not a point on {curve.name}") from exc
