"""The demo's guest and disk images: built, booted, examined."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.demo.disk_image import MARKER_FILE_SIZE, DiskImage, examine_user_image, make_default_image
from cli.demo.errors import GuestUnavailable, ImageRejected
from cli.demo.guest_image import GuestImage, build_guest, default_cache_directory
from cli.demo.guest_report import GuestReport, ticks
from cli.demo.initramfs import Entry, write_initramfs
from tests.tcg_guest import boot_guest

RANDOM = random.Random(20260102)  # noqa: S311 - test data
MARKER = b"the plaintext marker of this test: " + RANDOM.randbytes(16).hex().encode() + b"\n"


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """Give the guest as deploy/install left it."""
    return build_guest(default_cache_directory())


@pytest.fixture
def default_image(tmp_path: Path) -> DiskImage:
    """Make the demo's image."""
    return make_default_image(tmp_path / "disk.img", MARKER)


@pytest.mark.boot
@pytest.mark.long
def test_the_guest_hashes_a_file_and_its_device_and_measures_the_same_twice(
    tmp_path: Path, guest_image: GuestImage, default_image: DiskImage
) -> None:
    """Both ways to check give the hashes known before; PCRs 0 to 7 are not zero and equal on two boots."""
    device_check = examine_user_image(default_image.path, RANDOM)
    reports = []
    for image in (default_image, device_check):
        with boot_guest(tmp_path, guest_image, image.path, f"console=ttyS0 quiet garant.check={image.check}") as guest:
            report = GuestReport.read(guest.read_until(b"GARANT-READY\r\n"))
            assert report is not None
            assert report.disk_hash == image.sha256
            assert ticks(guest.read_until(b"GARANT-TICK 1\r\n")) == 1
            guest.press_power_button()
            assert guest.process.wait(timeout=60) == 0
            reports.append(report)

    assert [number for number, _ in reports[0].pcrs] == list(range(8))
    assert all(int(value, 16) for _, value in reports[0].pcrs)
    assert reports[0].pcrs == reports[1].pcrs


@pytest.mark.boot
@pytest.mark.long
def test_the_guest_says_when_it_cannot_read(tmp_path: Path, guest_image: GuestImage, default_image: DiskImage) -> None:
    """A file that is not there gives no hash, and the guest is up all the same."""
    with boot_guest(
        tmp_path, guest_image, default_image.path, "console=ttyS0 quiet garant.check=file:/absent"
    ) as guest:
        console = guest.read_until(b"GARANT-READY")

    assert b"GARANT-FAILED read" in console
    assert b"GARANT-HASH" not in console


@pytest.fixture
def cache_with_package(tmp_path: Path, guest_image: GuestImage) -> Path:
    """Make a cache that holds the kernel package and nothing built."""
    cache = tmp_path / "cache"
    (cache / "kernel").mkdir(parents=True)
    (package,) = (guest_image.kernel.parents[1] / "kernel").glob("*.deb")
    (cache / "kernel" / package.name).symlink_to(package)
    return cache


def test_a_guest_is_built_once_the_same_for_everybody(cache_with_package: Path, guest_image: GuestImage) -> None:
    """Two builds from the same inputs are equal byte for byte, and what is there is not built again."""
    progress: list[str] = []

    built = build_guest(cache_with_package, progress.append)
    again = build_guest(cache_with_package, progress.append)

    assert progress == ["building the demo's guest"]
    assert again == built
    assert built.initrd.read_bytes() == guest_image.initrd.read_bytes()
    assert built.kernel.read_bytes() == guest_image.kernel.read_bytes()
    assert not list(cache_with_package.glob(".guest-*"))


