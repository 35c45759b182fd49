"""Public areas of TPM keys."""

import contextlib
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.simulator.software_host import AK_ATTRIBUTES, ecc_public, rsa_key, rsa_public
from attestation.wire.tpm_algorithms import TpmAlgorithm, TpmCurve, algorithm, hash_algorithm
from attestation.wire.tpm_public import (
    MAX_PUBLIC_SIZE,
    EccParameters,
    ObjectAttributes,
    RsaParameters,
    Scheme,
    Symmetric,
    parse_tpm_public,
)

P256 = ec.derive_private_key(0x2001, ec.SECP256R1()).public_key()
P384 = ec.derive_private_key(0x2002, ec.SECP384R1()).public_key()
RSA = rsa_key().public_key()
AREAS = (ecc_public(P256), ecc_public(P384, "sha384"), rsa_public(RSA), rsa_public(RSA, 0x0016))


def der(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_storage(key: rsa.RSAPublicKey, exponent: int = 0, bits: int = 2048) -> bytes:
    """TPMT_PUBLIC of an RSA 2048 endorsement key of the low range."""
    modulus = key.public_numbers().n.to_bytes(256, "big")
    policy = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
    return (
        struct.pack(">HHIH", 1, 11, 0x000300B2, 32)
        + policy
        + struct.pack(">HHHHHI", 6, 128, 0x43, 0x10, bits, exponent)
        + struct.pack(">H", 256)
        + modulus
    )


@pytest.mark.parametrize(
    ("area", "key"), [(AREAS[0], P256), (AREAS[1], P384), (AREAS[2], RSA)], ids=["P-256", "P-384", "RSA"]
)
def test_the_key_is_the_one_in_the_area(area: bytes, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    """SubjectPublicKeyInfo is re-encoded canonically from the numbers in the area."""
    public = parse_tpm_public(area)
    assert public.spki() == der(key)
    assert public.to_public_key() == key
    assert public.encoded == area


def test_name_and_qualified_name_hash_the_area() -> None:
    """Name and qualified name are those of TPM 2.0 Part 1, 16, under the endorsement hierarchy."""
    public = parse_tpm_public(AREAS[1])
    name = b"\x00\x0c" + hashlib.sha384(AREAS[1]).digest()
    assert public.name == name
    assert public.endorsement_qualified_name == b"\0\x0c" + hashlib.sha384(bytes.fromhex("4000000b") + name).digest()


def test_fields_of_an_ecc_signing_key() -> None:
    """Attributes, scheme and parameters come out as they are in the area."""
    public = parse_tpm_public(AREAS[0])
    assert public.key_type is TpmAlgorithm.ECC
    assert public.attributes == ObjectAttributes(AK_ATTRIBUTES)
    assert ObjectAttributes.RESTRICTED in public.attributes
    assert ObjectAttributes.DECRYPT not in public.attributes
    assert public.scheme == Scheme(TpmAlgorithm.ECDSA, TpmAlgorithm.SHA256)
    assert public.symmetric is None
    assert isinstance(public.parameters, EccParameters)
    assert public.parameters.curve is TpmCurve.NIST_P256


def test_fields_of_an_rsa_storage_key() -> None:
    """An endorsement key's symmetric protection, policy and default exponent come out."""
    public = parse_tpm_public(rsa_storage(RSA))
    assert public.key_type is TpmAlgorithm.RSA
    assert public.symmetric == Symmetric(TpmAlgorithm.AES, 128, TpmAlgorithm.CFB)
    assert public.scheme is None
    assert len(public.auth_policy) == 32
    assert isinstance(public.parameters, RsaParameters)
    assert (public.parameters.exponent, public.parameters.key_bits) == (65537, 2048)


def test_coordinates_without_leading_zeros_are_the_same_key() -> None:
    """A TPM that writes a short coordinate gives the same SubjectPublicKeyInfo."""
    keys = (ec.derive_private_key(scalar, ec.SECP256R1()).public_key() for scalar in range(1, 5000))
    key = next(key for key in keys if key.public_numbers().x < 1 << 248)
    numbers = key.public_numbers()
    area = ecc_public(key)
    x = numbers.x.to_bytes(32, "big").lstrip(b"\0")
    short = area[:20] + struct.pack(">H", len(x)) + x + area[20 + 34 :]
    assert parse_tpm_public(short).spki() == parse_tpm_public(area).spki()


def test_a_known_area_is_parsed_once() -> None:
    """The key object of an area is made once and kept."""
    assert parse_tpm_public(AREAS[0]) is parse_tpm_public(bytes(bytearray(AREAS[0])))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda area: area + b"\0", "too many"),
        (lambda area: area + bytes(MAX_PUBLIC_SIZE), "at most"),
        (lambda area: b"\x00\x08" + area[2:], "type KEYEDHASH"),
        (lambda area: area[:2] + b"\x00\x12" + area[4:], "no hash"),
        (lambda area: area[:4] + b"\x80" + area[5:], "reserved"),
        (lambda area: area[:10] + b"\x00\x06\x00\x40\x00\x43" + area[12:], "not supported"),
        (lambda area: area[:12] + b"\x00\x05" + area[14:], "scheme HMAC"),
        (lambda area: area[:16] + b"\x00\x05" + area[18:], "curve 0x0005"),
        (lambda area: area[:18] + b"\x00\x20" + area[20:], "key derivation"),
        (lambda area: area[:-1] + bytes([area[-1] ^ 1]), "not a point"),
        (lambda area: area[:12] + b"\xff\xff" + area[14:], "not known"),
    ],
)
def test_refuses_areas_that_are_not_such_a_key(change, reason) -> None:  # type: ignore[no-untyped-def]
    """Trailing bytes, size, type, hash, reserved bits, cipher, scheme, curve, derivation, point: each is refused."""
    with pytest.raises(WireError, match=reason):
        parse_tpm_public(change(AREAS[0]))


