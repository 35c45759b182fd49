"""VMs of a host with real QEMU and swtpm: made, started, re-adopted, stopped, crashed, tampered with."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from host_agent.errors import (
    BundleError,
    BundleReason,
    DiskError,
    DiskFull,
    DiskReason,
    IllegalTransition,
    ImageReason,
    ImageRefused,
    InvalidSpec,
    OperationInProgress,
    QemuError,
    VmDirectoryInUse,
    VmExists,
    VmNotFound,
    VtpmError,
)
from host_agent.vm import luks, qcow2
from host_agent.vm.bundle import Bundle
from host_agent.vm.host_vms import HostVms
from host_agent.vm.keys import (
    DISK_LABEL,
    NVRAM_LABEL,
    VTPM_LABEL,
    luks_passphrase,
    open_component_key,
)
from host_agent.vm.lifecycle import VmState
from host_agent.vm.model import DiskSpec, VmSpec
from host_agent.vm.process_identity import ProcessIdentity
from host_agent.vm.qemu.argv import Accelerator, DiskPlan, MachinePlan, machine_arguments
from host_agent.vm.qemu.process import spawn_qemu
from host_agent.vm.qemu.qmp import QmpClient
from host_agent.vm.qemu.tools import Firmware
from host_agent.vm.run_directory import RunDirectory, RunRecord
from keyprovider.envelope import derive_key
from swtpm.process import start_vtpm
from tests.vm_keys import MemoryKeys

VM = "6f1c2a52-0c6b-4d4e-9d6e-2b1f3c4d5e6f"
OTHER = "0a1b2c3d-0c6b-4d4e-9d6e-2b1f3c4d5e6f"
MARKER = b"plaintext marker of the host test"


@dataclass
class Place:
    """Directories of one host, and what opens its VMs."""

    root: Path
    keys: MemoryKeys

    def open(self) -> HostVms:
        """Start serving, as a host agent does when it starts."""
        return HostVms(
            self.root / "vms",
            self.root / "run",
            image_directories=(self.root / "images",),
            accelerator=Accelerator.TCG,
        )

    def spec(self, vm_id: str = VM, *, vtpm: bool = True) -> VmSpec:
        """A small VM with a copied disk, an empty one, and a vTPM."""
        disks = (DiskSpec("root", str(self.root / "images" / "root.raw")), DiskSpec("data", size_bytes=1 << 20))
        return VmSpec(vm_id, f"name of {vm_id[:4]}", memory_mib=64, disks=disks, vtpm=vtpm)

    def bundle(self, vm_id: str = VM) -> Bundle:
        """Where a VM lies."""
        return Bundle(self.root / "vms" / vm_id)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A host with two encrypted VMs, to be copied and not changed."""
    place = Place(tmp_path_factory.mktemp("host"), MemoryKeys())
    (place.root / "images").mkdir()
    (place.root / "images" / "root.raw").write_bytes((MARKER * 40_000)[: 1 << 20])
    with place.open() as vms:
        for vm_id in (VM, OTHER):
            vms.create(place.spec(vm_id), place.keys)
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Iterator[Place]:
    """A host with two encrypted VMs; whatever runs at the end is ended."""
    shutil.copytree(made.root, tmp_path / "host")
    here = Place(tmp_path / "host", MemoryKeys(keks=dict(made.keys.keks)))
    yield here
    for path in (here.root / "run").iterdir():
        record = RunDirectory(here.root / "run", path.name).read_record()
        for process in (record.qemu, record.vtpm) if record else ():
            if process:
                process.kill()


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _secrets(place: Place) -> list[bytes]:
    """Every key of VM, recomputed from its bundle and the KEKs."""
    bundle, secrets = place.bundle(), list(place.keys.keks.values())
    with ExitStack() as stack:
        opened = bundle.open(VM, place.keys)
        assert opened.dek
        stack.enter_context(opened.dek)
        passphrases = {bundle.nvram: luks_passphrase(opened.dek, NVRAM_LABEL)}
        assert opened.home.vtpm_key
        vtpm = open_component_key(place.keys, opened.home.vtpm_key, VM, "vtpm")
        keys = [opened.dek, vtpm, derive_key(vtpm, VTPM_LABEL)]
        for disk in opened.home.disks:
            assert disk.key
            dek = open_component_key(place.keys, disk.key, VM, f"disk/{disk.name}")
            keys.append(dek)
            passphrases[bundle.disk(disk)] = luks_passphrase(dek, DISK_LABEL)
        for path, passphrase in passphrases.items():
            content = path.read_bytes()
            header = qcow2.parse_header(content)
            master_key = luks.open_header(content[header.luks_offset :][: header.luks_length], passphrase)
            assert master_key
            keys += [passphrase, master_key]
        secrets += [bytes(stack.enter_context(key).view()) for key in keys]
    return secrets


