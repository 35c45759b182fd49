"""Encrypt and Decrypt on the key server, with a key that never leaves it (KMIP 1.4, 4.29 and 4.30; from version 1.2).

AES-GCM with additional data needs 1.4 (2.1.18 of 1.4: the field for it, and for the tag, came then).
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from keyprovider.errors import KmipMalformed, KmipRefusal, KmipRefused
from keyprovider.keymaterial import MAX_KEY_SIZE, SecretKey
from keyprovider.kmip.fields import Items, byte_string, enumeration, find_bytes, integer, required, structure, text
from keyprovider.kmip.messages import ProtocolVersion
from keyprovider.kmip.operations import check_identifier, take_key
from keyprovider.kmip.tags import Algorithm, BlockCipherMode, Operation, Tag
from keyprovider.kmip.ttlv import Item

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
_FIRST_VERSION: Final = ProtocolVersion(1, 4)


@dataclass(frozen=True, slots=True)
class Encrypt:
    """Encrypt a key by AES-256-GCM on the server. Gives ciphertext followed by the tag."""

    key_id: str
    plaintext: SecretKey
    nonce: bytes
    """12 bytes, new for each encryption by the same key."""
    associated_data: bytes
    operation: ClassVar[Operation] = Operation.ENCRYPT
    repeatable: ClassVar[bool] = True
    """The same nonce with the same plaintext: repeating it tells nothing new."""

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`.

        Raises:
            KmipRefused: NOT_SUPPORTED, before anything is sent, in a version without additional data.
        """
        _check_version(version, self.key_id)
        return (
            text(Tag.UNIQUE_IDENTIFIER, self.key_id),
            _parameters(),
            byte_string(Tag.DATA, self.plaintext.view()),
            byte_string(Tag.IV_COUNTER_NONCE, self.nonce),
            byte_string(Tag.AUTHENTICATED_ENCRYPTION_ADDITIONAL_DATA, self.associated_data),
        )

    def result(self, payload: Items, version: ProtocolVersion) -> bytes:  # noqa: ARG002
        """See :class:`Request`.

        Raises:
            KmipMalformed: Another nonce than given, or ciphertext or tag of another size.
        """
        check_identifier(payload, self.key_id)
        nonce = find_bytes(payload, Tag.IV_COUNTER_NONCE)
        if nonce is not None and nonce != self.nonce:
            raise KmipMalformed("encrypted with another nonce than given")
        data = required(find_bytes(payload, Tag.DATA), Tag.DATA)
        tag = required(
            find_bytes(payload, Tag.AUTHENTICATED_ENCRYPTION_TAG),
            Tag.AUTHENTICATED_ENCRYPTION_TAG,
        )
        if len(data) != len(self.plaintext) or len(tag) != TAG_SIZE:
            raise KmipMalformed(f"ciphertext of {len(data)} and tag of {len(tag)} bytes")
        return bytes(data) + bytes(tag)


@dataclass(frozen=True, slots=True)
class Decrypt:
    """Decrypt a key that :class:`Encrypt` encrypted."""

    key_id: str
    ciphertext: bytes
    """Ciphertext followed by the tag."""
    nonce: bytes
    associated_data: bytes
    operation: ClassVar[Operation] = Operation.DECRYPT
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`.

        Raises:
            KmipRefused: NOT_SUPPORTED, before anything is sent, in a version without additional data.
        """
        _check_version(version, self.key_id)
        return (
            text(Tag.UNIQUE_IDENTIFIER, self.key_id),
            _parameters(),
            byte_string(Tag.DATA, self.ciphertext[:-TAG_SIZE]),
            byte_string(Tag.IV_COUNTER_NONCE, self.nonce),
            byte_string(Tag.AUTHENTICATED_ENCRYPTION_ADDITIONAL_DATA, self.associated_data),
            byte_string(Tag.AUTHENTICATED_ENCRYPTION_TAG, self.ciphertext[-TAG_SIZE:]),
        )

    def result(self, payload: Items, version: ProtocolVersion) -> SecretKey:  # noqa: ARG002
        """See :class:`Request`.

        Raises:
            KmipMalformed: A plaintext of another size than the ciphertext.
        """
        check_identifier(payload, self.key_id)
        data = required(find_bytes(payload, Tag.DATA), Tag.DATA)
        if not 0 < len(data) <= MAX_KEY_SIZE or len(data) != len(self.ciphertext) - TAG_SIZE:
            raise KmipMalformed(f"plaintext of {len(data)} bytes")
        return take_key(data)


def _parameters() -> Item:
    return structure(
        Tag.CRYPTOGRAPHIC_PARAMETERS,
        enumeration(Tag.BLOCK_CIPHER_MODE, BlockCipherMode.GCM),
        enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, Algorithm.AES),
        integer(Tag.TAG_LENGTH, TAG_SIZE),
    )


def _check_version(version: ProtocolVersion, key_id: str) -> None:
    if version < _FIRST_VERSION:
        raise KmipRefused(KmipRefusal.NOT_SUPPORTED, f"KMIP {version} has no additional data; 1.4 has", key_id=key_id)
