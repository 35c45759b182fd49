"""Specifications of VMs: what is refused before anything is touched."""

from typing import Any

import pytest

from host_agent.errors import InvalidSpec
from host_agent.vm.model import DiskSpec, VmSpec

VM = "6f1c2a52-0c6b-4d4e-9d6e-2b1f3c4d5e6f"


def test_smallest_specification_is_accepted() -> None:
    """An id and a name are enough."""
    assert VmSpec(VM, "web").disks == ()


@pytest.mark.parametrize(
    "vm_id",
    [
        "",
        "x",
        VM.upper(),
        VM + "\n",
        "../" + VM,
        VM.replace("-", ""),
        "{" + VM + "}",
        "00000000-0000-0000-0000-00000000000g",
    ],
)
def test_malformed_id_is_refused(vm_id: str) -> None:
    """An id that is no UUID in canonical form never becomes a path."""
    with pytest.raises(InvalidSpec, match="UUID"):
        VmSpec(vm_id, "web")


@pytest.mark.parametrize("name", ["", "x" * 33, "a/b", "..", "A", "a b", "a\n", "a,b", "é", "a_b"])
def test_malformed_disk_name_is_refused(name: str) -> None:
    """A disk's name becomes part of a file name and a command line: letters, digits, dashes only."""
    with pytest.raises(InvalidSpec, match="disk's name"):
        DiskSpec(name, size_bytes=512)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name has 1 to 255"),
        ({"name": "x" * 256}, "name has 1 to 255"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a\ud800"}, "printable"),
        ({"cpus": 0}, "1 to 255 CPUs"),
        ({"cpus": 256}, "1 to 255 CPUs"),
        ({"memory_mib": 63}, "64 to 1048576"),
        ({"memory_mib": (1 << 20) + 1}, "64 to 1048576"),
        ({"disks": tuple(DiskSpec(f"d{n}", size_bytes=512) for n in range(25))}, "at most 24 disks"),
        ({"disks": (DiskSpec("a", size_bytes=512), DiskSpec("a", size_bytes=512))}, "same name"),
        ({"kernel_path": "vmlinuz"}, "absolute"),
        ({"kernel_path": "/a\0b"}, "printable"),
        ({"initrd_path": "/initrd"}, "needs a kernel"),
        ({"kernel_command_line": "quiet"}, "needs a kernel"),
        ({"kernel_path": "/k", "kernel_command_line": "x" * 2048}, "at most 2047"),
        ({"kernel_path": "/k", "kernel_command_line": "a\nb"}, "printable ASCII"),
    ],
)
def test_malformed_field_is_refused(fields: dict[str, Any], message: str) -> None:
    """Each field out of its range is refused with its range."""
    with pytest.raises(InvalidSpec, match=message):
        VmSpec(**{"vm_id": VM, "name": "web", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs a source or a size"),
        ({"size_bytes": 513}, "multiple of 512"),
        ({"size_bytes": -512}, "multiple of 512"),
        ({"size_bytes": 1 << 60}, "at most"),
        ({"source_path": "image.raw"}, "absolute"),
    ],
)
def test_malformed_disk_is_refused(fields: dict[str, Any], message: str) -> None:
    """A disk has a size in whole sectors, or an absolute path to copy from."""
    with pytest.raises(InvalidSpec, match=message):
        DiskSpec("root", **fields)