def _forms(secret: bytes) -> tuple[bytes, ...]:
    return secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret).rstrip(b"=")


@pytest.mark.boot
def test_running_vm_survives_its_agent(place: Place) -> None:
    """A new agent finds a running VM, with no key and no power cycle, and can stop it; its vTPM ends with it."""
    with place.open() as vms:
        started = vms.power_on(VM, place.keys)
        assert (started.state, started.name, started.provider) == (VmState.ON, "name of 6f1c", "memory")
    with place.open() as vms:
        adopted = vms.get(VM)
        assert (adopted.state, adopted.qemu_pid, adopted.name) == (VmState.ON, started.qemu_pid, "")
        assert vms.get(OTHER).state is VmState.OFF
        with pytest.raises(IllegalTransition, match="a VM that is on cannot power on"):
            vms.power_on(VM, place.keys)
        with pytest.raises(IllegalTransition, match="a VM that is on cannot be deleted"):
            vms.delete(VM)
        with QmpClient(place.root / "run" / VM / "qmp.sock", timeout_seconds=5) as monitor:
            assert monitor.execute("query-tpm")[0]["options"]["type"] == "emulator"
        record = RunDirectory(place.root / "run", VM).read_record()
        assert record
        assert record.vtpm
        assert record.qemu
        assert vms.power_off(VM).state is VmState.OFF
        assert not record.vtpm.running
        assert not record.qemu.running
        with pytest.raises(IllegalTransition, match="a VM that is off cannot power off"):
            vms.power_off(VM)
        vms.delete(VM)
        assert [vm.vm_id for vm in vms.list()] == [OTHER]
    assert not place.bundle().path.exists()
    assert not (place.root / "run" / VM).exists()


@pytest.mark.boot
def test_no_key_of_a_running_vm_can_be_found(place: Place) -> None:
    """No KEK, DEK, passphrase or master key is in a command line, environment, run directory or bundle (R-STD-5)."""
    with place.open() as vms:
        secrets = _secrets(place)
        assert len(secrets) == len(place.keys.keks) + 11
        vms.power_on(VM, place.keys)
        record = RunDirectory(place.root / "run", VM).read_record()
        assert record
        haystacks = _contents(place.root)
        for process in (record.qemu, record.vtpm):
            assert process
            for name in ("cmdline", "environ"):
                haystacks[f"{name} of {process.pid}"] = Path(f"/proc/{process.pid}/{name}").read_bytes()
        with QmpClient(place.root / "run" / VM / "qmp.sock", timeout_seconds=5) as monitor:
            objects = monitor.execute("qom-list", {"path": "/objects"})
        vms.power_off(VM)
    found = [
        where
        for where, content in haystacks.items()
        for secret in secrets
        for form in _forms(secret)
        if form in content
    ]
    assert found == []
    assert not [each for each in objects if "secret" in each["name"]]
    assert [where for where, content in haystacks.items() if MARKER in content] == ["images/root.raw"]
    assert not [where for where, content in haystacks.items() if b"name of" in content]


@pytest.mark.boot
def test_run_directory_is_private(place: Place) -> None:
    """Monitor, console and logs of a running VM are reachable by the agent's user only; QEMU dumps no core."""
    with place.open() as vms:
        pid = vms.power_on(VM, place.keys).qemu_pid
        run = place.root / "run" / VM
        assert run.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in run.iterdir() if path.stat().st_mode & 0o077} == set()
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core" in line).split()[4:6] == ["0", "0"]
        assert os.getsid(pid) == pid != os.getsid(0)
        vms.power_off(VM)


