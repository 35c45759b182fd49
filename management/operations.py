"""One operation at a time per VM; operations on different VMs run side by side.

Held in memory: one management server runs on a database, and an operation does not outlive its process. What an
operation that was cut off left behind shows in the VM's row (``VmState``) and is settled with the host.
"""

import contextlib
import threading
from collections.abc import Iterator

from management.errors import VmBusy


class RunningOperations:
    """Which VMs are being worked on, and what for."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}

    @contextlib.contextmanager
    def exclusive(self, vm_id: str, operation: str) -> Iterator[None]:
        """Hold the VM for ``operation`` (such as "power on") while the block runs.

        Raises:
            VmBusy: Another operation holds it; the block does not run.
        """
        with self._lock:
            other = self._running.get(vm_id)
            if other is not None:
                raise VmBusy(f"cannot {operation} VM {vm_id}: {other} is under way")
            self._running[vm_id] = operation
        try:
            yield
        finally:
            with self._lock:
                del self._running[vm_id]
