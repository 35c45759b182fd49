"""The host agent as a process, with a real software TPM, real services and real QEMU."""

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from attestation.simulator.boot import Recording
from garant.attestation.v1 import admin_pb2
from garant.host.v1 import host_pb2
from serving.client import call
from serving.errors import RemoteError
from tests.host_site import PROVIDER, REFERENCE, HostSite, wait_for

pytestmark = pytest.mark.xdist_group("host-agent-daemon")

ADMITTED = ("calm", "changed", "restarts", "makes", "loses")
GIB = 1 << 30


@pytest.fixture(scope="module")
def site() -> Iterator[HostSite]:
    """A site whose services run, with a machine for each test; a short path, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="garant-hosts-"))
    site = HostSite.lay_out(directory, ADMITTED, strangers=("stranger",))
    try:
        site.start_services()
        site.prepare_trust(Recording.load("good"))
        yield site
    finally:
        site.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def calm(site: HostSite) -> str:
    """A host that attested; no test changes it."""
    _boot(site, "calm")
    site.wait_attested("calm")
    return "calm"


def _boot(site: HostSite, name: str, recording: str = "good") -> None:
    site.machines[name].boot(Recording.load(recording))
    site.start_agent(name)


def _spec(vm_id: str) -> host_pb2.VmSpec:
    disk = host_pb2.DiskSpec(name="root", size_bytes=GIB)
    return host_pb2.VmSpec(vm_id=vm_id, name="vm", cpus=1, memory_mib=128, disks=[disk], vtpm=True)


def _create(site: HostSite, name: str, vm_id: str, *, grant: str | None = None, provider: str = PROVIDER) -> None:
    grant = site.grant(name, vm_id) if grant is None else grant
    request = host_pb2.CreateVmRequest(spec=_spec(vm_id), provider=provider, grant=grant)
    with site.agent(name) as agent:
        call(agent.CreateVm, request, timeout_seconds=60)


def _power_on(site: HostSite, name: str, vm_id: str) -> host_pb2.Vm:
    request = host_pb2.PowerOnVmRequest(vm_id=vm_id, grant=site.grant(name, vm_id))
    with site.agent(name) as agent:
        return call(agent.PowerOnVm, request, timeout_seconds=60).vm


def _power_off(site: HostSite, name: str, vm_id: str) -> host_pb2.Vm:
    with site.agent(name) as agent:
        return call(agent.PowerOffVm, host_pb2.PowerOffVmRequest(vm_id=vm_id), timeout_seconds=60).vm


def _vms(site: HostSite, name: str) -> list[host_pb2.Vm]:
    with site.agent(name) as agent:
        return list(call(agent.ListVms, host_pb2.ListVmsRequest(), wait=True).vms)


def _refusal(error: pytest.ExceptionInfo[RemoteError]) -> str:
    return error.value.reason


def test_host_enrols_joins_and_attests_by_itself(site: HostSite, calm: str) -> None:
    """A host with its tokens needs nobody: it enrols, joins, attests, and says so (R-TA-4, R-TA-5)."""
    status = site.status(calm)
    assert status.host_id == site.machines[calm].host_id
    assert (status.name, status.reason, status.provider_list_version) == (calm, "", 1)
    assert status.attested_until.seconds > 0


def test_changed_boot_is_refused_and_gets_no_key(site: HostSite) -> None:
    """A host that booted something else says that it was refused, and cannot make an encrypted VM (R-TA-4)."""
    _boot(site, "changed", "changed-command-line")
    with site.agent("changed") as agent:
        answer = call(agent.Attest, host_pb2.AttestRequest(), wait=True)
    assert (answer.attested, answer.reason) == (False, "APPRAISAL_REFUSED")
    with pytest.raises(RemoteError) as caught:
        _create(site, "changed", str(uuid.uuid4()))
    assert _refusal(caught) == "HOST_NOT_ATTESTED"
    assert _vms(site, "changed") == []


def test_genuine_tpm_that_was_never_admitted_is_refused_until_it_is(site: HostSite) -> None:
    """A stranger with the right boot waits for an administrator, and attests by itself once approved."""
    _boot(site, "stranger")
    wait_for(lambda: site.status("stranger").reason == "HOST_NOT_APPROVED")
    host_id = site.status("stranger").host_id
    with site.attestation() as attestation:
        call(attestation.ApproveHost, admin_pb2.ApproveHostRequest(host_id=host_id, cluster="default"))
    site.wait_attested("stranger")


def test_only_the_management_server_is_served(site: HostSite, calm: str) -> None:
    """Administrators of either side, and the trust authority's services, do not get through to an agent."""
    for caller in ("trust-admin", "vm-admin", "trust-authority/keyprovider", "trust-authority/attestation"):
        with site.agent(calm, caller=caller) as agent, pytest.raises(RemoteError) as caught:
            call(agent.GetHostStatus, host_pb2.GetHostStatusRequest(), timeout_seconds=5)
        assert caught.value.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}


