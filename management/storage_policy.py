"""Whether a VM is encrypted, and by which key provider (R-OP-5, R-OP-6, R-OP-8).

Encryption is asked for by a storage policy, or follows from a vTPM. It is the same for every kind of provider. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from management.errors import PolicyReason, PolicyRefused
from management.model import Provider, StoragePolicy

ENCRYPTED = StoragePolicy("encrypted", is_encrypted=True)
PLAIN = StoragePolicy("plain", is_encrypted=False)
BUILT_IN_POLICIES = (ENCRYPTED, PLAIN)


@dataclass(frozen=True, slots=True)
class StorageDecision:
    """What a VM will get."""

    policy: StoragePolicy
    provider: Provider | None
    """None: not encrypted."""


def asks_for_encryption(*, policy: str, vtpm: bool) -> bool:
    """Whether a request is one for encryption, granted or not: what the caller's privileges are checked against."""
    return vtpm or policy not in ("", PLAIN.name)


def decide_storage(*, policy: str, provider: str, vtpm: bool, providers: Sequence[Provider]) -> StorageDecision:
    """Decide on a new VM's encryption.

    Args:
        policy: Name of a storage policy; empty: "encrypted" with a vTPM, else "plain".
        provider: Name of a key provider; empty: the default one.
        vtpm: Whether the VM will have a vTPM: its state lies in VM home, which must then be encrypted.
        providers: All that are registered.

    Raises:
        PolicyRefused: UNKNOWN_STORAGE_POLICY, VTPM_NEEDS_ENCRYPTION, PROVIDER_WITHOUT_ENCRYPTION, NO_KEY_PROVIDER,
            UNKNOWN_KEY_PROVIDER, NO_DEFAULT_KEY_PROVIDER, in that order.
    """
    chosen = _find_policy(policy or (ENCRYPTED if vtpm else PLAIN).name)
    if vtpm and not chosen.is_encrypted:
        raise PolicyRefused(
            PolicyReason.VTPM_NEEDS_ENCRYPTION,
            f"a VM with a vTPM needs an encrypted home; storage policy {chosen.name!r} does not encrypt",
        )
    if not chosen.is_encrypted:
        if provider:
            raise PolicyRefused(
                PolicyReason.PROVIDER_WITHOUT_ENCRYPTION,
                f"key provider {provider!r} was named, but storage policy {chosen.name!r} does not encrypt",
            )
        return StorageDecision(chosen, None)
    return StorageDecision(chosen, _find_provider(provider, providers))


def _find_policy(name: str) -> StoragePolicy:
    for candidate in BUILT_IN_POLICIES:
        if candidate.name == name:
            return candidate
    known = ", ".join(candidate.name for candidate in BUILT_IN_POLICIES)
    raise PolicyRefused(PolicyReason.UNKNOWN_STORAGE_POLICY, f"no storage policy {name[:100]!r}; there are: {known}")


def _find_provider(name: str, providers: Sequence[Provider]) -> Provider:
    if not providers:
        raise PolicyRefused(
            PolicyReason.NO_KEY_PROVIDER, "encryption needs a key provider, and none is set up; register one first"
        )
    for candidate in providers:
        if candidate.name == name if name else candidate.is_default:
            return candidate
    known = ", ".join(candidate.name for candidate in providers)
    if name:
        raise PolicyRefused(PolicyReason.UNKNOWN_KEY_PROVIDER, f"no key provider {name[:100]!r}; there are: {known}")
    raise PolicyRefused(PolicyReason.NO_DEFAULT_KEY_PROVIDER, f"no key provider is the default; name one of: {known}")
