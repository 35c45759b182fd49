"""Boot the demo's guest with OVMF and a software TPM, without hardware virtualisation, and read its console."""

import json
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.demo.guest_image import GuestImage

_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
BOOT_SECONDS = 180.0
"""Nine seconds on an idle machine; CI machines are not idle."""


@dataclass
class Guest:
    """A guest that runs."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    console: bytes = field(default=b"")

    def read_until(self, text: bytes) -> bytes:
        """All that the console has shown once ``text`` is in it.

        Raises:
            AssertionError: It did not come.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + BOOT_SECONDS
        while text not in self.console:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = self.process.stdout.read1(65536) if ready else b""  # type: ignore[attr-defined]
            assert data, f"no {text!r} from the guest, which ended with {self.console[-500:]!r}"
            self.console += data
        return self.console

    def press_power_button(self) -> None:
        """Ask the guest to shut down, through ACPI."""
        for command in ("qmp_capabilities", "system_powerdown"):
            self.control.sendall(json.dumps({"execute": command}).encode())


@contextmanager
def boot_guest(directory: Path, image: GuestImage, disk: Path, command_line: str) -> Iterator[Guest]:
    """Boot with the TPM state and the firmware variables in ``directory``, which are made on the first boot."""
    variables = directory / "variables.fd"
    if not variables.exists():
        shutil.copyfile(_VARIABLES, variables)
    with ExitStack() as stack:
        tpm_control, tpm_device = socket.socketpair()
        control, monitor = socket.socketpair()
        for end in (tpm_control, tpm_device, control, monitor):
            stack.enter_context(end)
        state, channel = f"dir={directory.absolute()}", f"type=unixio,clientfd={tpm_control.fileno()}"
        tpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", channel, "--terminate"],
            pass_fds=[tpm_control.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(_end, tpm)
        tpm_control.close()
        qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
                *("-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "512"),
                *("-drive", f"if=pflash,format=raw,readonly=on,file={_FIRMWARE}"),
                *("-drive", f"if=pflash,format=raw,file={variables}"),
                *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line),
                *("-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=disk"),
                *("-chardev", f"socket,id=tpm,fd={tpm_device.fileno()}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
                *("-device", "tpm-crb,tpmdev=tpm0", "-serial", "stdio"),
                *("-chardev", f"socket,id=qmp,fd={monitor.fileno()}", "-mon", "chardev=qmp,mode=control"),
            ],
            pass_fds=[tpm_device.fileno(), monitor.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        stack.enter_context(qemu)
        stack.callback(_end, qemu)
        yield Guest(qemu, control)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait(timeout=30)
