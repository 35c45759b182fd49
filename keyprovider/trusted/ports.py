"""What the trusted key provider needs of the outside, as interfaces; one contract suite for all adapters of each."""

from collections.abc import Sequence
from typing import Protocol

from attestation.token import VerifiedHeartbeat
from keyprovider.envelope import WrapContext
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.model import LoggedRelease, Principal, Provider, ReleaseRecord


class ReleaseStore(Protocol):
    """The release log: append only, indexes from 0 with no gap, whoever else appends at the same time."""

    def append(self, records: Sequence[ReleaseRecord]) -> range:
        """Append records in order, all or none; durable and visible to all when this returns.

        Returns:
            Their indexes.

        Raises:
            StoreError: None was appended, or (the connection broke at the commit) nobody knows.
        """

    def read(self, start_index: int, count: int) -> list[LoggedRelease]:
        """At most ``count`` entries from ``start_index`` on, in order; empty past the end.

        Raises:
            StoreError: Unreachable, or an entry does not match its hash.
        """

    def size(self) -> int:
        """Number of entries.

        Raises:
            StoreError: Unreachable.
        """


class ProviderStore(Protocol):
    """Providers and principals. Names are unique; nothing here is secret."""

    def add_provider(self, provider: Provider) -> None:
        """Keep a new provider.

        Raises:
            Conflict: One of that name exists.
            StoreError: Unreachable.
        """

    def providers(self) -> list[Provider]:
        """All providers by name; empty where there are none.

        Raises:
            StoreError: Unreachable.
        """

    def add_principal(self, principal: Principal) -> None:
        """Keep a new principal; the same again changes nothing.

        Raises:
            Conflict: One of that name has another key, or that key has another name.
            StoreError: Unreachable.
        """

    def principals(self) -> list[Principal]:
        """All principals by name; empty where there are none.

        Raises:
            StoreError: Unreachable.
        """


class PrimaryKeyBackend(Protocol):
    """What holds primary keys and wraps by them. Keys are named by provider and version; they never leave it."""

    def ensure(self, provider: str) -> int:
        """Make version 1 of a provider's primary key where there is none.

        Returns:
            The newest version.

        Raises:
            BackendError: It cannot.
        """

    def wrap(self, provider: str, version: int, key: SecretKey, context: WrapContext) -> bytes:
        """Wrap a key by that version of the provider's primary key.

        Raises:
            BackendError: No such primary key, or no answer.
        """

    def unwrap(self, provider: str, version: int, blob: bytes, context: WrapContext) -> SecretKey:
        """Open what :meth:`wrap` made.

        Raises:
            BackendError: No such primary key, or no answer.
            EnvelopeError: Not wrapped by that key for that context.
        """


class HeartbeatSource(Protocol):
    """Knows the newest revocation heartbeat."""

    def newest(self) -> VerifiedHeartbeat | None:
        """The newest heartbeat seen so far, however old; none before the first."""


class HeartbeatFetcher(Protocol):
    """Asks the attestation service."""

    def fetch(self) -> str:
        """The newest heartbeat, signed, not yet believed.

        Raises:
            RemoteError: Refused or not answered.
        """
