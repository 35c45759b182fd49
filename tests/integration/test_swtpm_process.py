"""Software TPMs as processes: started on their own state only, outliving whom they should, and no one else."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtpm.control import BlobKind, Capability, ControlChannel
from swtpm.errors import ControlError, ProcessError, StateError, StateReason, SwtpmUnavailable
from swtpm.manufacture import manufacture
from swtpm.process import SoftwareTpm, VtpmProcess, process_start_time, start_vtpm, swtpm_version
from swtpm.state import STATE_FILE, rekey_state, verify_state
from tests.software_tpm import HostTpm

KEY = memoryview(bytes(range(32)))
OTHER_KEY = memoryview(bytes(range(1, 33)))


@pytest.fixture
def state_dir(tpm_dir: Path) -> Path:
    """Directory with the encrypted state of a fresh TPM that is off."""
    manufacture(tpm_dir / "state", key=KEY)
    return tpm_dir / "state"


@pytest.fixture
def vtpm(state_dir: Path, tpm_dir: Path) -> Iterator[VtpmProcess]:
    """Run a vTPM that no QEMU took yet."""
    process = start_vtpm(state_dir, key=KEY, log_path=tpm_dir / "vtpm.log")
    yield process
    process.kill()


def damage(state_dir: Path, how: str) -> StateReason:
    """Damage a state file, and say what must be reported."""
    path = state_dir / STATE_FILE
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
        return StateReason.MISSING
    if how == "truncated":
        path.write_bytes(content[:-100])
        return StateReason.TRUNCATED
    if how == "empty":
        path.write_bytes(b"")
        return StateReason.TRUNCATED
    if how == "foreign file":
        path.write_bytes(b"#!/bin/sh\necho this is no TPM\n")
        return StateReason.NOT_SWTPM_STATE
    if how == "another TPM's":
        other = state_dir.with_name("other")
        manufacture(other, key=OTHER_KEY)
        path.write_bytes((other / STATE_FILE).read_bytes())
        return StateReason.WRONG_KEY
    if how == "in clear":
        other = state_dir.with_name("other")
        manufacture(other, key=None)
        path.write_bytes((other / STATE_FILE).read_bytes())
        return StateReason.NOT_ENCRYPTED
    content = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    path.write_bytes(content)
    return StateReason.WRONG_KEY


DAMAGES = ["missing", "truncated", "empty", "foreign file", "another TPM's", "in clear", "one bit changed"]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_state_is_never_a_new_tpm(state_dir: Path, tpm_dir: Path, how: str) -> None:
    """A state that is not whole and this key's is refused with its reason, and nothing is made or changed (R-OP-4)."""
    reason = damage(state_dir, how)
    before = {path.name: path.read_bytes() for path in state_dir.iterdir()}
    with pytest.raises(StateError) as refused:
        start_vtpm(state_dir, key=KEY, log_path=tpm_dir / "vtpm.log")
    assert refused.value.reason is reason
    with pytest.raises(StateError) as refused:
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY)
    assert refused.value.reason is reason
    assert {path.name: path.read_bytes() for path in state_dir.iterdir()} == before


def test_wrong_key_leaves_state_usable(state_dir: Path, tpm_dir: Path) -> None:
    """After a start with the wrong key, the right one still opens the state."""
    with pytest.raises(StateError) as refused:
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=OTHER_KEY)
    assert refused.value.reason is StateReason.WRONG_KEY
    with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY) as tpm:
        assert tpm.running


def test_encrypted_state_without_key_is_refused(state_dir: Path, tpm_dir: Path) -> None:
    """An encrypted state is not opened without a key."""
    with pytest.raises(StateError) as refused:
        SoftwareTpm.start(state_dir, tpm_dir / "tpm")
    assert refused.value.reason is StateReason.ENCRYPTED


def test_new_tpm_only_where_none_is(state_dir: Path, tpm_dir: Path) -> None:
    """A new TPM is made on demand, and never over an old one."""
    with pytest.raises(StateError) as refused:
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY, new=True)
    assert refused.value.reason is StateReason.ALREADY_EXISTS
    fresh = tpm_dir / "fresh"
    fresh.mkdir()
    with SoftwareTpm.start(fresh, tpm_dir / "tpm", key=KEY, new=True):
        verify_state((fresh / STATE_FILE).read_bytes(), KEY)


def test_rekeyed_state_starts_with_new_key_only(state_dir: Path, tpm_dir: Path) -> None:
    """Swtpm takes a rekeyed state with its new key; the old one is refused (R-OP-4)."""
    path = state_dir / STATE_FILE
    path.write_bytes(rekey_state(path.read_bytes(), KEY, OTHER_KEY, os.urandom(32)))
    with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=OTHER_KEY):
        pass
    with pytest.raises(StateError) as refused:
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY)
    assert refused.value.reason is StateReason.WRONG_KEY


