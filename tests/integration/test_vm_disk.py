"""Disks made from images, with real qemu-img and cryptsetup as judges."""

import hashlib
import os
import subprocess
import sys
from binascii import hexlify
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host_agent.errors import DiskError, DiskFull, DiskReason, ImageReason, ImageRefused, QemuError
from host_agent.vm import luks, qcow2
from host_agent.vm.disk import check_disk, create_disk, encrypt_image, inspect_image, require_room
from host_agent.vm.secret_pipe import secret_pipe
from keyprovider.keymaterial import SecretKey

MARKER = b"plaintext marker of the disk test"


@pytest.fixture
def passphrase() -> Iterator[SecretKey]:
    """A passphrase as disks have it."""
    with SecretKey.adopt_result(hexlify(os.urandom(32))) as key:
        yield key


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    """A raw image of 3 MiB with data at both ends and a hole between; its name has a comma and a blank."""
    path = tmp_path / "an, image.raw"
    path.write_bytes(MARKER * 20_000)
    os.truncate(path, 2 << 20)
    with path.open("ab") as file:
        file.truncate((3 << 20) - 512)
        file.seek(0, os.SEEK_END)
        file.write(os.urandom(512))
    return path


def _qemu_img(*arguments: str, pass_fds: tuple[int, ...] = ()) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True, pass_fds=pass_fds)
    return done.stdout


def _decrypted(disk: Path, passphrase: SecretKey, target: Path) -> bytes:
    with secret_pipe(passphrase) as descriptor:
        source = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename={disk}"
        secret = f"secret,id=s,file=/proc/self/fd/{descriptor}"
        _qemu_img(
            "convert", "--object", secret, "--image-opts", source, "-O", "raw", str(target), pass_fds=(descriptor,)
        )
    return target.read_bytes()