@pytest.mark.boot
def test_killed_qemu_is_seen_and_can_be_started_again(place: Place) -> None:
    """A VM whose QEMU was killed is off, its vTPM is gone, and it powers on again."""
    with place.open() as vms:
        first = vms.power_on(VM, place.keys).qemu_pid
        vtpm = RunDirectory(place.root / "run", VM).read_record()
        os.kill(first, signal.SIGKILL)
        identity = ProcessIdentity.of(first)
        assert identity is None or identity.wait(10)
        seen = vms.get(VM)
        assert (seen.state, seen.qemu_pid) == (VmState.OFF, 0)
        assert vtpm
        assert vtpm.vtpm
        assert not vtpm.vtpm.running
        assert vms.power_on(VM, place.keys).qemu_pid != first
        vms.power_off(VM)


@pytest.mark.boot
def test_vm_that_died_without_an_agent_is_off_for_the_next(place: Place) -> None:
    """What a VM left that died while no agent ran is cleared away; its console stays readable."""
    with place.open() as vms:
        pid = vms.power_on(VM, place.keys).qemu_pid
    os.kill(pid, signal.SIGKILL)
    identity = ProcessIdentity.of(pid)
    assert identity is None or identity.wait(10)
    with place.open() as vms:
        assert vms.get(VM).state is VmState.OFF
        vms.read_console(VM, 0)
    assert {path.name for path in (place.root / "run" / VM).iterdir()} <= {"console.log", "qemu.log", "vtpm.log"}


@pytest.mark.boot
def test_paused_vm_is_shown_as_paused(place: Place) -> None:
    """A guest that QEMU holds shows as paused, runs on as on, and can be powered off from either."""
    with place.open() as vms:
        vms.power_on(VM, place.keys)
        for command, state in (("stop", VmState.PAUSED), ("cont", VmState.ON), ("stop", VmState.PAUSED)):
            with QmpClient(place.root / "run" / VM / "qmp.sock", timeout_seconds=5) as monitor:
                monitor.execute(command)
            assert vms.get(VM).state is state
        assert vms.power_off(VM).state is VmState.OFF


@pytest.mark.boot
def test_hung_qemu_is_ended(place: Place) -> None:
    """A QEMU that answers nothing is shown and powered off all the same, the guest's grace notwithstanding."""
    with place.open() as vms:
        pid = vms.power_on(VM, place.keys).qemu_pid
        # Somebody else holds the monitor, which takes one client: commands get no answer.
        with QmpClient(place.root / "run" / VM / "qmp.sock", timeout_seconds=5):
            assert vms.get(VM).state is VmState.ON
            os.kill(pid, signal.SIGSTOP)
            doomed = threading.Timer(1, os.kill, (pid, signal.SIGKILL))
            doomed.start()
            assert vms.power_off(VM, 1).state is VmState.OFF
            doomed.join()


@pytest.mark.boot
def test_console_is_read_in_pieces(place: Place) -> None:
    """What the firmware writes to the serial console is read by offset, by whichever agent serves."""
    with place.open() as vms:
        vms.power_on(VM, place.keys)
    with place.open() as vms:
        output, offset, deadline = b"", 0, time.monotonic() + 120
        while len(output) < 10 and time.monotonic() < deadline:
            time.sleep(0.05)
            piece, offset = vms.read_console(VM, offset)
            output += piece
        vms.power_off(VM)
        assert len(output) >= 10
        assert vms.read_console(VM, 0)[0].startswith(output)
        assert vms.read_console(VM, 4)[0].startswith(output[4:])
        assert vms.read_console(VM, 1 << 62) == (b"", 1 << 62)


