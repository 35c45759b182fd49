"""Whether KVM works here, found out by running a guest under it.

``/dev/kvm`` being there proves little: nested or para-virtual KVM may crash QEMU or hang. The probe is a firmware of a
few bytes that ends QEMU with a known exit code, on the machine and CPU model that VMs get.
"""

import functools
import os
import subprocess
import tempfile
from typing import Final

from host_agent.vm.qemu.argv import Accelerator
from host_agent.vm.qemu.tools import QEMU, environment

_PROBE_SECONDS: Final = 2.0
_ROM_SIZE: Final = 0x10000
_RESET_VECTOR: Final = 0xFFF0
_EXIT_CODE: Final = 0x10
_PROGRAM: Final = bytes((0xBA, 0xF4, 0x00, 0xB0, _EXIT_CODE, 0xEE, 0xF4))
"""mov dx, 0xf4; mov al, code; out dx, al; hlt"""
_EXPECTED: Final = _EXIT_CODE << 1 | 1
"""How isa-debug-exit turns the value written into QEMU's exit code."""


@functools.cache
def choose_accelerator() -> Accelerator:
    """KVM where a guest was seen to run under it within two seconds, else TCG. Asked once a process."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and probe(Accelerator.KVM, "host"):
        return Accelerator.KVM
    return Accelerator.TCG


def probe(accelerator: Accelerator, cpu: str, *, timeout_seconds: float = _PROBE_SECONDS) -> bool:
    """Run the probe firmware; True if it ran to its end in time."""
    with tempfile.NamedTemporaryFile(prefix="accelerator-probe-", suffix=".rom") as rom:
        content = bytearray(b"\xf4" * _ROM_SIZE)  # hlt
        content[_RESET_VECTOR : _RESET_VECTOR + len(_PROGRAM)] = _PROGRAM
        rom.write(content)
        rom.flush()
        arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "16"]
        arguments += ["-accel", str(accelerator), "-cpu", cpu, "-bios", rom.name]
        arguments += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        try:
            done = subprocess.run(
                ["prlimit", "--core=0", QEMU, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout_seconds,
                check=False,
                env=environment(),
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == _EXPECTED
