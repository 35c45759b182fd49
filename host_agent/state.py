"""The state directory: a few small files, mode 0600, in a directory of mode 0700, for one agent at a time.

Writes are write-fsync-rename: a crash leaves the old file or the new one. Nothing that attested keys are sealed to is
ever kept here.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from host_agent.errors import StateDamaged
from serving.errors import ConfigError

_LOCK = "lock"
_MAX_BYTES = 1024 * 1024


def private_directory(path: Path) -> Path:
    """Make a directory of mode 0700, or check that it is one and ours.

    Raises:
        ConfigError: It cannot be made, is another's, or is open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as exc:
        raise ConfigError(f"cannot make the directory {path}: {exc.strerror}") from exc
    if found.st_uid != os.geteuid():
        raise ConfigError(f"the directory {path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"the directory {path} is open to others; run: chmod 700 {path}")
    return path


class StateDirectory:
    """``host_agent.ports.StateStore`` in a directory, locked while open."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, which is made where missing.

        Raises:
            ConfigError: It cannot be used, or another agent uses it.
        """
        self._path = private_directory(path)
        try:
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"cannot open {path / _LOCK}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise ConfigError(f"another host agent uses {path}; stop it first") from exc

    def close(self) -> None:
        """Let another agent have it."""
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def read(self, name: str) -> bytes | None:
        """See ``StateStore.read``."""
        path = self._path / name
        try:
            with path.open("rb") as source:
                content = source.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StateDamaged(f"cannot read {path}: {exc.strerror}") from exc
        if len(content) > _MAX_BYTES:
            raise StateDamaged(f"{path} has more than {_MAX_BYTES:,} bytes; this agent did not write it")
        return content

    def write(self, name: str, content: bytes) -> None:
        """See ``StateStore.write``."""
        path = self._path / name
        new = path.with_name(f".{name}.new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as target:
                target.write(content)
                target.flush()
                os.fsync(descriptor)
            new.rename(path)
            _sync_directory(self._path)
        except OSError as exc:
            raise StateDamaged(f"cannot write {path}: {exc.strerror}") from exc


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
