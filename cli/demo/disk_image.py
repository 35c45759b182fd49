"""The disk image that the demo encrypts: one made on the spot, or the user's.

The user's image is only read, through qemu-img, whose locks refuse an image that is in use. What is read lies in
memory, never in a file.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.demo.errors import ImageRejected

DEFAULT_IMAGE_SIZE = 64 << 20
MARKER_FILE = "marker.txt"
MARKER_FILE_SIZE = 4 << 20
MIN_MARKER_SIZE = 32
HASHED_SIZE = 1 << 30
"""As much of the user's disk as is hashed: a guest without hardware virtualisation reads 20 MiB/s."""
WINDOW_SIZE = 64
WINDOW_COUNT = 3
_WINDOW_MIN_DISTINCT = 16
"""Distinct byte values that make a window unlike any padding, so that finding it elsewhere means something."""
_WINDOW_STEP = 16
_PIECE = 1 << 20
_MAX_PIECES = 256
_READ_SIZE = 64 << 20
_SECTOR = 512
_FORMATS = ("qcow2", "raw")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
_COMMAND_SECONDS = 300


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk image, and what is known of its content before it is encrypted."""

    path: Path
    size_bytes: int
    """Of the virtual disk."""
    check: str
    """What the guest is to hash: ``file:/PATH`` or ``device:BYTES``."""
    sha256: str
    """What that hash must be, as 64 hexadecimal digits."""
    markers: tuple[bytes, ...]
    """Pieces of the content that may be found nowhere once it is encrypted."""


def make_default_image(path: Path, marker: bytes) -> DiskImage:
    """Make a raw image with an ext4 file system that holds one file: ``marker``, again and again.

    Args:
        path: Must not exist. Neither root nor a loop device is needed.
        marker: At least 32 bytes, random enough to be nowhere else.

    Raises:
        ImageRejected: It cannot be made there.
        ValueError: The marker is shorter.
    """
    if len(marker) < MIN_MARKER_SIZE:
        raise ValueError(f"a marker has at least {MIN_MARKER_SIZE} bytes")
    content = marker * (MARKER_FILE_SIZE // len(marker))
    with tempfile.TemporaryDirectory(prefix=".image-", dir=path.parent) as directory:
        (Path(directory) / MARKER_FILE).write_bytes(content)
        size = f"{DEFAULT_IMAGE_SIZE >> 10}k"
        _run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", directory, str(path), size], subject=path)
    sha256 = hashlib.sha256(content).hexdigest()
    return DiskImage(path, DEFAULT_IMAGE_SIZE, f"file:/{MARKER_FILE}", sha256, (marker,))


def examine_user_image(path: Path, randomness: random.Random) -> DiskImage:
    """Hash the first GiB of the virtual disk (all of it if smaller) and choose three windows of it as markers.

    Args:
        path: A raw or qcow2 image; not written to, not locked for longer than a read.
        randomness: Chooses the windows.

    Raises:
        ImageRejected: It does not exist, is not an image or not one of these formats, depends on other files, is
            encrypted, is in use, or holds too little data to look for.
    """
    path = path.absolute()
    image_format, size = _identify(path)
    hashed = min(size, HASHED_SIZE)
    digest = hashlib.sha256()
    for offset in range(0, hashed, _READ_SIZE):
        digest.update(_read(path, image_format, offset, min(_READ_SIZE, hashed - offset)))
    markers = _choose_windows(path, image_format, size, randomness)
    return DiskImage(path, size, f"device:{hashed}", digest.hexdigest(), markers)


def _identify(path: Path) -> tuple[str, int]:
    """Format and virtual size of an image that stands on its own."""
    if not path.exists():
        raise ImageRejected(f"{path} does not exist: name a disk image, qcow2 or raw")
    if not path.is_file():
        raise ImageRejected(f"{path} is not a file: name a disk image, qcow2 or raw")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as exc:
        raise ImageRejected(f"{path} cannot be read: {exc.strerror}") from exc
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ImageRejected(f"{path} is compressed with {name}: unpack it first")
    info: dict[str, Any] = json.loads(_run(["qemu-img", "info", "--output=json", str(path)], subject=path))
    image_format, size = str(info["format"]), int(info["virtual-size"])
    if image_format not in _FORMATS:
        raise ImageRejected(f"{path} is of format {image_format}: convert it with qemu-img convert -O qcow2")
    if size == 0 or (image_format == "raw" and path.stat().st_size % _SECTOR):
        raise ImageRejected(f"{path} is not a disk image: its size is not a multiple of {_SECTOR} bytes or is 0")
    specific = info.get("format-specific", {}).get("data", {})
    if "backing-filename" in info or "data-file" in specific:
        raise ImageRejected(f"{path} needs another file: make one image of them with qemu-img convert -O qcow2")
    if info.get("encrypted"):
        raise ImageRejected(f"{path} is encrypted already: decrypt it with qemu-img convert")
    return image_format, size


def _choose_windows(path: Path, image_format: str, size: int, randomness: random.Random) -> tuple[bytes, ...]:
    """Random windows of content, from different parts of the disk where there are enough."""
    arguments = ["qemu-img", "map", "--output=json", "-f", image_format, str(path)]
    extents = json.loads(_run(arguments, subject=path))
    used = [(extent["start"], extent["length"]) for extent in extents if extent["data"] and not extent["zero"]]
    pieces = list(_pieces(used, size))
    randomness.shuffle(pieces)
    chosen: list[bytes] = []
    spare: list[bytes] = []
    for offset, length in pieces[:_MAX_PIECES]:
        windows = _rich_windows(_read(path, image_format, offset, length))
        if windows:
            chosen.append(windows.pop(randomness.randrange(len(windows))))
            spare += windows
        if len(set(chosen)) >= WINDOW_COUNT:
            break
    randomness.shuffle(spare)
    distinct = tuple(dict.fromkeys([*chosen, *spare]))[:WINDOW_COUNT]
    if len(distinct) < WINDOW_COUNT:
        raise ImageRejected(f"{path} holds too little data for a proof that none of it is left in clear")
    return distinct


def _pieces(extents: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Cut extents into pieces of whole sectors, as offset and length."""
    for start, length in extents:
        end = min(start + length, size - size % _SECTOR)
        for offset in range(start - start % _SECTOR, end, _PIECE):
            yield offset, min(_PIECE, end - offset)


