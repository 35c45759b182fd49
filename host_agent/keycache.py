"""KEKs of running VMs, in secret pages, and of no others.

They serve operations on a VM that runs; a power-on never reads them: it always asks for a fresh release. They go when
the VM does.
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass

from keyprovider.keymaterial import SecretKey


@dataclass(frozen=True, slots=True)
class CachedKey:
    """A KEK and what it is for."""

    component: str
    key_reference: str
    kek: SecretKey


def copy_key(key: SecretKey) -> SecretKey:
    """A copy in a secret page of its own."""

    def write(target: memoryview) -> None:
        target[:] = key.view()

    return SecretKey.written_by(len(key), write)


class KeyCache:
    """KEKs by VM and component. It owns what it holds, and closes it."""

    def __init__(self) -> None:
        """Start empty: after a restart of the agent, running VMs go on without cached keys."""
        self._lock = threading.Lock()
        self._keys: dict[str, dict[str, CachedKey]] = {}

    def hold(self, vm_id: str, keys: Collection[CachedKey]) -> None:
        """Take over the keys of a VM that was powered on, in place of what was held for it."""
        with self._lock:
            _close(self._keys.pop(vm_id, {}))
            self._keys[vm_id] = {key.component: key for key in keys}

    def find(self, vm_id: str, component: str, key_reference: str) -> SecretKey | None:
        """A copy of the KEK, to be closed by the caller; None where that very key is not held."""
        with self._lock:
            held = self._keys.get(vm_id, {}).get(component)
            if held is None or held.key_reference != key_reference:
                return None
            return copy_key(held.kek)

    def drop(self, vm_id: str) -> None:
        """Forget a VM's keys."""
        with self._lock:
            _close(self._keys.pop(vm_id, {}))

    def vm_ids(self) -> list[str]:
        """The VMs that keys are held for."""
        with self._lock:
            return sorted(self._keys)

    def close(self) -> None:
        """Forget everything."""
        for vm_id in self.vm_ids():
            self.drop(vm_id)


def _close(keys: dict[str, CachedKey]) -> None:
    for key in keys.values():
        key.kek.close()
