"""Wrap keys by keys: AES-256-GCM (NIST SP 800-38D) with the key's context as associated data.

A wrapped key is: version (1 byte, 0x01) ‖ nonce (12 bytes) ‖ ciphertext (as long as the key) ‖ tag (16 bytes).
Associated data: :func:`~keyprovider.envelope.transcript.transcript` of label ``garant/wrap/v1``, the version byte,
provider, key reference, VM id, component. Vectors: ``docs/vectors/wrapped-key.json``.

With random nonces one wrapping key is good for 2^32 wraps (SP 800-38D, 8.3).
Pure: the nonce is passed in; no clock, I/O or logging.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyprovider.envelope.transcript import transcript
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import MAX_KEY_SIZE, SecretKey

NONCE_SIZE: Final = 12
_VERSION: Final = b"\x01"
_TAG_SIZE: Final = 16
_OVERHEAD: Final = len(_VERSION) + NONCE_SIZE + _TAG_SIZE
MAX_WRAPPED_SIZE: Final = MAX_KEY_SIZE + _OVERHEAD


@dataclass(frozen=True, slots=True)
class WrapContext:
    """What a wrapped key belongs to; it opens nowhere else."""

    provider: str
    key_reference: str
    vm_id: str
    component: str

    def associated_data(self) -> bytes:
        """The bytes that the tag covers beside the key.

        Raises:
            EnvelopeError: A text has no UTF-8 form.
        """
        try:
            return transcript(
                "garant/wrap/v1", (_VERSION, self.provider, self.key_reference, self.vm_id, self.component)
            )
        except ValueError as exc:
            raise EnvelopeError("the context of a wrapped key is not text") from exc


def wrap_key(wrapping: SecretKey, key: SecretKey, context: WrapContext, *, nonce: bytes) -> bytes:
    """Wrap ``key`` by ``wrapping`` for ``context``.

    Args:
        wrapping: AES-256 key, 32 bytes.
        key: 1 to 128 bytes.
        context: What the key belongs to.
        nonce: 12 random bytes, never used before with this wrapping key.

    Returns:
        Length of the key + 29 bytes.

    Raises:
        ValueError: The wrapping key has not 32 bytes or the nonce not 12.
        EnvelopeError: The context has no encoding.
    """
    _require_aes_256(wrapping)
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    return _VERSION + nonce + AESGCM(wrapping.view()).encrypt(nonce, key.view(), context.associated_data())


def unwrap_key(wrapping: SecretKey, blob: bytes, context: WrapContext) -> SecretKey:
    """Open what :func:`wrap_key` made, straight into secret memory.

    Raises:
        ValueError: The wrapping key has not 32 bytes.
        EnvelopeError: Impossible length, unknown version, or not wrapped by this key for this context.
    """
    _require_aes_256(wrapping)
    if not _OVERHEAD < len(blob) <= MAX_WRAPPED_SIZE:
        raise EnvelopeError(f"a wrapped key has {_OVERHEAD + 1} to {MAX_WRAPPED_SIZE} bytes, not {len(blob)}")
    if blob[:1] != _VERSION:
        raise EnvelopeError(f"unknown version of a wrapped key: {blob[0]}")
    nonce, ciphertext = blob[1 : 1 + NONCE_SIZE], blob[1 + NONCE_SIZE :]
    aad = context.associated_data()
    try:
        return SecretKey.written_by(
            len(blob) - _OVERHEAD,
            lambda page: AESGCM(wrapping.view()).decrypt_into(nonce, ciphertext, aad, page),
        )
    except InvalidTag as exc:
        raise EnvelopeError("the key was not wrapped by this key for this use") from exc


def _require_aes_256(wrapping: SecretKey) -> None:
    if len(wrapping) != 32:
        raise ValueError(f"a wrapping key has 32 bytes, not {len(wrapping)}")
