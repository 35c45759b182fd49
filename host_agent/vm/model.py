"""Values of the VM engine: what is asked for, and what is shown.

Pure and frozen; the constructors refuse what is not well formed, with ``InvalidSpec``. They mirror
``proto/garant/host/v1/host.proto``.
"""

import re
from dataclasses import dataclass
from typing import Final

from host_agent.errors import InvalidSpec
from host_agent.vm.lifecycle import VmState

HOME: Final = "home"
VTPM: Final = "vtpm"
MOST_DISKS: Final = 24
"""Each takes a slot of the machine's PCI bus, which has 32."""
MOST_DISK_BYTES: Final = 64 << 40

_VM_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DISK_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_SECTOR: Final = 512
_LONGEST_PATH: Final = 4095
_LONGEST_COMMAND_LINE: Final = 2047
"""The kernel's limit on x86 is 2048 with the final zero."""


def disk_component(name: str) -> str:
    """Name of the component that a disk is, as key providers know it."""
    return f"disk/{name}"


def require_vm_id(vm_id: str) -> str:
    """Return the id as it came.

    Raises:
        InvalidSpec: It is not a UUID in the lower-case text form of RFC 9562.
    """
    if not _VM_ID.fullmatch(vm_id):
        raise InvalidSpec("a VM id is a UUID in lower-case text form (RFC 9562)")
    return vm_id


def is_vm_id(text: str) -> bool:
    """Tell whether a text has the form of a VM id."""
    return _VM_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk to be made."""

    name: str
    """1 to 32 lower-case letters, digits, dashes; unique in the VM."""
    source_path: str = ""
    """Image on the host to copy from; empty: an empty disk."""
    size_bytes: int = 0
    """0: as large as the source."""

    def __post_init__(self) -> None:
        """Refuse what is not well formed.

        Raises:
            InvalidSpec: Otherwise.
        """
        if not _DISK_NAME.fullmatch(self.name):
            raise InvalidSpec("a disk's name has 1 to 32 lower-case letters, digits and dashes")
        _require_path(self.source_path, f"source of disk {self.name}")
        if not 0 <= self.size_bytes <= MOST_DISK_BYTES or self.size_bytes % _SECTOR:
            raise InvalidSpec(f"disk {self.name}: the size is a multiple of 512 bytes, at most {MOST_DISK_BYTES}")
        if not self.source_path and not self.size_bytes:
            raise InvalidSpec(f"disk {self.name} needs a source or a size")


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A VM to be made."""

    vm_id: str
    """RFC 9562 text form, lower case."""
    name: str
    """Display name, 1 to 255 characters."""
    cpus: int = 1
    memory_mib: int = 512
    disks: tuple[DiskSpec, ...] = ()
    vtpm: bool = False
    kernel_path: str = ""
    """Kernel on the host to boot directly; empty: boot from disk."""
    initrd_path: str = ""
    kernel_command_line: str = ""

    def __post_init__(self) -> None:
        """Refuse what is not well formed.

        Raises:
            InvalidSpec: Otherwise.
        """
        require_vm_id(self.vm_id)
        if not 1 <= len(self.name) <= 255 or not self.name.isprintable():
            raise InvalidSpec("a VM's name has 1 to 255 printable characters")
        if not 1 <= self.cpus <= 255:
            raise InvalidSpec(f"a VM has 1 to 255 CPUs, not {self.cpus}")
        if not 64 <= self.memory_mib <= 1 << 20:
            raise InvalidSpec(f"a VM has 64 to 1048576 MiB of memory, not {self.memory_mib}")
        if len(self.disks) > MOST_DISKS:
            raise InvalidSpec(f"a VM has at most {MOST_DISKS} disks, not {len(self.disks)}")
        if len({disk.name for disk in self.disks}) != len(self.disks):
            raise InvalidSpec("two disks of the VM have the same name")
        require_direct_boot(self.kernel_path, self.initrd_path, self.kernel_command_line)


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM on this host."""

    vm_id: str
    name: str
    """Empty while the home is locked."""
    state: VmState
    provider: str
    """Key provider of its home; empty: not encrypted."""
    bundle_path: str
    qemu_pid: int
    """0 while it is off."""


def require_direct_boot(kernel_path: str, initrd_path: str, command_line: str) -> None:
    """Check the parts of a direct boot.

    Raises:
        InvalidSpec: A path is not absolute, the command line is too long or not one line, or one of them comes
            without a kernel.
    """
    _require_path(kernel_path, "kernel")
    _require_path(initrd_path, "initial RAM disk")
    if len(command_line) > _LONGEST_COMMAND_LINE or not (command_line.isascii() and command_line.isprintable()):
        raise InvalidSpec(f"a kernel command line has at most {_LONGEST_COMMAND_LINE} printable ASCII characters")
    if not kernel_path and (initrd_path or command_line):
        raise InvalidSpec("an initial RAM disk or command line needs a kernel")


def _require_path(path: str, what: str) -> None:
    if path and (not path.startswith("/") or len(path) > _LONGEST_PATH or not path.isprintable()):
        raise InvalidSpec(f"{what}: the path must be absolute and printable")