def test_restarted_agent_needs_no_token(site: HostSite) -> None:
    """Spent or removed tokens are no matter to a host that is a member; a damaged identity is told, and left."""
    _boot(site, "restarts")
    before = site.wait_attested("restarts")
    assert site.daemons["restarts"].end() == 0
    home = site.site / "hosts" / "restarts"
    for token in ("join-token", "enrolment-token"):
        (home / token).unlink()
    site.start_agent("restarts")
    assert site.wait_attested("restarts").host_id == before.host_id
    modes = {path.name: path.stat().st_mode & 0o777 for path in (home / "state").iterdir()}
    assert set(modes.values()) == {0o600}

    assert site.daemons["restarts"].end() == 0
    record = home / "state" / "join.json"
    record.write_bytes(b"{}")
    damaged = site.spawn_agent("restarts")
    assert damaged.process.wait(30) == 2
    (line,) = [line for line in damaged.told().splitlines() if b"cannot start" in line]
    assert b"join.json: the record is not of format 1" in line
    assert b"Traceback" not in damaged.told()
    assert record.read_bytes() == b"{}"


def test_second_agent_of_a_host_is_refused(site: HostSite, calm: str) -> None:
    """A second agent says in one line that there is one already, and ends with exit code 2."""
    second = site.spawn_agent(calm)
    assert second.process.wait(30) == 2
    assert b"another host agent uses" in second.told()
    assert b"Traceback" not in second.told()
    assert site.status(calm).attested


def test_grant_decides_what_a_host_may_make(site: HostSite, calm: str) -> None:
    """Without a grant, with another VM's, or with another host's, no VM is made and nothing is left (B-19)."""
    vm_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    refusals = {
        "GRANT_MISSING": "",
        "GRANT_FOR_OTHER_VM": site.grant(calm, other),
        "GRANT_FOR_OTHER_HOST": site.grant("changed", vm_id),
    }
    for reason, grant in refusals.items():
        with pytest.raises(RemoteError) as caught:
            _create(site, calm, vm_id, grant=grant)
        assert _refusal(caught) == reason
    with pytest.raises(RemoteError) as caught:
        _create(site, calm, vm_id, provider="rogue")
    assert _refusal(caught) == "PROVIDER_NOT_PINNED"
    assert _vms(site, calm) == []
    left = [path for path in (site.site / "hosts" / calm / "vms").iterdir() if path.name != ".lock"]
    assert left == []


