"""The pinned list of key providers: which list this host believes, and which it never goes back to (R-TA-2).

Pure: the decision alone. ``host_agent.enrolment`` keeps what is decided here.
"""

from host_agent.errors import NotAttested, NotAttestedReason, ProviderNotPinned
from host_agent.model import TrustAuthority
from keyprovider.errors import ProviderListRejected
from keyprovider.provider_list import ProviderEntry, ProviderList, verify_provider_list


def check_provider_list(text: str, *, authority: TrustAuthority, pinned: ProviderList | None) -> ProviderList:
    """Check a list that is to be pinned in place of ``pinned``.

    Args:
        text: Compact JWS.
        authority: Whose CA must have signed it.
        pinned: The list pinned before, if any.

    Raises:
        NotAttested: PROVIDER_LIST_REFUSED: not signed by the trust authority, malformed, older than the pinned one, or
            of the same version with other content.
    """
    try:
        minimum_version = 0 if pinned is None else pinned.version
        offered = verify_provider_list(text, keys=authority.list_keys(), minimum_version=minimum_version)
    except (ProviderListRejected, ValueError) as exc:
        raise NotAttested(NotAttestedReason.PROVIDER_LIST_REFUSED, str(exc)) from exc
    if pinned is not None and offered.version == pinned.version and offered != pinned:
        raise NotAttested(
            NotAttestedReason.PROVIDER_LIST_REFUSED,
            f"the provider list of version {offered.version} differs from the pinned one of the same version",
        )
    return offered


def find_provider(providers: ProviderList, name: str) -> ProviderEntry:
    """The pinned provider of that name.

    Raises:
        ProviderNotPinned: The list has none, or names no address for it.
    """
    try:
        entry = providers.find(name)
    except ProviderListRejected as exc:
        raise ProviderNotPinned(str(exc)) from exc
    if not entry.addresses:
        raise ProviderNotPinned(f"the trust authority's list names no address for key provider {name!r}")
    return entry
