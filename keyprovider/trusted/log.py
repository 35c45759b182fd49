"""The release log's entries: canonical JSON, each a leaf of a Merkle tree (``trusted.merkle``).

An entry is one JSON object, keys sorted, no spaces, UTF-8; bytes in lower-case hexadecimal. It does not hold its own
index: its place in the log is what the tree proves.
Pure: no clock, randomness, I/O or logging.
"""

import json
from typing import Any

from attestation.model import BootIdentity, HostId
from keyprovider.errors import StoreError
from keyprovider.trusted.model import Operation, ReleaseRecord

_FORMAT = "garant/release/v1"


def encode_entry(record: ReleaseRecord) -> bytes:
    """The canonical bytes of a record."""
    fields = {
        "format": _FORMAT,
        "released_at": record.released_at,
        "operation": record.operation,
        "host_id": record.host_id.text,
        "vm_id": record.vm_id,
        "component": record.component,
        "provider": record.provider,
        "key_reference": record.key_reference,
        "token_id": record.token_id,
        "grant_id": record.grant_id,
        "principal": record.principal,
        "generation": record.generation,
        "policy_version": record.policy_version,
        "reference": record.reference,
        "evidence_digest": record.evidence_digest.hex(),
        "reset_count": record.boot.reset_count,
        "restart_count": record.boot.restart_count,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode_entry(entry: bytes) -> ReleaseRecord:
    """Read a record back.

    Raises:
        StoreError: Not an entry of this format, or not in canonical form.
    """
    try:
        fields: dict[str, Any] = json.loads(entry)
        record = ReleaseRecord(
            released_at=fields["released_at"],
            operation=Operation(fields["operation"]),
            host_id=HostId(fields["host_id"]),
            vm_id=fields["vm_id"],
            component=fields["component"],
            provider=fields["provider"],
            key_reference=fields["key_reference"],
            token_id=fields["token_id"],
            grant_id=fields["grant_id"],
            principal=fields["principal"],
            generation=fields["generation"],
            policy_version=fields["policy_version"],
            reference=fields["reference"],
            evidence_digest=bytes.fromhex(fields["evidence_digest"]),
            boot=BootIdentity(fields["reset_count"], fields["restart_count"]),
        )
        canonical = encode_entry(record)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise StoreError("an entry of the release log is malformed") from exc
    if canonical != entry:
        raise StoreError("an entry of the release log is not in canonical form")
    return record
