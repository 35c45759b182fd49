"""Files that are there whole, and stay, or are not there at all."""

import os
from pathlib import Path


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
