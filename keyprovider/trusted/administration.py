"""What trust administrators do: make providers and set their policies, rotate primary keys, register principals.

And what they and other witnesses read of the release log.
"""

from collections.abc import Mapping

from keyprovider.errors import Conflict, InvalidArgument, NotFound
from keyprovider.trusted.directory import Directory, load_principal_key
from keyprovider.trusted.errors import LogUnsigned
from keyprovider.trusted.model import BackendKind, LoggedRelease, Principal, Provider, ProviderPolicy, check_name
from keyprovider.trusted.ports import PrimaryKeyBackend, ProviderStore, ReleaseStore
from serving.jws import key_id

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


class Administration:
    """Changes what the release service goes by."""

    def __init__(
        self,
        *,
        providers: ProviderStore,
        releases: ReleaseStore,
        backends: Mapping[BackendKind, PrimaryKeyBackend],
        directory: Directory,
    ) -> None:
        """Administer these stores; ``directory`` is told of changes."""
        self._providers = providers
        self._releases = releases
        self._backends = backends
        self._directory = directory

    def create_provider(self, name: str, backend: BackendKind, policy: ProviderPolicy | None = None) -> Provider:
        """Make a provider with a primary key of its own.

        Raises:
            InvalidArgument: The name is malformed, or no such backend is configured.
            Conflict: One of that name exists.
            BackendError: The primary key could not be made.
            StoreError: Unreachable.
        """
        check_name("a provider", name)
        if backend not in self._backends:
            raise InvalidArgument(f"no {backend} backend is configured")
        if any(provider.name == name for provider in self._providers.providers()):
            raise Conflict(f"a provider named {name!r} exists")
        # First the key: a provider without one would be of no use; a key without a provider is found again.
        version = self._backends[backend].ensure(name)
        provider = Provider(name, backend, version, policy or ProviderPolicy())
        self._providers.add_provider(provider)
        self._directory.snapshot(fresh=True)
        return provider

    def update_policy(self, name: str, policy: ProviderPolicy) -> None:
        """Replace a provider's policy; every process over the same database goes by it within a second.

        Raises:
            NotFound: There is no such provider.
            StoreError: Unreachable.
        """
        self._providers.set_policy(name, policy)
        self._directory.snapshot(fresh=True)

    def policy(self, name: str) -> ProviderPolicy:
        """A provider's policy.

        Raises:
            NotFound: There is no such provider.
            StoreError: Unreachable.
        """
        return self._find(name).policy

    def rotate_primary_key(self, name: str, seen_version: int) -> Provider:
        """Make the next version of a primary key and wrap new keys by it; what older versions wrapped still opens.

        Args:
            name: Of the provider.
            seen_version: The version that is to be replaced, so that a repeated request does not rotate twice.

        Raises:
            NotFound: There is no such provider.
            Conflict: ``seen_version`` is not the one that new keys are wrapped by.
            BackendError: The key could not be made; nothing was changed.
            StoreError: Unreachable. The key may have been made; it is used once this is asked again.
        """
        provider = self._find(name)
        if provider.primary_version != seen_version:
            raise Conflict(f"provider {name!r} is at version {provider.primary_version}, not at {seen_version}")
        # First the key: a version that is announced must be there for every process.
        self._backends[provider.backend].add_version(name, seen_version + 1)
        rotated = self._providers.set_primary_version(name, seen=seen_version, version=seen_version + 1)
        self._directory.snapshot(fresh=True)
        return rotated

    def _find(self, name: str) -> Provider:
        for provider in self._providers.providers():
            if provider.name == name:
                return provider
        raise NotFound(f"there is no trusted key provider {name!r}")

    def list_providers(self) -> list[Provider]:
        """All providers by name.

        Raises:
            StoreError: Unreachable.
        """
        return self._providers.providers()

    def register_principal(self, name: str, public_key: bytes) -> Principal:
        """Believe the grants of a management server from now on. The same again changes nothing.

        Raises:
            InvalidArgument: The name is malformed, or the key is not P-256 in DER.
            Conflict: The name has another key, or the key another name.
            StoreError: Unreachable.
        """
        check_name("a principal", name)
        principal = Principal(name, key_id(load_principal_key(public_key)), public_key)
        self._providers.add_principal(principal)
        self._directory.snapshot(fresh=True)
        return principal

    def list_releases(self, start_index: int, page_size: int) -> list[LoggedRelease]:
        """Entries of the release log from an index on; ``page_size`` 0 means 100.

        Raises:
            InvalidArgument: The page is larger than 1,000.
            StoreError: Unreachable, or the log was changed.
        """
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidArgument(f"a page has at most {MAX_PAGE_SIZE} releases, not {page_size}")
        if start_index >= 1 << 63:
            return []
        return self._releases.read(start_index, page_size or DEFAULT_PAGE_SIZE)

    def tree_head(self) -> tuple[str, int]:
        """The newest head of the release log, signed, and its size.

        Raises:
            LogUnsigned: No log key is configured.
            StoreError: Unreachable.
        """
        size = self._releases.size()
        head = self._releases.signed_head(size)
        if not head:
            raise LogUnsigned("this service has no log key: configure one")
        return head, size

    def consistency_proof(self, old_size: int, new_size: int) -> list[bytes]:
        """Proof that the log of ``new_size`` entries begins with that of ``old_size``.

        Raises:
            InvalidArgument: The sizes are in the wrong order, or the log is shorter.
            StoreError: Unreachable.
        """
        size = self._releases.size()
        if not old_size <= new_size <= size:
            raise InvalidArgument(f"the log has {size} entries; no proof leads from {old_size} to {new_size}")
        return self._releases.consistency_proof(old_size, new_size)
