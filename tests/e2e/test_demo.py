"""``garant demo``, run as a user runs it: the whole story, and what bad input gets."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

GARANT = Path(sys.executable).parent / "garant"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="the demo reads every process's environment, which takes root"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, since sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="gd-") as scratch:
        yield Path(scratch) / "d"


def _demo(*arguments: str | Path, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(GARANT), "demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def _processes_under(directory: Path) -> list[str]:
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{directory}/" in words:
                found.append(words)
    return found


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout
    return lines[0]


@pytest.mark.boot
@pytest.mark.xdist_group("boot")
@pytest.mark.timeout(600)
def test_every_claim_of_the_story_is_shown(directory: Path) -> None:
    """The demo shows each claim on real parts, and leaves no process (R-OP-1, R-OP-4, R-TA-1 to R-TA-5, B-19)."""
    done = _demo("--directory", directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 22
    assert "✗" not in done.stdout
    assert "All 22 claims shown" in done.stdout
    assert _processes_under(directory) == []


@pytest.mark.boot
@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_image_of_the_users_own_is_only_read(directory: Path, tmp_path: Path) -> None:
    """With an image that the project did not make, the guest reads the same content, and the file is untouched."""
    image = tmp_path / "user image,1.qcow2"
    raw = tmp_path / "content"
    raw.write_bytes(os.urandom(3 << 20) + bytes(13 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    done = _demo("--directory", directory, "--disk", image)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
    assert re.search(r"8 keys and 3 markers", done.stdout)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "not a disk image|no disk image|empty"),
        (b"This is a letter, not a disk.\n", "not a disk image|no disk image|not whole sectors"),
        (b"QFI\xfb\0\0\0\x03" + b"\xff" * 504, "image|qcow2"),
    ],
    ids=["absent", "empty", "text", "damaged"],
)
def test_a_bad_image_is_one_line(directory: Path, tmp_path: Path, content: bytes | None, said: str) -> None:
    """An image that is absent, empty, no image or damaged: one line that names it, exit code 2, nothing running."""
    image = tmp_path / "image.qcow2"
    if content is not None:
        image.write_bytes(content)
    line = _one_line(_demo("--directory", directory, "--disk", image))
    assert str(image) in line
    assert re.search(said, line)
    assert content is None or image.read_bytes() == content
    assert _processes_under(directory) == []


def test_an_image_in_use_is_one_line(directory: Path, tmp_path: Path) -> None:
    """An image that QEMU has open for writing is refused, and goes on being used."""
    image = tmp_path / "used.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "sleep 60000", image])
    try:
        while subprocess.run(["qemu-img", "info", image], capture_output=True, check=False).returncode == 0:
            assert user.poll() is None
            time.sleep(0.02)
        line = _one_line(_demo("--directory", directory, "--disk", image))
        assert "in use" in line
        assert user.poll() is None
    finally:
        user.kill()
        user.wait()


def test_an_image_that_does_not_fit_is_one_line(directory: Path, tmp_path: Path) -> None:
    """An image that does not fit on the disk is refused before anything is started."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=True)
    try:
        image = tmp_path / "large.raw"
        image.write_bytes(os.urandom(1 << 20) * 8)
        line = _one_line(_demo("--directory", directory, "--disk", image))
        assert "MiB are needed" in line
        assert _processes_under(directory) == []
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("tool", ["qemu-system-x86_64", "swtpm", "pkg-config"])
def test_a_missing_tool_is_one_line(directory: Path, tmp_path: Path, tool: str) -> None:
    """Without QEMU, swtpm or the TPM library: one line that says what to install."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("qemu-system-x86_64", "qemu-img", "swtpm", "pkg-config", "setpriv"):
        if name != tool:
            (tools / name).symlink_to(shutil.which(name) or "/nonexistent")
    line = _one_line(_demo("--directory", directory, PATH=str(tools)))
    assert "apt-get install" in line


def test_a_too_old_tool_is_one_line(directory: Path, tmp_path: Path) -> None:
    """A QEMU of another age is named with its version, and the version that is needed."""
    old = tmp_path / "qemu-system-x86_64"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 2.11.1'\n")
    old.chmod(0o755)
    line = _one_line(_demo("--directory", directory, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert "2.11" in line
    assert "7.0 or newer" in line


def test_a_port_in_use_is_one_line(directory: Path) -> None:
    """A port that somebody listens on is named."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        line = _one_line(_demo("--directory", directory, "--base-port", str(port)))
    assert f"port {port} is in use" in line


def test_a_directory_with_something_else_is_left_alone(directory: Path) -> None:
    """A directory that is not the demo's is not emptied."""
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    line = _one_line(_demo("--directory", directory))
    assert "holds something else" in line
    assert (directory / "thesis.tex").read_text() == "years of work"


def _started(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(GARANT), "demo", "--directory", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_claims(demo: subprocess.Popen[str], count: int) -> None:
    """Wait until the demo has begun and shown so many claims."""
    assert demo.stdout is not None
    seen, begun = 0, False
    while seen < count or not begun:
        line = demo.stdout.readline()
        assert line, "the demo ended early"
        begun = begun or "everything it makes is in" in line
        seen += line.count("✓")


def test_a_second_demo_is_one_line(directory: Path) -> None:
    """While a demo runs, another in the same directory is refused, and the first one goes on."""
    first = _started(directory)
    try:
        _wait_for_claims(first, 1)
        line = _one_line(_demo("--directory", directory))
        assert "another demo runs" in line
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert _processes_under(directory) == []


@pytest.mark.parametrize(
    ("claims", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM), (3, signal.SIGINT), (8, signal.SIGINT)]
)
def test_an_interrupt_stops_every_process(directory: Path, claims: int, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM at any moment stops whatever was started, and says so in one line."""
    demo = _started(directory)
    _wait_for_claims(demo, claims)
    time.sleep(0.3)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130, errors
    assert "Traceback" not in errors
    assert _processes_under(directory) == []
