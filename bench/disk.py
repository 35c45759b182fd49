"""How fast a disk image is encrypted, beside the same tool copying it in clear."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import Figure
from host_agent.vm.disk import encrypt_image, inspect_image
from host_agent.vm.keys import DISK_LABEL, luks_passphrase
from keyprovider.keymaterial import SecretKey

_MIB = 512
_ROUNDS = 3


def measure() -> list[Figure]:
    """Encrypt random data into qcow2 + LUKS, and copy it raw to raw, in turns; best of each."""
    with tempfile.TemporaryDirectory(dir=Path("/var/tmp"), prefix="garant-bench-") as scratch:  # noqa: S108
        directory = Path(scratch)
        source = directory / "source.raw"
        with source.open("wb") as image:
            for _ in range(_MIB):
                image.write(os.urandom(1 << 20))
            os.fsync(image.fileno())
        encrypted = copied = float("inf")
        for _ in range(_ROUNDS):
            copied = min(copied, _copy(source, directory / "copy.raw"))
            encrypted = min(encrypted, _encrypt(source, directory / "disk.qcow2"))
    return [
        Figure(
            name=f"disk encryption, {_MIB} MiB of random data, header included, flushed",
            value=_MIB / encrypted,
            unit="MiB/s",
            floor="qemu-img convert raw to raw, flushed",
            floor_value=_MIB / copied,
            reach="reported",
            reached=None,
        )
    ]


def _encrypt(source: Path, target: Path) -> float:
    started = time.perf_counter()
    with SecretKey.random() as dek, luks_passphrase(dek, DISK_LABEL) as passphrase:
        encrypt_image(inspect_image(source), target, passphrase)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def _copy(source: Path, target: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", str(source), str(target)], check=True)
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds
