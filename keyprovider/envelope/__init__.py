"""Envelopes for keys and files: wrap, derive, seal, encrypted streams. Pure; one subject per module."""

from keyprovider.envelope.derive import derive_key
from keyprovider.envelope.seal import SealingKey, seal_key
from keyprovider.envelope.stream import decrypt_stream, encrypt_stream
from keyprovider.envelope.transcript import release_info, release_request_hash
from keyprovider.envelope.wrap import WrapContext, unwrap_key, wrap_key

__all__ = [
    "SealingKey",
    "WrapContext",
    "decrypt_stream",
    "derive_key",
    "encrypt_stream",
    "release_info",
    "release_request_hash",
    "seal_key",
    "unwrap_key",
    "wrap_key",
]
