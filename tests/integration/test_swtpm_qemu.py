"""A vTPM under QEMU: it serves the emulator that inherited its descriptor, and ends with it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from swtpm.manufacture import manufacture
from swtpm.process import start_vtpm
from swtpm.state import STATE_FILE, verify_state

KEY = memoryview(bytes(range(32)))
QEMU = "qemu-system-x86_64"

pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def ask(qemu: "subprocess.Popen[bytes]", command: str) -> object:
    """Send a QMP command and return its answer, past events."""
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    qemu.stdin.write(json.dumps({"execute": command}).encode())
    qemu.stdin.flush()
    for line in qemu.stdout:
        answer = json.loads(line)
        if "return" in answer or "error" in answer:
            return answer
    raise AssertionError("QEMU ended")


@pytest.mark.parametrize("end", ["quit", "kill"])
def test_vtpm_serves_qemu_and_ends_with_it(tpm_dir: Path, end: str) -> None:
    """QEMU powers the vTPM on through the inherited descriptor; however QEMU ends, so does the vTPM (R-OP-4)."""
    manufacture(tpm_dir / "state", key=KEY)
    vtpm = start_vtpm(tpm_dir / "state", key=KEY, log_path=tpm_dir / "vtpm.log")
    try:
        argv = [QEMU, "-nodefaults", "-machine", "q35", "-accel", "tcg", "-display", "none", "-S", "-qmp", "stdio"]
        argv += ["-chardev", f"socket,id=chrtpm,fd={vtpm.qemu_fd}"]
        argv += ["-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-crb,tpmdev=tpm0"]
        qemu = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[vtpm.qemu_fd]
        )
        with qemu:
            try:
                vtpm.close_qemu_fd()
                assert qemu.stdout is not None
                assert b"QMP" in qemu.stdout.readline()
                ask(qemu, "qmp_capabilities")
                answer = ask(qemu, "query-tpm")
                assert isinstance(answer, dict)
                assert [tpm["id"] for tpm in answer["return"]] == ["tpm0"]
                assert vtpm.running
                if end == "quit":
                    ask(qemu, "quit")
            finally:
                if end == "kill" or qemu.poll() is None:
                    qemu.kill()
        vtpm.wait(10)
        verify_state((tpm_dir / "state" / STATE_FILE).read_bytes(), KEY)
    finally:
        vtpm.kill()