@pytest.mark.boot
def test_vm_in_clear_needs_no_keys(place: Place) -> None:
    """A VM without a provider is made, started and stopped without any key, and is what it says: not encrypted."""
    vm_id = VM.replace("6", "7")
    with place.open() as vms:
        made = vms.create(place.spec(vm_id, vtpm=False), None)
        assert made.provider == ""
        with pytest.raises(BundleError, match="in clear, and was to be opened as encrypted"):
            vms.power_on(vm_id, place.keys)
        assert vms.power_on(vm_id, None).state is VmState.ON
        vms.power_off(vm_id)
    assert {path.name for path in place.bundle(vm_id).path.iterdir()} == {
        "bundle.json",
        "home.json",
        "nvram.qcow2",
        "disk-root.qcow2",
        "disk-data.qcow2",
    }


def test_bundle_holds_what_its_specification_says(place: Place) -> None:
    """An encrypted bundle has no file but those specified, all private, and each component has its own key."""
    bundle = place.bundle()
    names = {"bundle.json", "home.sealed", "nvram.qcow2", "disk-root.qcow2", "disk-data.qcow2", "vtpm"}
    assert {path.name for path in bundle.path.iterdir()} == names
    assert not [path for path in bundle.path.rglob("*") if path.stat().st_mode & 0o077]
    opened = bundle.open(VM, place.keys)
    assert opened.dek
    opened.dek.close()
    keys = [bundle.read_manifest(VM).home_key, opened.home.vtpm_key, *(disk.key for disk in opened.home.disks)]
    assert len({key.key_reference for key in keys if key}) == len({key.wrapped_dek for key in keys if key}) == 4


def _swap(place: Place, name: str) -> None:
    mine, other = place.bundle().path / name, place.bundle(OTHER).path / name
    aside = mine.with_name("aside")
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("bundle.json", BundleError, BundleReason.OTHER_VM),
        ("home.sealed", BundleError, BundleReason.WRONG_KEY),
        ("nvram.qcow2", DiskError, DiskReason.WRONG_KEY),
        ("disk-root.qcow2", DiskError, DiskReason.WRONG_KEY),
        ("vtpm", VtpmError, None),
    ],
)
def test_part_of_another_vm_is_refused(
    place: Place, name: str, error: type[Exception], reason: BundleReason | DiskReason | None
) -> None:
    """A part exchanged for another VM's is refused by name, no file is touched, and nothing runs."""
    with place.open() as vms:
        _swap(place, name)
        before = _contents(place.root / "vms")
        with pytest.raises(error) as refusal:
            vms.power_on(VM, place.keys)
        assert getattr(refusal.value, "reason", None) is reason
        assert vms.get(VM).state is VmState.OFF
        assert _contents(place.root / "vms") == before


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "gone":
        path.unlink()
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
@pytest.mark.parametrize("name", ["bundle.json", "home.sealed", "vtpm/tpm2-00.permall"])
def test_damaged_file_is_refused(place: Place, name: str, how: str) -> None:
    """A torn, missing or changed file is refused; nothing is made anew in its place."""
    with place.open() as vms:
        _damage(place.bundle().path / name, how)
        before = _contents(place.root / "vms")
        with pytest.raises((BundleError, VtpmError)):
            vms.power_on(VM, place.keys)
        assert _contents(place.root / "vms") == before


def test_exchanged_manifest_fields_are_refused(place: Place) -> None:
    """A generation that the home does not repeat, and a key reference that the key was not wrapped for, are refused."""
    path = place.bundle().manifest
    genuine = path.read_bytes()
    with place.open() as vms:
        path.write_bytes(genuine.replace(b'"generation": 1', b'"generation": 2'))
        with pytest.raises(BundleError, match="one of them was exchanged") as refusal:
            vms.power_on(VM, place.keys)
        assert refusal.value.reason is BundleReason.GENERATION_MISMATCH
        path.write_bytes(genuine.replace(b'"provider": "memory"', b'"provider": "elsewhere"'))
        with pytest.raises(BundleError, match="'elsewhere', not from 'memory'"):
            vms.power_on(VM, place.keys)


