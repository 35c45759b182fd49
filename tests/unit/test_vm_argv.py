"""QEMU's command line."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from host_agent.vm.qemu.argv import Accelerator, DiskPlan, MachinePlan, machine_arguments, secret_id

PLAN = MachinePlan(
    vm_id="6f1c2a52-0c6b-4d4e-9d6e-2b1f3c4d5e6f",
    cpus=2,
    memory_mib=512,
    accelerator=Accelerator.TCG,
    firmware_code=Path("/firmware/code.fd"),
    nvram=DiskPlan("nvram", Path("/vm/nvram.qcow2"), 10),
    disks=(
        DiskPlan("disk0-root", Path('/vm/a,b"c/disk-root.qcow2'), 11),
        DiskPlan("disk1-x", Path("/vm/x.qcow2"), None),
    ),
    qmp_fd=20,
    serial_fd=21,
    console_log=Path("/run/a,b/console.log"),
    vtpm_fd=22,
)


def _values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_secrets_are_descriptors() -> None:
    """Passphrases come through descriptors, and a disk in clear has none."""
    objects = [value for value in _values(machine_arguments(PLAN), "-object") if value.startswith("secret")]
    assert objects == [
        "secret,id=secret-nvram,file=/proc/self/fd/10",
        "secret,id=secret-disk0-root,file=/proc/self/fd/11",
    ]
    assert secret_id("nvram") == "secret-nvram"


def test_disks_are_opened_as_what_they_are() -> None:
    """Each disk is qcow2 without a backing file whatever its header says, and encrypted only where it has a secret."""
    drives = [json.loads(value) for value in _values(machine_arguments(PLAN), "-blockdev")]
    by_node = {drive["node-name"]: drive for drive in drives}
    assert by_node["firmware"]["read-only"] is True
    assert by_node["disk0"]["backing"] is None
    assert by_node["disk0"]["encrypt"] == {"format": "luks", "key-secret": "secret-disk0-root"}
    assert by_node["disk0"]["file"]["filename"] == '/vm/a,b"c/disk-root.qcow2'
    assert "encrypt" not in by_node["disk1"]


def test_machine_starts_halted_and_confined() -> None:
    """The guest does not run before the agent says so; QEMU is sandboxed and dumps no guest memory."""
    arguments = machine_arguments(PLAN)
    assert "-S" in arguments
    assert "spawn=deny" in _values(arguments, "-sandbox")[0]
    assert "dump-guest-core=off" in _values(arguments, "-machine")[0]
    assert {"-nodefaults", "-no-user-config"} <= set(arguments)


def test_channels_are_inherited_descriptors() -> None:
    """Monitor, console and vTPM are inherited sockets; a comma in the log's path is doubled."""
    assert _values(machine_arguments(PLAN), "-chardev") == [
        "socket,id=monitor,fd=20,server=on,wait=off",
        "socket,id=console,fd=21,server=on,wait=off,logfile=/run/a,,b/console.log",
        "socket,id=vtpm,fd=22",
    ]


def test_vm_without_vtpm_has_no_tpm() -> None:
    """Without a vTPM the guest sees none."""
    arguments = machine_arguments(dataclasses.replace(PLAN, vtpm_fd=None))
    assert not any("tpm" in argument for argument in arguments)


@pytest.mark.parametrize(("accelerator", "cpu"), [(Accelerator.KVM, "host"), (Accelerator.TCG, "max")])
def test_cpu_follows_the_accelerator(accelerator: Accelerator, cpu: str) -> None:
    """KVM shows the host's CPU, TCG all that it can imitate."""
    arguments = machine_arguments(dataclasses.replace(PLAN, accelerator=accelerator))
    assert _values(arguments, "-cpu") == [cpu]
    assert _values(arguments, "-accel")[0].startswith(accelerator)


def test_direct_boot_is_passed_whole() -> None:
    """Kernel, initial RAM disk and command line are one argument each."""
    plan = dataclasses.replace(PLAN, kernel_path="/k", initrd_path="/i", kernel_command_line="console=ttyS0 a,b")
    assert machine_arguments(plan)[-6:] == ["-kernel", "/k", "-initrd", "/i", "-append", "console=ttyS0 a,b"]
