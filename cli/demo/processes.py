"""Child processes of the demo, and the promise that none survives it.

The demo is a child subreaper: whatever outlives its own parent (QEMU and its vTPM outlive a killed host agent) becomes
a child of the demo, and is stopped with it. Should the demo itself be killed with SIGKILL, its daemons get SIGTERM.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from serving.daemon import READY
from serving.errors import ConfigError

_PR_SET_CHILD_SUBREAPER = 36
_STOP_SECONDS = 5.0


def become_subreaper() -> None:
    """Adopt orphaned descendants from now on."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


@dataclass
class Daemon:
    """A running daemon and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, module: str, config: Path, log: Path) -> "Daemon":
        """Start ``python -m MODULE CONFIG``, logging to ``log``; see ``wait_ready``."""
        argv = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", module, str(config)]
        with log.open("ab") as target:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=target, stderr=target, start_new_session=True
            )
        return cls(name, process, log)

    def wait_ready(self, *, since: int = 0, timeout_seconds: float = 30.0) -> None:
        """Wait for the daemon's own word that it serves.

        Args:
            since: Position in the log to read from: where it ended before this start.
            timeout_seconds: How long.

        Raises:
            ConfigError: It ended, or did not say so in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if _says_ready(self.log, since):
                return
            if self.process.poll() is not None:
                raise ConfigError(f"{self.name} ended at once: {last_error(self.log)}")
            time.sleep(0.02)
        raise ConfigError(f"{self.name} was not ready within {timeout_seconds:.0f} s; see {self.log}")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


def _says_ready(log: Path, since: int) -> bool:
    with log.open("rb") as lines:
        lines.seek(since)
        return any(f'"event": "{READY}"'.encode() in line for line in lines)


def last_error(log: Path) -> str:
    """The last thing that a daemon's log says went wrong, on one line."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") == "error":
                return str(entry.get("error") or entry.get("exception", "").strip().splitlines()[-1:] or entry["event"])
        if line.strip() and not line.startswith("{"):
            return line.strip()
    return f"see {log}"


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, children before grandchildren."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def stop_all_descendants() -> None:
    """End every process below this one: politely first, then for certain. Returns when none is left."""
    _signal_all(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    while _reap():
        _signal_all(signal.SIGKILL)
        time.sleep(0.02)


def _signal_all(number: signal.Signals) -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap() -> bool:
    """Collect ended children; whether any descendant is left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return bool(descendants(os.getpid()))
