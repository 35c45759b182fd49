"""Software TPM devices as processes: a host's TPM on a socket, and a VM's vTPM for QEMU.

Neither ever makes a TPM by accident: swtpm silently manufactures a new one, with other endorsement keys, where its
state file is missing, so the state is checked before the process is started.
"""

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from swtpm.control import ControlChannel
from swtpm.errors import ControlError, ProcessError, StateError, StateReason, SwtpmError
from swtpm.spawn import Endpoint, Lifetime, Spawned, spawn, swtpm_version
from swtpm.state import MAX_STATE_SIZE, STATE_FILE, Key, parse_clear_state, verify_state

__all__ = [
    "SHUTDOWN_CLEAR",
    "STARTUP_CLEAR",
    "SoftwareTpm",
    "VtpmProcess",
    "check_state",
    "process_start_time",
    "start_vtpm",
    "swtpm_version",
    "transact",
]

# TPM2_Startup(CLEAR) and TPM2_Shutdown(CLEAR): TPM 2.0 Part 3, 9.3 and 9.4.
STARTUP_CLEAR = bytes.fromhex("8001 0000000c 00000144 0000")
SHUTDOWN_CLEAR = bytes.fromhex("8001 0000000c 00000145 0000")
_RESPONSE_HEADER = 10
_TIMEOUT_SECONDS = 10.0
_LONGEST_SOCKET_PATH = 107
"""sockaddr_un.sun_path without its final zero (unix(7))."""


def check_state(state_dir: Path, key: Key | None) -> None:
    """Check that a directory holds the whole state of a TPM, and that it is this key's.

    Raises:
        StateError: MISSING; else as ``verify_state``, or as ``parse_clear_state`` when ``key`` is None.
    """
    path = state_dir / STATE_FILE
    try:
        with path.open("rb") as file:
            blob = file.read(MAX_STATE_SIZE + 1)
    except FileNotFoundError as exc:
        raise StateError(StateReason.MISSING, f"there is no TPM state at {path}") from exc
    try:
        if key is None:
            parse_clear_state(blob)
        else:
            verify_state(blob, key)
    except StateError as exc:
        raise StateError(exc.reason, f"{path}: {str(exc).removeprefix(f'{exc.reason}: ')}") from exc


def process_start_time(pid: int) -> int:
    """Read when a process started, in clock ticks since boot; with the pid it names one process for ever.

    Raises:
        ProcessError: There is no such process.

    Source: proc_pid_stat(5), field 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise ProcessError(f"there is no process {pid}") from exc
    # Field 2, the program's name, may hold blanks and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


class SoftwareTpm:
    """A software TPM served on a Unix socket, powered on and started up as firmware would leave it."""

    def __init__(self, spawned: Spawned, socket_path: Path) -> None:
        """Use ``start``."""
        self._spawned = spawned
        self._socket_path = socket_path

    @classmethod
    def start(
        cls,
        state_dir: Path,
        socket_path: Path,
        *,
        key: Key | None = None,
        log_path: Path | None = None,
        new: bool = False,
        outlive_starter: bool = False,
    ) -> Self:
        """Start a TPM on its state.

        Args:
            state_dir: Where its state lies.
            socket_path: Socket for TPM commands; the control channel is beside it, with ``.ctrl`` appended. Both are
                accessible to this user only.
            key: 32 bytes of the state key; None for a state in clear.
            log_path: File to append swtpm's log to.
            new: Make an empty TPM, with no endorsement certificates; the directory must hold none.
            outlive_starter: Go on when this process ends. By default it is killed then.

        Raises:
            SwtpmUnavailable: swtpm is not installed.
            StateError: As ``check_state``; ALREADY_EXISTS for a new TPM where one is.
            ProcessError: The socket is in use or its path too long, or swtpm failed: the message holds its log.
        """
        if not new:
            check_state(state_dir, key)
        elif (state_dir / STATE_FILE).exists():
            raise StateError(StateReason.ALREADY_EXISTS, f"{state_dir} already holds a TPM")
        lifetime = Lifetime.OUTLIVES_STARTER if outlive_starter else Lifetime.WITH_STARTER
        # TCTI "swtpm" of tpm2-tss finds the control channel by this suffix.
        with contextlib.closing(_listen(_control_path(socket_path))) as control:
            try:
                with contextlib.closing(_listen(socket_path)) as data:
                    endpoint = Endpoint(control, control_connected=False, data=data)
                    spawned = spawn(state_dir, endpoint, key=key, log_path=log_path, lifetime=lifetime, terminate=False)
            except BaseException:
                _control_path(socket_path).unlink(missing_ok=True)
                socket_path.unlink(missing_ok=True)
                raise
        tpm = cls(spawned, socket_path)
        try:
            tpm._power_on()
        except BaseException as exc:
            words = spawned.last_words()
            tpm.kill()
            if isinstance(exc, SwtpmError):
                raise ProcessError(f"swtpm did not start on {state_dir}: {exc}; {words}") from exc
            raise
        return tpm

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def tcti(self) -> str:
        """Where tpm2-tss finds this TPM."""
        return f"swtpm:path={self._socket_path}"

    @property
    def pid(self) -> int:
        """Process id of swtpm."""
        return self._spawned.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._spawned.process.poll() is None

    def reset(self, *, orderly: bool = True) -> None:
        """Cycle its power: PCRs return to zero, resetCount grows by one.

        Args:
            orderly: Send TPM2_Shutdown before, as an operating system does; without it, the TPM's clock counts as
                unsafe for some seconds after.

        Raises:
            ProcessError: The TPM does not answer, or refused.
        """
        try:
            if orderly:
                self._transact(SHUTDOWN_CLEAR)
            self._power_on()
        except ControlError as exc:
            raise ProcessError(f"cannot reset the TPM: {exc}") from exc

    def stop(self) -> None:
        """Shut the TPM down and end its process; one that does not follow is killed. Does nothing when it ended."""
        if self.running:
            with contextlib.suppress(SwtpmError):
                self._transact(SHUTDOWN_CLEAR)
                with ControlChannel.connect(_control_path(self._socket_path), _TIMEOUT_SECONDS) as control:
                    control.shutdown()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._spawned.process.wait(_TIMEOUT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process as a power cut would, and remove its sockets."""
        self._spawned.kill()
        self._socket_path.unlink(missing_ok=True)
        _control_path(self._socket_path).unlink(missing_ok=True)

    def _power_on(self) -> None:
        with ControlChannel.connect(_control_path(self._socket_path), _TIMEOUT_SECONDS) as control:
            control.init()
        self._transact(STARTUP_CLEAR)

    def _transact(self, command: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_SECONDS)
            try:
                connection.connect(str(self._socket_path))
            except OSError as exc:
                raise ProcessError(f"the TPM does not answer: {exc}") from exc
            transact(connection, command)


