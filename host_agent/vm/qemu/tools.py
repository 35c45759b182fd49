"""The programs and firmware that come with QEMU: are they there, new enough, and what do they say.

QEMU never guesses a format here: each call names it.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host_agent.errors import DiskFull, QemuError, ToolUnavailable

MINIMUM_VERSION: Final = (7, 0)
QEMU: Final = "qemu-system-x86_64"
QEMU_IMG: Final = "qemu-img"
_PACKAGES: Final = {QEMU: "qemu-system-x86", QEMU_IMG: "qemu-utils"}
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)")
_DEFAULT_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_MESSAGE: Final = 400


@dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI firmware for guests."""

    code: Path = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    """Read by the guest, never written."""
    variables: Path = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    """What a new VM's NVRAM starts as."""


def environment() -> dict[str, str]:
    """The environment of every child of the VM engine: whatever else the agent's own holds is none of its business."""
    return {"PATH": os.environ.get("PATH", _DEFAULT_PATH), "LC_ALL": "C"}


def check_versions(firmware: Firmware | None = None) -> None:
    """Check that QEMU, qemu-img and the firmware are there, and new enough.

    Raises:
        ToolUnavailable: Says which is missing or too old, and what to install.
    """
    for program in (QEMU, QEMU_IMG):
        _check_program(program)
    firmware = firmware or Firmware()
    for path in (firmware.code, firmware.variables):
        if not path.is_file():
            raise ToolUnavailable(f"there is no UEFI firmware at {path}: install the package ovmf")


def run_qemu_img(arguments: Sequence[str], *, pass_fds: Sequence[int] = (), accepted: Sequence[int] = (0,)) -> str:
    """Run qemu-img to its end; it is killed if this process dies before.

    Args:
        arguments: After the program's name.
        pass_fds: What it inherits.
        accepted: Exit codes that are no failure.

    Returns:
        What it wrote.

    Raises:
        ToolUnavailable: It is not installed.
        DiskFull: It found no room.
        QemuError: It failed; the message is what it said.
    """
    try:
        done = subprocess.run(
            # The thread that starts it waits for it, so the death signal comes when the process dies, not before.
            ["setpriv", "--pdeathsig", "KILL", QEMU_IMG, *arguments],
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(),
            check=False,
        )
    except OSError as exc:
        raise ToolUnavailable(f"cannot start qemu-img ({exc}): {_advice(QEMU_IMG)}") from exc
    if done.returncode == 127:  # setpriv's, when there is nothing to execute
        raise ToolUnavailable(f"qemu-img is not installed: {_advice(QEMU_IMG)}")
    if done.returncode not in accepted:
        said = " ".join(done.stderr.split())[-_LONGEST_MESSAGE:]
        if "No space left on device" in said or "Disk quota exceeded" in said:
            raise DiskFull(f"the disk is full: {said}")
        raise QemuError(said or f"qemu-img ended with {done.returncode}")
    return done.stdout


def _check_program(program: str) -> None:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
    except FileNotFoundError as exc:
        raise ToolUnavailable(f"{program} is not installed: {_advice(program)}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ToolUnavailable(f"{program} does not run ({exc}): {_advice(program)}") from exc
    found = _VERSION.search(done.stdout)
    if not found:
        raise ToolUnavailable(f"{program} --version gave no version: {_advice(program)}")
    if (int(found[1]), int(found[2])) < MINIMUM_VERSION:
        raise ToolUnavailable(f"{program} {found[1]}.{found[2]} is too old: {_advice(program)}")


def _advice(program: str) -> str:
    minimum = ".".join(map(str, MINIMUM_VERSION))
    return f"install {minimum} or later (Debian: apt-get install {_PACKAGES[program]})"
