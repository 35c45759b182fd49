"""The VMs of this host: what the agent offers, and what it finds again after it was restarted.

One agent serves a VM directory (flock). One operation at a time changes a VM: a second one is refused, not queued.
States are those of ``host_agent.vm.lifecycle``. That a VM runs is known from its run directory, not from the agent's
memory.
"""

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from host_agent.errors import BundleError, OperationInProgress, VmDirectoryInUse, VmExists, VmNotFound
from host_agent.vm.bundle import Bundle
from host_agent.vm.creation import create_bundle, inspect_sources
from host_agent.vm.durable import storage_errors, sync
from host_agent.vm.image_directories import ImageDirectories
from host_agent.vm.keys import KeySource
from host_agent.vm.lifecycle import VmEvent, VmState, next_state
from host_agent.vm.model import Vm, VmSpec, is_vm_id, require_vm_id
from host_agent.vm.power import end_vtpm, reap_ended, start_vm, stop_vm
from host_agent.vm.qemu.accelerator import choose_accelerator
from host_agent.vm.qemu.argv import Accelerator
from host_agent.vm.qemu.tools import Firmware
from host_agent.vm.recovery import DELETING_SUFFIX, find_running, monitor_status, sweep
from host_agent.vm.run_directory import RunDirectory, RunRecord

_LOCK_FILE: Final = ".lock"
_HALTED: Final = frozenset({"paused", "io-error", "internal-error", "suspended", "guest-panicked", "watchdog"})
"""Run states in which QEMU holds the guest (QEMU ``qapi/run-state.json``)."""


class _Entry:
    """What the agent remembers of a VM while it lives."""

    def __init__(self, vm_id: str, state: VmState, provider: str = "") -> None:
        self.vm_id = vm_id
        self.state = state
        self.provider = provider
        self.name = ""
        self.record: RunRecord | None = None
        self.lock = threading.Lock()
        """Held for moments only: to begin and end an operation, and to look at QEMU between operations."""
        self.operating = False

    def pass_to(self, event: VmEvent) -> None:
        """Change the state by an event.

        Raises:
            IllegalTransition: The table does not have it; nothing was changed.
        """
        self.state = next_state(self.state, event)


