"""Key release: verify, decide, unwrap, record, seal, in this order.

The decision itself is ``trusted.release``. A key leaves only sealed, and only after its record is durable.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keyprovider.envelope import WrapContext, release_info, release_request_hash, seal_key
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.directory import Directory
from keyprovider.trusted.model import BackendKind, KeyRequest, Operation, Peer, Provider, ReleaseRecord
from keyprovider.trusted.ports import HeartbeatSource, PrimaryKeyBackend
from keyprovider.trusted.release import Approved, ReleaseRules, decide
from keyprovider.trusted.release_writer import ReleaseWriter
from keyprovider.trusted.verification import GrantVerifier, TokenVerifier
from keyprovider.trusted.wrapped_key import join_version, split_version


@dataclass(frozen=True, slots=True)
class Authority:
    """The host's authority to ask, as it came."""

    token: str
    grant: str


@dataclass(frozen=True, slots=True)
class ReleasedKey:
    """A key in the forms that leave this service."""

    key_reference: str
    wrapped_key: bytes
    """As it is kept beside the VM."""
    sealed_key: bytes
    """HPKE, for the host's attested key."""
    release_index: int


class KeyReleaseService:
    """Gives keys to attested hosts for VMs that were placed on them."""

    def __init__(
        self,
        *,
        tokens: TokenVerifier,
        directory: Directory,
        backends: Mapping[BackendKind, PrimaryKeyBackend],
        heartbeats: HeartbeatSource,
        writer: ReleaseWriter,
        rules: ReleaseRules,
        clock: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        """Put the parts together; ``clock`` gives seconds since the epoch."""
        self._tokens = tokens
        self._grants = GrantVerifier(directory)
        self._directory = directory
        self._backends = backends
        self._heartbeats = heartbeats
        self._writer = writer
        self._rules = rules
        self._clock = clock

    def release(self, peer: Peer, authority: Authority, request: KeyRequest) -> ReleasedKey:
        """Make or unwrap a key, record it, seal it.

        Raises:
            TokenRejected: The token is not believed.
            GrantRejected: The grant is not believed.
            ReleaseRefused: A rule of ``trusted.release`` fails.
            EnvelopeError: The wrapped key does not open.
            BackendError: What holds the primary key does not answer.
            StoreError: The release could not be recorded; no key is given.
        """
        approved = self._approve(peer, authority, request)
        provider = approved.provider
        backend = self._backends[provider.backend]
        reference = request.key_reference or str(uuid.uuid4())
        context = WrapContext(provider.name, reference, request.vm_id, request.component)
        if request.operation is Operation.CREATE:
            key = SecretKey.random()
            version = provider.primary_version
            wrapped = join_version(version, backend.wrap(provider.name, version, key, context))
        else:
            version, blob = split_version(request.wrapped_key)
            key = backend.unwrap(provider.name, version, blob, context)
            wrapped = request.wrapped_key
        with key:
            index = self._writer.write(_record(approved, reference))
            return ReleasedKey(reference, wrapped, _seal(approved, authority, reference, key), index)

    def _approve(self, peer: Peer, authority: Authority, request: KeyRequest) -> Approved:
        now = self._clock()
        token = self._tokens.verify(authority.token, now)
        grant = self._grants.verify(authority.grant, now)
        return decide(
            request,
            peer=peer,
            token=token,
            grant=grant,
            heartbeat=self._heartbeats.newest(),
            provider=self._find_provider(request.provider),
            rules=self._rules,
            now=now,
        )

    def _find_provider(self, name: str) -> Provider | None:
        found = self._directory.snapshot().providers.get(name)
        return found if found is not None else self._directory.snapshot(fresh=True).providers.get(name)


def _record(approved: Approved, key_reference: str) -> ReleaseRecord:
    request, token, grant = approved.request, approved.token, approved.grant
    return ReleaseRecord(
        released_at=approved.decided_at,
        operation=request.operation,
        host_id=token.host_id,
        vm_id=request.vm_id,
        component=request.component,
        provider=approved.provider.name,
        key_reference=key_reference,
        token_id=token.token_id,
        grant_id=grant.grant_id,
        principal=grant.principal,
        generation=grant.generation,
        policy_version=token.policy_version,
        reference=token.reference,
        evidence_digest=token.evidence_digest,
        boot=token.boot,
    )


def _seal(approved: Approved, authority: Authority, key_reference: str, key: SecretKey) -> bytes:
    request, token = approved.request, approved.token
    request_hash = release_request_hash(
        operation=request.operation,
        token=authority.token,
        grant=authority.grant,
        provider=request.provider,
        vm_id=request.vm_id,
        component=request.component,
        key_reference=request.key_reference,
        wrapped_key=request.wrapped_key,
    )
    info = release_info(
        token_id=token.token_id,
        provider=request.provider,
        key_reference=key_reference,
        vm_id=request.vm_id,
        component=request.component,
        host_id=token.host_id.text,
        request_hash=request_hash,
    )
    return seal_key(token.hpke_kem, token.hpke_public_key, key, info)
