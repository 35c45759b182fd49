"""The one encoding of several fields into the bytes that a tag, a seal or a hash covers.

Each field is preceded by its length, 4 bytes big-endian, so that no two lists of fields have the same encoding.
Pure: no clock, randomness, I/O or logging.
"""

import hashlib
from collections.abc import Iterable


def transcript(label: str, fields: Iterable[str | bytes]) -> bytes:
    """Encode a label and fields, text as UTF-8, each with a 4-byte big-endian length before it.

    Raises:
        ValueError: A text has no UTF-8 form (a lone surrogate).
    """
    encoded = [field.encode() if isinstance(field, str) else bytes(field) for field in (label, *fields)]
    return b"".join(len(field).to_bytes(4, "big") + field for field in encoded)


def release_info(
    *,
    token_id: str,
    provider: str,
    key_reference: str,
    vm_id: str,
    component: str,
    host_id: str,
    request_hash: bytes,
) -> bytes:
    """What a released key is sealed for: HPKE ``info``, computed by key provider and host alike.

    Fields in order: label ``garant/release/v1``, token id, provider, key reference, VM id, component, host id (64
    hexadecimal digits), request hash (32 bytes, :func:`release_request_hash`).

    Raises:
        ValueError: The request hash has not 32 bytes, or a text has no UTF-8 form.
    """
    if len(request_hash) != 32:
        raise ValueError(f"a request hash has 32 bytes, not {len(request_hash)}")
    fields = (token_id, provider, key_reference, vm_id, component, host_id, request_hash)
    return transcript("garant/release/v1", fields)


def release_request_hash(
    *,
    operation: str,
    token: str,
    grant: str,
    provider: str,
    vm_id: str,
    component: str,
    key_reference: str = "",
    wrapped_key: bytes = b"",
) -> bytes:
    """SHA-256 over the fields of a release request, 32 bytes; protobuf's own encoding is not canonical.

    Fields in order: label ``garant/release-request/v1``, operation (``create`` or ``unwrap``), token, grant, provider,
    VM id, component, key reference and wrapped key (both empty for ``create``).

    Raises:
        ValueError: A text has no UTF-8 form.
    """
    fields = (operation, token, grant, provider, vm_id, component, key_reference, wrapped_key)
    return hashlib.sha256(transcript("garant/release-request/v1", fields)).digest()