@contextmanager
def _open_for_writing(path: Path, image_format: str) -> Iterator[None]:
    """Another process that has the image open, as a running VM would."""
    with subprocess.Popen(
        ["qemu-io", "-f", image_format, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("length\n")
        process.stdin.flush()
        process.stdout.readline()  # its answer comes once the image is open
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(10)


def test_header_opens_in_cryptsetup(tmp_path: Path, passphrase: SecretKey) -> None:
    """Cryptsetup reads our LUKS header, opens it with the passphrase and with no other."""
    path = tmp_path / "header"
    with SecretKey.random(luks.KEY_SIZE) as master_key:
        path.write_bytes(luks.make_header(master_key, passphrase, os.urandom) + bytes(1 << 20))
    dump = subprocess.run(["cryptsetup", "luksDump", str(path)], capture_output=True, text=True, check=True).stdout
    assert "xts-plain64" in dump
    assert dump.count("ENABLED") == 1
    opening = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(path)]
    assert subprocess.run(opening, input=bytes(passphrase.view()), check=False).returncode == 0
    assert subprocess.run(opening, input=b"0" * 64, check=False, capture_output=True).returncode == 2


def test_header_of_cryptsetup_opens_here(tmp_path: Path, passphrase: SecretKey) -> None:
    """Our reader opens a header that cryptsetup made: it reads the format, not only its own writing."""
    path = tmp_path / "header"
    path.write_bytes(bytes(4 << 20))
    making = ["cryptsetup", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--batch-mode"]
    making += ["--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256", "--key-file", "-", str(path)]
    subprocess.run(making, input=bytes(passphrase.view()), check=True)
    opened = luks.open_header(path.read_bytes()[: luks.HEADER_SIZE], passphrase)
    assert opened is not None


@pytest.mark.parametrize("size", [512, 528 << 10, 1 << 30, 3 << 40])
def test_empty_disk_passes_qemus_check(tmp_path: Path, passphrase: SecretKey, size: int) -> None:
    """qemu-img finds nothing wrong with an empty encrypted disk of any size."""
    disk = tmp_path / "disk.qcow2"
    create_disk(disk, size, passphrase)
    with secret_pipe(passphrase) as descriptor:
        secret = f"secret,id=s,file=/proc/self/fd/{descriptor}"
        options = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename={disk}"
        report = _qemu_img("check", "--object", secret, "--image-opts", options, pass_fds=(descriptor,))
    assert "No errors" in report
    assert f"({size} bytes)" in _qemu_img("info", str(disk)) or f"{size} B" in _qemu_img("info", str(disk))
    check_disk(disk, passphrase)


def test_copy_of_a_raw_image_is_the_same_disk(tmp_path: Path, raw_image: Path, passphrase: SecretKey) -> None:
    """What is read through the encrypted disk is the source, byte for byte, and the source is as before (R-STD-6)."""
    before = raw_image.read_bytes()
    disk = tmp_path / "disk.qcow2"
    encrypt_image(inspect_image(raw_image), disk, passphrase)
    assert _decrypted(disk, passphrase, tmp_path / "plain") == before == raw_image.read_bytes()
    assert disk.stat().st_mode & 0o777 == 0o600


def test_copy_of_a_qcow2_image_is_the_same_disk(tmp_path: Path, raw_image: Path, passphrase: SecretKey) -> None:
    """A compressed qcow2 image is copied by its content."""
    image = tmp_path / "image.qcow2"
    _qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", str(raw_image), str(image))
    before = hashlib.sha256(image.read_bytes()).digest()
    disk = tmp_path / "disk.qcow2"
    encrypt_image(inspect_image(image), disk, passphrase, size_bytes=4 << 20)
    plain = _decrypted(disk, passphrase, tmp_path / "plain")
    assert plain == raw_image.read_bytes() + bytes(1 << 20)
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_plaintext_is_not_in_the_encrypted_disk(tmp_path: Path, raw_image: Path, passphrase: SecretKey) -> None:
    """Neither the data nor the keys of the disk can be found in its file (R-STD-5)."""
    disk = tmp_path / "disk.qcow2"
    encrypt_image(inspect_image(raw_image), disk, passphrase)
    content = disk.read_bytes()
    header = qcow2.parse_header(content)
    master_key = luks.open_header(content[header.luks_offset :][: header.luks_length], passphrase)
    assert master_key is not None
    for secret in (MARKER, bytes(passphrase.view()), bytes(master_key.view()), bytes(master_key.view()[:32])):
        assert secret not in content


def test_disk_in_clear_is_a_plain_copy(tmp_path: Path, raw_image: Path) -> None:
    """Without a key the disk is an ordinary qcow2 image."""
    disk = tmp_path / "disk.qcow2"
    encrypt_image(inspect_image(raw_image), disk, None)
    check_disk(disk, None)
    assert _qemu_img("compare", "-f", "raw", "-F", "qcow2", str(raw_image), str(disk)).startswith(
        "Images are identical"
    )


def _make_refused_image(tmp_path: Path, kind: ImageReason) -> Path:
    path = tmp_path / "image"
    if kind is ImageReason.NOT_A_FILE:
        os.mkfifo(path)
    elif kind is ImageReason.NOT_AN_IMAGE:
        path.write_bytes(b"just some text\n")
    elif kind is ImageReason.UNSUPPORTED_FORMAT:
        _qemu_img("create", "-q", "-f", "vmdk", str(path), "1M")
    elif kind is ImageReason.MALFORMED:
        (tmp_path / "whole.raw").write_bytes(os.urandom(1 << 20))
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", str(tmp_path / "whole.raw"), str(path))
        os.truncate(path, 1 << 19)
    elif kind is ImageReason.BACKING_FILE:
        (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
        _qemu_img("create", "-q", "-f", "qcow2", "-b", str(tmp_path / "base.raw"), "-F", "raw", str(path))
    elif kind is ImageReason.EXTERNAL_DATA:
        _qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", str(path), "1M")
    elif kind is ImageReason.ENCRYPTED:
        with SecretKey.random() as key:
            create_disk(path, 1 << 20, key)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ImageReason.NOT_FOUND, "there is no image at"),
        (ImageReason.NOT_A_FILE, "not a regular file"),
        (ImageReason.NOT_AN_IMAGE, "no disk image"),
        (ImageReason.UNSUPPORTED_FORMAT, "format vmdk.*qemu-img convert"),
        (ImageReason.MALFORMED, "damaged qcow2 image"),
        (ImageReason.BACKING_FILE, r"difference to .*base\.raw"),
        (ImageReason.EXTERNAL_DATA, "data in another file"),
        (ImageReason.ENCRYPTED, "encrypted already"),
    ],
)
def test_image_that_cannot_be_copied_is_refused(tmp_path: Path, kind: ImageReason, message: str) -> None:
    """Each kind of image that is not copied is refused with its own reason, and with what to do."""
    with pytest.raises(ImageRefused, match=message) as refusal:
        inspect_image(_make_refused_image(tmp_path, kind))
    assert refusal.value.reason is kind


@pytest.mark.parametrize(
    "head", [b"QED\0", b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"\x1f\x8b", b"QFI\xfb\0\0\0\x01"]
)
def test_raw_image_that_claims_another_format_is_refused(tmp_path: Path, head: bytes) -> None:
    """No raw image is copied whose first bytes would make some program take it for another format."""
    path = tmp_path / "image.raw"
    path.write_bytes(head.ljust(1 << 20, b"\0"))
    with pytest.raises(ImageRefused) as refusal:
        inspect_image(path)
    assert refusal.value.reason is ImageReason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_image_in_use_is_refused(tmp_path: Path, image_format: str, passphrase: SecretKey) -> None:
    """An image that a running VM may be writing is not copied, even if it comes into use after it was seen."""
    image = tmp_path / "image"
    _qemu_img("create", "-q", "-f", image_format, str(image), "1M")
    seen = inspect_image(image)
    with _open_for_writing(image, image_format):
        with pytest.raises(ImageRefused, match="in use by another process") as first:
            inspect_image(image)
        with pytest.raises(ImageRefused, match="in use by another process") as later:
            encrypt_image(seen, tmp_path / "disk.qcow2", passphrase)
    assert first.value.reason is later.value.reason is ImageReason.IN_USE
    assert not (tmp_path / "disk.qcow2").exists()


