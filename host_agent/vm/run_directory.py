"""What lies in a VM's run directory while it runs: all that a restarted agent needs, and no key.

``RUN/ID/`` (mode 0700): ``run.json`` (which processes), ``qmp.sock`` and ``serial.sock`` (inherited by QEMU as
listening sockets), ``console.log`` (kept until the next power-on), ``qemu.log``, ``vtpm.log``.
It belongs on a tmpfs such as ``/run``: the console may show what the guest's disk holds.
"""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from host_agent.errors import QemuError
from host_agent.vm.durable import write_durably
from host_agent.vm.process_identity import ProcessIdentity, boot_id

_MOST_RECORD: Final = 1 << 16
_BACKLOG: Final = 8
_MOST_CONSOLE_READ: Final = 64 << 10
_LAST_WORDS: Final = 400


class _Process(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    pid: Annotated[int, Field(ge=1)]
    start_time: Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Literal["garant-vm-run"] = "garant-vm-run"
    version: Literal[1] = 1
    vm_id: str
    boot_id: str
    qemu: _Process | None
    vtpm: _Process | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Which processes a VM is."""

    qemu: ProcessIdentity | None
    """None while only the vTPM was started."""
    vtpm: ProcessIdentity | None
    """None: it has none."""


class RunDirectory:
    """The run directory of one VM."""

    def __init__(self, parent: Path, vm_id: str) -> None:
        self._vm_id = vm_id
        self.path = parent / vm_id
        """The directory."""
        self.qmp_socket = self.path / "qmp.sock"
        """The monitor's socket."""
        self.serial_socket = self.path / "serial.sock"
        """The serial console's socket."""
        self.console_log = self.path / "console.log"
        """What the guest wrote to its serial console since its last power-on."""
        self.qemu_log = self.path / "qemu.log"
        """What QEMU wrote to its standard error."""
        self.vtpm_log = self.path / "vtpm.log"
        """Log of swtpm."""
        self._record = self.path / "run.json"

    def prepare(self) -> None:
        """Make the directory, empty.

        Raises:
            OSError: As the file system gives it.
        """
        self.remove()
        self.path.mkdir(mode=0o700)

    def listen(self, path: Path) -> socket.socket:
        """Make a listening socket in the directory, for QEMU to inherit; reachable by this user only.

        Raises:
            OSError: As the system gives it.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Linux gives the socket's file the mode of the descriptor, less the umask.
            os.fchmod(listener.fileno(), 0o600)
            # Through the directory's descriptor: a socket's path is limited to 107 bytes, a directory's is not.
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(directory)
        return listener

    def write_record(self, record: RunRecord) -> None:
        """Keep which processes the VM is, for an agent that comes later.

        Raises:
            OSError: As the file system gives it.
        """
        document = _Record(
            vm_id=self._vm_id, boot_id=boot_id(), qemu=_to_document(record.qemu), vtpm=_to_document(record.vtpm)
        )
        write_durably(self._record, document.model_dump_json().encode())

    def read_record(self) -> RunRecord | None:
        """Which processes the VM is; None if there is no record, or one of another boot or VM, or a damaged one."""
        try:
            with self._record.open("rb") as file:
                document = _Record.model_validate_json(file.read(_MOST_RECORD))
        except (OSError, ValidationError):
            return None
        if document.boot_id != boot_id() or document.vm_id != self._vm_id:
            return None
        return RunRecord(_from_document(document.qemu), _from_document(document.vtpm))

    def clean(self) -> None:
        """Remove what belongs to a running VM; the logs stay, to be read."""
        for path in (self._record, self.qmp_socket, self.serial_socket):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory.

        Raises:
            OSError: As the file system gives it.
        """
        if self.path.is_dir():
            shutil.rmtree(self.path)

    def read_console(self, offset: int) -> tuple[bytes, int]:
        """Read what the guest wrote from an offset on, at most 64 KiB, and where to go on.

        Raises:
            QemuError: The log cannot be read.
        """
        try:
            with self.console_log.open("rb") as file:
                if offset > os.fstat(file.fileno()).st_size:
                    return b"", offset
                file.seek(offset)
                output = file.read(_MOST_CONSOLE_READ)
        except FileNotFoundError:
            return b"", offset
        except OSError as exc:
            raise QemuError(f"the console of VM {self._vm_id} cannot be read: {exc}") from exc
        return output, offset + len(output)

    def last_words(self) -> str:
        """What QEMU wrote last to its standard error, in one line."""
        try:
            text = self.qemu_log.read_text(errors="replace")
        except OSError:
            text = ""
        return " ".join(text.split())[-_LAST_WORDS:] or "it wrote nothing"


def _to_document(process: ProcessIdentity | None) -> _Process | None:
    return _Process(pid=process.pid, start_time=process.start_time) if process else None


def _from_document(process: _Process | None) -> ProcessIdentity | None:
    return ProcessIdentity(process.pid, process.start_time) if process else None