@pytest.mark.boot
def test_vm_outlives_its_agent_and_the_agent_its_services(site: HostSite) -> None:
    """A killed agent finds its VM again with TPM and trust authority away, and starts none until they are back."""
    name, vm_id = "makes", str(uuid.uuid4())
    _boot(site, name)
    site.wait_attested(name)
    _create(site, name, vm_id)
    running = _power_on(site, name, vm_id)
    assert (running.power_state, running.provider) == (host_pb2.POWER_STATE_ON, PROVIDER)

    site.daemons[name].end(signal.SIGKILL)
    site.daemons["attestation"].end()
    site.machines[name].power_off()
    site.start_agent(name)
    (adopted,) = _vms(site, name)
    assert (adopted.qemu_pid, adopted.power_state) == (running.qemu_pid, host_pb2.POWER_STATE_ON)
    wait_for(lambda: site.status(name).reason == "TPM_UNAVAILABLE")
    assert _power_off(site, name, vm_id).power_state == host_pb2.POWER_STATE_OFF
    with pytest.raises(RemoteError) as caught:
        _power_on(site, name, vm_id)
    assert _refusal(caught) == "HOST_NOT_ATTESTED"

    site.machines[name].boot(Recording.load("good"))
    wait_for(lambda: site.status(name).reason == "TRUST_AUTHORITY_UNREACHABLE", 60)
    site.start_services("attestation")
    site.wait_attested(name)
    assert _power_on(site, name, vm_id).power_state == host_pb2.POWER_STATE_ON
    assert site.daemons[name].end() == 0


@pytest.mark.boot
def test_lost_trust_leaves_the_running_vm_and_refuses_the_next(site: HostSite) -> None:
    """Withdrawing the reference ends trust; the VM runs on, its next power-on is refused until trust is back."""
    name, vm_id = "loses", str(uuid.uuid4())
    _boot(site, name)
    site.wait_attested(name)
    _create(site, name, vm_id)
    _power_on(site, name, vm_id)
    with site.attestation() as attestation:
        call(attestation.WithdrawReference, admin_pb2.WithdrawReferenceRequest(name=REFERENCE))
        try:
            with site.agent(name) as agent:
                answer = call(agent.Attest, host_pb2.AttestRequest())
            assert (answer.attested, answer.reason) == (False, "APPRAISAL_REFUSED")
            assert [vm.power_state for vm in _vms(site, name)] == [host_pb2.POWER_STATE_ON]
            _power_off(site, name, vm_id)
            with pytest.raises(RemoteError) as caught:
                _power_on(site, name, vm_id)
            assert _refusal(caught) == "HOST_NOT_ATTESTED"
            assert "APPRAISAL_REFUSED" in caught.value.message
        finally:
            call(attestation.PutReference, admin_pb2.PutReferenceRequest(name=REFERENCE))
    assert _power_on(site, name, vm_id).power_state == host_pb2.POWER_STATE_ON
    _power_off(site, name, vm_id)

    # Tokens of the time before are void, without a word to the host: the key provider sends it to attest again.
    with site.attestation() as attestation:
        call(attestation.WithdrawReference, admin_pb2.WithdrawReferenceRequest(name=REFERENCE))
        call(attestation.PutReference, admin_pb2.PutReferenceRequest(name=REFERENCE))

    def cycle() -> bool:
        _power_on(site, name, vm_id)
        _power_off(site, name, vm_id)
        return b"TOKEN_OF_OLDER_EPOCH" in site.daemons["keyprovider"].told()

    wait_for(cycle)
    with site.agent(name) as agent:
        call(agent.DeleteVm, host_pb2.DeleteVmRequest(vm_id=vm_id))
    assert _vms(site, name) == []


def test_site_starts_in_any_order() -> None:
    """Hosts that start before every service, and before their own TPM, come up unattended."""
    directory = Path(tempfile.mkdtemp(prefix="garant-cold-"))
    site = HostSite.lay_out(directory, ("first",))
    try:
        agent = site.start_agent("first")
        site.machines["first"].boot(Recording.load("good"))
        site.start_services()
        site.prepare_trust(Recording.load("good"))
        site.wait_attested("first")
        assert agent.process.poll() is None
    finally:
        site.close()
        shutil.rmtree(directory)
