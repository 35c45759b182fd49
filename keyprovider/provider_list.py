"""The trust authority's signed list of key providers, which hosts pin at enrolment.

Names, addresses, CA and version, signed by the trust authority: a VM administrator cannot point a host elsewhere.
Pure: keys are passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from keyprovider.errors import ProviderListRejected
from serving.errors import JwsError
from serving.jws import sign, verify

LIST_TYPE = "garant-providers+jws"


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A trusted key provider and where it is reached."""

    name: str
    addresses: tuple[str, ...]
    """``host:port``, tried in order."""
    ca_pem: str
    """CA of the key provider service's TLS certificate: the pin."""


@dataclass(frozen=True, slots=True)
class ProviderList:
    """All trusted key providers of a site."""

    version: int
    """A host never goes back to a lower one."""
    providers: tuple[ProviderEntry, ...]

    def find(self, name: str) -> ProviderEntry:
        """The provider of that name.

        Raises:
            ProviderListRejected: The list has none.
        """
        for entry in self.providers:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.providers) or "none"
        raise ProviderListRejected(f"key provider {name!r} is not in the trust authority's list (it has: {known})")


def sign_provider_list(providers: ProviderList, key: ec.EllipticCurvePrivateKey) -> str:
    """Sign a list as the trust authority."""
    entries = [
        {"name": entry.name, "addresses": list(entry.addresses), "ca": entry.ca_pem} for entry in providers.providers
    ]
    return sign({"version": providers.version, "providers": entries}, key=key, typ=LIST_TYPE)


def verify_provider_list(
    text: str, *, keys: Mapping[str, ec.EllipticCurvePublicKey], minimum_version: int = 0
) -> ProviderList:
    """Check a list.

    Args:
        text: Compact JWS.
        keys: The trust authority's list-signing keys by key id.
        minimum_version: Version of the list pinned before, if any.

    Raises:
        ProviderListRejected: Malformed, not signed by the trust authority, or older than the pinned one.
    """
    try:
        payload = verify(text, keys=keys, typ=LIST_TYPE)
        version = payload["version"]
        entries = tuple(
            ProviderEntry(str(entry["name"]), tuple(str(a) for a in entry["addresses"]), str(entry["ca"]))
            for entry in payload["providers"]
        )
    except JwsError as exc:
        raise ProviderListRejected(f"not a provider list of this trust authority: {exc}") from exc
    except (KeyError, TypeError) as exc:
        raise ProviderListRejected("a field of the provider list is missing or malformed") from exc
    if type(version) is not int or version < 1:
        raise ProviderListRejected("the provider list has no version")
    if version < minimum_version:
        raise ProviderListRejected(f"provider list of version {version}; version {minimum_version} is pinned")
    return ProviderList(version, entries)
