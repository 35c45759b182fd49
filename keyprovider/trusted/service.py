"""Key release: verify, decide, unwrap, record, seal, in this order.

The decision itself is ``trusted.release``. A key leaves only sealed, and only after its record is durable. Rewrapping
(a newer version of the primary key) takes the same decision; there no key leaves at all.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keyprovider.envelope import WrapContext, release_info, release_request_hash, seal_key
from keyprovider.errors import InvalidArgument
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.directory import Directory
from keyprovider.trusted.model import (
    BackendKind,
    KeyRequest,
    LogReceipt,
    Operation,
    Peer,
    Provider,
    ReleaseRecord,
)
from keyprovider.trusted.ports import HeartbeatSource, PrimaryKeyBackend
from keyprovider.trusted.release import Approved, ReleaseRules, decide
from keyprovider.trusted.release_writer import ReleaseWriter
from keyprovider.trusted.verification import GrantVerifier, TokenVerifier
from keyprovider.trusted.wrapped_key import join_version, split_version

MAX_REWRAPPED: Final = 64
"""Keys in one request: a VM has one for each component."""


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
    receipt: LogReceipt


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

    def release(
        self, peer: Peer, authority: Authority, request: KeyRequest, known_tree_size: int | None = None
    ) -> ReleasedKey:
        """Make or unwrap a key, record it, seal it.

        Args:
            peer: Whom TLS proved.
            authority: By whose word.
            request: What is asked for.
            known_tree_size: Size of the release log's head that the host holds, 0 for none; not given by hosts that
                do not witness the log, who get no proofs.

        Raises:
            TokenRejected: The token is not believed.
            GrantRejected: The grant is not believed.
            ReleaseRefused: A rule of ``trusted.release`` fails.
            EnvelopeError: The wrapped key does not open.
            BackendError: What holds the primary key does not answer.
            LogShortened: The host has seen more of the release log than there is; no key is given.
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
            receipt = self._writer.write(_record(approved, reference), known_tree_size)
            return ReleasedKey(reference, wrapped, _seal(approved, authority, reference, key), receipt)

    def rewrap(self, peer: Peer, authority: Authority, requests: Sequence[KeyRequest]) -> list[bytes]:
        """Wrap keys of one VM by the newest version of the primary key; no key is given out, and nothing is recorded.

        It takes the authority that unwrapping them takes: whoever could do it with less would save a copied key from
        the end of the old version. A key that is wrapped by the newest version comes back as it came.

        Returns:
            The keys, wrapped, in the order of ``requests``; all or none.

        Raises:
            InvalidArgument: None or too many, in one request.
            TokenRejected: The token is not believed.
            GrantRejected: The grant is not believed.
            ReleaseRefused: A rule of ``trusted.release`` fails.
            EnvelopeError: A wrapped key does not open.
            BackendError: What holds the primary keys does not answer.
        """
        if not 0 < len(requests) <= MAX_REWRAPPED:
            raise InvalidArgument(f"1 to {MAX_REWRAPPED} keys are rewrapped at a time, not {len(requests)}")
        return [self._rewrap(self._approve(peer, authority, request)) for request in requests]

    def _rewrap(self, approved: Approved) -> bytes:
        request, provider = approved.request, approved.provider
        context = WrapContext(provider.name, request.key_reference, request.vm_id, request.component)
        backend = self._backends[provider.backend]
        version, blob = split_version(request.wrapped_key)
        with backend.unwrap(provider.name, version, blob, context) as key:
            # A version that is newer than ours was made by another process a moment ago.
            if version >= provider.primary_version:
                return request.wrapped_key
            newest = provider.primary_version
            return join_version(newest, backend.wrap(provider.name, newest, key, context))

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
