"""What the demo needs before it begins. Whatever is wrong is one ``ConfigError``: what, and what to do."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import IO

from serving.errors import ConfigError

MARK = "garant-demo"
"""Name of the file that says: this directory is the demo's, and may be emptied."""
_SCRATCH_BYTES = 512 * 1024 * 1024
_MAX_DIRECTORY_LENGTH = 32
"""Unix socket paths end at 107 characters; what the demo puts below its directory needs the rest."""

_TOOLS = {
    "QEMU": (["qemu-system-x86_64", "--version"], (7, 0), "qemu-system-x86"),
    "qemu-img": (["qemu-img", "--version"], (7, 0), "qemu-utils"),
    "swtpm": (["swtpm", "--version"], (0, 7), "swtpm"),
    "the TPM library tss2": (["pkg-config", "--modversion", "tss2-esys"], (3, 2), "libtss2-dev"),
}


def check_machine() -> None:
    """Check the rights and the tools.

    Raises:
        ConfigError: Not root, or a tool is missing or too old.
    """
    if os.geteuid() != 0:
        raise ConfigError("the demo searches every process for keys, which takes root: run it with sudo")
    for name, (argv, least, package) in _TOOLS.items():
        _check_tool(name, argv, least, package)


def _check_tool(name: str, argv: list[str], least: tuple[int, int], package: str) -> None:
    wanted = f"version {least[0]}.{least[1]} or newer is needed: apt-get install {package}"
    try:
        text = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(f"{name} is missing or does not run; {wanted}") from exc
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < least:
        raise ConfigError(f"{name} is of version {found[0] if found else 'unknown'}; {wanted}")


def claim_directory(directory: Path) -> IO[str]:
    """Take ``directory`` for this demo alone and empty it of an earlier one.

    Returns:
        The lock, held while it is open.

    Raises:
        ConfigError: Another demo runs there, something else lies there, or it cannot be used.
    """
    if len(str(directory)) > _MAX_DIRECTORY_LENGTH:
        raise ConfigError(f"{directory} is longer than {_MAX_DIRECTORY_LENGTH} characters: name a shorter --directory")
    mark = directory / MARK
    try:
        if directory.exists() and not mark.exists() and any(directory.iterdir()):
            raise ConfigError(f"{directory} holds something else: name another --directory or remove it")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
            raise ConfigError(f"{directory} belongs to somebody else: name another --directory")
        lock = mark.open("a")
    except OSError as exc:
        raise ConfigError(f"{directory} cannot be used: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise ConfigError(f"another demo runs in {directory}: wait for it, or name another --directory") from exc
    for entry in directory.iterdir():
        if entry != mark:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return lock


def check_space(directory: Path, image_bytes: int) -> None:
    """Check that the encrypted copy of an image fits.

    Raises:
        ConfigError: It does not.
    """
    free = shutil.disk_usage(directory).free
    needed = image_bytes + _SCRATCH_BYTES
    if free < needed:
        raise ConfigError(f"{directory} has {free >> 20} MiB free, {needed >> 20} MiB are needed: free some space")


def choose_ports(count: int, base: int) -> list[int]:
    """Free loopback ports: from ``base`` on, or any where it is 0.

    Raises:
        ConfigError: One of them is in use.
    """
    ports = [base + offset if base else 0 for offset in range(count)]
    sockets = [socket.socket() for _ in ports]
    try:
        for port, listener in zip(ports, sockets, strict=True):
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as exc:
                raise ConfigError(f"port {port} is in use: name another --base-port") from exc
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
