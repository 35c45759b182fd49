"""Values of the trusted key provider: providers, principals, requests, records. Pure and frozen."""

import re
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from attestation.model import BootIdentity, HostId, HpkeKem
from keyprovider.errors import InvalidArgument

MAX_WRAPPED_KEY_SIZE: Final = 512
"""Bytes of a wrapped key as it lies beside a VM."""

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_CLUSTER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COMPONENT: Final = re.compile(r"home|vtpm|disk/[a-z0-9-]{1,32}")


class Operation(StrEnum):
    """What a host asks for."""

    CREATE = "create"
    UNWRAP = "unwrap"


class BackendKind(StrEnum):
    """What holds a provider's primary key."""

    SOFTWARE = "software"


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom the TLS connection proved."""

    role: str
    """Role that the certificate's issuer vouches for."""
    name: str
    """Name in the certificate; of an attested host, its host id."""
    tls_thumbprint: bytes
    """RFC 7638 thumbprint of the certificate's key, 32 bytes; empty where the key is not on P-256."""


@dataclass(frozen=True, slots=True)
class ProviderPolicy:
    """To whom a provider gives keys."""

    clusters: frozenset[str] | None = None
    """Admitted clusters; none: every cluster of the trust authority."""
    hosts: frozenset[HostId] | None = None
    """Admitted hosts; none: every host of an admitted cluster."""
    kems: frozenset[HpkeKem] = field(default_factory=lambda: frozenset(HpkeKem))
    """Mechanisms that keys may be sealed with."""
    minimum_policy_version: int = 0
    """Policy of the attestation service that a host must at least have been appraised under."""

    def __post_init__(self) -> None:
        """Refuse malformed names and versions.

        Raises:
            InvalidArgument: A cluster's name, or the version, in this order.
        """
        for cluster in self.clusters or ():
            if not _CLUSTER.fullmatch(cluster):
                raise InvalidArgument("a cluster's name has 1 to 64 letters, digits, dots, dashes, underscores")
        if not 0 <= self.minimum_policy_version < 1 << 63:
            raise InvalidArgument("a policy version is a number from 0")


@dataclass(frozen=True, slots=True)
class Provider:
    """A trusted key provider."""

    name: str
    backend: BackendKind
    primary_version: int
    """Version of the primary key that new keys are wrapped by, from 1."""
    policy: ProviderPolicy

    def __post_init__(self) -> None:
        """Refuse malformed names.

        Raises:
            InvalidArgument: The name is not 1 to 64 lower-case letters, digits and inner dashes.
        """
        check_name("a provider", self.name)


@dataclass(frozen=True, slots=True)
class Principal:
    """A management server whose placement grants are believed."""

    name: str
    key_id: str
    """JWK thumbprint of its key."""
    public_key: bytes
    """P-256 SubjectPublicKeyInfo, DER."""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key that a host asks for, well formed but not yet approved."""

    operation: Operation
    provider: str
    vm_id: str
    component: str
    key_reference: str = ""
    """Empty for CREATE."""
    wrapped_key: bytes = b""
    """Empty for CREATE."""

    def __post_init__(self) -> None:
        """Refuse malformed fields.

        Raises:
            InvalidArgument: Provider name, VM id, component, key reference or wrapped key, in this order.
        """
        check_name("a provider", self.provider)
        check_uuid("a VM id", self.vm_id)
        if not _COMPONENT.fullmatch(self.component):
            raise InvalidArgument("a component is 'home', 'vtpm' or 'disk/NAME' (1 to 32 of a-z, 0-9, -)")
        if self.operation is Operation.CREATE:
            return
        check_uuid("a key reference", self.key_reference)
        if not 0 < len(self.wrapped_key) <= MAX_WRAPPED_KEY_SIZE:
            raise InvalidArgument(f"a wrapped key has 1 to {MAX_WRAPPED_KEY_SIZE} bytes, not {len(self.wrapped_key)}")


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One key given to one host: what the release log keeps."""

    released_at: int
    """Seconds since the epoch."""
    operation: Operation
    host_id: HostId
    vm_id: str
    component: str
    provider: str
    key_reference: str
    token_id: str
    grant_id: str
    principal: str
    """Which management server placed the VM."""
    generation: int
    """Of the grant."""
    policy_version: int
    reference: str
    """Name of the reference boot that the host's evidence equals."""
    evidence_digest: bytes
    """SHA-256 over the host's evidence, 32 bytes."""
    boot: BootIdentity


@dataclass(frozen=True, slots=True)
class LoggedRelease:
    """A record at its place in the log."""

    index: int
    record: ReleaseRecord
    leaf_hash: bytes
    """SHA-256(0x00 ‖ entry), as RFC 6962, 2.1 hashes leaves."""
    entry: bytes
    """Canonical bytes of the record."""


@dataclass(frozen=True, slots=True)
class LogReceipt:
    """What a release answer says about the release log."""

    index: int
    """Place of the release."""
    tree_head: str = ""
    """Signed head of a tree that holds the release; empty where the log has no key."""
    entry: bytes = b""
    """Canonical bytes of the record; empty, as the proofs are, unless the host said which head it holds."""
    inclusion_proof: tuple[bytes, ...] = ()
    consistency_proof: tuple[bytes, ...] = ()
    """From the head that the host holds."""


def check_name(what: str, name: str) -> None:
    """Refuse a name that is not 1 to 64 lower-case letters, digits and inner dashes.

    Raises:
        InvalidArgument: It is not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{what}'s name has 1 to 64 lower-case letters, digits and inner dashes")


def check_uuid(what: str, text: str) -> None:
    """Refuse what is not the canonical text form of a UUID (RFC 9562).

    Raises:
        InvalidArgument: It is not.
    """
    try:
        canonical = str(uuid.UUID(text)) == text
    except ValueError:
        canonical = False
    if not canonical:
        raise InvalidArgument(f"{what} is a UUID in lower-case RFC 9562 text form")
