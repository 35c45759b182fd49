"""Record measured boots: boot OVMF and a unified kernel image under QEMU and keep the boot log and the PCR values.

    make recordings

Makes ``attestation/simulator/recordings/{good,changed-command-line}``: two boots that differ in nothing but the
kernel command line. Everything that would differ by chance is pinned (GPT GUIDs, volume serial number, dates in the
initial RAM disk and the image), so that a host's PCRs tell the command line and nothing else, and the same versions of
the tools record the same bytes again. Each recording is checked before it is kept: the log replays to the PCRs, by
tpm2_eventlog, which is not of this project.
"""

import base64
import hashlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from cli.demo.errors import GuestUnavailable
from cli.demo.guest_image import (
    UnpackedKernel,
    busybox_entry,
    default_cache_directory,
    fetch_kernel_package,
    unpack_kernel,
)
from cli.demo.initramfs import Entry, write_initramfs

HERE = Path(__file__).resolve().parent
RECORDINGS = HERE.parents[1] / "attestation" / "simulator" / "recordings"
_GOOD = "console=ttyS0 ro quiet lockdown=integrity module.sig_enforce=1"
COMMAND_LINES = {"good": _GOOD, "changed-command-line": f"{_GOOD} init=/bin/sh"}
"""``init=/bin/sh`` is what gives a root shell with no password: the classic reason to measure the command line."""
_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_OS_RELEASE = b'ID=garant-host\nNAME="Garant reference host"\nVERSION_ID=1\n'
_PARTITIONS = """label: gpt
label-id: 6F1A3C52-0B7E-4C39-9A64-2D8E51F0C7B3
first-lba: 2048
start=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=A2D9E4B1-57C8-4F06-8E13-94B60C7D2F5A, name=esp
"""
_PARTITION_OFFSET = 2048 * 512
_DISK_SIZE = 64 << 20
_PARTITION_SIZE = _DISK_SIZE - 2 * _PARTITION_OFFSET
_BOOT_SECONDS = 300
_IMA_PCR = 10
_PE_HEADER_POINTER = 0x3C
_PE_DATE = 8
"""Offset of TimeDateStamp from the PE signature (PE format, COFF file header)."""


def main() -> int:
    """Make all recordings anew; nothing is written unless all of them are good."""
    cache = default_cache_directory()
    with tempfile.TemporaryDirectory(prefix="garant-recordings-") as scratch_name:
        scratch = Path(scratch_name)
        try:
            kernel = unpack_kernel(fetch_kernel_package(cache, print), scratch / "kernel")
        except GuestUnavailable as exc:
            print(f"record: {exc}", file=sys.stderr)
            return 1
        initrd = write_initramfs(
            {"bin/busybox": busybox_entry(), "init": Entry((HERE / "init").read_bytes(), executable=True)}
        )
        recorded = {}
        for name, command_line in COMMAND_LINES.items():
            print(f"booting: {command_line}", flush=True)
            directory = scratch / name
            directory.mkdir()
            disk = make_disk(directory, make_uki(directory, kernel, initrd, command_line))
            recorded[name] = boot(directory, disk)
            check(directory, *recorded[name])
        check_difference(recorded["good"][1], recorded["changed-command-line"][1])
        for name, (log, pcrs) in recorded.items():
            target = RECORDINGS / name
            target.mkdir(parents=True, exist_ok=True)
            (target / "binary_bios_measurements").write_bytes(log)
            (target / "pcrs-sha256.txt").write_text(pcrs)
            (target / "command-line.txt").write_text(f"{COMMAND_LINES[name]}\n")
            print(f"recorded {name}: {len(log)} bytes, sha256 {hashlib.sha256(log).hexdigest()[:16]}…")
    for line in tool_versions(kernel.version):
        print(line)
    return 0


def make_uki(directory: Path, kernel: UnpackedKernel, initrd: bytes, command_line: str) -> Path:
    """Join systemd's EFI stub, kernel, initial RAM disk and command line into one EFI application."""
    sections = {".osrel": _OS_RELEASE, ".cmdline": command_line.encode(), ".initrd": initrd}
    files = {".linux": kernel.image}
    for name, content in sections.items():
        files[name] = directory / name.removeprefix(".")
        files[name].write_bytes(content)
    # Behind the stub's own sections, each at its own page, in systemd's customary order.
    address = _end_of_sections(_STUB)
    arguments = ["objcopy"]
    for name in (".osrel", ".cmdline", ".initrd", ".linux"):
        arguments += ["--add-section", f"{name}={files[name]}", "--change-section-vma", f"{name}={address:#x}"]
        address = _page_aligned(address + files[name].stat().st_size)
    uki = directory / "uki.efi"
    _run([*arguments, str(_STUB), str(uki)])
    _forget_date(uki)
    return uki


