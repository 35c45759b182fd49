"""Messages of the key provider service to values and back."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from attestation.model import HostId, HpkeKem
from garant.keyprovider.v1 import keyprovider_pb2 as pb
from keyprovider.errors import InvalidArgument
from keyprovider.trusted.model import BackendKind, KeyRequest, LoggedRelease, LogReceipt, Operation, Provider
from keyprovider.trusted.model import ProviderPolicy as Policy

_BACKENDS: Final = {pb.BACKEND_SOFTWARE: BackendKind.SOFTWARE}
_BACKEND_VALUES: Final = {kind: value for value, kind in _BACKENDS.items()}


def read_backend(value: pb.Backend.ValueType) -> BackendKind:
    """Which backend is meant.

    Raises:
        InvalidArgument: None.
    """
    backend = _BACKENDS.get(value)
    if backend is None:
        raise InvalidArgument("name the backend that shall hold the primary key")
    return backend


def read_policy(message: pb.ProviderPolicy) -> Policy:
    """A policy, as a trust administrator wrote it.

    Raises:
        InvalidArgument: A mechanism, host id, cluster or version is not one.
    """
    every = Policy()
    try:
        kems = frozenset(HpkeKem(kem) for kem in message.kems.ids) if message.HasField("kems") else every.kems
        hosts = frozenset(HostId(host) for host in message.hosts.names) if message.HasField("hosts") else None
    except ValueError as exc:
        raise InvalidArgument(f"a provider's policy: {exc}") from exc
    clusters = frozenset(message.clusters.names) if message.HasField("clusters") else None
    return Policy(clusters, hosts, kems, message.minimum_policy_version)


def policy_message(policy: Policy) -> pb.ProviderPolicy:
    """A policy in full."""
    message = pb.ProviderPolicy(
        kems=pb.KemSet(ids=sorted(int(kem) for kem in policy.kems)),
        minimum_policy_version=policy.minimum_policy_version,
    )
    if policy.clusters is not None:
        message.clusters.CopyFrom(pb.NameSet(names=sorted(policy.clusters)))
    if policy.hosts is not None:
        message.hosts.CopyFrom(pb.NameSet(names=sorted(host.text for host in policy.hosts)))
    return message


def provider_message(provider: Provider) -> pb.Provider:
    """A provider without its policy: management servers may list providers."""
    return pb.Provider(
        name=provider.name, backend=_BACKEND_VALUES[provider.backend], primary_version=provider.primary_version
    )


def read_unwrap(message: pb.UnwrapKeyRequest) -> KeyRequest:
    """The key to unwrap.

    Raises:
        InvalidArgument: A field is malformed.
    """
    return KeyRequest(
        Operation.UNWRAP,
        message.provider,
        message.vm_id,
        message.component.name,
        message.key_reference,
        message.wrapped_key,
    )


def read_rewrap(message: pb.RewrapKeysRequest) -> list[KeyRequest]:
    """The keys to rewrap.

    Raises:
        InvalidArgument: A field is malformed.
    """
    return [
        KeyRequest(
            Operation.UNWRAP, message.provider, message.vm_id, key.component.name, key.key_reference, key.wrapped_key
        )
        for key in message.keys
    ]


def known_tree_size(message: pb.CreateKeyRequest | pb.UnwrapKeyRequest) -> int | None:
    """Size of the head that the host holds; none if it does not witness the log."""
    return message.known_tree_size if message.HasField("known_tree_size") else None


def receipt_message(receipt: LogReceipt) -> pb.LogReceipt:
    """What an answer says about the log."""
    return pb.LogReceipt(
        tree_head=receipt.tree_head,
        entry=receipt.entry,
        inclusion_proof=receipt.inclusion_proof,
        consistency_proof=receipt.consistency_proof,
    )


def release_message(logged: LoggedRelease) -> pb.Release:
    """An entry of the log, in words and as it was hashed."""
    record = logged.record
    return pb.Release(
        index=logged.index,
        released_at=Timestamp(seconds=record.released_at),
        operation=record.operation.value,
        host_id=record.host_id.text,
        vm_id=record.vm_id,
        component=record.component,
        provider=record.provider,
        key_reference=record.key_reference,
        token_id=record.token_id,
        grant_id=record.grant_id,
        policy_version=record.policy_version,
        reset_count=record.boot.reset_count,
        restart_count=record.boot.restart_count,
        principal=record.principal,
        generation=record.generation,
        reference=record.reference,
        evidence_digest=record.evidence_digest,
        entry=logged.entry,
    )