def test_a_broken_package_builds_nothing(tmp_path: Path) -> None:
    """A package that is none is refused in one line, and leaves no half-built guest."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "linux-image.deb").write_bytes(b"not a package")

    with pytest.raises(GuestUnavailable, match=r"^dpkg-deb failed: [^\n]+$"):
        build_guest(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]


def test_busybox_reads_the_initramfs_and_its_bytes_depend_on_the_content_only() -> None:
    """The archive has each file with its mode below its directories; the order of the entries does not matter."""
    entries = {"init": Entry(b"#!/bin/sh\n", executable=True), "a/b/c": Entry(b"text"), "empty": Entry(b"")}
    archive = write_initramfs(entries)

    listing = subprocess.run(
        ["/bin/sh", "-c", "gzip -d | busybox cpio -tv"], input=archive, capture_output=True, check=True
    ).stdout.decode()

    modes = {line.split()[-1]: line.split()[0] for line in listing.splitlines()}
    assert modes == {
        "a": "drwxr-xr-x",
        "a/b": "drwxr-xr-x",
        "a/b/c": "-rw-r--r--",
        "empty": "-rw-r--r--",
        "init": "-rwxr-xr-x",
    }
    assert write_initramfs(dict(reversed(entries.items()))) == archive


def test_the_default_image_holds_the_marker(default_image: DiskImage) -> None:
    """The image has the marker in clear, thousands of times, and its check names the file that holds it."""
    content = MARKER * (MARKER_FILE_SIZE // len(MARKER))

    assert default_image.path.read_bytes().count(MARKER) == len(content) // len(MARKER)
    assert default_image.sha256 == hashlib.sha256(content).hexdigest()
    assert (default_image.check, default_image.markers) == ("file:/marker.txt", (MARKER,))
    assert default_image.size_bytes == default_image.path.stat().st_size
    assert [path.name for path in default_image.path.parent.iterdir()] == ["disk.img"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_users_image_is_hashed_and_not_changed(tmp_path: Path, image_format: str) -> None:
    """The hash is of the virtual disk whatever the format; the markers are pieces of it; the file stays as it was."""
    disk = bytes(3 << 20) + RANDOM.randbytes(5 << 20) + bytes(4 << 20)
    raw, image = tmp_path / "raw", tmp_path / "image, with comma"
    raw.write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, raw, image], check=True)
    image.chmod(0o400)
    before = (image.read_bytes(), image.stat().st_mtime_ns)

    examined = examine_user_image(image, random.Random(1))  # noqa: S311 - test data

    assert examined.sha256 == hashlib.sha256(disk).hexdigest()
    assert (examined.check, examined.size_bytes) == (f"device:{len(disk)}", len(disk))
    assert len(set(examined.markers)) == 3
    assert all(len(marker) == 64 and marker in disk for marker in examined.markers)
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before


def test_of_a_large_disk_the_first_gib_is_hashed(tmp_path: Path) -> None:
    """Beyond one GiB nothing is hashed, but markers may be chosen there."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2 << 30)
        file.seek(3 << 29)
        file.write(RANDOM.randbytes(8192))

    examined = examine_user_image(image, RANDOM)

    zeros = hashlib.sha256()
    for _ in range(1024):
        zeros.update(bytes(1 << 20))
    assert (examined.check, examined.sha256) == (f"device:{1 << 30}", zeros.hexdigest())
    assert examined.size_bytes == 2 << 30


def make_bad_image(path: Path, kind: str) -> None:
    """Make a file that is no acceptable image."""
    match kind:
        case "text":
            path.write_text("not a disk")
        case "empty":
            path.touch()
        case "directory":
            path.mkdir()
        case "gzip":
            path.write_bytes(b"\x1f\x8b" + bytes(510))
        case "truncated qcow2":
            path.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(504))
        case "vmdk":
            subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", path, "1M"], check=True)
        case "backing":
            base = path.with_name("base")
            base.write_bytes(RANDOM.randbytes(1 << 20))
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path], check=True)
        case "zeros":
            path.write_bytes(bytes(1 << 20))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "does not exist"),
        ("text", "is not a disk image"),
        ("empty", "is not a disk image"),
        ("directory", "is not a file"),
        ("gzip", "is compressed with gzip"),
        ("truncated qcow2", "cannot be used"),
        ("vmdk", "is of format vmdk"),
        ("backing", "needs another file"),
        ("zeros", "holds too little data"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    """Each refusal names the file and says what is wrong."""
    path = tmp_path / "image"
    make_bad_image(path, kind)

    with pytest.raises(ImageRejected, match=message) as error:
        examine_user_image(path, RANDOM)

    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    """While another QEMU has the image open for writing, it is refused and not read."""
    image = tmp_path / "image"
    image.write_bytes(RANDOM.randbytes(1 << 20))
    blockdev = {"driver": "file", "node-name": "disk", "filename": str(image)}
    export = {"type": "vhost-user-blk", "id": "e", "node-name": "disk", "writable": True}
    export["addr"] = {"type": "unix", "path": str(tmp_path / "s")}
    arguments = ["qemu-storage-daemon", "--blockdev", json.dumps(blockdev), "--export", json.dumps(export)]
    with subprocess.Popen(
        [*arguments, "--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert b"QMP" in daemon.stdout.readline()
            with pytest.raises(ImageRejected, match="is in use"):
                examine_user_image(image, RANDOM)
        finally:
            daemon.terminate()


def test_a_marker_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """A short marker could be found by chance; nothing is made."""
    with pytest.raises(ValueError, match="at least 32"):
        make_default_image(tmp_path / "disk.img", b"marker")

    assert not list(tmp_path.iterdir())


def test_without_its_tools_the_guest_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt, the message says which program is missing and what to run."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", os.fspath(tools))
    if shutil.which("apt-cache", path="/usr/sbin:/sbin"):
        pytest.skip("apt is in /usr/sbin here")

    with pytest.raises(GuestUnavailable, match="apt-cache is not installed"):
        build_guest(tmp_path / "cache")