def test_key_is_neither_in_arguments_nor_in_files(software_tpm: HostTpm) -> None:
    """The state key shows in no argument, environment or file of the process."""
    forms = (software_tpm.key, software_tpm.key.hex().encode())
    proc = Path(f"/proc/{software_tpm.process.pid}")
    places = [proc / "cmdline", proc / "environ"]
    places += [path for path in software_tpm.state_dir.iterdir() if path.is_file()]
    for place in places:
        content = place.read_bytes()
        assert not any(form in content for form in forms), place


def test_sockets_are_for_this_user_only(software_tpm: HostTpm) -> None:
    """Command and control sockets and the state file have mode 0600."""
    for name in ("tpm", "tpm.ctrl", STATE_FILE):
        assert stat.S_IMODE((software_tpm.state_dir / name).stat().st_mode) == 0o600


def test_stop_leaves_no_socket_and_no_process(state_dir: Path, tpm_dir: Path) -> None:
    """An orderly stop ends the process and removes its sockets; stopping twice is harmless."""
    tpm = SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY)
    tpm.stop()
    tpm.stop()
    assert not tpm.running
    assert [path.name for path in tpm_dir.iterdir()] == ["state"]


def test_second_tpm_on_a_served_socket_is_refused(state_dir: Path, tpm_dir: Path) -> None:
    """A socket in use is reported, and its server goes on."""
    with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY) as first:
        other = tpm_dir / "other"
        manufacture(other, key=KEY)
        with pytest.raises(ProcessError, match="another process serves"):
            SoftwareTpm.start(other, tpm_dir / "tpm", key=KEY)
        first.reset()


def test_second_tpm_on_one_state_is_refused(state_dir: Path, tpm_dir: Path) -> None:
    """One state is not run twice at a time."""
    with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY) as first:
        with pytest.raises(ProcessError, match="did not start"):
            SoftwareTpm.start(state_dir, tpm_dir / "tpm2", key=KEY)
        first.reset()
    assert [path.name for path in tpm_dir.iterdir()] == ["state"]


def test_stale_socket_is_replaced(state_dir: Path, tpm_dir: Path) -> None:
    """Sockets that a killed process left do not keep a TPM from starting."""
    for name in ("tpm", "tpm.ctrl"):
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(tpm_dir / name))
    with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY) as tpm:
        assert tpm.running


def test_too_long_socket_path_is_reported(state_dir: Path, tpm_dir: Path) -> None:
    """A socket path beyond the system's limit is named as the problem."""
    with pytest.raises(ProcessError, match="107"):
        SoftwareTpm.start(state_dir, tpm_dir / ("x" * 110), key=KEY)


def test_failed_start_names_what_swtpm_logged(tpm_dir: Path) -> None:
    """When swtpm itself fails, its own words are in the error."""
    with pytest.raises(ProcessError, match="swtpm did not start"):
        SoftwareTpm.start(tpm_dir / "no-such-directory", tpm_dir / "tpm", key=KEY, new=True)
    assert list(tpm_dir.iterdir()) == []


def test_log_goes_where_it_should(state_dir: Path, tpm_dir: Path) -> None:
    """Swtpm's log is appended to the file given, which only this user can read."""
    log = tpm_dir / "tpm.log"
    for _ in range(2):
        with SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=KEY, log_path=log):
            pass
    assert log.read_text().count("disconnected") >= 2
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


START_AND_DIE = """
import sys
from pathlib import Path
from swtpm.process import SoftwareTpm
directory, outlive = Path(sys.argv[1]), sys.argv[2] == "outlive"
tpm = SoftwareTpm.start(directory / "state", directory / "tpm", key=bytes(range(32)), outlive_starter=outlive)
print(tpm.pid, flush=True)
import os
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("lifetime", ["outlive", "die"])
def test_outlives_its_starter_only_when_told(state_dir: Path, tpm_dir: Path, lifetime: str) -> None:
    """A TPM survives a killed starter if it was asked to, and ends with it otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", START_AND_DIE, str(tpm_dir), lifetime], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    try:
        assert wait_until_gone(pid, 0.3 if lifetime == "outlive" else 5) is (lifetime == "die")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_control_channel_tells_capabilities(software_tpm: HostTpm) -> None:
    """The control channel answers what swtpm can do, and reads its state encrypted or in clear."""
    with ControlChannel.connect(software_tpm.state_dir / "tpm.ctrl") as control:
        assert Capability.INIT | Capability.SET_DATAFD | Capability.GET_STATEBLOB in control.capabilities()
        assert control.established() is False
        blob = control.get_state_blob(BlobKind.PERMANENT)
        assert blob.encrypted
        assert not control.get_state_blob(BlobKind.PERMANENT, decrypted=True).encrypted