def test_wrong_kek_is_refused(place: Place) -> None:
    """A KEK that is not the one a component was wrapped by opens nothing; the right one does afterwards."""
    right = dict(place.keys.keks)
    with place.open() as vms:
        for reference in [reference for reference in right if reference.split("#")[0] in ("home", "vtpm", "disk/root")][
            :3
        ]:
            place.keys.keks[reference] = os.urandom(32)
            with pytest.raises(BundleError, match="does not open with what provider 'memory' released") as refusal:
                vms.power_on(VM, place.keys)
            assert refusal.value.reason is BundleReason.WRONG_KEY
            place.keys.keks[reference] = right[reference]
    opened = place.bundle().open(VM, place.keys)
    assert opened.dek
    opened.dek.close()


def test_encrypted_vm_does_not_start_without_keys(place: Place) -> None:
    """Without a key source an encrypted VM stays off."""
    with place.open() as vms, pytest.raises(BundleError, match="encrypted, and was to be opened without"):
        vms.power_on(VM, None)


def test_failing_key_source_leaves_nothing(place: Place) -> None:
    """When the provider refuses a key in the middle of a creation, its error comes out and no file stays (R-ERR-2)."""

    def refuse(component: str) -> None:
        if component == "vtpm":
            raise ConnectionRefusedError("no key server")

    vm_id = VM.replace("6", "7")
    place.keys.before_create = refuse
    with place.open() as vms:
        before = _contents(place.root)
        with pytest.raises(Exception, match="no key server"):
            vms.create(place.spec(vm_id), place.keys)
        assert _contents(place.root) == before
        with pytest.raises(VmNotFound):
            vms.get(vm_id)
        place.keys.before_create = str
        assert vms.create(place.spec(vm_id), place.keys).state is VmState.OFF


def test_agent_killed_while_creating_leaves_nothing(place: Place) -> None:
    """After kill -9 in the middle of a creation, the next agent clears away what was begun; other VMs are as before."""
    vm_id = VM.replace("6", "7")
    program = f"""
import os, signal
from pathlib import Path
from tests.integration.test_vm_host_vms import Place
from tests.vm_keys import MemoryKeys
place = Place(Path({str(place.root)!r}), MemoryKeys())
place.keys.before_create = lambda component: component == "vtpm" and os.kill(os.getpid(), signal.SIGKILL)
place.open().create(place.spec({vm_id!r}), place.keys)
"""
    before = _contents(place.root / "vms")
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert (place.root / "vms" / f"{vm_id}.creating" / "disk-root.qcow2").exists()
    with place.open() as vms:
        assert [vm.vm_id for vm in vms.list()] == [OTHER, VM]
        assert _contents(place.root / "vms") == before
        vms.create(place.spec(vm_id), place.keys)


@pytest.mark.boot
@pytest.mark.parametrize("content", [None, b"", b'{"format": "garant-vm-run", "version": 9}'])
def test_running_vm_is_found_without_its_record(place: Place, content: bytes | None) -> None:
    """A VM whose run record was lost or damaged is adopted all the same, with its vTPM, and can be stopped."""
    with place.open() as vms:
        pid = vms.power_on(VM, place.keys).qemu_pid
    run = RunDirectory(place.root / "run", VM)
    record = run.read_record()
    (run.path / "run.json").unlink()
    if content is not None:
        (run.path / "run.json").write_bytes(content)
    with place.open() as vms:
        assert (vms.get(VM).state, vms.get(VM).qemu_pid) == (VmState.ON, pid)
        assert run.read_record() == record
        vms.power_off(VM)
    assert record
    assert record.vtpm
    assert not record.vtpm.running


@pytest.mark.boot
def test_agent_killed_before_the_guest_ran_leaves_no_process(place: Place) -> None:
    """QEMU that was started and never told to run is ended by the next agent, and the VM powers on."""
    vm_id = VM.replace("6", "7")
    with place.open() as vms:
        vms.create(VmSpec(vm_id, "n", memory_mib=64), None)
    run = RunDirectory(place.root / "run", vm_id)
    run.prepare()
    with run.listen(run.qmp_socket) as monitor, run.listen(run.serial_socket) as serial:
        plan = MachinePlan(
            vm_id=vm_id,
            cpus=1,
            memory_mib=64,
            accelerator=Accelerator.TCG,
            firmware_code=Firmware().code,
            nvram=DiskPlan("nvram", place.bundle(vm_id).nvram, None),
            disks=(),
            qmp_fd=monitor.fileno(),
            serial_fd=serial.fileno(),
            console_log=run.console_log,
            vtpm_fd=None,
        )
        descriptors = (plan.qmp_fd, plan.serial_fd)
        qemu = spawn_qemu(machine_arguments(plan), pass_fds=descriptors, log_path=run.qemu_log)
    run.write_record(RunRecord(qemu, None))
    with place.open() as vms:
        assert vms.get(vm_id).state is VmState.OFF
        assert not qemu.running
        vms.power_on(vm_id, None)
        vms.power_off(vm_id)


