"""Power a VM on and off: open its bundle, start vTPM and QEMU, hand the keys over, let the guest run.

Nothing of a VM is started before every part of it was checked; and if a part then fails to come up, the others go.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host_agent.errors import QemuError, VtpmError
from host_agent.vm.bundle import Bundle
from host_agent.vm.bundle_format import Home
from host_agent.vm.disk import check_disk
from host_agent.vm.durable import storage_errors
from host_agent.vm.image_directories import ImageDirectories
from host_agent.vm.keys import (
    DISK_LABEL,
    NVRAM_LABEL,
    VTPM_LABEL,
    KeySource,
    luks_passphrase,
    open_component_key,
)
from host_agent.vm.model import VTPM, disk_component
from host_agent.vm.process_identity import ProcessIdentity
from host_agent.vm.qemu.argv import Accelerator, DiskPlan, MachinePlan, machine_arguments, secret_id
from host_agent.vm.qemu.process import reap, spawn_qemu
from host_agent.vm.qemu.qmp import QmpClient
from host_agent.vm.qemu.tools import Firmware, check_versions
from host_agent.vm.run_directory import RunDirectory, RunRecord
from host_agent.vm.secret_pipe import secret_pipe
from keyprovider.envelope import derive_key
from keyprovider.keymaterial import SecretKey
from swtpm.errors import SwtpmError
from swtpm.process import VtpmProcess, check_state, start_vtpm

_START_SECONDS: Final = 30.0
_ASK_SECONDS: Final = 5.0
_END_SECONDS: Final = 10.0
_NVRAM: Final = "nvram"

# vTPMs that this process started: kept so that they are reaped once they end.
_vtpms: list[VtpmProcess] = []
_vtpms_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Started:
    """A VM that runs."""

    name: str
    record: RunRecord


@dataclass(frozen=True, slots=True)
class _GuestFile:
    """A file of the VM and what opens it."""

    name: str
    path: Path
    passphrase: SecretKey | None


def start_vm(
    vm_id: str,
    bundle: Bundle,
    keys: KeySource | None,
    run: RunDirectory,
    *,
    accelerator: Accelerator,
    firmware: Firmware,
    directories: ImageDirectories,
) -> Started:
    """Start a VM.

    Raises:
        ToolUnavailable: QEMU, its firmware or swtpm is missing or too old.
        BundleError: As ``Bundle.open``.
        DiskError: As ``check_disk``, for the NVRAM and each disk.
        ImageRefused: The kernel or initial RAM disk is gone, or not in one of the image directories.
        VtpmError: The vTPM did not start, or its state is damaged or not this VM's.
        QemuError: QEMU did not come up; the message holds its last words.
        StorageError: The file system refuses.
        Exception: What the key source raises.
    """
    check_versions(firmware)
    with ExitStack() as secrets, storage_errors(run.path.parent):
        opened = bundle.open(vm_id, keys)
        if opened.dek:
            secrets.enter_context(opened.dek)
        home = opened.home
        files = _open_files(bundle, opened.home, opened.dek, keys, secrets)
        vtpm_key = _open_vtpm(bundle, home, keys, secrets)
        for path in filter(None, (home.kernel_path, home.initrd_path)):
            directories.require_file(path)
        run.prepare()
        vtpm = _start_vtpm(bundle, vtpm_key, run) if vtpm_key else None
        try:
            identity = ProcessIdentity(vtpm.pid, vtpm.start_time) if vtpm else None
            run.write_record(RunRecord(None, identity))
            qemu = _spawn(home, files, vtpm, run, accelerator, firmware)
            record = RunRecord(qemu, identity)
            try:
                run.write_record(record)
                _let_run(run, files)
            except BaseException:
                qemu.kill()
                raise
        except BaseException:
            if vtpm:
                vtpm.kill()
            run.clean()
            reap_ended()
            raise
        return Started(home.name, record)


def stop_vm(run: RunDirectory, record: RunRecord, grace_seconds: float) -> None:
    """Stop a VM: ask the guest, then QEMU, then the kernel.

    Args:
        run: Its run directory.
        record: Its processes.
        grace_seconds: How long the guest may take to shut down; 0: it is not asked.

    Raises:
        QemuError: QEMU does not end even when killed.
    """
    qemu = record.qemu
    if qemu and not (grace_seconds > 0 and _ask(run, "system_powerdown") and qemu.wait(grace_seconds)):
        _ask(run, "quit")
        if not qemu.wait(_END_SECONDS) and not qemu.kill():
            raise QemuError(f"QEMU (process {qemu.pid}) does not end")
    end_vtpm(record)
    run.clean()
    reap_ended()


def end_vtpm(record: RunRecord) -> None:
    """See the vTPM of a VM end, as it does by itself when QEMU has ended; killed if it does not."""
    if record.vtpm and not record.vtpm.wait(_END_SECONDS if record.qemu else 0):
        record.vtpm.kill()


def reap_ended() -> None:
    """Wait for those QEMUs and vTPMs of this process that have ended, so that no corpse stays."""
    reap()
    with _vtpms_lock:
        _vtpms[:] = [vtpm for vtpm in _vtpms if vtpm.running]


def _ask(run: RunDirectory, command: str) -> bool:
    try:
        with QmpClient(run.qmp_socket, timeout_seconds=_ASK_SECONDS) as monitor:
            monitor.execute(command)
    except QemuError:
        # Dead, hung, or the monitor is taken: what comes next does not need it.
        return False
    return True


def _open_files(
    bundle: Bundle, home: Home, home_dek: SecretKey | None, keys: KeySource | None, secrets: ExitStack
) -> tuple[_GuestFile, ...]:
    """The NVRAM, then each disk, checked to open with its passphrase."""
    nvram_passphrase = secrets.enter_context(luks_passphrase(home_dek, NVRAM_LABEL)) if home_dek else None
    files = [_GuestFile(_NVRAM, bundle.nvram, nvram_passphrase)]
    for number, disk in enumerate(home.disks):
        passphrase = None
        if disk.key and keys:
            with open_component_key(keys, disk.key, home.vm_id, disk_component(disk.name)) as dek:
                passphrase = secrets.enter_context(luks_passphrase(dek, DISK_LABEL))
        files.append(_GuestFile(f"disk{number}-{disk.name}", bundle.disk(disk), passphrase))
    for file in files:
        check_disk(file.path, file.passphrase)
    return tuple(files)


def _open_vtpm(bundle: Bundle, home: Home, keys: KeySource | None, secrets: ExitStack) -> SecretKey | None:
    if home.vtpm_key is None or keys is None:
        return None
    with open_component_key(keys, home.vtpm_key, home.vm_id, VTPM) as dek:
        key = secrets.enter_context(derive_key(dek, VTPM_LABEL))
    try:
        check_state(bundle.vtpm, key.view())
    except SwtpmError as exc:
        raise VtpmError(f"the state of the virtual TPM is not to be used: {exc}") from exc
    return key


def _start_vtpm(bundle: Bundle, key: SecretKey, run: RunDirectory) -> VtpmProcess:
    try:
        vtpm = start_vtpm(bundle.vtpm, key=key.view(), log_path=run.vtpm_log)
    except SwtpmError as exc:
        raise VtpmError(f"the virtual TPM does not start: {exc}") from exc
    with _vtpms_lock:
        _vtpms.append(vtpm)
    return vtpm


def _spawn(
    home: Home,
    files: Sequence[_GuestFile],
    vtpm: VtpmProcess | None,
    run: RunDirectory,
    accelerator: Accelerator,
    firmware: Firmware,
) -> ProcessIdentity:
    with ExitStack() as inherited:
        monitor = inherited.enter_context(run.listen(run.qmp_socket))
        serial = inherited.enter_context(run.listen(run.serial_socket))
        plans = [_disk_plan(file, inherited) for file in files]
        plan = MachinePlan(
            vm_id=home.vm_id,
            cpus=home.cpus,
            memory_mib=home.memory_mib,
            accelerator=accelerator,
            firmware_code=firmware.code,
            nvram=plans[0],
            disks=tuple(plans[1:]),
            qmp_fd=monitor.fileno(),
            serial_fd=serial.fileno(),
            console_log=run.console_log,
            vtpm_fd=vtpm.qemu_fd if vtpm else None,
            kernel_path=home.kernel_path,
            initrd_path=home.initrd_path,
            kernel_command_line=home.kernel_command_line,
        )
        # QEMU makes the log with the umask's mode; made here it is this user's alone.
        run.console_log.touch(mode=0o600)
        descriptors = [plan.qmp_fd, plan.serial_fd, plan.vtpm_fd, *(each.secret_fd for each in plans)]
        passed = [descriptor for descriptor in descriptors if descriptor is not None]
        identity = spawn_qemu(machine_arguments(plan), pass_fds=passed, log_path=run.qemu_log)
    if vtpm:
        vtpm.close_qemu_fd()
    return identity


def _disk_plan(file: _GuestFile, inherited: ExitStack) -> DiskPlan:
    descriptor = None if file.passphrase is None else inherited.enter_context(secret_pipe(file.passphrase))
    return DiskPlan(file.name, file.path, descriptor)


def _let_run(run: RunDirectory, files: Sequence[_GuestFile]) -> None:
    """Wait for QEMU, take the passphrases out of it again, start the guest."""
    try:
        with QmpClient(run.qmp_socket, timeout_seconds=_START_SECONDS) as monitor:
            for file in files:
                if file.passphrase is not None:
                    monitor.execute("object-del", {"id": secret_id(file.name)})
            monitor.execute("cont")
    except QemuError as exc:
        raise QemuError(f"QEMU did not come up: {run.last_words()} ({exc})") from exc
