"""Recompute every key of a VM from copies of files alone, to know what the scanner must not find.

Takes the software backend's two files and the VM's bundle, which nobody but an operator of both sides has together. No
RPC, flag or file of the product yields a key: that is what makes this tool the way to check it.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cli.demo.absence import Needle
from host_agent.vm.bundle import Bundle, OpenHome
from host_agent.vm.bundle_format import ComponentKey
from host_agent.vm.keys import DISK_LABEL, NVRAM_LABEL, NewKey, luks_passphrase, open_component_key
from host_agent.vm.luks import open_header
from host_agent.vm.qcow2 import parse_header
from keyprovider.envelope import WrapContext, unwrap_key
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.backends.software_format import decode_primary_keys
from keyprovider.trusted.wrapped_key import split_version

_HEADER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _OfflineKeys:
    """The key source of one VM, with the primary keys in hand instead of a key provider."""

    provider: str
    vm_id: str
    primary_keys: dict[tuple[str, int], SecretKey]

    def create(self, component: str) -> NewKey:
        """Not offered: nothing is made here."""
        raise NotImplementedError(component)

    def unwrap(self, component: str, key_reference: str, wrapped_key: bytes) -> SecretKey:
        """Unwrap a KEK as the key provider service would."""
        version, blob = split_version(wrapped_key)
        context = WrapContext(self.provider, key_reference, self.vm_id, component)
        return unwrap_key(self.primary_keys[self.provider, version], blob, context)


def recompute_keys(keyprovider: Path, bundle_path: Path) -> list[Needle]:
    """All keys of one VM: KEK and DEK of each component, and the LUKS master key of each disk and of the NVRAM.

    Args:
        keyprovider: Directory with the software backend's ``primary-keys.json`` and ``storage.key``.
        bundle_path: The VM's bundle.

    Raises:
        KeyProviderError: The backend's files do not open.
        BundleError: The bundle does not open.
    """
    bundle, vm_id = Bundle(bundle_path), bundle_path.name
    manifest = bundle.read_manifest(vm_id)
    if manifest.home_key is None:
        return []
    with ExitStack() as stack:
        storage = stack.enter_context(SecretKey.adopt((keyprovider / "storage.key").read_bytes()))
        primary_keys = decode_primary_keys((keyprovider / "primary-keys.json").read_bytes(), storage)
        for key in primary_keys.values():
            stack.enter_context(key)
        source = _OfflineKeys(manifest.home_key.provider, vm_id, primary_keys)
        opened = bundle.open(vm_id, source)
        return [
            *_component(source, "home", manifest.home_key),
            *(needle for name, key in _inner_components(opened) for needle in _component(source, name, key)),
            *_master_keys(source, bundle, opened),
        ]


def _inner_components(opened: OpenHome) -> Iterator[tuple[str, ComponentKey]]:
    for disk in opened.home.disks:
        if disk.key is not None:
            yield f"disk/{disk.name}", disk.key
    if opened.home.vtpm_key is not None:
        yield "vtpm", opened.home.vtpm_key


def _component(source: _OfflineKeys, name: str, key: ComponentKey) -> Iterator[Needle]:
    with source.unwrap(name, key.key_reference, key.wrapped_kek) as kek:
        yield Needle(f"KEK of {name}", bytes(kek.view()))
    with open_component_key(source, key, source.vm_id, name) as dek:
        yield Needle(f"DEK of {name}", bytes(dek.view()))


def _master_keys(source: _OfflineKeys, bundle: Bundle, opened: OpenHome) -> Iterator[Needle]:
    for disk in opened.home.disks:
        if disk.key is not None:
            with open_component_key(source, disk.key, source.vm_id, f"disk/{disk.name}") as dek:
                yield _master_key(f"disk {disk.name}", bundle.disk(disk), dek, DISK_LABEL)
    if opened.dek is not None:
        with opened.dek as dek:
            yield _master_key("NVRAM", bundle.nvram, dek, NVRAM_LABEL)


def _master_key(name: str, path: Path, dek: SecretKey, label: str) -> Needle:
    with path.open("rb") as image:
        head = image.read(_HEADER_BYTES)
    header = parse_header(head)
    with luks_passphrase(dek, label) as passphrase:
        master = open_header(head[header.luks_offset : header.luks_offset + header.luks_length], passphrase)
    if master is None:
        raise ValueError(f"the header of {path} does not open")
    with master:
        return Needle(f"LUKS master key of {name}", bytes(master.view()))
