"""Seal keys to a host's attested key: HPKE base mode (RFC 9180), HKDF-SHA-256, AES-256-GCM.

A sealed key is ``enc ‖ ciphertext`` as RFC 9180 serialises them: 80 bytes for a 32-byte key with X25519, 1,168 with
ML-KEM-768 + X25519. The context goes into ``info`` (:func:`~keyprovider.envelope.transcript.release_info`); base mode
authenticates no sender: whoever needs to know the sender asks the channel it came through.

Pure but for the key generator and HPKE's own randomness; no clock, I/O or logging.
"""

from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from attestation.model import HpkeKem
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import MAX_KEY_SIZE, SecretKey

_X25519_SIZE: Final = 32
_MLKEM768_SIZE: Final = 1184
_TAG_SIZE: Final = 16
PUBLIC_SIZES: Final = {HpkeKem.X25519: _X25519_SIZE, HpkeKem.MLKEM768_X25519: _MLKEM768_SIZE + _X25519_SIZE}
"""Bytes of a public key. The hybrid's is ML-KEM's followed by X25519's."""
_ENC_SIZES: Final = {HpkeKem.X25519: 32, HpkeKem.MLKEM768_X25519: 1120}
_SUITES: Final = {
    kem: hpke.Suite(mechanism, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    for kem, mechanism in (
        (HpkeKem.X25519, hpke.KEM.X25519),
        (HpkeKem.MLKEM768_X25519, hpke.KEM.MLKEM768_X25519),
    )
}


class SealingKey:
    """A private key, held in memory only, that others seal keys to."""

    __slots__ = ("_private", "kem", "public_bytes")

    kem: HpkeKem
    """The mechanism it is for."""
    public_bytes: bytes
    """As RFC 9180 serialises it: 32 bytes (X25519) or 1,216 (hybrid)."""

    def __init__(
        self, kem: HpkeKem, private: X25519PrivateKey | hpke.MLKEM768X25519PrivateKey, public_bytes: bytes
    ) -> None:
        self.kem = kem
        self._private = private
        self.public_bytes = public_bytes

    @classmethod
    def generate(cls, kem: HpkeKem) -> Self:
        """Make a new key pair."""
        classical = X25519PrivateKey.generate()
        classical_public = classical.public_key().public_bytes_raw()
        if kem is HpkeKem.X25519:
            return cls(kem, classical, classical_public)
        lattice = MLKEM768PrivateKey.generate()
        public = lattice.public_key().public_bytes_raw() + classical_public
        return cls(kem, hpke.MLKEM768X25519PrivateKey(lattice, classical), public)

    def open(self, sealed: bytes, info: bytes) -> SecretKey:
        """Open what :func:`seal_key` sealed to this key.

        Raises:
            EnvelopeError: Impossible length, or not sealed to this key for this ``info``.
        """
        shortest = _ENC_SIZES[self.kem] + _TAG_SIZE + 2
        if not shortest <= len(sealed) <= shortest - 2 + MAX_KEY_SIZE:
            raise EnvelopeError(f"a sealed key has at least {shortest} bytes, not {len(sealed)}")
        try:
            plain = _SUITES[self.kem].decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as exc:
            raise EnvelopeError("the key was not sealed to this key for this use") from exc
        return SecretKey.adopt_result(plain)

    def __repr__(self) -> str:
        return f"<SealingKey {self.kem.name}>"

    def __reduce_ex__(self, protocol: object) -> str | tuple[object, ...]:
        raise TypeError("a sealing key is neither copied nor pickled")


def seal_key(kem: HpkeKem, public_bytes: bytes, key: SecretKey, info: bytes) -> bytes:
    """Seal ``key`` so that only the holder of the private key opens it, and only for this ``info``.

    Args:
        kem: Mechanism of the public key.
        public_bytes: As RFC 9180 serialises it.
        key: 2 to 128 bytes.
        info: What it is for; both ends compute it.

    Raises:
        ValueError: The key is a single byte.
        EnvelopeError: The public key is not one.
    """
    if len(key) < 2:
        raise ValueError("a key of a single byte is not sealed")
    try:
        return _SUITES[kem].encrypt(key.view(), _public_key(kem, public_bytes), info)
    except ValueError as exc:  # also a point of low order
        raise EnvelopeError(f"not a public key for {kem.name}") from exc


def _public_key(kem: HpkeKem, encoded: bytes) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
    if len(encoded) != PUBLIC_SIZES[kem]:
        raise EnvelopeError(f"a public key for {kem.name} has {PUBLIC_SIZES[kem]} bytes, not {len(encoded)}")
    if kem is HpkeKem.X25519:
        return X25519PublicKey.from_public_bytes(encoded)
    lattice = MLKEM768PublicKey.from_public_bytes(encoded[:_MLKEM768_SIZE])
    return hpke.MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(encoded[_MLKEM768_SIZE:]))
