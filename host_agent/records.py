"""Records of the state directory: enrolment and join identity, as JSON.

Strict: what is not exactly what ``encode_…`` writes is refused. No secret is in a record; the join key has a file of
its own.
Pure: bytes in, values out.
"""

import json
from dataclasses import dataclass
from typing import Any

from attestation.model import HostId
from host_agent.errors import NotAttested, StateDamaged
from host_agent.model import Enrolment, TrustAuthority
from host_agent.provider_pin import check_provider_list

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class JoinRecord:
    """A join identity but for its key."""

    agent_address: str
    """What the agent said where it is reached."""
    certificate_pem: bytes
    management_ca_pem: bytes


def encode_enrolment(enrolment: Enrolment) -> bytes:
    """Write an enrolment."""
    return _encode(
        host_id=enrolment.host_id.text,
        address=enrolment.authority.address,
        ca=enrolment.authority.ca_pem.decode(),
        provider_list=enrolment.provider_list_text,
    )


def decode_enrolment(content: bytes) -> Enrolment:
    """Read an enrolment; its provider list is verified again.

    Raises:
        StateDamaged: It is not what ``encode_enrolment`` writes, or its list is not signed by the pinned CA.
    """
    fields = _decode(content, ("host_id", "address", "ca", "provider_list"))
    authority = TrustAuthority(fields["address"], fields["ca"].encode())
    text = fields["provider_list"]
    try:
        providers = check_provider_list(text, authority=authority, pinned=None)
        return Enrolment(HostId(fields["host_id"]), authority, text, providers)
    except (NotAttested, ValueError) as exc:
        raise StateDamaged(f"the record of enrolment is damaged: {exc}") from exc


def encode_join(record: JoinRecord) -> bytes:
    """Write a join identity."""
    return _encode(
        agent_address=record.agent_address,
        certificate=record.certificate_pem.decode(),
        management_ca=record.management_ca_pem.decode(),
    )


def decode_join(content: bytes) -> JoinRecord:
    """Read a join identity.

    Raises:
        StateDamaged: It is not what ``encode_join`` writes.
    """
    fields = _decode(content, ("agent_address", "certificate", "management_ca"))
    return JoinRecord(fields["agent_address"], fields["certificate"].encode(), fields["management_ca"].encode())


def _encode(**fields: str) -> bytes:
    return json.dumps({"format": _FORMAT, **fields}, indent=1).encode() + b"\n"


def _decode(content: bytes, names: tuple[str, ...]) -> dict[str, str]:
    try:
        fields: Any = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise StateDamaged("the record is not JSON") from exc
    if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
        raise StateDamaged(f"the record is not of format {_FORMAT}")
    if set(fields) != set(names) or not all(isinstance(value, str) for value in fields.values()):
        raise StateDamaged(f"the record has not exactly the fields {', '.join(names)}")
    return fields
