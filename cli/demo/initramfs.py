"""Write an initial RAM disk: a gzip-compressed cpio archive in the "newc" format.

The same entries give the same bytes: entries are sorted, owned by root and dated 0, so that the hash that a boot
measures changes only with the content.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import gzip
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One regular file of the archive."""

    content: bytes
    executable: bool = False


def write_initramfs(entries: Mapping[str, Entry]) -> bytes:
    """Archive ``entries``, by path without leading slash; their directories are made.

    The kernel unpacks this over its built-in archive, which already has /dev/console.
    """
    directories = {str(parent) for path in entries for parent in PurePosixPath(path).parents} - {"."}
    archive = bytearray()
    for number, path in enumerate(sorted(directories | entries.keys()), start=1):
        entry = entries.get(path)
        if entry is None:
            archive += _record(number, path, stat.S_IFDIR | 0o755, b"")
        else:
            archive += _record(number, path, stat.S_IFREG | (0o755 if entry.executable else 0o644), entry.content)
    archive += _record(0, _TRAILER, 0, b"")
    return gzip.compress(bytes(archive), compresslevel=6, mtime=0)


def _record(inode: int, path: str, mode: int, content: bytes) -> bytes:
    """One archive member: header, name and content, the last two padded to 4 bytes."""
    name = path.encode() + b"\0"
    # Inode, mode, uid, gid, links, mtime, size, device (major, minor), special device (same), name size, checksum.
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
