"""What an agent does when it starts: clear away what its predecessor left half done, find what still runs.

Nothing here needs a key. A VM that runs is never touched.
"""

import shutil
from pathlib import Path
from typing import Final

from host_agent.errors import QemuError
from host_agent.vm.creation import CREATING_SUFFIX
from host_agent.vm.model import is_vm_id
from host_agent.vm.power import end_vtpm
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


def find_running(run: RunDirectory) -> RunRecord | None:
    """The processes of a VM that runs; else what is left of it is cleared away (its console stays readable).

    Raises:
        OSError: As the file system gives it.
    """
    if not run.path.is_dir():
        return None
    record = run.read_record()
    if record and record.qemu and record.qemu.running:
        if monitor_status(run) != _NEVER_RAN:
            return record
        record.qemu.kill()  # the agent died while starting it
    if record:
        end_vtpm(record)
    run.clean()
    return None


def monitor_status(run: RunDirectory) -> str:
    """What QEMU says of itself (QEMU ``qapi/run-state.json``); empty if it says nothing in time."""
    try:
        with QmpClient(run.qmp_socket, timeout_seconds=_ASK_SECONDS) as monitor:
            answer = monitor.execute("query-status")
    except QemuError:
        return ""
    return str(answer.get("status", "")) if isinstance(answer, dict) else ""