@pytest.mark.parametrize("recorded", [True, False])
def test_agent_killed_before_qemu_started_leaves_no_vtpm(place: Place, recorded: bool) -> None:
    """A vTPM whose QEMU was never started is ended by the next agent, even if it was not yet written down."""
    home = place.bundle().open(VM, place.keys)
    assert home.dek
    assert home.home.vtpm_key
    run = RunDirectory(place.root / "run", VM)
    run.prepare()
    with (
        home.dek,
        open_component_key(place.keys, home.home.vtpm_key, VM, "vtpm") as dek,
        derive_key(dek, VTPM_LABEL) as key,
    ):
        vtpm = start_vtpm(place.bundle().vtpm, key=key.view(), log_path=run.vtpm_log)
    if recorded:
        run.write_record(RunRecord(None, ProcessIdentity(vtpm.pid, vtpm.start_time)))
    with place.open() as vms:
        assert vms.get(VM).state is VmState.OFF
        assert not vtpm.running
    vtpm.close_qemu_fd()


def test_deletion_cut_short_is_finished_by_the_next_agent(place: Place) -> None:
    """A VM whose deletion was begun does not come back."""
    place.bundle().path.rename(place.root / "vms" / f"{VM}.deleting")
    with place.open() as vms:
        assert [vm.vm_id for vm in vms.list()] == [OTHER]
    assert not (place.root / "vms" / f"{VM}.deleting").exists()


def test_second_agent_is_refused(place: Place) -> None:
    """Two agents never serve one directory; once the first has let go, the next may."""
    with place.open(), pytest.raises(VmDirectoryInUse, match="another host agent"):
        place.open()
    place.open().close()


def test_second_operation_on_a_vm_is_refused(place: Place) -> None:
    """While a VM is being started, another operation on it is refused, and other VMs are not held up."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(component: str) -> None:
        reached.set()
        go_on.wait(30)
        raise QemuError(f"given up at {component}")

    slow = MemoryKeys(before_unwrap=hold)

    with place.open() as vms:
        failed: list[Exception] = []

        def power_on() -> None:
            try:
                vms.power_on(VM, slow)
            except QemuError as exc:
                failed.append(exc)

        thread = threading.Thread(target=power_on)
        thread.start()
        assert reached.wait(30)
        assert vms.get(VM).state is VmState.STARTING
        for operation in (lambda: vms.power_on(VM, place.keys), lambda: vms.power_off(VM), lambda: vms.delete(VM)):
            with pytest.raises(OperationInProgress):
                operation()
        vms.delete(OTHER)
        go_on.set()
        thread.join(30)
        assert len(failed) == 1
        assert vms.get(VM).state is VmState.OFF


def test_vm_is_made_once(place: Place) -> None:
    """An id that is taken is refused, and the VM that has it is untouched."""
    with place.open() as vms:
        before = _contents(place.root)
        with pytest.raises(VmExists):
            vms.create(place.spec(), place.keys)
        assert _contents(place.root) == before


def test_vtpm_without_provider_is_refused(place: Place) -> None:
    """A vTPM's state is never in clear: without a provider the request is refused and nothing is created (R-OP-8)."""
    with place.open() as vms:
        before = _contents(place.root)
        with pytest.raises(InvalidSpec, match="needs a key provider"):
            vms.create(place.spec(VM.replace("6", "7")), None)
        assert _contents(place.root) == before


