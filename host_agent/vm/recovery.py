"""What an agent does when it starts: clear away what its predecessor left half done, find what still runs.

Nothing here needs a key. A VM that runs is never touched.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from host_agent.errors import QemuError
from host_agent.vm.bundle import Bundle
from host_agent.vm.creation import CREATING_SUFFIX
from host_agent.vm.model import is_vm_id
from host_agent.vm.power import end_vtpm
from host_agent.vm.process_identity import ProcessIdentity
from host_agent.vm.qemu.argv import console_log_option
from host_agent.vm.qemu.qmp import QmpClient
from host_agent.vm.run_directory import RunDirectory, RunRecord

DELETING_SUFFIX: Final = ".deleting"
_ASK_SECONDS: Final = 2.0
_NEVER_RAN: Final = "prelaunch"
"""Run state between QEMU's start with ``-S`` and the first ``cont``."""


def sweep(vm_directory: Path, run_directory: Path) -> None:
    """Remove bundles that were being made or deleted when the agent died, and run directories of no VM.

    Raises:
        OSError: As the file system gives it.
    """
    for path in vm_directory.iterdir():
        stem, dot, suffix = path.name.partition(".")
        if is_vm_id(stem) and dot + suffix in (CREATING_SUFFIX, DELETING_SUFFIX):
            shutil.rmtree(path)
    for path in run_directory.iterdir():
        if not is_vm_id(path.name) or (vm_directory / path.name).exists():
            continue
        run = RunDirectory(run_directory, path.name)
        record = run.read_record()
        if not (record and record.qemu and record.qemu.running):
            run.remove()


def find_running(run: RunDirectory, bundle: Bundle) -> RunRecord | None:
    """The processes of a VM that runs; else what is left of it is cleared away (its console stays readable).

    Raises:
        OSError: As the file system gives it.
    """
    if not run.path.is_dir():
        return None
    record = run.read_record()
    if record is None or record.qemu is None:
        record = _search(run, bundle)
        if record.qemu:
            run.write_record(record)
    if record.qemu and record.qemu.running:
        if monitor_status(run) != _NEVER_RAN:
            return record
        record.qemu.kill()  # the agent died while starting it
    end_vtpm(record)
    run.clean()
    return None


def _search(run: RunDirectory, bundle: Bundle) -> RunRecord:
    """Find a VM's processes by their arguments: the agent died before it wrote them down, or the record was lost."""
    qemu = vtpm = None
    # As ``vm.qemu.argv`` and ``swtpm.spawn`` write them. By directories, which one agent serves, not by the VM's id.
    qemu_mark, vtpm_mark = console_log_option(run.console_log).encode(), f"dir={bundle.vtpm},".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if any(argument.endswith(qemu_mark) for argument in arguments):
            qemu = ProcessIdentity.of(int(process.name))
        elif any(argument.startswith(vtpm_mark) for argument in arguments):
            vtpm = ProcessIdentity.of(int(process.name))
    return RunRecord(qemu, vtpm)


def monitor_status(run: RunDirectory) -> str:
    """What QEMU says of itself (QEMU ``qapi/run-state.json``); empty if it says nothing in time."""
    try:
        with QmpClient(run.qmp_socket, timeout_seconds=_ASK_SECONDS) as monitor:
            answer = monitor.execute("query-status")
    except QemuError:
        return ""
    return str(answer.get("status", "")) if isinstance(answer, dict) else ""
