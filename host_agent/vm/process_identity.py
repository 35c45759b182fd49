"""Name a process so that it is found again after the agent restarts, and never mistaken for another.

A pid alone is reused; with the start time it names one process of this boot. Signals go through a pidfd, which was
compared after it was opened.
"""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_START_TIME_FIELD: Final = 19


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this boot."""

    pid: int
    start_time: int
    """Clock ticks since boot (proc_pid_stat(5), field 22)."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Identify the process that has this pid now; None if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # Field 2, the program's name, may hold blanks and parentheses.
        return cls(pid, int(stat.rpartition(")")[2].split()[_START_TIME_FIELD]))

    @property
    def running(self) -> bool:
        """Whether the process lives; one that ended and was not yet waited for does not."""
        return not self.wait(0)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the process has ended; False if it has not within the time."""
        with self._pidfd() as descriptor:
            if descriptor is None:
                return True
            # Readable once all its threads are gone, and with them its locks; its state says so sooner.
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_seconds * 1000))

    def kill(self, timeout_seconds: float = 10.0) -> bool:
        """End the process without warning, and wait; False if it has not ended within the time."""
        with self._pidfd() as descriptor:
            if descriptor is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return self.wait(timeout_seconds)

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            yield None
            return
        try:
            yield descriptor if ProcessIdentity.of(self.pid) == self else None
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Name of this boot of the machine: pids and start times mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