def make_disk(directory: Path, uki: Path) -> Path:
    """A GPT disk whose EFI system partition holds ``uki`` where firmware looks when nothing else is configured."""
    disk, partition = directory / "disk.img", directory / "esp.img"
    for path, size in ((disk, _DISK_SIZE), (partition, _PARTITION_SIZE)):
        with path.open("wb") as file:
            file.truncate(size)
    _run(["mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "-i", "7c3e91d2", "--invariant", str(partition)])
    _run(["mmd", "-i", str(partition), "::/EFI", "::/EFI/BOOT"])
    _run(["mcopy", "-i", str(partition), str(uki), "::/EFI/BOOT/BOOTX64.EFI"])
    size = _PARTITION_SIZE // 512
    _run(["sfdisk", "--quiet", str(disk)], _PARTITIONS.replace("start=2048,", f"start=2048, size={size},"))
    with disk.open("r+b") as file:
        file.seek(_PARTITION_OFFSET)
        file.write(partition.read_bytes())
    return disk


def boot(directory: Path, disk: Path) -> tuple[bytes, str]:
    """Boot once with a fresh TPM that has only a SHA-256 bank; return the boot log and the text of the PCR file."""
    state, dump = directory / "tpm", directory / "dump"
    state.mkdir()
    _run(["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--pcr-banks", "sha256"])
    variables = directory / "variables.fd"
    shutil.copyfile(_VARIABLES, variables)
    with ExitStack() as stack:
        control, device = socket.socketpair()
        channel = f"type=unixio,clientfd={control.fileno()}"
        tpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", channel, "--terminate"],
            pass_fds=[control.fileno()],
            stdin=subprocess.DEVNULL,
        )
        stack.callback(tpm.wait, timeout=30)
        stack.callback(tpm.terminate)
        control.close()
        arguments = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"]
        arguments += ["-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "512"]
        arguments += ["-drive", f"if=pflash,format=raw,readonly=on,file={_FIRMWARE}"]
        arguments += ["-drive", f"if=pflash,format=raw,file={variables}"]
        arguments += ["-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=disk"]
        arguments += ["-chardev", f"socket,id=tpm,fd={device.fileno()}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        arguments += ["-device", "tpm-crb,tpmdev=tpm0"]
        arguments += ["-serial", "null", "-serial", f"file:{dump}"]
        with device:
            _run(arguments, pass_fds=(device.fileno(),))
    parts = re.findall(r"BEGIN (\S+)\s([A-Za-z0-9+/=\s]*)(?=BEGIN)", dump.read_text())
    sections = {name: base64.b64decode(text) for name, text in parts}
    if sections.keys() != {"log", "pcrs-sha256"}:
        raise SystemExit(f"the guest dumped {sorted(sections)}: it did not boot as it should")
    return sections["log"], sections["pcrs-sha256"].decode().lower()


def check(directory: Path, log: bytes, pcrs: str) -> None:
    """Replay the log with tpm2_eventlog and compare with what the guest's TPM held.

    PCR 10 is left out: the kernel's IMA extends it and has a log of its own.
    """
    path = directory / "binary_bios_measurements"
    path.write_bytes(log)
    text = _run(["tpm2_eventlog", str(path)])
    replayed = {
        int(index): value
        for index, value in re.findall(r"^\s+(\d+)\s*: 0x([0-9a-f]{64})$", text.partition("\npcrs:")[2], re.MULTILINE)
    }
    held = parse_pcrs(pcrs)
    if not replayed:
        raise SystemExit("tpm2_eventlog printed no PCR")
    for index, value in held.items():
        empty = "ff" * 32 if 17 <= index <= 22 else "00" * 32
        if index != _IMA_PCR and replayed.get(index, empty) != value:
            raise SystemExit(f"PCR {index} is {value}, the log gives {replayed.get(index, empty)}")


def check_difference(good: str, changed: str) -> None:
    """Refuse recordings that differ in more than the command line explains.

    The command line is part of the image (PCR 4), of what the kernel measures (PCR 9) and of what systemd's stub
    measures (PCR 11, 12); firmware and its settings, the partition table and Secure Boot must be the same.
    """
    before, after = parse_pcrs(good), parse_pcrs(changed)
    differing = {index for index in before if before[index] != after[index]} - {_IMA_PCR}
    if not {4, 9, 11} <= differing <= {4, 9, 11, 12}:
        raise SystemExit(f"the two boots differ in PCRs {sorted(differing)}: only 4, 9, 11 and 12 may")


def parse_pcrs(text: str) -> dict[int, str]:
    """PCR values by index, of a file with one "INDEX HEX" a line."""
    return {int(index): value for index, value in (line.split() for line in text.splitlines())}


def tool_versions(kernel: str) -> list[str]:
    """One line for each program whose version may change a recording."""
    packages = ["qemu-system-x86", "ovmf", "swtpm", "systemd-boot-efi", "binutils", "busybox-static"]
    lines = _run(["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *packages]).splitlines()
    return [*lines, f"linux {kernel}"]


def _end_of_sections(program: Path) -> int:
    """First free page behind the sections of an EFI program."""
    listing = _run(["objdump", "--headers", str(program)])
    rows = re.findall(r"^\s*\d+ \S+\s+([0-9a-f]{8})\s+([0-9a-f]{16})", listing, re.MULTILINE)
    return _page_aligned(max(int(size, 16) + int(address, 16) for size, address in rows))


def _forget_date(program: Path) -> None:
    """Zero the date that objcopy wrote into a PE header (TimeDateStamp): it is part of what firmware measures."""
    with program.open("r+b") as file:
        file.seek(_PE_HEADER_POINTER)
        header = int.from_bytes(file.read(4), "little")
        file.seek(header)
        if file.read(4) != b"PE\0\0":
            raise SystemExit(f"{program.name} is no EFI program")
        file.seek(header + _PE_DATE)
        file.write(bytes(4))


def _page_aligned(address: int) -> int:
    return -(-address // 4096) * 4096


def _run(arguments: list[str], text: str | None = None, pass_fds: tuple[int, ...] = ()) -> str:
    """Standard output of a command that must succeed."""
    try:
        done = subprocess.run(
            arguments,
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            timeout=_BOOT_SECONDS,
            pass_fds=pass_fds,
        )
    except FileNotFoundError:
        raise SystemExit(f"{arguments[0]} is not installed: run deploy/install recordings") from None
    if done.returncode != 0:
        raise SystemExit(f"{arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
