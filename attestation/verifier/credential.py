"""Make credentials that only one TPM can open: TPM2_MakeCredential in pure Python.

Source: TPM 2.0 Part 1, 24 (credential protection), 11.4.10 (KDFa, KDFe), B.10 (RSA), C.6 (ECC); Part 3, 12.6.
Pure: secret and randomness are passed in (RSA-OAEP draws its own padding inside ``cryptography``).
"""

from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

RANDOMNESS_BYTES = 64
"""P-384 takes 48 bytes of scalar and 8 more against bias (FIPS 186-5, A.2.1)."""
_IDENTITY = b"IDENTITY\x00"


@dataclass(frozen=True, slots=True)
class Credential:
    """What goes to TPM2_ActivateCredential, each without the 2-byte size before it."""

    credential_blob: bytes
    """Content of TPM2B_ID_OBJECT: TPM2B integrity HMAC, then the encrypted TPM2B credential."""
    encrypted_secret: bytes
    """Content of TPM2B_ENCRYPTED_SECRET: the seed, for the endorsement key."""


@dataclass(frozen=True, slots=True)
class CredentialScheme:
    """How an endorsement key protects: fixed by its template, never taken from the client."""

    name_hash: hashes.HashAlgorithm
    """nameAlg of the endorsement key."""
    aes_bits: int
    """Key size of its symmetric algorithm, AES in CFB mode."""


def make_credential(
    endorsement_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    scheme: CredentialScheme,
    *,
    object_name: bytes,
    secret: bytes,
    randomness: bytes,
) -> Credential:
    """Protect ``secret`` so that it opens only in the TPM of ``endorsement_key``, for the object of ``object_name``.

    Args:
        endorsement_key: RSA, P-256 or P-384.
        scheme: Of the key's template.
        object_name: Name of the attestation key: 2 bytes of nameAlg and a digest.
        secret: At most as long as the nameAlg's digest.
        randomness: 64 fresh random bytes.

    Raises:
        ValueError: A length or the curve is wrong.
    """
    if len(secret) > scheme.name_hash.digest_size or len(randomness) != RANDOMNESS_BYTES:
        raise ValueError("the secret is longer than the digest, or there are not 64 bytes of randomness")
    if isinstance(endorsement_key, rsa.RSAPublicKey):
        seed = randomness[: scheme.name_hash.digest_size]
        oaep = padding.OAEP(padding.MGF1(scheme.name_hash), scheme.name_hash, _IDENTITY)
        encrypted_secret = endorsement_key.encrypt(seed, oaep)
    else:
        seed, encrypted_secret = _exchange(endorsement_key, scheme.name_hash, randomness)
    aes_key = _kdfa(scheme.name_hash, seed, b"STORAGE", object_name, scheme.aes_bits // 8)
    # CFB with a zero IV is what the specification fixes; the key is used once.
    encryptor = Cipher(algorithms.AES(aes_key), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(_tpm2b(secret)) + encryptor.finalize()
    mac_key = _kdfa(scheme.name_hash, seed, b"INTEGRITY", b"", scheme.name_hash.digest_size)
    mac = hmac.HMAC(mac_key, scheme.name_hash)
    mac.update(encrypted + object_name)
    return Credential(_tpm2b(mac.finalize()) + encrypted, encrypted_secret)


def _exchange(
    endorsement_key: ec.EllipticCurvePublicKey, name_hash: hashes.HashAlgorithm, randomness: bytes
) -> tuple[bytes, bytes]:
    """One-pass Diffie-Hellman: seed by KDFe, and the ephemeral point as TPMS_ECC_POINT.

    Coordinates are padded to the field's size: without it, one key in 128 fails.
    """
    curve = endorsement_key.curve
    if not isinstance(curve, ec.SECP256R1 | ec.SECP384R1):
        raise ValueError(f"expected P-256 or P-384, got {curve.name}")
    size = (curve.key_size + 7) // 8
    ephemeral = ec.derive_private_key(int.from_bytes(randomness, "big") % (curve.group_order - 1) + 1, curve)
    shared_x = ephemeral.exchange(ec.ECDH(), endorsement_key)
    ours, theirs = ephemeral.public_key().public_numbers(), endorsement_key.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    info = _IDENTITY + x + theirs.x.to_bytes(size, "big")
    seed = ConcatKDFHash(name_hash, name_hash.digest_size, info).derive(shared_x)
    return seed, _tpm2b(x) + _tpm2b(y)


def _kdfa(name_hash: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa: SP 800-108 in counter mode, with 32-bit counter and length."""
    return KBKDFHMAC(
        name_hash,
        Mode.CounterMode,
        length=size,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)


def _tpm2b(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
