"""Files that are there whole, and stay, or are not there at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from host_agent.errors import DiskFull, StorageError

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn what the file system raises into this component's errors.

    Raises:
        DiskFull: There is no room.
        StorageError: Anything else.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise DiskFull(f"the disk at {directory} is full: {exc.strerror}") from exc
        raise StorageError(f"the file system at {directory} refuses: {exc}") from exc


def write_durably(path: Path, content: bytes) -> None:
    """Put ``content`` in place of the file, mode 0600: written beside it, synchronised, renamed.

    Raises:
        OSError: As the file system gives it; what was there stays, and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's or directory's content durable.

    Raises:
        OSError: As the file system gives it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