def _rich_windows(data: bytes) -> list[bytes]:
    windows = (data[offset : offset + WINDOW_SIZE] for offset in range(0, len(data) - WINDOW_SIZE + 1, _WINDOW_STEP))
    return [window for window in windows if len(set(window)) >= _WINDOW_MIN_DISTINCT]


def _read(path: Path, image_format: str, offset: int, length: int) -> bytes:
    """Read from the virtual disk, into memory."""
    layers: dict[str, Any] = {"driver": "file", "filename": str(path)}
    if image_format != "raw":
        layers = {"driver": image_format, "file": layers}
    # QEMU's raw driver can show a part of what lies below it.
    window = {"driver": "raw", "offset": offset, "size": length, "file": layers}
    target = os.memfd_create("disk-image")
    try:
        arguments = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(window)}", f"/proc/self/fd/{target}"]
        _run(arguments, subject=path, pass_fds=(target,))
        data = os.pread(target, length, 0)
    finally:
        os.close(target)
    if len(data) != length:
        raise ImageRejected(f"{path} could not be read at {offset}: {len(data)} of {length} bytes came")
    return data


def _run(arguments: list[str], *, subject: Path, pass_fds: tuple[int, ...] = ()) -> str:
    """Standard output of a command that works on ``subject``.

    Raises:
        ImageRejected: It is not installed, or failed.
    """
    # mke2fs lies in /usr/sbin, which is not in every user's PATH.
    program = shutil.which(arguments[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise ImageRejected(f"{arguments[0]} is not installed: run deploy/install demo")
    try:
        done = subprocess.run(
            [program, *arguments[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as exc:
        raise ImageRejected(f"{subject}: {arguments[0]} did not end within {_COMMAND_SECONDS} s") from exc
    if done.returncode == 0:
        return done.stdout
    message = (done.stderr.strip().splitlines() or ["no message"])[0]
    if "lock" in done.stderr:
        raise ImageRejected(f"{subject} is in use by another process: stop it first")
    raise ImageRejected(f"{subject} cannot be used: {message}")