class HostVms:
    """All VMs of this host. Safe for several threads."""

    def __init__(
        self,
        vm_directory: Path,
        run_directory: Path,
        *,
        image_directories: tuple[Path, ...] = (),
        firmware: Firmware | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Take the directories, clear away what a crash left half done, and re-adopt the VMs that run.

        Args:
            vm_directory: Where the bundles lie; made with mode 0700.
            run_directory: Where run directories lie, best on a tmpfs; made with mode 0700.
            image_directories: Where images, kernels and initial RAM disks that callers name may lie; none: nowhere.
            firmware: UEFI firmware for guests; Debian's by default.
            accelerator: None: found out when the first VM is started.

        Raises:
            VmDirectoryInUse: Another host agent serves the VM directory.
            StorageError: A directory cannot be made or read.
        """
        self._vm_directory = vm_directory.absolute()
        self._run_directory = run_directory.absolute()
        self._image_directories = ImageDirectories(image_directories)
        self._firmware = firmware or Firmware()
        self._accelerator = accelerator
        self._entries: dict[str, _Entry] = {}
        self._entries_lock = threading.Lock()
        with storage_errors(self._vm_directory):
            for directory in (self._vm_directory, self._run_directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = _take_lock(self._vm_directory / _LOCK_FILE)
        try:
            with storage_errors(self._vm_directory):
                sweep(self._vm_directory, self._run_directory)
            self.adopt()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the directories go; VMs that run go on running. May be repeated."""
        descriptor, self._lock_fd = self._lock_fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def adopt(self) -> tuple[str, ...]:
        """Find the VMs of the directory, and among them those that run: no key, no power cycle.

        What is left of VMs that died is cleared away. VMs that are known already stay as they are.

        Returns:
            Ids of the VMs that run and were not known to this object before.

        Raises:
            StorageError: A directory cannot be read or cleaned.
        """
        adopted = []
        with self._entries_lock, storage_errors(self._vm_directory):
            present = {path.name for path in self._vm_directory.iterdir() if is_vm_id(path.name)}
            for vm_id in sorted(present - set(self._entries)):
                entry = self._read_entry(vm_id)
                entry.record = find_running(self._run(vm_id), self._bundle(vm_id))
                if entry.record:
                    entry.state = VmState.ON
                    adopted.append(vm_id)
                self._entries[vm_id] = entry
        return tuple(adopted)

    def create(self, spec: VmSpec, keys: KeySource | None) -> Vm:
        """Make a VM; it is off.

        Args:
            spec: What to make.
            keys: Where its KEKs come from; None: it is not encrypted.

        Raises:
            VmExists: There is one of that id.
            OperationInProgress: One of that id is being made.
            VmError: As ``inspect_sources`` and ``create_bundle``; nothing was left behind.
            Exception: What the key source raises; nothing was left behind.
        """
        entry = _Entry(spec.vm_id, VmState.CREATING, keys.provider if keys else "")
        with self._entries_lock:
            known = self._entries.get(spec.vm_id)
            if known and known.state is VmState.CREATING:
                raise OperationInProgress(f"VM {spec.vm_id} is being made")
            if known or os.path.lexists(self._vm_directory / spec.vm_id):
                raise VmExists(f"there is a VM {spec.vm_id} on this host already")
            self._entries[spec.vm_id] = entry
        try:
            sources = inspect_sources(
                spec,
                encrypted=keys is not None,
                firmware=self._firmware,
                directories=self._image_directories,
            )
            create_bundle(self._vm_directory, spec, sources, keys)
        except BaseException:
            with self._entries_lock:
                del self._entries[spec.vm_id]
            raise
        entry.name = spec.name
        entry.pass_to(VmEvent.CREATED)
        return self._show(entry)

    def power_on(self, vm_id: str, keys: KeySource | None) -> Vm:
        """Power a VM on, with keys that the key source releases now.

        Raises:
            VmNotFound: There is none of that id.
            OperationInProgress: Another operation on it has not ended.
            IllegalTransition: It is not off.
            VmError: As ``start_vm``; the VM is off and its files are as they were.
            Exception: What the key source raises; likewise.
        """
        with self._operation(vm_id) as entry:
            entry.pass_to(VmEvent.POWER_ON)
            try:
                started = start_vm(
                    vm_id,
                    self._bundle(vm_id),
                    keys,
                    self._run(vm_id),
                    accelerator=self._accelerator or choose_accelerator(),
                    firmware=self._firmware,
                    directories=self._image_directories,
                )
            except BaseException:
                entry.pass_to(VmEvent.START_FAILED)
                raise
            entry.name, entry.record = started.name, started.record
            entry.pass_to(VmEvent.STARTED)
            return self._show(entry)

    def power_off(self, vm_id: str, grace_seconds: float = 0) -> Vm:
        """Power a VM off.

        Args:
            vm_id: Which.
            grace_seconds: How long the guest may take to shut down; 0: at once.

        Raises:
            VmNotFound: There is none of that id.
            OperationInProgress: Another operation on it has not ended.
            IllegalTransition: It is not on.
            QemuError: QEMU does not end.
        """
        with self._operation(vm_id) as entry:
            entry.pass_to(VmEvent.POWER_OFF)
            try:
                if entry.record:
                    stop_vm(self._run(vm_id), entry.record, grace_seconds)
            except BaseException:
                entry.pass_to(VmEvent.STOP_FAILED)
                raise
            entry.record = None
            entry.pass_to(VmEvent.STOPPED)
            return self._show(entry)

    def get(self, vm_id: str) -> Vm:
        """Show a VM as it is now.

        Raises:
            VmNotFound: There is none of that id.
        """
        entry = self._entry(vm_id)
        with entry.lock:
            if not entry.operating:  # else the operation knows best
                self._refresh(entry)
        return self._show(entry)

    def list(self) -> tuple[Vm, ...]:
        """Show all VMs, by id."""
        with self._entries_lock:
            known = sorted(vm_id for vm_id, entry in self._entries.items() if entry.state is not VmState.CREATING)
        shown = []
        for vm_id in known:
            with contextlib.suppress(VmNotFound):  # deleted meanwhile
                shown.append(self.get(vm_id))
        return tuple(shown)

    def read_console(self, vm_id: str, offset: int) -> tuple[bytes, int]:
        """Read what a VM wrote to its serial console since its last power-on.

        Args:
            vm_id: Which.
            offset: First byte to read.

        Returns:
            At most 64 KiB, and where to go on.

        Raises:
            VmNotFound: There is none of that id.
            QemuError: The console's log cannot be read.
        """
        return self._run(self._entry(vm_id).vm_id).read_console(offset)

    def delete(self, vm_id: str) -> None:
        """Remove a VM that is off, with all its files.

        Raises:
            VmNotFound: There is none of that id.
            OperationInProgress: Another operation on it has not ended.
            IllegalTransition: It is not off.
            StorageError: A file cannot be removed; what is left is cleared away at the next start.
        """
        with self._operation(vm_id) as entry:
            entry.pass_to(VmEvent.DELETE)
            path = self._vm_directory / vm_id
            doomed = path.with_name(vm_id + DELETING_SUFFIX)
            with storage_errors(self._vm_directory):
                try:
                    path.rename(doomed)
                    sync(self._vm_directory)
                except BaseException:
                    entry.pass_to(VmEvent.DELETE_FAILED)
                    raise
                with self._entries_lock:
                    del self._entries[vm_id]
                shutil.rmtree(doomed)
                self._run(vm_id).remove()

    def _bundle(self, vm_id: str) -> Bundle:
        return Bundle(self._vm_directory / vm_id)

    def _run(self, vm_id: str) -> RunDirectory:
        return RunDirectory(self._run_directory, vm_id)

    def _entry(self, vm_id: str) -> _Entry:
        require_vm_id(vm_id)
        with self._entries_lock:
            entry = self._entries.get(vm_id)
        if entry is None or entry.state is VmState.CREATING:
            raise VmNotFound(f"there is no VM {vm_id} on this host")
        return entry

    @contextlib.contextmanager
    def _operation(self, vm_id: str) -> Iterator[_Entry]:
        with self._entries_lock:
            known = self._entries.get(vm_id)
        if known is not None and known.state is VmState.CREATING:
            # Not "not found": whoever asks to delete it would take it for gone, and it will be there.
            raise OperationInProgress(f"VM {vm_id} is being made")
        entry = self._entry(vm_id)
        with entry.lock:
            if entry.operating:
                raise OperationInProgress(f"another operation on VM {vm_id} has not ended")
            self._entry(vm_id)  # it may have been deleted just before
            self._refresh(entry)
            entry.operating = True
        try:
            yield entry
        finally:
            entry.operating = False

    def _refresh(self, entry: _Entry) -> None:
        """See whether a VM that ran still runs, and whether QEMU holds it. The caller has the entry to itself."""
        record = entry.record
        if record is None or record.qemu is None:
            return
        if not record.qemu.running:
            end_vtpm(record)
            self._run(entry.vm_id).clean()
            reap_ended()
            entry.record = None
            entry.pass_to(VmEvent.DIED)
            return
        status = monitor_status(self._run(entry.vm_id))
        if status in _HALTED and entry.state is VmState.ON:
            entry.pass_to(VmEvent.PAUSED)
        elif status == "running" and entry.state is VmState.PAUSED:
            entry.pass_to(VmEvent.RESUMED)

    def _show(self, entry: _Entry) -> Vm:
        record = entry.record
        pid = record.qemu.pid if record and record.qemu else 0
        path = str(self._vm_directory / entry.vm_id)
        return Vm(entry.vm_id, entry.name, entry.state, entry.provider, path, pid)

    def _read_entry(self, vm_id: str) -> _Entry:
        try:
            manifest = self._bundle(vm_id).read_manifest(vm_id)
        except BundleError:
            return _Entry(vm_id, VmState.FAILED)
        return _Entry(vm_id, VmState.OFF, manifest.home_key.provider if manifest.home_key else "")


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise VmDirectoryInUse(f"another host agent serves {path.parent}: stop it, or use another directory") from exc
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