@pytest.mark.parametrize(
    ("area", "reason"),
    [
        (rsa_storage(RSA, bits=1024), "1024 bit"),
        (rsa_storage(RSA, exponent=4), "not an RSA"),
        (AREAS[2][:24] + b"\0" + AREAS[2][25:], "has not 2048"),
    ],
    ids=["short", "even exponent", "leading zero"],
)
def test_refuses_weak_or_malformed_rsa_keys(area: bytes, reason: str) -> None:
    """Short keys, even exponents and moduli with leading zeros are refused."""
    with pytest.raises(WireError, match=reason):
        parse_tpm_public(area)


def test_rsaes_has_no_hash() -> None:
    """A scheme without a hash parses without one."""
    area = AREAS[2]
    rsaes = area[:12] + b"\x00\x15" + area[16:]
    assert parse_tpm_public(rsaes).scheme == Scheme(TpmAlgorithm.RSAES, TpmAlgorithm.NULL)


def test_unknown_algorithms_are_refused() -> None:
    """What is not in the table is an error, not a default."""
    with pytest.raises(WireError):
        algorithm(0x7777)
    with pytest.raises(WireError):
        hash_algorithm(TpmAlgorithm.AES)


@pytest.mark.parametrize("area", AREAS, ids=["P-256", "P-384", "RSASSA", "RSAPSS"])
def test_every_truncation_is_refused(area: bytes) -> None:
    """An area cut at any byte is a WireError."""
    for end in range(len(area)):
        with pytest.raises(WireError):
            parse_tpm_public(area[:end])


@settings(deadline=None)
@given(st.sampled_from(AREAS), st.data())
def test_bit_flips_give_another_key_or_wire_error(area: bytes, data: st.DataObject) -> None:
    """A flipped bit changes the name or is refused; nothing but WireError escapes."""
    bit = data.draw(st.integers(min_value=0, max_value=len(area) * 8 - 1))
    flipped = bytearray(area)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        assert parse_tpm_public(bytes(flipped)).name != parse_tpm_public(area).name


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_wire_error_or_a_key(data: bytes) -> None:
    """Nothing but WireError escapes."""
    with contextlib.suppress(WireError):
        parse_tpm_public(data)