@pytest.mark.parametrize("field", ["source_path", "kernel_path", "initrd_path", "link"])
def test_path_outside_the_image_directories_is_refused(place: Place, field: str) -> None:
    """A caller cannot have a file of the host copied into a guest that the host's administrator did not offer."""
    outside = place.root / "secret.raw"
    outside.write_bytes(bytes(512))
    link = place.root / "images" / "link.raw"
    link.symlink_to(outside)
    kernel = str(place.root / "images" / "root.raw")
    vm_id = VM.replace("6", "7")
    spec = {
        "source_path": lambda: VmSpec(vm_id, "n", disks=(DiskSpec("a", str(outside)),)),
        "link": lambda: VmSpec(vm_id, "n", disks=(DiskSpec("a", str(link)),)),
        "kernel_path": lambda: VmSpec(vm_id, "n", kernel_path=f"{place.root}/images/../secret.raw"),
        "initrd_path": lambda: VmSpec(vm_id, "n", kernel_path=kernel, initrd_path=str(outside)),
    }[field]()
    asked = len(place.keys.keks)
    with place.open() as vms:
        with pytest.raises(ImageRefused, match="image directory") as refusal:
            vms.create(spec, place.keys)
        assert refusal.value.reason is ImageReason.NOT_IN_IMAGE_DIRECTORY
    assert len(place.keys.keks) == asked


def test_unreadable_bundle_is_shown_and_can_be_deleted(place: Place) -> None:
    """One broken bundle hides no other: it is listed as failed, is not started, and can be deleted."""
    place.bundle().manifest.write_bytes(b"{}")
    with place.open() as vms:
        assert {vm.vm_id: vm.state for vm in vms.list()} == {VM: VmState.FAILED, OTHER: VmState.OFF}
        with pytest.raises(IllegalTransition, match="a VM that is failed cannot power on"):
            vms.power_on(VM, place.keys)
        vms.delete(VM)
        assert [vm.vm_id for vm in vms.list()] == [OTHER]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b'{"format": "garant-vm-run", "version": 9}'])
def test_damaged_run_record_harms_nobody(place: Place, content: bytes) -> None:
    """A run record that cannot be read does not keep the agent from starting, nor any process from living."""
    (place.root / "run" / VM).mkdir(mode=0o700)
    (place.root / "run" / VM / "run.json").write_bytes(content)
    with place.open() as vms:
        assert vms.get(VM).state is VmState.OFF


@pytest.mark.parametrize("vm_id", ["", "..", "../" + VM, VM.upper()])
def test_malformed_id_is_refused(place: Place, vm_id: str) -> None:
    """An id that is no UUID never becomes a path."""
    with place.open() as vms:
        for operation in (
            lambda: vms.get(vm_id),
            lambda: vms.power_on(vm_id, place.keys),
            lambda: vms.read_console(vm_id, 0),
            lambda: vms.delete(vm_id),
        ):
            with pytest.raises(InvalidSpec):
                operation()


def test_unknown_vm_is_not_found(place: Place) -> None:
    """A well-formed id of no VM is an error of its own."""
    with place.open() as vms, pytest.raises(VmNotFound, match="there is no VM"):
        vms.get(VM.replace("6", "7"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; skipped where mounting is not allowed."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_leaves_nothing(made: Place, small_disk: Path) -> None:
    """A VM that does not fit is refused and leaves no file, whether that is known before or found while copying."""
    images = small_disk / "vms"
    with HostVms(images, small_disk / "run", image_directories=(made.root / "images",)) as vms:
        before = _contents(small_disk)
        # The empty disks' headers are not in the reckoning of the copies: the disk fills up half way.
        many = tuple(DiskSpec(f"d{number}", size_bytes=1 << 20) for number in range(8))
        with pytest.raises(DiskFull):
            vms.create(VmSpec(VM, "n", disks=many), MemoryKeys())
        with pytest.raises(DiskFull, match="are needed"):
            vms.create(
                VmSpec(
                    VM, "n", disks=tuple(DiskSpec(f"d{n}", str(made.root / "images" / "root.raw")) for n in range(4))
                ),
                MemoryKeys(),
            )
        assert _contents(small_disk) == before
        assert vms.list() == ()
