"""What trust administrators do: make providers, register principals, read the release log."""

from collections.abc import Mapping

from keyprovider.errors import Conflict, InvalidArgument
from keyprovider.trusted.directory import Directory, load_principal_key
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
