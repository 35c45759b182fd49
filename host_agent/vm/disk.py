"""Disks: look at an image that somebody wants copied, and make the encrypted disk of a VM from it.

The source is opened for reading only, its format is what its own first bytes say (never guessed by QEMU), and it must
stand alone: a header that names another file would make this host read that file for whoever wrote the header.
"""

import fcntl
import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from host_agent.errors import (
    DiskError,
    DiskFull,
    DiskReason,
    FormatError,
    ImageReason,
    ImageRefused,
    QemuError,
)
from host_agent.vm import luks, qcow2
from host_agent.vm.durable import sync
from host_agent.vm.qemu.tools import run_qemu_img
from host_agent.vm.secret_pipe import secret_pipe
from keyprovider.keymaterial import SecretKey

_SECTOR: Final = 512
_QEMU_WRITER_LOCKS: Final = (101, 103, 200)
"""Bytes of an image that QEMU locks while it may write to it, resize it, or keep others from reading it
(block/file-posix.c: RAW_LOCK_PERM_BASE 100 and RAW_LOCK_SHARED_BASE 200, plus the bit of the permission)."""
_LEAKS_ONLY: Final = 3
"""Exit code of qemu-img check: space is lost, no data."""
_FLOCK: Final = "hhqqi0q"
"""struct flock of fcntl(2)."""
_FOREIGN: Final = (
    (b"QFI\xfb", "qcow"),
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"LUKS\xba\xbe", "luks"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"<<< ", "vdi"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
)
"""What the first bytes of files say that are neither raw nor qcow2 (as QEMU's block drivers probe them)."""


class ImageFormat(StrEnum):
    """Format of an image that can be copied, by QEMU's name."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that was looked at and can be copied."""

    path: Path
    format: ImageFormat
    virtual_size: int
    """Bytes of the disk in it."""
    copy_size: int
    """Bytes that an encrypted copy takes on a disk, at most."""


def inspect_image(path: Path) -> ImageInfo:
    """Look at an image that shall be copied.

    Raises:
        ImageRefused: The reason says which rule; the message what is wrong and what to do.
        ToolUnavailable: qemu-img is not installed.
    """
    head, size = _read_head(path)
    if head.startswith(qcow2.MAGIC) and head[4:8] != b"\0\0\0\x01":
        return ImageInfo(path, ImageFormat.QCOW2, _check_qcow2(path, head), _measure(path, ImageFormat.QCOW2))
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise ImageRefused(
                ImageReason.UNSUPPORTED_FORMAT,
                f"{path} is of format {name}; make it raw or qcow2 first (qemu-img convert -O qcow2)",
            )
    if size == 0 or size % _SECTOR:
        raise ImageRefused(
            ImageReason.NOT_AN_IMAGE, f"{path} is no disk image: its {size} bytes are not whole sectors of 512"
        )
    return ImageInfo(path, ImageFormat.RAW, size, _measure(path, ImageFormat.RAW))


