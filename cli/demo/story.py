"""The story: seven chapters of claims, each shown on running parts."""

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from attestation.simulator.boot import Recording
from cli.demo.absence import Needle, all_pids, files_below, find_planted, scan
from cli.demo.claims import ClaimFailed, Ledger
from cli.demo.disk_image import DiskImage
from cli.demo.guest_image import GuestImage
from cli.demo.guest_report import GuestReport, ticks
from cli.demo.offline_keys import recompute_keys
from cli.demo.world import World, wait_for
from garant.attestation.v1 import admin_pb2, attestation_pb2
from garant.host.v1 import host_pb2
from garant.keyprovider.v1 import keyprovider_pb2
from garant.management.v1 import management_pb2
from serving.client import call
from serving.errors import RemoteError

VM = "demo"
_BOOT_SECONDS = 120.0
_ATTEST_SECONDS = 20.0


@dataclass
class Story:
    """The demo, told once."""

    world: World
    ledger: Ledger
    good: Recording
    changed: Recording
    image: DiskImage
    guest: GuestImage
    boots: list[GuestReport] = field(default_factory=list)
    begun_at: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    """Before the first key came to be; a process that is older was given none."""

    def tell(self) -> None:
        """Tell all chapters.

        Raises:
            ClaimFailed: A claim was not seen to hold; the ledger has it.
        """
        self.chapter_site()
        self.chapter_attestation()
        self.chapter_encryption()
        self.chapter_boot()
        self.chapter_absence()
        self.chapter_lost_trust()
        self.chapter_changed_host()

    def chapter_site(self) -> None:
        """A site of separate processes with their own identities, and machines that have booted."""
        self.ledger.chapter("1  A site of separate services")
        self.ledger.claim("machines a, b and c boot: OVMF and a UKI, measured into their TPMs", self._boot_machines)
        self.ledger.claim(
            "attestation, key provider and management run as processes with TLS identities", self._start_services
        )
        self.ledger.claim("the trust administrator says what is trusted", self._prepare_trust)

    def chapter_attestation(self) -> None:
        """Who gets a token, and who does not."""
        self.ledger.chapter("2  Hosts attest")
        self.ledger.claim("hosts a, b and c join; a and b hold a join token of the trust authority", self._join)
        self.ledger.claim("host a booted what is trusted: it gets a token and a client certificate", self._a_attests)
        self.ledger.claim("host b booted with another kernel command line: refused", self._b_is_refused)
        self.ledger.claim("host c, a genuine TPM with the right boot, was never admitted: refused", self._c_is_refused)

    def chapter_encryption(self) -> None:
        """An encrypted VM, and what the key provider refuses."""
        self.ledger.chapter("3  An encrypted VM with a virtual TPM")
        self.ledger.claim("the VM is made on host a from the image: home, disk and vTPM encrypted", self._create_vm)
        self.ledger.claim("without a placement grant no key is released", self._refused_without_grant)
        self.ledger.claim("with the grant of another VM no key is released", self._refused_with_other_grant)
        self.ledger.claim("each release is in the key provider's log", self._releases_are_logged)

    def chapter_boot(self) -> None:
        """The VM runs on its encrypted disk."""
        self.ledger.chapter("4  It boots")
        self.ledger.claim("the guest reads from its encrypted disk what went in", self._first_boot)
        self.ledger.claim("a second boot measures the same into the VM's own TPM", self._second_boot)

    def chapter_absence(self) -> None:
        """No key is found anywhere."""
        self.ledger.chapter("5  No key and no plaintext on this machine's disks, command lines or environments")
        self.ledger.claim("the scanner finds a planted key, in every encoding", self._scanner_finds)
        self.ledger.claim("it finds neither the VM's keys nor the image's content", self._nothing_is_found)

    def chapter_lost_trust(self) -> None:
        """Trust is withdrawn while the VM runs."""
        self.ledger.chapter("6  Trust is lost, and comes back")
        self.ledger.claim("the boot's reference value is withdrawn: the VM stays up", self._withdraw)
        self.ledger.claim("the host agent is killed and restarted: it takes its running VM over", self._restart_agent)
        self.ledger.claim("the next power-on is refused", self._power_on_refused)
        self.ledger.claim("with the reference value back, it powers on", self._trust_again)

    def chapter_changed_host(self) -> None:
        """The host is reset into another boot."""
        self.ledger.chapter("7  The host boots something else")
        self.ledger.claim("host a is reset, with another kernel command line: its VM ends", self._reset_changed)
        self.ledger.claim("power-on is refused, and the disk is as it was", self._refused_and_intact)
        self.ledger.claim("back in the good boot, it powers on, and the content is there", self._reset_good)

    # Chapter 1

    def _boot_machines(self) -> str:
        for name, machine in self.world.machines.items():
            machine.boot(self.changed if name == "b" else self.good)
        return f"{len(self.good.log)} bytes of event log each; b with another command line"

    def _start_services(self) -> str:
        self.world.start_services()
        names = ("attestation", "keyprovider", "management")
        return ", ".join(f"{name} (pid {self.world.daemons[name].process.pid})" for name in names)

    def _prepare_trust(self) -> str:
        self.world.prepare_trust(self.good)
        references = call(self.world.clients.attestation.ListReferences, admin_pb2.ListReferencesRequest()).references
        return f"TPM vendor, policy, and boot {references[0].name!r} with {references[0].event_count} events"

    # Chapter 2

    def _join(self) -> str:
        for name in self.world.machines:
            self.world.start_agent(name)
        hosts = wait_for(
            lambda: [self.world.trusted_host(name) for name in ("a", "b", "c")],
            seconds=_ATTEST_SECONDS,
            failure=lambda: "not all hosts enrolled",
        )
        return ", ".join(f"{host.name}: {host.host_id[:12]}…" for host in hosts)

    def _a_attests(self) -> str:
        host = wait_for(
            lambda: self.world.host("a") if self.world.host("a").attested else None,
            seconds=_ATTEST_SECONDS,
            failure=lambda: f"host a is not attested: {self.world.host('a').reason}",
        )
        appraisal = self.world.trusted_host("a").last_appraisal
        _require(appraisal.trusted and host.attested, f"host a is not trusted: {appraisal.reason}")
        return f"{len(appraisal.checks)} checks passed, boot {appraisal.reference!r}"

    def _b_is_refused(self) -> str:
        wait_for(
            lambda: self.world.trusted_host("b").HasField("last_appraisal"),
            seconds=_ATTEST_SECONDS,
            failure=lambda: f"host b was not appraised: {self.world.host('b').reason}",
        )
        appraisal = self.world.trusted_host("b").last_appraisal
        failed = [check for check in appraisal.checks if not check.passed]
        _require(not appraisal.trusted and bool(failed), "host b is trusted")
        _require(not self.world.host("b").attested, "host b says it holds a token")
        for told in failed:
            _require(all((told.event, told.expected, told.seen)), f"the refusal does not explain itself: {told}")
        # The image differs too, since the command line lies in it; what people want to read is the command line.
        telling = next((check for check in failed if self.changed.command_line in check.seen), None)
        if telling is None:
            raise ClaimFailed(f"no event shows the command line that host b was booted with: {failed[0]}")
        _require(self.good.command_line in telling.expected, f"expected another command line: {telling.expected}")
        return f"{appraisal.reason}: {telling.event}; expected {telling.expected}; seen {telling.seen}"

    def _c_is_refused(self) -> str:
        answer = self.world.attest("c")
        host = self.world.trusted_host("c")
        _require(not answer.attested, "host c is attested")
        _require(host.state == attestation_pb2.ADMISSION_STATE_REQUESTED, f"host c is in state {host.state}")
        return answer.reason

    # Chapter 3

    def _create_vm(self) -> str:
        disk = host_pb2.DiskSpec(name="root", source_path=str(self.image.path))
        spec = host_pb2.VmSpec(
            name=VM,
            cpus=1,
            memory_mib=512,
            disks=[disk],
            vtpm=True,
            kernel_path=str(self.guest.kernel),
            initrd_path=str(self.guest.initrd),
            kernel_command_line=f"console=ttyS0 quiet garant.check={self.image.check}",
        )
        request = management_pb2.CreateVmRequest(spec=spec, storage_policy="encrypted")
        vm = call(self.world.clients.management.CreateVm, request, timeout_seconds=1800).vm
        host_a = self.world.host("a")
        _require(vm.host == host_a.name, f"the VM is on host {vm.host}, not on the attested one")
        return f"VM {vm.vm_id} on host {vm.host}, provider {vm.provider}: {vm.bundle_path}"

    def _refused_without_grant(self) -> str:
        return self._refused_by_key_provider(grant="", expected="GRANT_MISSING")

    def _refused_with_other_grant(self) -> str:
        grant = self.world.clients.grant_for_other_vm(self.world.host("a").host_id)
        return self._refused_by_key_provider(grant=grant, expected="GRANT_FOR_OTHER_VM")

    def _refused_by_key_provider(self, *, grant: str, expected: str) -> str:
        """Ask the host agent directly, as somebody would who owns the management server."""
        request = host_pb2.PowerOnVmRequest(vm_id=self.world.vm(VM).vm_id, grant=grant)
        try:
            call(self.world.clients.host("a").PowerOnVm, request, timeout_seconds=60)
        except RemoteError as exc:
            _require(exc.reason == expected, f"expected {expected}, got {exc}")
            return str(exc)
        raise ClaimFailed("the VM powered on")

    def _releases_are_logged(self) -> str:
        releases = call(self.world.clients.keyprovider.ListReleases, keyprovider_pb2.ListReleasesRequest()).releases
        components = [f"{release.operation} {release.component}" for release in releases]
        host_ids = {release.host_id for release in releases}
        _require(host_ids == {self.world.host("a").host_id}, f"keys were released to {host_ids}")
        _require({"create home", "create vtpm", "create disk/root"} <= set(components), f"the log has {components}")
        return ", ".join(components)

    # Chapter 4

    def _first_boot(self) -> str:
        report = self._boot()
        _require(report.disk_hash == self.image.sha256, f"expected {self.image.sha256}, the guest read another hash")
        return f"SHA-256 {report.disk_hash}"

    def _second_boot(self) -> str:
        self._power_off()
        first, second = self.boots[0], self._boot()
        _require([number for number, _ in second.pcrs] == list(range(8)), f"the guest shows PCRs {second.pcrs}")
        _require(all(int(value, 16) for _, value in second.pcrs), "a PCR of the guest is zero")
        _require(first.pcrs == second.pcrs, "the PCRs of both boots differ")
        return f"PCRs 0 to 7 not zero and equal; PCR 0 {second.pcrs[0][1][:16]}…"

    def _boot(self) -> GuestReport:
        self._power_on()
        report = wait_for(
            lambda: GuestReport.read(self.world.console(VM)),
            seconds=_BOOT_SECONDS,
            failure=lambda: f"no report from the guest; its last words: {self.world.console(VM)[-300:]!r}",
        )
        self.boots.append(report)
        return report

    def _power_on(self) -> None:
        request = management_pb2.PowerOnVmRequest(vm=VM)
        try:
            call(self.world.clients.management.PowerOnVm, request, timeout_seconds=120)
        except RemoteError as exc:
            raise ClaimFailed(f"power-on was refused: {exc}") from exc

    def _power_off(self) -> None:
        call(self.world.clients.management.PowerOffVm, management_pb2.PowerOffVmRequest(vm=VM), timeout_seconds=120)

    # Chapter 5

    def _scanner_finds(self) -> str:
        return ", ".join(find_planted(self.world.directory, os.urandom(32)))

    def _nothing_is_found(self) -> str:
        vm = self.world.vm(VM)
        keys = recompute_keys(self.world.site / "trust-authority" / "keyprovider", Path(vm.bundle_path))
        needles = keys + [Needle(f"content {number}", marker) for number, marker in enumerate(self.image.markers)]
        kinds = {needle.name.split(" ")[0] for needle in keys}
        _require(kinds == {"KEK", "DEK", "LUKS"}, f"the keys recomputed are only {sorted(kinds)}")
        # The image is where the markers come from; what came of it is what is searched.
        files = [path for path in files_below(self.world.directory) if path != self.image.path]
        pids = all_pids()
        result = scan(needles, files, pids, needles_since=self.begun_at)
        _require(not result.unreadable, f"could not be read: {', '.join(result.unreadable[:3])}")
        _require(not result.hits, f"found: {', '.join(map(str, result.hits[:3]))}")
        older = f"; {len(result.predating)} older than the keys hide their environment" if result.predating else ""
        return (
            f"{len(keys)} keys and {len(self.image.markers)} markers: none in {len(files)} files "
            f"({result.scanned_bytes >> 20} MiB) and {len(pids)} processes{older}"
        )

    # Chapter 6

    def _withdraw(self) -> str:
        before = ticks(self.world.console(VM))
        self.world.withdraw_reference()
        answer = self.world.attest("a")
        _require(not answer.attested, "host a still attests")
        self._wait_for_tick(before)
        return f"host a: {answer.reason}; the guest goes on"

    def _restart_agent(self) -> str:
        pid = self.world.vm(VM).qemu_pid
        self.world.daemons["a"].kill()
        self.world.start_agent("a")
        vm = wait_for(
            lambda: self.world.vm(VM) if self.world.vm(VM).power_state == host_pb2.POWER_STATE_ON else None,
            seconds=_ATTEST_SECONDS,
            failure=lambda: "the agent did not take the VM over",
        )
        _require(vm.qemu_pid == pid, f"QEMU was process {pid}, now {vm.qemu_pid}")
        self._wait_for_tick(ticks(self.world.console(VM)))
        return f"QEMU is still process {pid}, the console goes on"

    def _wait_for_tick(self, before: int) -> None:
        wait_for(
            lambda: ticks(self.world.console(VM)) > before,
            seconds=20,
            failure=lambda: "the guest does not tick any more",
        )

    def _power_on_refused(self) -> str:
        self._power_off()
        return self._expect_refusal()

    def _expect_refusal(self) -> str:
        request = management_pb2.PowerOnVmRequest(vm=VM)
        try:
            call(self.world.clients.management.PowerOnVm, request, timeout_seconds=120)
        except RemoteError as exc:
            _require(exc.reason == "HOST_NOT_ATTESTED", f"refused for another reason: {exc}")
            return str(exc)
        raise ClaimFailed("the VM powered on")

    def _trust_again(self) -> str:
        self.world.put_reference()
        answer = self.world.attest("a")
        _require(answer.attested, f"host a does not attest: {answer.reason}")
        self._power_on()
        return f"QEMU runs as process {self.world.vm(VM).qemu_pid}"

    # Chapter 7

    def _reset_changed(self) -> str:
        self.world.reset_machine("a", self.changed)
        vm = wait_for(
            lambda: self.world.vm(VM) if self.world.vm(VM).power_state == host_pb2.POWER_STATE_OFF else None,
            seconds=_ATTEST_SECONDS,
            failure=lambda: "the VM is not off",
        )
        return f"VM {vm.name} is off"

    def _refused_and_intact(self) -> str:
        disk = Path(self.world.vm(VM).bundle_path) / "disk-root.qcow2"
        before = _file_hash(disk)
        refusal = self._expect_refusal()
        _require(_file_hash(disk) == before, "the disk changed")
        return f"{refusal}; disk {before[:16]}… as before"

    def _reset_good(self) -> str:
        self.world.reset_machine("a", self.good)
        answer = self.world.attest("a")
        _require(answer.attested, f"host a does not attest: {answer.reason}")
        report = self._boot()
        _require(report.disk_hash == self.image.sha256, "the guest reads another content")
        _require(report.pcrs == self.boots[0].pcrs, "the guest's PCRs differ")
        return f"SHA-256 {report.disk_hash[:16]}…, as before"


def _require(condition: bool, otherwise: str) -> None:
    """Fail the claim with what was seen, unless the condition holds.

    Raises:
        ClaimFailed: It does not.
    """
    if not condition:
        raise ClaimFailed(otherwise)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
