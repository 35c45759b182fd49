"""Credentials, opened by a second implementation of what the TPM does."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from attestation.verifier.credential import Credential, CredentialScheme, make_credential

SHA256 = CredentialScheme(hashes.SHA256(), 128)
SHA384 = CredentialScheme(hashes.SHA384(), 256)
NAME = b"\x00\x0b" + bytes(range(32))
SECRET = bytes(range(200, 232))
RANDOMNESS = bytes(range(64))
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class CredentialRefused(Exception):
    """The model TPM refused."""


def kdfa(name: str, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa as TPM 2.0 Part 1, 11.4.10.2 spells it."""
    output, counter = b"", 1
    while len(output) < size:
        fixed = label + b"\0" + context + (size * 8).to_bytes(4, "big")
        output += hmac.digest(key, counter.to_bytes(4, "big") + fixed, name)
        counter += 1
    return output[:size]


def kdfe(name: str, shared: bytes, party_u: bytes, party_v: bytes, size: int) -> bytes:
    """KDFe as TPM 2.0 Part 1, 11.4.10.3 spells it, for one block."""
    return hashlib.new(name, (1).to_bytes(4, "big") + shared + b"IDENTITY\0" + party_u + party_v).digest()[:size]


def split(data: bytes) -> tuple[bytes, bytes]:
    """A TPM2B and what follows."""
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


def activate(key: PrivateKey, scheme: CredentialScheme, name: bytes, credential: Credential) -> bytes:
    """TPM2_ActivateCredential as a TPM with this endorsement key does it."""
    digest = scheme.name_hash.name
    size = scheme.name_hash.digest_size
    if isinstance(key, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(scheme.name_hash), scheme.name_hash, b"IDENTITY\0")
        seed = key.decrypt(credential.encrypted_secret, oaep)
    else:
        width = (key.curve.key_size + 7) // 8
        x, rest = split(credential.encrypted_secret)
        y, trailing = split(rest)
        if (len(x), len(y), trailing) != (width, width, b""):
            raise CredentialRefused("coordinates are padded to the field's size")
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve)
        shared = key.exchange(ec.ECDH(), point.public_key())
        own_x = key.public_key().public_numbers().x.to_bytes(width, "big")
        seed = kdfe(digest, shared, x, own_x, size)
    mac, encrypted = split(credential.credential_blob)
    mac_key = kdfa(digest, seed, b"INTEGRITY", b"", size)
    if not hmac.compare_digest(mac, hmac.digest(mac_key, encrypted + name, digest)):
        raise CredentialRefused("integrity")
    aes_key = kdfa(digest, seed, b"STORAGE", name, scheme.aes_bits // 8)
    decryptor = Cipher(algorithms.AES(aes_key), CFB(bytes(16))).decryptor()
    secret, trailing = split(decryptor.update(encrypted) + decryptor.finalize())
    if trailing:
        raise CredentialRefused("trailing bytes")
    return secret


def make(key: PrivateKey, scheme: CredentialScheme, randomness: bytes = RANDOMNESS) -> Credential:
    """A credential for ``key``."""
    return make_credential(key.public_key(), scheme, object_name=NAME, secret=SECRET, randomness=randomness)


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        (rsa.generate_private_key(65537, 2048), SHA256),
        (rsa.generate_private_key(65537, 3072), SHA384),
        (ec.generate_private_key(ec.SECP256R1()), SHA256),
        (ec.generate_private_key(ec.SECP384R1()), SHA384),
    ],
    ids=["RSA 2048", "RSA 3072", "P-256", "P-384"],
)
def test_the_key_opens_its_credential(key: PrivateKey, scheme: CredentialScheme) -> None:
    """The secret comes back, for every kind of endorsement key."""
    assert activate(key, scheme, NAME, make(key, scheme)) == SECRET


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["P-256", "P-384"])
def test_coordinates_keep_their_leading_zeros(curve: ec.EllipticCurve) -> None:
    """Ephemeral keys, endorsement keys and shared secrets that begin with a zero byte work like all others."""
    scheme = SHA256 if curve.name == "secp256r1" else SHA384
    shift = curve.key_size - 8
    key = next(
        candidate
        for candidate in (ec.derive_private_key(scalar, curve) for scalar in range(2, 5_000))
        if candidate.public_key().public_numbers().x >> shift == 0
    )
    short_x = short_y = short_shared = 0
    for number in range(2_000):
        ephemeral = ec.derive_private_key(number + 1, curve)
        numbers = ephemeral.public_key().public_numbers()
        is_short_x, is_short_y = numbers.x >> shift == 0, numbers.y >> shift == 0
        is_short_shared = ephemeral.exchange(ec.ECDH(), key.public_key())[0] == 0
        if is_short_x or is_short_y or is_short_shared:
            short_x, short_y, short_shared = (
                short_x + is_short_x,
                short_y + is_short_y,
                short_shared + is_short_shared,
            )
            assert activate(key, scheme, NAME, make(key, scheme, number.to_bytes(64, "big"))) == SECRET
    assert min(short_x, short_y, short_shared) > 0


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_another_key_does_not_open_it(kind: str) -> None:
    """A credential for one TPM is no use to another (T6)."""
    if kind == "rsa":
        ours, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        with pytest.raises(ValueError, match=r".*"):
            activate(other, SHA256, NAME, make(ours, SHA256))
        return
    one, another = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    with pytest.raises(CredentialRefused, match="integrity"):
        activate(another, SHA256, NAME, make(one, SHA256))


def test_it_is_for_one_attestation_key() -> None:
    """The same TPM does not open it for an object of another name."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CredentialRefused, match="integrity"):
        activate(key, SHA256, NAME[:-1] + b"\xff", make(key, SHA256))


@pytest.mark.parametrize(("secret", "randomness"), [(bytes(33), bytes(64)), (bytes(32), bytes(63))])
def test_wrong_lengths_are_refused(secret: bytes, randomness: bytes) -> None:
    """A secret longer than the digest would not be opened by a TPM; too little randomness would."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(ValueError, match="64 bytes"):
        make_credential(key, SHA256, object_name=NAME, secret=secret, randomness=randomness)


def test_another_curve_is_refused() -> None:
    """Only curves of known templates are used."""
    key = ec.generate_private_key(ec.SECP521R1())
    with pytest.raises(ValueError, match="P-256 or P-384"):
        make(key, SHA256)