def transact(connection: socket.socket, command: bytes) -> None:
    """Send a TPM command whose response is a bare header, and require success.

    Raises:
        ProcessError: No answer, or a response code that is not 0.
    """
    try:
        connection.sendall(command)
        response = connection.recv(_RESPONSE_HEADER)
    except OSError as exc:
        raise ProcessError(f"the TPM does not answer: {exc}") from exc
    if len(response) != _RESPONSE_HEADER:
        raise ProcessError("the TPM closed the connection")
    code = int.from_bytes(response[6:10], "big")
    if code:
        raise ProcessError(f"the TPM answered {code:#x} to command {command[6:10].hex()}")


class VtpmProcess:
    """A vTPM that waits for QEMU.

    It ends when QEMU's data connection ends (swtpm 0.7 does not end with the control connection alone): a caller whose
    QEMU never came up must ``kill`` it.
    """

    def __init__(self, spawned: Spawned, control: socket.socket) -> None:
        """Use ``start_vtpm``."""
        self._process = spawned.process
        self._control = control
        self.pid = spawned.process.pid
        """Process id of swtpm."""
        self.start_time = process_start_time(self.pid)
        """As ``process_start_time``: with the pid, enough to find this process again after a restart."""

    @property
    def qemu_fd(self) -> int:
        """Descriptor for QEMU's ``-chardev socket,fd=``; call ``close_qemu_fd`` once QEMU has inherited it."""
        return self._control.fileno()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def close_qemu_fd(self) -> None:
        """Close this process's copy."""
        self._control.close()

    def wait(self, timeout_seconds: float) -> None:
        """Wait until the vTPM has ended.

        Raises:
            ProcessError: It has not, within the time.
        """
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as exc:
            raise ProcessError(f"vTPM {self.pid} still runs after {timeout_seconds} s") from exc

    def kill(self) -> None:
        """End it without warning."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def start_vtpm(state_dir: Path, *, key: Key, log_path: Path) -> VtpmProcess:
    """Start a vTPM for QEMU's ``-tpmdev emulator``, in a process group of its own.

    QEMU powers it on. It outlives this process, and ends with QEMU.

    Args:
        state_dir: Where its state lies, encrypted.
        key: 32 bytes of the state key.
        log_path: File to append swtpm's log to.

    Raises:
        SwtpmUnavailable: swtpm is not installed.
        StateError: As ``check_state``: there is never a silently new vTPM.
        ProcessError: swtpm failed: the message holds its log.
    """
    check_state(state_dir, key)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            spawned = spawn(
                state_dir,
                Endpoint(theirs, control_connected=True),
                key=key,
                log_path=log_path,
                lifetime=Lifetime.OUTLIVES_STARTER,
                terminate=True,
            )
        control = ControlChannel(ours, _TIMEOUT_SECONDS)
        try:
            control.capabilities()
        except ControlError as exc:
            words = spawned.last_words()
            spawned.kill()
            raise ProcessError(f"swtpm did not start on {state_dir}: {exc}; {words}") from exc
        spawned.close_log()
        return VtpmProcess(spawned, control.detach())
    except BaseException:
        ours.close()
        raise


def _control_path(socket_path: Path) -> Path:
    return socket_path.with_name(socket_path.name + ".ctrl")


def _listen(path: Path) -> socket.socket:
    """Bind a socket that only this user can reach; one that nobody serves any more is replaced."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ProcessError(f"the socket path has more than {_LONGEST_SOCKET_PATH} bytes: {path}")
    if _is_served(path):
        raise ProcessError(f"another process serves {path}")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux a socket file gets the mode of the descriptor, less the umask: no moment with wider access.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(16)
    except OSError as exc:
        listener.close()
        raise ProcessError(f"cannot listen on {path}: {exc}") from exc
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return path.exists()
        return True
