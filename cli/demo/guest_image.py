"""Build the demo's guest: Debian's cloud kernel and an initial RAM disk of busybox, a few modules and one script.

The kernel package is fetched through apt, which checks its signature; which one it is, apt says (the dependency of
``linux-image-cloud-amd64``). What was fetched and built stays in a cache directory, so that only installing needs the
network. ``python -m cli.demo.guest_image`` fetches and builds; ``deploy/install`` calls it.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cli.demo.errors import GuestUnavailable
from cli.demo.initramfs import Entry, write_initramfs

META_PACKAGE = "linux-image-cloud-amd64"
GUEST_MODULES = ("virtio_pci", "virtio_blk", "button", "evdev")
"""What the guest's disk and its power button need; the TPM drivers and ext4 are built into the cloud kernel."""
_BUSYBOX = Path("/bin/busybox")
_APT_LISTS = Path("/var/lib/apt/lists")
_POWER_BUTTON = "etc/acpi/PWRF/00000080"
"""Where busybox's acpid looks for what to do when the power button is pressed."""
_DOWNLOAD_SECONDS = 600
_COMMAND_SECONDS = 120

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files to boot with QEMU's ``-kernel`` and ``-initrd``."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """A kernel package, unpacked."""

    root: Path
    """What would be ``/``."""
    image: Path
    """The kernel: an EFI application."""
    version: str
    """As ``uname -r`` prints it."""


def default_cache_directory() -> Path:
    """``.cache/garant`` of the checkout that this runs from, else below the user's cache directory."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / ".cache" / "garant"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garant"


def build_guest(cache_directory: Path, progress: Progress = lambda _: None) -> GuestImage:
    """The guest from the cache, built first if it is not there or was built from other inputs.

    Needs the network only while the cache holds no kernel package.

    Args:
        cache_directory: Made if it does not exist; may be shared by processes that run at the same time.
        progress: Called with one line before each step that takes time.

    Raises:
        GuestUnavailable: busybox is missing, the kernel package cannot be fetched, or is not what it should be.
    """
    if not _BUSYBOX.is_file():
        raise GuestUnavailable(f"{_BUSYBOX} is missing: install the Debian package busybox-static")
    package = _cached_package(cache_directory) or fetch_kernel_package(cache_directory, progress)
    entries = _fixed_entries()
    image = cache_directory / f"guest-{_key(package, entries)}"
    if not image.is_dir():
        progress("building the demo's guest")
        with tempfile.TemporaryDirectory(prefix=".guest-", dir=cache_directory) as scratch:
            kernel = unpack_kernel(package, Path(scratch) / "root")
            modules = modules_in_load_order(kernel, GUEST_MODULES)
            built = Path(scratch) / "image"
            built.mkdir()
            shutil.copyfile(kernel.image, built / "kernel")
            (built / "initrd").write_bytes(write_initramfs(entries | module_entries(modules)))
            _rename_unless_there(built, image)
    return GuestImage(kernel=image / "kernel", initrd=image / "initrd")


def fetch_kernel_package(cache_directory: Path, progress: Progress = lambda _: None) -> Path:
    """The kernel package that apt would install now, downloaded unless the cache has it; older ones are removed.

    Raises:
        GuestUnavailable: apt does not know the package or cannot download it.
    """
    name = _kernel_package_name()
    version = _apt("apt-cache", "--no-all-versions", "show", name)
    found = re.search(r"^Version: (\S+)$", version, re.MULTILINE)
    if found is None:
        raise GuestUnavailable(f"apt knows no version of {name}: run apt-get update")
    directory = cache_directory / "kernel"
    directory.mkdir(parents=True, exist_ok=True)
    escaped = found[1].replace(":", "%3a")
    target = directory / f"{name}_{escaped}_amd64.deb"
    if not target.is_file():
        progress(f"downloading {name} {found[1]}")
        with tempfile.TemporaryDirectory(prefix=".download-", dir=directory) as scratch:
            _apt("apt-get", "download", "--quiet", "--quiet", f"{name}={found[1]}", cwd=Path(scratch))
            downloaded = list(Path(scratch).glob("*.deb"))
            if len(downloaded) != 1:
                raise GuestUnavailable(f"apt-get download {name} brought {len(downloaded)} packages, not one")
            downloaded[0].rename(target)
    for older in directory.glob("*.deb"):
        if older != target:
            older.unlink(missing_ok=True)
    with suppress(PermissionError):
        target.touch()  # checked now: see _prepare
    return target


def unpack_kernel(package: Path, root: Path) -> UnpackedKernel:
    """Unpack a Debian kernel package into the new directory ``root``.

    Raises:
        GuestUnavailable: It is not a package that holds exactly one kernel.
    """
    _run(["dpkg-deb", "--extract", str(package), str(root)])
    images = sorted((root / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise GuestUnavailable(f"{package.name} holds {len(images)} kernels, not one")
    return UnpackedKernel(root=root, image=images[0], version=images[0].name.removeprefix("vmlinuz-"))


def modules_in_load_order(kernel: UnpackedKernel, names: Sequence[str]) -> tuple[Path, ...]:
    """Files of the named modules and of all that they need, in the order to load them; built-in ones left out.

    Raises:
        GuestUnavailable: The kernel has no such module.
    """
    _run(["depmod", "-b", str(kernel.root), kernel.version])
    ordered: dict[Path, None] = {}
    for name in names:
        lines = _run(["modprobe", "-d", str(kernel.root), "-S", kernel.version, "--show-depends", name])
        for line in lines.splitlines():
            action, _, argument = line.strip().partition(" ")
            if action == "insmod":
                ordered[Path(argument.split(" ")[0])] = None
    return tuple(ordered)


def module_entries(modules: Sequence[Path]) -> dict[str, Entry]:
    """Entries of an initial RAM disk for ``modules``, named so that they sort in load order."""
    entries = {}
    for number, path in enumerate(modules):
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        entries[f"modules/{number:02}-{path.name.removesuffix('.xz')}"] = Entry(content)
    return entries


def busybox_entry() -> Entry:
    """The statically linked busybox of this machine."""
    return Entry(_BUSYBOX.read_bytes(), executable=True)


def _fixed_entries() -> dict[str, Entry]:
    """All of the RAM disk but the modules."""
    guest = files("cli.demo") / "guest"
    return {
        "bin/busybox": busybox_entry(),
        "init": Entry((guest / "init").read_bytes(), executable=True),
        _POWER_BUTTON: Entry((guest / "power-button").read_bytes(), executable=True),
    }


def _key(package: Path, entries: dict[str, Entry]) -> str:
    """Name of the build: changes with whatever goes into it."""
    digest = hashlib.sha256(repr((package.name, package.stat().st_size, GUEST_MODULES)).encode())
    digest.update(write_initramfs(entries))
    return digest.hexdigest()[:16]


def _cached_package(cache_directory: Path) -> Path | None:
    packages = sorted((cache_directory / "kernel").glob("*.deb"), key=lambda path: path.stat().st_mtime)
    return packages[-1] if packages else None


def _kernel_package_name() -> str:
    """The package that the meta package depends on at present: its name carries the kernel's ABI version."""
    names = re.findall(r"^\s*Depends: (linux-image-\S+)$", _apt("apt-cache", "depends", META_PACKAGE), re.MULTILINE)
    if len(names) != 1:
        raise GuestUnavailable(f"apt names {len(names)} kernels for {META_PACKAGE}, not one: run apt-get update")
    return str(names[0])


