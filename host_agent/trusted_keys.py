"""Keys of one VM from a trusted key provider: ``host_agent.vm.keys.KeySource`` over attestation and release.

A release needs this host's attestation and the management server's placement grant (B-19). A key provider that says
that the token is void (an epoch ended, a policy grew) is asked once more, after attesting anew. What comes back is
sealed to this agent start's key, for exactly this request; anything else does not open.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from host_agent.attestation_session import AttestationSession
from host_agent.errors import PeerRefused, ReleaseRejected
from host_agent.keycache import CachedKey, copy_key
from host_agent.model import AttestedHost, ReleaseRequest
from host_agent.ports import KeyRelease
from host_agent.vm.keys import NewKey
from keyprovider.envelope import release_info, release_request_hash
from keyprovider.errors import EnvelopeError, ReleaseReason
from keyprovider.keymaterial import SecretKey
from keyprovider.provider_list import ProviderEntry

CURED_BY_ATTESTING: Final = frozenset(
    {
        ReleaseReason.TOKEN_EXPIRED.value,
        ReleaseReason.TOKEN_OF_OLDER_EPOCH.value,
        ReleaseReason.POLICY_TOO_OLD.value,
        # The server's word on a client certificate that ended between our check and its own.
        "CALLER_NOT_PROVEN",
    }
)
"""Refusals after which a new token may do better."""
_KEK_SIZE: Final = 32

T = TypeVar("T")


class TrustedKeySource:
    """KEKs of one VM under one placement grant; keeps a copy of each that it unwrapped until ``close``."""

    def __init__(
        self,
        entry: ProviderEntry,
        *,
        vm_id: str,
        grant: str,
        session: AttestationSession,
        release: KeyRelease,
    ) -> None:
        """Ask the provider of ``entry``, which must come from the pinned list."""
        self._entry = entry
        self._vm_id = vm_id
        self._grant = grant
        self._session = session
        self._release = release
        self._unwrapped: list[CachedKey] = []

    @property
    def provider(self) -> str:
        """Name of the key provider."""
        return self._entry.name

    def create(self, component: str) -> NewKey:
        """Have a new KEK made for a component.

        Raises:
            NotAttested: This host holds no token and gets none.
            PeerUnreachable: No address of the key provider answered.
            PeerRefused: It refused.
            ReleaseRejected: What it sent is not a key for this request.
        """
        request = ReleaseRequest(self._grant, self._vm_id, component)

        def ask(host: AttestedHost) -> NewKey:
            new = self._release.create_key(host, self._entry, request)
            kek = self._open(host, request, new.key_reference, new.sealed_key)
            return NewKey(new.key_reference, new.wrapped_key, kek)

        return self._ask(ask)

    def unwrap(self, component: str, key_reference: str, wrapped_key: bytes) -> SecretKey:
        """Get a component's KEK back, by a release of its own; never from a cache.

        Raises:
            NotAttested: This host holds no token and gets none.
            PeerUnreachable: No address of the key provider answered.
            PeerRefused: It refused.
            ReleaseRejected: What it sent is not a key for this request.
        """
        request = ReleaseRequest(self._grant, self._vm_id, component, key_reference, wrapped_key)

        def ask(host: AttestedHost) -> SecretKey:
            sealed = self._release.unwrap_key(host, self._entry, request)
            return self._open(host, request, key_reference, sealed)

        kek = self._ask(ask)
        self._unwrapped.append(CachedKey(component, key_reference, copy_key(kek)))
        return kek

    def take_unwrapped(self) -> list[CachedKey]:
        """Hand over the copies; the caller closes them."""
        taken, self._unwrapped = self._unwrapped, []
        return taken

    def close(self) -> None:
        """Wipe the copies that nobody took."""
        for key in self.take_unwrapped():
            key.kek.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, ask: Callable[[AttestedHost], T]) -> T:
        host = self._session.require()
        try:
            return ask(host)
        except PeerRefused as exc:
            if exc.reason not in CURED_BY_ATTESTING:
                raise
        return ask(self._session.renew(host))

    def _open(self, host: AttestedHost, request: ReleaseRequest, key_reference: str, sealed: bytes) -> SecretKey:
        request_hash = release_request_hash(
            operation="unwrap" if request.key_reference else "create",
            token=host.token,
            grant=request.grant,
            provider=self._entry.name,
            vm_id=request.vm_id,
            component=request.component,
            key_reference=request.key_reference,
            wrapped_key=request.wrapped_key,
        )
        info = release_info(
            token_id=host.token_id,
            provider=self._entry.name,
            key_reference=key_reference,
            vm_id=request.vm_id,
            component=request.component,
            host_id=host.host_id.text,
            request_hash=request_hash,
        )
        try:
            kek = host.sealing_key.open(sealed, info)
        except EnvelopeError as exc:
            raise ReleaseRejected(
                f"key provider {self._entry.name!r} sent a key of {request.component} that is not sealed to this host "
                "for this request"
            ) from exc
        if len(kek) != _KEK_SIZE:
            kek.close()
            raise ReleaseRejected(f"key provider {self._entry.name!r} sent a key of another size than {_KEK_SIZE}")
        return kek
