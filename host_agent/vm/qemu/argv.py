"""QEMU's command line for one VM. Pure: a plan in, arguments out.

No key is in it: disks name secrets, secrets name descriptors, and what comes through those is read once.
The machine starts halted (``-S``): nothing of the guest runs before the agent has written down which process it is.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_LONGEST_SERIAL: Final = 20
"""VIRTIO_BLK_ID_BYTES (VIRTIO 1.2, 5.2.6)."""


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A qcow2 file that the guest gets."""

    name: str
    path: Path
    secret_fd: int | None
    """Descriptor that gives the passphrase; None: the disk is in clear."""


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """All that QEMU must know to start a VM."""

    vm_id: str
    cpus: int
    memory_mib: int
    accelerator: Accelerator
    firmware_code: Path
    nvram: DiskPlan
    disks: tuple[DiskPlan, ...]
    qmp_fd: int
    """Listening socket of the monitor."""
    serial_fd: int
    """Listening socket of the serial console."""
    console_log: Path
    vtpm_fd: int | None
    """Connected socket of swtpm's control channel; None: no vTPM."""
    kernel_path: str = ""
    initrd_path: str = ""
    kernel_command_line: str = ""


def secret_id(disk_name: str) -> str:
    """Name of the secret object of a disk."""
    return f"secret-{disk_name}"


def console_log_option(path: Path) -> str:
    """How the argument ends that names the console's log; a comma is written twice."""
    return ",logfile=" + str(path).replace(",", ",,")


def machine_arguments(plan: MachinePlan) -> list[str]:
    """The arguments after the program's name."""
    cpu = {Accelerator.KVM: "host", Accelerator.TCG: "max"}[plan.accelerator]
    accelerator = {Accelerator.KVM: "kvm", Accelerator.TCG: "tcg,thread=multi"}[plan.accelerator]
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-S", "-sandbox", _SANDBOX]
    arguments += ["-name", f"guest={plan.vm_id},debug-threads=on", "-uuid", plan.vm_id]
    arguments += ["-machine", "q35,pflash0=firmware,pflash1=nvram,dump-guest-core=off"]
    arguments += ["-accel", accelerator, "-cpu", cpu, "-smp", str(plan.cpus), "-m", str(plan.memory_mib)]
    arguments += ["-rtc", "base=utc", "-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0"]
    firmware = {
        "driver": "raw",
        "node-name": "firmware",
        "read-only": True,
        "file": {"driver": "file", "filename": str(plan.firmware_code)},
    }
    arguments += ["-blockdev", json.dumps(firmware)]
    arguments += _drive_arguments(plan.nvram, "nvram")
    for number, disk in enumerate(plan.disks):
        node = f"disk{number}"
        arguments += _drive_arguments(disk, node)
        serial = disk.name[:_LONGEST_SERIAL]
        arguments += ["-device", f"virtio-blk-pci,drive={node},serial={serial},bootindex={number + 1}"]
    arguments += _channel_arguments(plan)
    arguments += _direct_boot_arguments(plan)
    return arguments


def _drive_arguments(disk: DiskPlan, node: str) -> list[str]:
    drive: dict[str, Any] = {
        "driver": "qcow2",
        "node-name": node,
        "backing": None,  # whatever the header says by now
        "file": {"driver": "file", "filename": str(disk.path), "locking": "on"},
    }
    if disk.secret_fd is None:
        return ["-blockdev", json.dumps(drive)]
    drive["encrypt"] = {"format": "luks", "key-secret": secret_id(disk.name)}
    secret = f"secret,id={secret_id(disk.name)},file=/proc/self/fd/{disk.secret_fd}"
    return ["-object", secret, "-blockdev", json.dumps(drive)]


def _channel_arguments(plan: MachinePlan) -> list[str]:
    arguments = ["-chardev", f"socket,id=monitor,fd={plan.qmp_fd},server=on,wait=off"]
    arguments += ["-mon", "chardev=monitor,mode=control"]
    arguments += [
        "-chardev",
        f"socket,id=console,fd={plan.serial_fd},server=on,wait=off{console_log_option(plan.console_log)}",
    ]
    arguments += ["-serial", "chardev:console"]
    if plan.vtpm_fd is not None:
        arguments += ["-chardev", f"socket,id=vtpm,fd={plan.vtpm_fd}"]
        arguments += ["-tpmdev", "emulator,id=tpm0,chardev=vtpm", "-device", "tpm-crb,tpmdev=tpm0"]
    return arguments


def _direct_boot_arguments(plan: MachinePlan) -> list[str]:
    arguments: list[str] = []
    if plan.kernel_path:
        arguments += ["-kernel", plan.kernel_path]
    if plan.initrd_path:
        arguments += ["-initrd", plan.initrd_path]
    if plan.kernel_command_line:
        arguments += ["-append", plan.kernel_command_line]
    return arguments