def test_refused_state_is_never_followed_by_init(software_tpm: HostTpm, state_dir: Path, tpm_dir: Path) -> None:
    """After a TPM refused a state, INIT is not sent: swtpm would make a new TPM."""
    with ControlChannel.connect(software_tpm.state_dir / "tpm.ctrl") as control:
        blob = control.get_state_blob(BlobKind.PERMANENT)
    state = state_dir / STATE_FILE
    state.write_bytes(rekey_state(state.read_bytes(), KEY, OTHER_KEY, os.urandom(32)))
    with (
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=OTHER_KEY),
        ControlChannel.connect(tpm_dir / "tpm.ctrl") as control,
    ):
        control.stop()
        with pytest.raises(ControlError, match="SET_STATEBLOB") as refused:
            control.set_state_blob(BlobKind.PERMANENT, blob)
        assert refused.value.result not in (None, 0)
        with pytest.raises(ControlError, match="new TPM"):
            control.init()


def test_state_moves_over_control_channel(software_tpm: HostTpm, state_dir: Path, tpm_dir: Path) -> None:
    """A state read in clear from one TPM is taken by one under another key, and stored under that."""
    with ControlChannel.connect(software_tpm.state_dir / "tpm.ctrl") as control:
        blob = control.get_state_blob(BlobKind.PERMANENT, decrypted=True)
    state = state_dir / STATE_FILE
    state.write_bytes(rekey_state(state.read_bytes(), KEY, OTHER_KEY, os.urandom(32)))
    with (
        SoftwareTpm.start(state_dir, tpm_dir / "tpm", key=OTHER_KEY) as tpm,
        ControlChannel.connect(tpm_dir / "tpm.ctrl") as control,
    ):
        control.stop()
        control.set_state_blob(BlobKind.PERMANENT, blob)
        control.init()
        assert control.get_state_blob(BlobKind.PERMANENT, decrypted=True).data == blob.data
        assert tpm.running


def test_control_channel_times_out(tpm_dir: Path) -> None:
    """A control channel that does not answer is an error, not a hang."""
    ours, theirs = socket.socketpair()
    with theirs, ControlChannel(ours, timeout_seconds=0.05) as control:
        with pytest.raises(ControlError, match="no answer"):
            control.capabilities()
        with pytest.raises(ControlError):
            control.init()


def test_control_channel_of_nobody(tpm_dir: Path) -> None:
    """A control socket that is not there is named."""
    with pytest.raises(ControlError, match=r"nothing\.ctrl"):
        ControlChannel.connect(tpm_dir / "nothing.ctrl")


def test_vtpm_ends_with_its_emulator(vtpm: VtpmProcess) -> None:
    """A vTPM works over the descriptor for QEMU, and ends when QEMU's connections end (R-OP-4)."""
    with socket.socket(fileno=os.dup(vtpm.qemu_fd)) as qemu:
        vtpm.close_qemu_fd()
        control = ControlChannel(qemu)
        data, theirs = socket.socketpair()
        with theirs:
            control.set_data_fd(theirs.fileno())
        control.init()
        assert vtpm.running
        data.close()
    vtpm.wait(5)


def test_vtpm_can_be_found_again(vtpm: VtpmProcess) -> None:
    """Pid and start time name the vTPM, which is in a process group of its own."""
    assert process_start_time(vtpm.pid) == vtpm.start_time
    assert os.getpgid(vtpm.pid) == vtpm.pid
    with pytest.raises(ProcessError, match="still runs"):
        vtpm.wait(0.01)


def test_start_time_of_nobody() -> None:
    """A process that is not there has no start time."""
    finished = subprocess.Popen(["true"])
    finished.wait()
    with pytest.raises(ProcessError):
        process_start_time(finished.pid)


def test_version_is_read() -> None:
    """The installed swtpm is recent enough."""
    assert swtpm_version() >= (0, 7, 0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "not installed"),
        ("echo TPM emulator version 0.5.2, Copyright", "0.5.2 is too old"),
        ("echo something else", "gave no version"),
    ],
)
def test_missing_or_old_swtpm_says_what_to_install(
    tpm_dir: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    """Without a usable swtpm the error names the package."""
    if script is not None:
        program = tpm_dir / "swtpm"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tpm_dir))
    with pytest.raises(SwtpmUnavailable, match=message) as refused:
        swtpm_version()
    assert "apt-get install swtpm" in str(refused.value)


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Wait for a process that is not our child to end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False
