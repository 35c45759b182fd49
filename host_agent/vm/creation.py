"""Make the bundle of a new VM: keys, home, NVRAM, disks, vTPM.

All that was asked for is looked at before any key is asked for. The bundle grows in ``ID.creating`` and gets its name
at the end: a crash before that leaves nothing that looks like a VM.
"""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host_agent.errors import ImageReason, ImageRefused, InvalidSpec, VtpmError
from host_agent.vm.bundle import Bundle
from host_agent.vm.bundle_format import ComponentKey, Disk, Home
from host_agent.vm.disk import ImageInfo, create_disk, encrypt_image, inspect_image, require_room
from host_agent.vm.durable import storage_errors, sync
from host_agent.vm.image_directories import ImageDirectories
from host_agent.vm.keys import (
    DISK_LABEL,
    NVRAM_LABEL,
    VTPM_LABEL,
    KeySource,
    create_component_key,
    luks_passphrase,
)
from host_agent.vm.model import HOME, VTPM, DiskSpec, VmSpec, disk_component
from host_agent.vm.qemu.tools import Firmware, check_versions
from keyprovider.envelope import derive_key
from keyprovider.keymaterial import SecretKey
from swtpm.errors import SwtpmError
from swtpm.manufacture import manufacture

CREATING_SUFFIX: Final = ".creating"
FIRST_GENERATION: Final = 1


@dataclass(frozen=True, slots=True)
class Sources:
    """What a new VM is copied from, looked at and found good."""

    disks: tuple[ImageInfo | None, ...]
    """One for each disk; None: an empty disk."""
    nvram: ImageInfo

    def copy_size(self) -> int:
        """Bytes that the copies take, at most."""
        return self.nvram.copy_size + sum(disk.copy_size for disk in self.disks if disk)


def inspect_sources(spec: VmSpec, *, encrypted: bool, firmware: Firmware, directories: ImageDirectories) -> Sources:
    """Look at all that a VM shall be made from.

    Args:
        spec: What is asked for.
        encrypted: Whether there is a key provider.
        firmware: Its variables become the NVRAM.
        directories: Where images, kernels and initial RAM disks may lie.

    Raises:
        InvalidSpec: A vTPM is asked for without a key provider (its state is never in clear).
        ToolUnavailable: QEMU or the firmware is missing or too old.
        ImageRefused: A source is not in one of the directories, missing, or not to be copied.
    """
    if spec.vtpm and not encrypted:
        raise InvalidSpec("a VM with a virtual TPM needs a key provider: name one, or leave the virtual TPM out")
    check_versions(firmware)
    for path in filter(None, (spec.kernel_path, spec.initrd_path)):
        directories.require_file(path)
    disks = tuple(
        inspect_image(directories.require(disk.source_path)) if disk.source_path else None for disk in spec.disks
    )
    for disk, image in zip(spec.disks, disks, strict=True):
        if image and disk.size_bytes and disk.size_bytes < image.virtual_size:
            raise ImageRefused(
                ImageReason.LARGER_THAN_DISK,
                f"{disk.source_path} holds {image.virtual_size} bytes, disk {disk.name} would have {disk.size_bytes}",
            )
    return Sources(disks, inspect_image(firmware.variables))


def create_bundle(directory: Path, spec: VmSpec, sources: Sources, keys: KeySource | None) -> Bundle:
    """Make a VM's bundle in ``directory``; on any failure nothing of it is left.

    Raises:
        DiskFull: There is no room.
        VtpmError: The vTPM could not be made.
        QemuError: qemu-img failed.
        StorageError: The file system refuses.
        Exception: What the key source raises.
    """
    final = Bundle(directory / spec.vm_id)
    growing = Bundle(directory / (spec.vm_id + CREATING_SUFFIX))
    with storage_errors(directory):
        require_room(directory, sources.copy_size())
        growing.path.mkdir(mode=0o700)
        try:
            _fill(growing, spec, sources, keys)
            growing.sync()
            growing.path.rename(final.path)
        except BaseException:
            shutil.rmtree(growing.path, ignore_errors=True)
            raise
        sync(directory)
    return final


def _fill(bundle: Bundle, spec: VmSpec, sources: Sources, keys: KeySource | None) -> None:
    with ExitStack() as secrets:
        home_key, home_dek = _new_key(keys, spec.vm_id, HOME, secrets)
        encrypt_image(sources.nvram, bundle.nvram, _passphrase(home_dek, NVRAM_LABEL, secrets))
        disks = tuple(
            _make_disk(bundle, spec.vm_id, disk, image, keys)
            for disk, image in zip(spec.disks, sources.disks, strict=True)
        )
        vtpm_key = _make_vtpm(bundle, spec.vm_id, keys) if spec.vtpm and keys else None
        home = Home(
            vm_id=spec.vm_id,
            generation=FIRST_GENERATION,
            name=spec.name,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            disks=disks,
            vtpm_key=vtpm_key,
            kernel_path=spec.kernel_path,
            initrd_path=spec.initrd_path,
            kernel_command_line=spec.kernel_command_line,
        )
        bundle.write(home, home_key, home_dek)


def _make_disk(bundle: Bundle, vm_id: str, spec: DiskSpec, image: ImageInfo | None, keys: KeySource | None) -> Disk:
    with ExitStack() as secrets:
        key, dek = _new_key(keys, vm_id, disk_component(spec.name), secrets)
        disk = Disk(name=spec.name, file=f"disk-{spec.name}.qcow2", key=key)
        passphrase = _passphrase(dek, DISK_LABEL, secrets)
        if image is None:
            create_disk(bundle.disk(disk), spec.size_bytes, passphrase)
        else:
            encrypt_image(image, bundle.disk(disk), passphrase, size_bytes=spec.size_bytes)
        return disk


def _make_vtpm(bundle: Bundle, vm_id: str, keys: KeySource) -> ComponentKey:
    key, dek = create_component_key(keys, vm_id, VTPM)
    with dek, derive_key(dek, VTPM_LABEL) as state_key:
        try:
            manufacture(bundle.vtpm, key=state_key.view())
        except SwtpmError as exc:
            raise VtpmError(f"the virtual TPM could not be made: {exc}") from exc
    return key


def _new_key(
    keys: KeySource | None, vm_id: str, component: str, secrets: ExitStack
) -> tuple[ComponentKey | None, SecretKey | None]:
    if keys is None:
        return None, None
    key, dek = create_component_key(keys, vm_id, component)
    return key, secrets.enter_context(dek)


def _passphrase(dek: SecretKey | None, label: str, secrets: ExitStack) -> SecretKey | None:
    return None if dek is None else secrets.enter_context(luks_passphrase(dek, label))
