"""Start the swtpm program: version, command line, key by pipe, who outlives whom.

The state key goes through a pipe that swtpm reads once: it is in no argument, environment, file or log.
"""

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from swtpm.errors import ProcessError, SwtpmUnavailable
from swtpm.state import KEY_SIZE, Key

MINIMUM_VERSION = (0, 7, 0)
_INSTALL = "install the package swtpm (Debian: apt-get install swtpm)"
_VERSION = re.compile(r"TPM emulator version (\d+)\.(\d+)\.(\d+)")

# PR_SET_PDEATHSIG fires when the *thread* that started a child ends, so children that must not outlive this process
# are started from a thread that ends with it.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swtpm-starter")
# Children that are not waited for by anyone: kept so that they are reaped, and not reported as forgotten.
_outliving: list[subprocess.Popen[bytes]] = []


class Lifetime(Enum):
    """Whether a child goes on when the process that started it ends."""

    WITH_STARTER = "with-starter"
    OUTLIVES_STARTER = "outlives-starter"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Sockets that a child gets, already bound, listening or connected: there is no moment at which it is not ready."""

    control: socket.socket
    control_connected: bool
    """True for one end of a socket pair, False for a listening socket."""
    data: socket.socket | None = None
    """A listening socket for TPM commands; None when they come over SET_DATAFD."""


def swtpm_version() -> tuple[int, int, int]:
    """Ask the installed swtpm for its version.

    Raises:
        SwtpmUnavailable: Not installed, does not run, or older than ``MINIMUM_VERSION``; says what to install.
    """
    minimum = ".".join(map(str, MINIMUM_VERSION))
    try:
        finished = subprocess.run(
            ["swtpm", "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as exc:
        raise SwtpmUnavailable(f"swtpm is not installed: {_INSTALL}, {minimum} or later") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SwtpmUnavailable(f"swtpm does not run ({exc}): {_INSTALL}, {minimum} or later") from exc
    found = _VERSION.search(finished.stdout)
    if not found:
        raise SwtpmUnavailable(f"swtpm --version gave no version: {_INSTALL}, {minimum} or later")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < MINIMUM_VERSION:
        raise SwtpmUnavailable(f"swtpm {'.'.join(map(str, version))} is too old: {_INSTALL}, {minimum} or later")
    return version


def spawn(
    state_dir: Path,
    endpoint: Endpoint,
    *,
    key: Key | None,
    log_path: Path | None,
    lifetime: Lifetime,
    terminate: bool,
) -> "Spawned":
    """Start ``swtpm socket`` and return at once; whether it lives shows on its control channel.

    Args:
        state_dir: Existing directory of the state; swtpm makes a new TPM there if it finds none: callers check first.
        endpoint: Its sockets; the caller's copies stay open and are the caller's to close.
        key: 32 bytes of the state key, or None for a state in clear.
        log_path: File to append its log to, made with mode 0600; None keeps it for error messages only.
        lifetime: Whether it outlives this process. If so, it gets a session and process group of its own.
        terminate: End it when the control connection ends.

    Raises:
        SwtpmUnavailable: swtpm is not installed.
        ProcessError: It could not be started.
        ValueError: The key has not 32 bytes.
    """
    _reap()
    outlives = lifetime is Lifetime.OUTLIVES_STARTER
    log = _open_log(log_path)
    key_pipe = None
    try:
        control = endpoint.control.fileno()
        passed = [control, log.fileno()]
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state_dir.absolute()},mode=0600"]
        argv += ["--ctrl", f"type=unixio,{'clientfd' if endpoint.control_connected else 'fd'}={control}"]
        # swtpm closes stderr when it is told to log there: give it a descriptor of its own.
        argv += ["--log", f"fd={log.fileno()},level=1"]
        if endpoint.data is not None:
            argv += ["--server", f"type=unixio,fd={endpoint.data.fileno()}"]
            passed.append(endpoint.data.fileno())
        if terminate:
            argv.append("--terminate")
        if key is not None:
            key_pipe = _key_pipe(key)
            argv += ["--key", f"fd={key_pipe},mode=aes-256-cbc,format=binary"]
            passed.append(key_pipe)
        process = _starter.submit(_popen, argv, passed, log, outlives).result()
    except FileNotFoundError as exc:
        log.close()
        raise SwtpmUnavailable(f"swtpm is not installed: {_INSTALL}") from exc
    except OSError as exc:
        log.close()
        raise ProcessError(f"cannot start swtpm: {exc}") from exc
    except BaseException:
        log.close()
        raise
    finally:
        if key_pipe is not None:
            os.close(key_pipe)
    if outlives:
        _outliving.append(process)
    return Spawned(process, log)


class Spawned:
    """A started swtpm and the log it writes."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self._log = log
        self._log_start = os.fstat(log.fileno()).st_size

    def last_words(self) -> str:
        """Say what it logged, in one line of at most 300 characters."""
        written = os.pread(self._log.fileno(), 4096, self._log_start)
        return " ".join(written.decode(errors="replace").split())[:300] or "it logged nothing"

    def close_log(self) -> None:
        """Give up this process's copy of the log."""
        self._log.close()

    def kill(self) -> None:
        """End it without warning, reap it, close the log."""
        self.process.kill()
        self.process.wait()
        self._log.close()


def _popen(argv: Sequence[str], passed: Sequence[int], log: IO[bytes], outlives: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv if outlives else ["setpriv", "--pdeathsig", "KILL", *argv],
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=outlives,
        cwd="/",
    )


def _key_pipe(key: Key) -> int:
    if len(key) != KEY_SIZE:
        raise ValueError(f"the state key must have {KEY_SIZE} bytes, not {len(key)}")
    reader, writer = os.pipe()
    try:
        os.write(writer, key)
    finally:
        os.close(writer)
    return reader


def _open_log(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b", buffering=0)


def _reap() -> None:
    _outliving[:] = [process for process in _outliving if process.poll() is None]