def test_disk_smaller_than_its_source_is_refused(tmp_path: Path, raw_image: Path, passphrase: SecretKey) -> None:
    """No data is cut off: a disk that is too small is refused before anything is written."""
    with pytest.raises(ImageRefused) as refusal:
        encrypt_image(inspect_image(raw_image), tmp_path / "disk.qcow2", passphrase, size_bytes=1 << 20)
    assert refusal.value.reason is ImageReason.LARGER_THAN_DISK
    assert not (tmp_path / "disk.qcow2").exists()


def test_missing_room_is_known_before(tmp_path: Path) -> None:
    """A copy that does not fit is refused with what there is and what it takes."""
    with pytest.raises(DiskFull, match=r"MiB free and \d+ MiB are needed"):
        require_room(tmp_path, 1 << 60)


def test_disk_that_fills_up_leaves_no_target(tmp_path: Path) -> None:
    """When the file system refuses to go on in the middle of a copy, the target is gone and the source unharmed."""
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(8 << 20))
    before = hashlib.sha256(image.read_bytes()).digest()
    # A limit on file size stops qemu-img where a full disk would.
    program = f"""
import resource
from pathlib import Path
from host_agent.errors import VmError
from host_agent.vm.disk import encrypt_image, inspect_image
from keyprovider.keymaterial import SecretKey
source = inspect_image(Path({str(image)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
try:
    encrypt_image(source, Path({str(tmp_path / "disk.qcow2")!r}), SecretKey.adopt(b"0" * 64))
except VmError as exc:
    print(type(exc).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (QemuError.__name__, DiskFull.__name__)
    assert sorted(tmp_path.iterdir()) == [image]
    assert hashlib.sha256(image.read_bytes()).digest() == before


def _tampered(disk: Path, reason: DiskReason) -> None:
    content = bytearray(disk.read_bytes())
    if reason is DiskReason.MISSING:
        disk.unlink()
        return
    if reason is DiskReason.MALFORMED:
        content[4:8] = b"\0\0\0\x09"
    elif reason is DiskReason.NOT_SELF_CONTAINED:
        content[8:20] = (512).to_bytes(8, "big") + (11).to_bytes(4, "big")
        content[512:523] = b"/etc/shadow"
    elif reason is DiskReason.WRONG_ENCRYPTION:
        content = bytearray(qcow2.make_empty_image(1 << 20))
    elif reason is DiskReason.WRONG_KEY:
        content[qcow2.parse_header(bytes(content)).luks_offset + 5000] ^= 1
    disk.write_bytes(content)


@pytest.mark.parametrize("reason", DiskReason)
def test_changed_disk_is_refused(tmp_path: Path, passphrase: SecretKey, reason: DiskReason) -> None:
    """A disk that is missing, torn, made to point elsewhere, made plain, or not this key's is refused by name."""
    disk = tmp_path / "disk.qcow2"
    create_disk(disk, 1 << 20, passphrase)
    _tampered(disk, reason)
    with pytest.raises(DiskError, match=r"disk\.qcow2") as refusal:
        check_disk(disk, passphrase)
    assert refusal.value.reason is reason


def test_link_in_place_of_a_disk_is_refused(tmp_path: Path, passphrase: SecretKey) -> None:
    """A link in the bundle does not make a guest's disk of another file of the host."""
    create_disk(tmp_path / "other.qcow2", 1 << 20, passphrase)
    (tmp_path / "disk.qcow2").symlink_to("other.qcow2")
    with pytest.raises(DiskError) as refusal:
        check_disk(tmp_path / "disk.qcow2", passphrase)
    assert refusal.value.reason is DiskReason.MALFORMED


def test_encrypted_disk_where_one_in_clear_should_be_is_refused(tmp_path: Path, passphrase: SecretKey) -> None:
    """A VM that is not encrypted does not get an encrypted disk."""
    create_disk(tmp_path / "disk.qcow2", 1 << 20, passphrase)
    with pytest.raises(DiskError) as refusal:
        check_disk(tmp_path / "disk.qcow2", None)
    assert refusal.value.reason is DiskReason.WRONG_ENCRYPTION
