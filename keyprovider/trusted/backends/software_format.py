"""The software backend's file: primary keys, each wrapped by a storage key that lies elsewhere.

The file is JSON::

    {"format": "garant/primary-keys/v1",
     "salt": "<32 bytes, hex>",
     "keys": [{"provider": "NAME", "version": 1, "wrapped": "<61 bytes, hex>"}, …]}

The key file holds 32 random bytes. Storage key = HKDF-SHA-256 of them (``envelope.derive``: label
``software-backend/storage``, the file's salt). ``wrapped`` is an ``envelope.wrap`` of a 32-byte AES key, its context:
provider ``software-backend``, key reference = the provider's name, VM id empty, component ``primary/VERSION``.

From a copy of both files, and a wrapped key beside a VM, every key of the provider can be recomputed:
:func:`decode_primary_keys`, then ``trusted.wrapped_key.split_version`` and ``envelope.unwrap_key``.
Pure: no clock, randomness, I/O or logging.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keyprovider.envelope import WrapContext, derive_key, unwrap_key
from keyprovider.errors import BackendError, EnvelopeError
from keyprovider.keymaterial import SecretKey

FORMAT: Final = "garant/primary-keys/v1"
SALT_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class PrimaryKeyFile:
    """The file's content, nothing in it opened."""

    salt: bytes
    """32 bytes."""
    wrapped: Mapping[tuple[str, int], bytes]
    """By provider and version."""

    def encode(self) -> bytes:
        """The file's bytes."""
        keys = [
            {"provider": provider, "version": version, "wrapped": blob.hex()}
            for (provider, version), blob in sorted(self.wrapped.items())
        ]
        return (json.dumps({"format": FORMAT, "salt": self.salt.hex(), "keys": keys}, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> "PrimaryKeyFile":
        """Read the file's bytes.

        Raises:
            BackendError: Not a file of this format.
        """
        try:
            fields = json.loads(content)
            if set(fields) != {"format", "salt", "keys"} or fields["format"] != FORMAT:
                raise ValueError("unknown format")
            wrapped = {
                (str(each["provider"]), _version(each["version"])): bytes.fromhex(each["wrapped"])
                for each in fields["keys"]
            }
            salt = bytes.fromhex(fields["salt"])
            if len(salt) != SALT_SIZE or len(wrapped) != len(fields["keys"]):
                raise ValueError("salt of another size, or a key twice")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise BackendError(f"the file of primary keys is not of format {FORMAT}") from exc
        return cls(salt, wrapped)


def storage_key(key_file: SecretKey, salt: bytes) -> SecretKey:
    """The key that primary keys are stored under."""
    return derive_key(key_file, "software-backend/storage", salt=salt)


def storage_context(provider: str, version: int) -> WrapContext:
    """The context that a primary key is stored in."""
    return WrapContext("software-backend", provider, "", f"primary/{version}")


def decode_primary_keys(content: bytes, key_file: SecretKey) -> dict[tuple[str, int], SecretKey]:
    """Open all primary keys of a file, by provider and version.

    Raises:
        BackendError: Not a file of this format, or a key does not open with this key file.
    """
    file = PrimaryKeyFile.decode(content)
    with storage_key(key_file, file.salt) as storage:
        try:
            return {name: unwrap_key(storage, blob, storage_context(*name)) for name, blob in file.wrapped.items()}
        except EnvelopeError as exc:
            raise BackendError("a primary key does not open: another key file, or the file was changed") from exc


def _version(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 32:
        raise ValueError("a version is a number from 1")
    return value
