"""Keys of a VM: KEKs from a key source, DEKs made here, and what is derived from them.

Each component (``home``, ``vtpm``, ``disk/NAME``) has a KEK of its own, which a key provider made, and a DEK, made on
this host and kept beside the VM wrapped by that KEK. No DEK is used as such: every use has a key derived from it.
"""

import os
from binascii import hexlify
from dataclasses import dataclass
from typing import Final, Protocol

from host_agent.errors import BundleError, BundleReason
from host_agent.vm.bundle_format import ComponentKey
from keyprovider.envelope import WrapContext, derive_key, unwrap_key, wrap_key
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

DISK_LABEL: Final = "luks-passphrase"
"""Derives a disk's passphrase from its DEK."""
NVRAM_LABEL: Final = "nvram/luks-passphrase"
"""Derives the NVRAM's passphrase from the home's DEK."""
VTPM_LABEL: Final = "vtpm-state"
"""Derives the state key of the vTPM from its DEK."""

_NONCE_SIZE: Final = 12


@dataclass(frozen=True, slots=True)
class NewKey:
    """A KEK that was made for one component of one VM."""

    key_reference: str
    wrapped_key: bytes
    """The KEK as the provider wrapped it, at most 512 bytes; empty where the reference alone is enough."""
    kek: SecretKey
    """32 bytes; the caller closes it."""


class KeySource(Protocol):
    """Where the KEKs of one VM come from. Its errors pass through the VM engine unchanged; nothing is left behind."""

    @property
    def provider(self) -> str:
        """Name of the key provider, never empty."""

    def create(self, component: str) -> NewKey:
        """Have a new KEK made for a component."""

    def unwrap(self, component: str, key_reference: str, wrapped_key: bytes) -> SecretKey:
        """Get a component's KEK back, 32 bytes; the caller closes it."""


def create_component_key(keys: KeySource, vm_id: str, component: str) -> tuple[ComponentKey, SecretKey]:
    """Make the DEK of a component, and its wrapped form to be kept beside the VM.

    Raises:
        Exception: What the key source raises.
    """
    new = keys.create(component)
    dek = SecretKey.random()
    with new.kek:
        context = WrapContext(keys.provider, new.key_reference, vm_id, component)
        wrapped = wrap_key(new.kek, dek, context, nonce=os.urandom(_NONCE_SIZE))
    component_key = ComponentKey(
        provider=keys.provider,
        key_reference=new.key_reference,
        wrapped_kek=new.wrapped_key,
        wrapped_dek=wrapped,
    )
    return component_key, dek


def open_component_key(keys: KeySource, key: ComponentKey, vm_id: str, component: str) -> SecretKey:
    """Get the DEK of a component back.

    Raises:
        BundleError: WRONG_PROVIDER: the key source is another provider's; WRONG_KEY: the KEK does not open this
            component of this VM.
        Exception: What the key source raises.
    """
    if keys.provider != key.provider:
        raise BundleError(
            BundleReason.WRONG_PROVIDER,
            f"{component} of VM {vm_id} has its key from provider {key.provider!r}, not from {keys.provider!r}",
        )
    context = WrapContext(key.provider, key.key_reference, vm_id, component)
    with keys.unwrap(component, key.key_reference, key.wrapped_kek) as kek:
        try:
            return unwrap_key(kek, key.wrapped_dek, context)
        except (EnvelopeError, ValueError) as exc:
            raise BundleError(
                BundleReason.WRONG_KEY,
                f"the key of {component} does not open with what provider {key.provider!r} released: the bundle of VM "
                f"{vm_id} was changed, or the key is another VM's",
            ) from exc


def luks_passphrase(dek: SecretKey, label: str) -> SecretKey:
    """Derive a passphrase: the hexadecimal form of a 256-bit key (QEMU wants text), 64 bytes."""
    with derive_key(dek, label) as key:
        return SecretKey.adopt_result(hexlify(key.view()))
