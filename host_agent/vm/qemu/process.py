"""Start QEMU so that it outlives the agent: a session of its own, its sockets inherited, no core dumps."""

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from host_agent.errors import QemuError, ToolUnavailable
from host_agent.vm.process_identity import ProcessIdentity
from host_agent.vm.qemu.tools import QEMU, environment

# Children that outlive their start: kept so that they are reaped once they end.
_children: list[subprocess.Popen[bytes]] = []
_children_lock = threading.Lock()


def spawn_qemu(arguments: Sequence[str], *, pass_fds: Sequence[int], log_path: Path) -> ProcessIdentity:
    """Start QEMU and return at once; whether it lives shows on its monitor.

    Args:
        arguments: After the program's name.
        pass_fds: What it inherits; the caller's copies stay open and are the caller's to close.
        log_path: File that gets its standard output and error, made with mode 0600.

    Raises:
        ToolUnavailable: It is not installed, or cannot be started.
        QemuError: It ended at once.
    """
    reap()
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            # A core dump would hold the guest's memory and the disks' master keys. prlimit executes QEMU in its place.
            ["prlimit", "--core=0", QEMU, *arguments],
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=environment(),
        )
    except OSError as exc:
        raise ToolUnavailable(f"cannot start QEMU: {exc}") from exc
    finally:
        os.close(log)
    with _children_lock:
        _children.append(process)
    identity = ProcessIdentity.of(process.pid)
    if identity is None:
        process.wait()
        raise QemuError("QEMU ended at once")
    return identity


def reap() -> None:
    """Wait for those children that have ended, so that no corpse stays."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]