def _rename_unless_there(source: Path, target: Path) -> None:
    """Put a directory in place at once; if another process was first, its build is as good."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _apt(*arguments: str, cwd: Path | None = None) -> str:
    try:
        return _run(list(arguments), cwd=cwd, seconds=_DOWNLOAD_SECONDS)
    except GuestUnavailable as exc:
        raise GuestUnavailable(f"{exc}; is the network there? then run apt-get update and try again") from exc


def _run(arguments: list[str], *, cwd: Path | None = None, seconds: int = _COMMAND_SECONDS) -> str:
    """Standard output of a command.

    Raises:
        GuestUnavailable: It is not installed, failed, or took too long.
    """
    # depmod and modprobe lie in /usr/sbin, which is not in every user's PATH.
    environment = os.environ | {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError as exc:
        raise GuestUnavailable(f"{arguments[0]} is not installed: run deploy/install demo") from exc
    except subprocess.TimeoutExpired as exc:
        raise GuestUnavailable(f"{arguments[0]} did not end within {seconds} s") from exc
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GuestUnavailable(f"{arguments[0]} failed: {last}")
    return done.stdout


def _prepare() -> int:
    """Have the newest kernel and the guest in the cache; without network, what is there must do."""
    cache = default_cache_directory()
    try:
        cached = _cached_package(cache)
        # Asking apt takes seconds; it answers otherwise than last time only after apt-get update.
        if cached is None or not _APT_LISTS.is_dir() or cached.stat().st_mtime < _APT_LISTS.stat().st_mtime:
            try:
                fetch_kernel_package(cache, print)
            except GuestUnavailable:
                if cached is None:
                    raise
        build_guest(cache, print)
    except GuestUnavailable as exc:
        print(f"guest_image: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_prepare())
