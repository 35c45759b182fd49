"""What the trusted key provider needs of the outside, as interfaces; one contract suite for all adapters of each."""

from collections.abc import Callable, Sequence
from typing import Protocol

from attestation.token import VerifiedHeartbeat
from keyprovider.envelope import WrapContext
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.model import LoggedRelease, Principal, Provider, ProviderPolicy, ReleaseRecord

HeadSigner = Callable[[int, bytes], str]
"""Signs the head of a tree: its size and its root."""


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

    def root(self, size: int) -> bytes:
        """Hash of the tree over the first ``size`` entries, 32 bytes.

        Raises:
            StoreError: Unreachable, or there are fewer entries.
        """

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Proof that entry ``index`` is in the tree over the first ``size`` entries (``merkle.plan_inclusion``).

        Raises:
            StoreError: Unreachable, or there are fewer entries.
        """

    def consistency_proof(self, old_size: int, new_size: int) -> list[bytes]:
        """Proof that the tree over ``old_size`` entries begins that over ``new_size`` (``merkle.plan_consistency``).

        Raises:
            StoreError: Unreachable, or there are fewer entries.
        """

    def signed_head(self, size: int) -> str:
        """Head of the tree over the first ``size`` entries, signed now; empty where the log has no key.

        Raises:
            StoreError: Unreachable, or there are fewer entries.
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

    def set_policy(self, name: str, policy: ProviderPolicy) -> Provider:
        """Replace a provider's policy; gives the provider as it is then.

        Raises:
            NotFound: There is none of that name.
            StoreError: Unreachable.
        """

    def set_primary_version(self, name: str, *, seen: int, version: int) -> Provider:
        """Wrap new keys by another version of the primary key from now on, if it is ``seen`` that they are wrapped by.

        Raises:
            NotFound: There is no provider of that name.
            Conflict: It is at another version than ``seen``; nothing was changed.
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

    def add_version(self, provider: str, version: int) -> None:
        """Make that version of a provider's primary key where there is none; older ones stay.

        Raises:
            BackendError: It cannot, or the version before it is missing.
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