def encrypt_image(source: ImageInfo, target: Path, passphrase: SecretKey | None, *, size_bytes: int = 0) -> None:
    """Copy an image into a new disk, encrypted under a new master key.

    Args:
        source: As ``inspect_image`` saw it; only read.
        target: The new file; must not exist.
        passphrase: Opens the new disk, 64 hexadecimal digits; None makes a disk in clear.
        size_bytes: Size of the new disk; 0: as large as the source.

    Raises:
        ImageRefused: LARGER_THAN_DISK; or IN_USE, if it came into use meanwhile.
        DiskFull: There is no room, known before or found while copying; the target is gone again.
        QemuError: qemu-img failed; the target is gone again.
        OSError: As the file system gives it.
    """
    size = size_bytes or -(-source.virtual_size // _SECTOR) * _SECTOR
    if size < source.virtual_size:
        raise ImageRefused(
            ImageReason.LARGER_THAN_DISK,
            f"{source.path} holds a disk of {source.virtual_size} bytes, which does not fit into {size} bytes",
        )
    require_room(target.parent, source.copy_size)
    create_disk(target, size, passphrase)
    try:
        _convert(source, target, passphrase)
        sync(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def create_disk(target: Path, size_bytes: int, passphrase: SecretKey | None) -> None:
    """Make an empty disk under a new master key; must not exist yet.

    Raises:
        OSError: As the file system gives it; nothing is left behind.
    """
    header = b""
    if passphrase is not None:
        with SecretKey.random(luks.KEY_SIZE) as master_key:
            header = luks.make_header(master_key, passphrase, os.urandom)
    image = qcow2.make_empty_image(size_bytes, header)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def require_room(directory: Path, needed_bytes: int) -> None:
    """Check that so many bytes can be written in a directory.

    Raises:
        DiskFull: They cannot.
        OSError: As the file system gives it.
    """
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise DiskFull(
            f"the disk at {directory} has {free >> 20} MiB free and {-(-needed_bytes >> 20)} MiB are needed: make room"
        )


def check_disk(path: Path, passphrase: SecretKey | None) -> None:
    """Check, before QEMU opens it, that a disk of a VM is the VM's own.

    Args:
        path: The disk.
        passphrase: What it must open with; None: it must be in clear.

    Raises:
        DiskError: Missing, malformed, pointing to other files, encrypted otherwise than it should be, or not opened
            by this passphrase.
    """
    try:
        # A link could make a guest of any file of the host.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            header = qcow2.parse_header(file.read(qcow2.MOST_HEADER_BYTES))
            file.seek(header.luks_offset)
            luks_header = file.read(min(header.luks_length, luks.HEADER_SIZE))
    except FileNotFoundError as exc:
        raise DiskError(DiskReason.MISSING, f"there is no {path.name} in {path.parent}") from exc
    except (FormatError, OSError) as exc:
        raise DiskError(DiskReason.MALFORMED, f"{path}: {exc}") from exc
    if header.backing_file or header.external_data:
        raise DiskError(DiskReason.NOT_SELF_CONTAINED, f"{path} was changed: it points to another file")
    wanted = qcow2.Encryption.NONE if passphrase is None else qcow2.Encryption.LUKS
    if header.encryption is not wanted:
        raise DiskError(
            DiskReason.WRONG_ENCRYPTION,
            f"{path} was changed: its encryption is {header.encryption.name}, it should be {wanted.name}",
        )
    if passphrase is not None:
        _check_passphrase(path, luks_header, passphrase)


def image_option(key: str, path: Path) -> str:
    """Name a file in qemu-img's ``--image-opts``, where a comma is written twice."""
    return f"{key}={str(path.absolute()).replace(',', ',,')}"


def _check_passphrase(path: Path, luks_header: bytes, passphrase: SecretKey) -> None:
    try:
        master_key = luks.open_header(luks_header, passphrase)
    except FormatError as exc:
        raise DiskError(DiskReason.MALFORMED, f"{path}: {exc}") from exc
    if master_key is None:
        raise DiskError(
            DiskReason.WRONG_KEY, f"{path} does not open with this VM's key: it was changed, or is another VM's"
        )
    master_key.close()


def _read_head(path: Path) -> tuple[bytes, int]:
    try:
        # Not blocking: a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ImageRefused(ImageReason.NOT_FOUND, f"there is no image at {path}") from exc
    except OSError as exc:
        raise ImageRefused(ImageReason.UNREADABLE, f"{path} cannot be read: {exc.strerror}") from exc
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageRefused(ImageReason.NOT_A_FILE, f"{path} is not a regular file")
        _require_unused(path, file.fileno())
        return file.read(qcow2.MOST_HEADER_BYTES), status.st_size


def _require_unused(path: Path, descriptor: int) -> None:
    # qemu-img looks at these locks too, but for a raw image only once it copies.
    for start in _QEMU_WRITER_LOCKS:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
        if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
            raise _in_use(path)


def _in_use(path: Path) -> ImageRefused:
    return ImageRefused(
        ImageReason.IN_USE, f"{path} is in use by another process; shut that down or copy the image first"
    )


def _check_qcow2(path: Path, head: bytes) -> int:
    try:
        header = qcow2.parse_header(head)
    except FormatError as exc:
        raise ImageRefused(ImageReason.MALFORMED, f"{path} is a damaged qcow2 image: {exc}") from exc
    if header.corrupt:
        raise ImageRefused(
            ImageReason.MALFORMED, f"{path} is marked as corrupt; repair a copy of it (qemu-img check -r all)"
        )
    if header.backing_file:
        raise ImageRefused(
            ImageReason.BACKING_FILE,
            f"{path} is only a difference to {header.backing_file}; make one image of them (qemu-img convert -O qcow2)",
        )
    if header.external_data:
        raise ImageRefused(
            ImageReason.EXTERNAL_DATA,
            f"{path} keeps its data in another file; make one image of them (qemu-img convert -O qcow2)",
        )
    if header.encryption is not qcow2.Encryption.NONE:
        raise ImageRefused(ImageReason.ENCRYPTED, f"{path} is encrypted already; decrypt it first (qemu-img convert)")
    with _in_use_explained(path):
        try:
            # What a torn file lacks reads as zeros: only the check of its tables shows it.
            options = ["check", "--output=json", "--image-opts", _source_options(path, ImageFormat.QCOW2)]
            run_qemu_img(options, accepted=(0, _LEAKS_ONLY))
        except QemuError as exc:
            raise ImageRefused(ImageReason.MALFORMED, f"{path} is a damaged qcow2 image: {exc}") from exc
    return header.virtual_size


def _measure(path: Path, image_format: ImageFormat) -> int:
    """Have qemu-img open it and count: finds deeper damage, and whether another process has it open for writing."""
    with _in_use_explained(path):
        try:
            answer = run_qemu_img(
                ["measure", "--output=json", "-O", "qcow2", "--image-opts", _source_options(path, image_format)]
            )
        except QemuError as exc:
            raise ImageRefused(ImageReason.MALFORMED, f"{path} cannot be opened as {image_format}: {exc}") from exc
    try:
        return int(json.loads(answer)["required"]) + luks.HEADER_SIZE
    except (ValueError, KeyError, TypeError) as exc:
        raise QemuError(f"qemu-img measured {path} in a way that is not understood") from exc


@contextmanager
def _in_use_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (QemuError, ImageRefused) as exc:
        if "lock" in str(exc) and "another process" in str(exc):
            raise _in_use(path) from exc
        raise


def _source_options(path: Path, image_format: ImageFormat) -> str:
    return f"driver={image_format},file.driver=file,file.locking=on,{image_option('file.filename', path)}"


def _convert(source: ImageInfo, target: Path, passphrase: SecretKey | None) -> None:
    options = ["convert", "-n", "--target-is-zero", "-t", "writeback", "--image-opts", "--target-image-opts"]
    target_options = f"driver=qcow2,file.driver=file,{image_option('file.filename', target)}"
    with _in_use_explained(source.path):
        if passphrase is None:
            run_qemu_img([*options, _source_options(source.path, source.format), target_options])
            return
        with secret_pipe(passphrase) as descriptor:
            options += ["--object", f"secret,id=key,file=/proc/self/fd/{descriptor}"]
            target_options += ",encrypt.format=luks,encrypt.key-secret=key"
            run_qemu_img([*options, _source_options(source.path, source.format), target_options], pass_fds=[descriptor])
