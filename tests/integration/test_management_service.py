"""The management server over its real ports, with host agents that hold the host protocol honestly."""

import datetime
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from garant.host.v1 import host_pb2 as host_pb
from garant.management.v1 import management_pb2 as pb
from garant.management.v1 import management_pb2_grpc as pb_grpc
from management.model import Vm, VmState
from management.privileges import REQUIREMENTS, ROLE_PRIVILEGES, Role
from serving.authority import CertificateAuthority
from serving.client import RemoteError, call
from serving.identity import Identity
from serving.identity import Role as IdentityRole
from serving.status import Refusal
from tests.management_site import CLUSTER, DAY, SITE, Agent, WorkloadSide, certificate_request, make_host_id, now


@pytest.fixture
def side(tmp_path: Path) -> Iterator[WorkloadSide]:
    """A management server without hosts; alice may do everything."""
    made = WorkloadSide(f"sqlite:///{tmp_path / 'management.db'}")
    yield made
    made.close()


@pytest.fixture
def alice(side: WorkloadSide) -> pb_grpc.ManagementServiceStub:
    """The administrator."""
    return side.admin()


@pytest.fixture
def agent(side: WorkloadSide, alice: pb_grpc.ManagementServiceStub) -> Agent:
    """An attested host, with the provider "gold" registered."""
    call(alice.RegisterProvider, pb.RegisterProviderRequest(name="gold"))
    return side.add_host("host-a")


def new_vm(name: str = "web", *, vtpm: bool = True, **changes: str) -> pb.CreateVmRequest:
    """A request for a VM."""
    disk = host_pb.DiskSpec(name="root", source_path="/images/a.qcow2")
    spec = host_pb.VmSpec(name=name, cpus=1, memory_mib=256, disks=[disk], vtpm=vtpm)
    return pb.CreateVmRequest(spec=spec, **changes)


def event_types(alice: pb_grpc.ManagementServiceStub) -> list[str]:
    """Types of all events, in order."""
    return [event.type for event in call(alice.ListEvents, pb.ListEventsRequest()).events]


def test_the_life_of_an_encrypted_vm(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """R-OP-1, R-OP-4, B-19: made, powered on and off, read and removed, with a new grant for each use of its keys."""
    made = call(alice.CreateVm, new_vm()).vm
    assert (made.name, made.host, made.storage_policy, made.provider) == ("web", "host-a", "encrypted", "gold")
    assert made.power_state == host_pb.POWER_STATE_OFF
    spec = agent.specs[made.vm_id]
    assert (spec.vm_id, spec.cpus, spec.memory_mib, spec.vtpm) == (made.vm_id, 1, 256, True)
    assert spec.disks[0].source_path == "/images/a.qcow2"

    on = call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web")).vm
    assert (on.power_state, on.qemu_pid) == (host_pb.POWER_STATE_ON, 4711)
    assert [(grant.vm_id, grant.generation) for grant in agent.grants] == [(made.vm_id, 1), (made.vm_id, 2)]
    assert len({grant.grant_id for grant in agent.grants}) == 2
    assert {grant.principal for grant in agent.grants} == {"management"}

    assert call(alice.ReadConsole, pb.ReadConsoleRequest(vm="web", offset=2)).output == b"gin: "
    assert call(alice.GetVm, pb.GetVmRequest(vm=made.vm_id)).vm == on
    assert list(call(alice.ListVms, pb.ListVmsRequest()).vms) == [on]
    assert call(alice.PowerOffVm, pb.PowerOffVmRequest(vm="web")).vm.power_state == host_pb.POWER_STATE_OFF
    call(alice.DeleteVm, pb.DeleteVmRequest(vm="web"))
    assert agent.vms == {}
    assert not call(alice.ListVms, pb.ListVmsRequest()).vms
    assert event_types(alice)[-4:] == ["vm.created", "vm.powered-on", "vm.powered-off", "vm.deleted"]


def test_events_say_who_and_what(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """An event names its principal, VM, host and time."""
    vm = call(alice.CreateVm, new_vm()).vm
    event = call(alice.ListEvents, pb.ListEventsRequest()).events[-1]
    assert (event.principal, event.vm_id, event.host) == ("alice", vm.vm_id, "host-a")
    assert abs(event.occurred_at.ToDatetime(datetime.UTC) - now()) < datetime.timedelta(seconds=30)


def test_a_plain_vm_needs_neither_provider_nor_grant(side: WorkloadSide, alice: pb_grpc.ManagementServiceStub) -> None:
    """Without encryption no grant is signed, and a host that lost trust takes the VM."""
    agent = side.add_host("host-a", attested=False, reason="REFERENCE_MISMATCH")
    vm = call(alice.CreateVm, new_vm(vtpm=False)).vm
    assert (vm.storage_policy, vm.provider) == ("plain", "")
    call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    assert agent.grants == []


def test_without_a_provider_nothing_is_created(side: WorkloadSide, alice: pb_grpc.ManagementServiceStub) -> None:
    """R-OP-8: with no provider set up an encryption request is refused, and neither row nor VM is there."""
    agent = side.add_host("host-a")
    for request in (new_vm(), new_vm(vtpm=False, storage_policy="encrypted")):
        with pytest.raises(RemoteError) as refused:
            call(alice.CreateVm, request)
        assert refused.value.reason == "NO_KEY_PROVIDER"
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert agent.vms == {}
    assert not agent.entered.is_set()
    assert not call(alice.ListVms, pb.ListVmsRequest()).vms


def test_a_host_that_is_not_attested_takes_no_encrypted_vm(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """R-TA-4: it is refused before anything is made, with the reason that the host states."""
    agent.attested, agent.reason = False, "REFERENCE_MISMATCH"
    with pytest.raises(RemoteError, match=r"host-a is not attested \(REFERENCE_MISMATCH\)") as refused:
        call(alice.CreateVm, new_vm())
    assert refused.value.reason == "NO_SUITABLE_HOST"
    assert agent.vms == {}


def test_hosts_are_listed_with_what_they_say(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """A host that lost trust stays visible, and so does one that does not answer."""
    side.add_host("host-b", attested=False, reason="REFERENCE_MISMATCH")
    side.add_host("host-c")
    side.stop_agent("host-c")
    hosts = {host.name: host for host in call(alice.ListHosts, pb.ListHostsRequest()).hosts}
    assert [(host.connected, host.attested) for host in hosts.values()] == [(True, True), (True, False), (False, False)]
    assert hosts["host-a"].host_id == agent.host_id
    assert hosts["host-b"].reason == "REFERENCE_MISMATCH"
    assert hosts["host-c"].reason


def test_a_hosts_refusal_is_passed_on(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """The host's status and stable reason reach the caller; the row of a VM that was not made is gone."""
    agent.refuse = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", "12 GiB are needed, 3 are free")
    with pytest.raises(RemoteError) as refused:
        call(alice.CreateVm, new_vm())
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    assert refused.value.message == "12 GiB are needed, 3 are free"
    assert not call(alice.ListVms, pb.ListVmsRequest()).vms
    assert event_types(alice)[-1] == "vm.create-failed"
    agent.refuse = None
    call(alice.CreateVm, new_vm())


def test_a_failed_power_on_is_an_event(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """The VM stays as it is, and the event tells the host's reason."""
    call(alice.CreateVm, new_vm())
    agent.refuse = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "NOT_ATTESTED", "no token")
    with pytest.raises(RemoteError, match="NOT_ATTESTED"):
        call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    event = call(alice.ListEvents, pb.ListEventsRequest()).events[-1]
    assert event.type == "vm.power-on-failed"
    assert "NOT_ATTESTED: no token" in event.message


def test_a_host_that_dies_while_it_makes_a_vm_leaves_it_unsettled(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """Whether the VM was made is unknown, and that is what caller and event log are told."""
    agent.gate = threading.Event()
    refused: list[RemoteError] = []

    def create() -> None:
        try:
            call(alice.CreateVm, new_vm())
        except RemoteError as exc:
            refused.append(exc)

    creating = threading.Thread(target=create)
    creating.start()
    assert agent.entered.wait(10)
    stopping = threading.Thread(target=side.stop_agent, args=("host-a",))
    stopping.start()
    creating.join()
    agent.gate.set()
    stopping.join()
    assert [exc.reason for exc in refused] == ["HOST_UNREACHABLE"]
    assert event_types(alice)[-1] == "vm.create-unknown"
    assert [vm.state for vm in side.store.list_unsettled_vms()] == [VmState.CREATING]


def test_a_host_that_does_not_answer_is_sent_nothing(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """What certainly was not begun leaves everything as it was: a VM can be powered on again once its host is back."""
    call(alice.CreateVm, new_vm())
    side.stop_agent("host-a")
    for method, request in (
        (alice.PowerOnVm, pb.PowerOnVmRequest(vm="web")),
        (alice.DeleteVm, pb.DeleteVmRequest(vm="web")),
    ):
        with pytest.raises(RemoteError, match="HOST_UNREACHABLE"):
            call(method, request)
    assert side.store.list_unsettled_vms() == []
    assert event_types(alice)[-2:] == ["vm.power-on-failed", "vm.delete-failed"]


def test_a_restarted_agent_is_reached_at_once(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """A channel that waits to connect again does not make a host that is back look gone."""
    call(alice.CreateVm, new_vm())
    side.restart_agent("host-a", while_away=lambda: call(alice.ListHosts, pb.ListHostsRequest()))
    assert call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web")).vm.power_state == host_pb.POWER_STATE_ON


def test_a_running_vm_is_not_deleted(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """The host refuses, and the VM is as usable as before."""
    call(alice.CreateVm, new_vm())
    call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    with pytest.raises(RemoteError, match="VM_IS_ON"):
        call(alice.DeleteVm, pb.DeleteVmRequest(vm="web"))
    call(alice.PowerOffVm, pb.PowerOffVmRequest(vm="web", grace_seconds=1))
    call(alice.DeleteVm, pb.DeleteVmRequest(vm="web"))


def test_concurrent_operations_on_one_vm_are_refused(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """While one operation is under way another on the same VM is refused by name; on another VM it runs."""
    for name in ("one", "two"):
        call(alice.CreateVm, new_vm(name))
    agent.entered.clear()
    agent.gate = threading.Event()
    first = threading.Thread(target=lambda: call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="one")))
    first.start()
    assert agent.entered.wait(10)
    agent.entered.clear()
    for method, request in (
        (alice.PowerOnVm, pb.PowerOnVmRequest(vm="one")),
        (alice.DeleteVm, pb.DeleteVmRequest(vm="one")),
    ):
        with pytest.raises(RemoteError, match="power on is under way") as refused:
            call(method, request)
        assert refused.value.reason == "VM_BUSY"
    assert not agent.entered.is_set()
    other = threading.Thread(target=lambda: call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="two")))
    other.start()
    assert agent.entered.wait(10)
    agent.gate.set()
    first.join()
    other.join()
    assert {vm.power_state for vm in agent.vms.values()} == {host_pb.POWER_STATE_ON}


def test_a_name_is_given_once(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """The second VM of that name is refused before its host is asked."""
    call(alice.CreateVm, new_vm())
    with pytest.raises(RemoteError) as refused:
        call(alice.CreateVm, new_vm())
    assert refused.value.reason == "ALREADY_EXISTS"
    assert len(agent.vms) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (new_vm("a\0b"), grpc.StatusCode.INVALID_ARGUMENT),
        (new_vm("x" * 300), grpc.StatusCode.INVALID_ARGUMENT),
        (new_vm(storage_policy="x"), grpc.StatusCode.FAILED_PRECONDITION),
        (new_vm(provider="x"), grpc.StatusCode.FAILED_PRECONDITION),
        (new_vm(host="x"), grpc.StatusCode.FAILED_PRECONDITION),
        (new_vm(storage_policy="plain"), grpc.StatusCode.FAILED_PRECONDITION),
        (pb.CreateVmRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.CreateVmRequest(spec=host_pb.VmSpec(vm_id="mine", name="web", cpus=1, memory_mib=64)),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
def test_bad_input_makes_nothing(
    agent: Agent, alice: pb_grpc.ManagementServiceStub, change: pb.CreateVmRequest, code: grpc.StatusCode
) -> None:
    """A malformed or contradictory request is refused clearly, and its host is not asked."""
    with pytest.raises(RemoteError) as refused:
        call(alice.CreateVm, change)
    assert refused.value.code is code
    assert not agent.entered.is_set()
    assert not call(alice.ListVms, pb.ListVmsRequest()).vms


@pytest.mark.parametrize("reference", ["", "nobody", "\0", "x" * 300, "7d0b1f3e-7c3b-4a2f-9a55-000000000001"])
def test_a_vm_that_is_not_there_is_refused(agent: Agent, alice: pb_grpc.ManagementServiceStub, reference: str) -> None:
    """An unknown or malformed reference never is an internal error."""
    with pytest.raises(RemoteError) as refused:
        call(alice.PowerOnVm, pb.PowerOnVmRequest(vm=reference))
    assert refused.value.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def test_vms_are_listed_by_page(agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """Each VM is on one page; a foreign page token and an oversized page are refused."""
    for number in range(5):
        call(alice.CreateVm, new_vm(f"vm-{number}"))
    names, token = [], ""
    while True:
        page = call(alice.ListVms, pb.ListVmsRequest(page_size=2, page_token=token))
        names += [vm.name for vm in page.vms]
        token = page.next_page_token
        if not token:
            break
    assert sorted(names) == [f"vm-{number}" for number in range(5)]
    for bad in (pb.ListVmsRequest(page_token="x"), pb.ListVmsRequest(page_size=1_001)):
        with pytest.raises(RemoteError, match="INVALID_ARGUMENT"):
            call(alice.ListVms, bad)


def test_a_vm_of_a_silent_host_is_still_shown(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """Its power state is unspecified, since nobody knows it."""
    call(alice.CreateVm, new_vm())
    side.stop_agent(agent.name)
    assert call(alice.GetVm, pb.GetVmRequest(vm="web")).vm.power_state == host_pb.POWER_STATE_UNSPECIFIED
    assert call(alice.ListVms, pb.ListVmsRequest()).vms[0].power_state == host_pb.POWER_STATE_UNSPECIFIED
    with pytest.raises(RemoteError) as refused:
        call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    assert refused.value.reason == "HOST_UNREACHABLE"


# What was cut off.


def cut_off(side: WorkloadSide, agent: Agent, state: VmState) -> Vm:
    """A row as a server that died in the middle leaves it."""
    vm = Vm("7d0b1f3e-7c3b-4a2f-9a55-000000000001", "web", agent.name, "encrypted", "gold", True, state, 1)
    side.store.add_vm(vm)
    return vm


def on_host(agent: Agent, vm: Vm, power_state: host_pb.PowerState.ValueType = host_pb.POWER_STATE_OFF) -> None:
    """The VM as its host has it."""
    agent.vms[vm.vm_id] = host_pb.Vm(vm_id=vm.vm_id, name=vm.name, power_state=power_state, provider=vm.provider)


def test_a_creation_that_its_host_finished_is_kept(side: WorkloadSide, agent: Agent) -> None:
    """A crash after the host's answer, before the row says so: after the next start the VM is there and usable."""
    vm = cut_off(side, agent, VmState.CREATING)
    on_host(agent, vm)
    side.stop()
    side.start()
    assert side.service.settle() == 0
    call(side.admin().PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    assert agent.grants[-1].generation == 2


def test_a_creation_that_never_reached_its_host_is_undone(side: WorkloadSide, agent: Agent) -> None:
    """A crash before the host was asked: after the next start the row is gone, with an event, and the name free."""
    cut_off(side, agent, VmState.CREATING)
    side.stop()
    side.start()
    assert side.service.settle() == 0
    alice = side.admin()
    assert event_types(alice)[-1] == "vm.create-failed"
    call(alice.CreateVm, new_vm("web"))


def test_a_creation_that_its_host_is_still_at_is_waited_for(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """The host refuses to remove what it is working on; the VM stays as it is until it is settled, and says so."""
    vm = cut_off(side, agent, VmState.CREATING)
    agent.refuse = Refusal(grpc.StatusCode.ABORTED, "VM_BUSY", "being made")
    assert side.service.settle() == 1
    with pytest.raises(RemoteError, match="VM_UNSETTLED"):
        call(alice.PowerOnVm, pb.PowerOnVmRequest(vm="web"))
    agent.refuse = None
    on_host(agent, vm)
    assert side.service.settle() == 0


def test_what_a_silent_host_made_is_settled_when_it_answers(
    side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub
) -> None:
    """Nothing is decided while the host does not answer."""
    vm = cut_off(side, agent, VmState.CREATING)
    side.stop_agent(agent.name)
    assert side.service.settle() == 1
    assert side.store.find_vm(vm.vm_id) == vm


def test_a_removal_that_was_cut_off_is_finished(side: WorkloadSide, agent: Agent) -> None:
    """Whether or not the host had removed the VM already."""
    vm = cut_off(side, agent, VmState.DELETING)
    on_host(agent, vm)
    side.stop()
    side.start()
    assert side.service.settle() == 0
    assert side.store.find_vm("web") is None
    assert agent.vms == {}
    cut_off(side, agent, VmState.DELETING)
    assert side.service.settle() == 0
    assert side.store.find_vm("web") is None


def test_a_removal_that_the_host_refuses_leaves_the_vm(side: WorkloadSide, agent: Agent) -> None:
    """A VM that runs after all is active again, not stuck."""
    vm = cut_off(side, agent, VmState.DELETING)
    on_host(agent, vm, host_pb.POWER_STATE_ON)
    assert side.service.settle() == 0
    assert side.store.find_vm("web") == replace(vm, state=VmState.ACTIVE)


def test_a_half_made_vm_can_be_deleted(side: WorkloadSide, agent: Agent, alice: pb_grpc.ManagementServiceStub) -> None:
    """Nobody has to wait for the server to settle it."""
    cut_off(side, agent, VmState.CREATING)
    call(alice.DeleteVm, pb.DeleteVmRequest(vm="web"))
    assert side.store.find_vm("web") is None


# Who may.


def test_every_rpc_and_role(tmp_path: Path) -> None:
    """R-OP-7: each RPC, called over the wire by each role and by somebody without one, demands its privilege."""
    roles = {role.value: role for role in Role}
    side = WorkloadSide(f"sqlite:///{tmp_path / 'management.db'}", roles=roles)
    try:
        for name in [*roles, "nobody"]:
            stub = side.admin(name)
            held = ROLE_PRIVILEGES[roles[name]] if name in roles else frozenset()
            for method in pb.DESCRIPTOR.services_by_name["ManagementService"].methods:
                request = getattr(pb, method.input_type.name)()
                reason = ""
                try:
                    call(getattr(stub, method.name), request)
                except RemoteError as exc:
                    reason = exc.reason
                allowed = REQUIREMENTS[method.name].always <= held
                assert (reason != "PRIVILEGE_MISSING") is allowed, (name, method.name, reason)
                assert reason != "INTERNAL"
    finally:
        side.close()


def test_encryption_needs_a_privilege_of_its_own(tmp_path: Path) -> None:
    """R-OP-7: an administrator without cryptography makes plain VMs, and no encrypted one by policy or vTPM."""
    side = WorkloadSide(f"sqlite:///{tmp_path / 'management.db'}", roles={"bob": Role.NO_CRYPTOGRAPHY_ADMINISTRATOR})
    try:
        agent, bob = side.add_host("host-a"), side.admin("bob")
        for request in (new_vm(), new_vm(vtpm=False, storage_policy="encrypted")):
            with pytest.raises(RemoteError, match=r"Cryptographer\.EncryptNew") as refused:
                call(bob.CreateVm, request)
            assert refused.value.reason == "PRIVILEGE_MISSING"
        assert agent.vms == {}
        call(bob.CreateVm, new_vm(vtpm=False))
    finally:
        side.close()


def test_no_message_could_carry_a_key() -> None:
    """R-TA-3: of all messages of its API only the console, certificates and a certificate request have bytes."""
    fields = {
        f"{message.name}.{field.name}"
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.type == field.TYPE_BYTES
    }
    assert fields == {
        "JoinRequest.certificate_request",
        "JoinResponse.certificate_pem",
        "JoinResponse.management_ca_pem",
        "ReadConsoleResponse.output",
    }


# Joining.


def join_request(side: WorkloadSide, host: str = "host-a", **changes: object) -> pb.JoinRequest:
    """A request as an honest host makes it."""
    fields: dict[str, object] = {
        "join_token": side.join_token(host),
        "certificate_request": certificate_request(ec.generate_private_key(ec.SECP256R1())),
        "host_id": make_host_id(host),
        "agent_address": "127.0.0.1:7443",
        "hardware_uuid": "8d5b9d2e-5a66-4d0e-8e53-000000000001",
        **changes,
    }
    return pb.JoinRequest(**fields)  # type: ignore[arg-type]


def refusal_of(side: WorkloadSide, request: pb.JoinRequest) -> str:
    """Reason why a host may not join; it must not be in the inventory then."""
    with pytest.raises(RemoteError) as refused:
        call(side.join_stub().Join, request)
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert side.store.list_hosts() == []
    return refused.value.reason


def test_a_join_identity_says_which_host(side: WorkloadSide) -> None:
    """The certificate is for the requested key, names the host, and comes with the CA that may call it."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = call(side.join_stub().Join, join_request(side, certificate_request=certificate_request(key)))
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
    certificate.verify_directly_issued_by(side.joined_hosts.certificate)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://test/joined-host/host-a"]
    assert answer.management_ca_pem == side.management.certificate.public_bytes(serialization.Encoding.PEM)


def test_a_join_token_is_used_once(side: WorkloadSide) -> None:
    """The same host may repeat its call; with another key or as another host the token is refused."""
    request = join_request(side)
    call(side.join_stub().Join, request)
    call(side.join_stub().Join, request)
    other_key = join_request(side, join_token=request.join_token)
    other_host = join_request(side, join_token=request.join_token, host_id="cd" * 32)
    for second in (other_key, other_host):
        with pytest.raises(RemoteError) as refused:
            call(side.join_stub().Join, second)
        assert refused.value.reason == "JOIN_TOKEN_SPENT"


def test_a_known_host_is_not_taken_over(side: WorkloadSide) -> None:
    """A new token for a known name does not let another host id in."""
    call(side.join_stub().Join, join_request(side))
    with pytest.raises(RemoteError) as refused:
        call(side.join_stub().Join, join_request(side, host_id="cd" * 32))
    assert refused.value.reason == "IDENTITY_CONFLICT"


def test_tokens_that_no_vm_administrator_signed_are_refused(side: WorkloadSide) -> None:
    """A foreign CA, another role, an expired token and mere text are refused."""
    stranger = CertificateAuthority.create("VM administrators", now=now(), lifetime=DAY)
    key = ec.generate_private_key(ec.SECP256R1())
    foreign = stranger.issue(Identity(SITE, IdentityRole.VM_ADMIN, "eve"), key.public_key(), now=now(), lifetime=DAY)
    wrong_role = side.management.issue(
        Identity(SITE, IdentityRole.MANAGEMENT_SERVER, "x"), key.public_key(), now=now(), lifetime=DAY
    )
    tokens = [
        side.join_token("host-a", admin=(foreign, key)),
        side.join_token("host-a", admin=(wrong_role, key)),
        side.join_token("host-a", lifetime=-datetime.timedelta(seconds=1)),
        side.join_token("host-a")[:-4] + "AAAA",
        "not a token",
        "",
    ]
    assert {refusal_of(side, join_request(side, join_token=token)) for token in tokens} == {"JOIN_TOKEN_INVALID"}


def test_a_token_of_another_cluster_is_refused(side: WorkloadSide) -> None:
    """A token binds the cluster."""
    assert CLUSTER != "other"
    token = side.join_token("host-a", cluster="other")
    assert refusal_of(side, join_request(side, join_token=token)) == "OTHER_CLUSTER"


def test_bad_certificate_requests_are_refused(side: WorkloadSide) -> None:
    """Not a request, not signed by its own key, another kind of key, far too large."""
    good = certificate_request(ec.generate_private_key(ec.SECP256R1()))
    rsa_key = rsa.generate_private_key(65_537, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    other_kind = builder.sign(rsa_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    p384 = certificate_request(ec.generate_private_key(ec.SECP384R1()))
    spoiled = good[:-1] + bytes([good[-1] ^ 1])
    for request in (b"", b"junk", spoiled, other_kind, p384, good + bytes(9_000)):
        assert refusal_of(side, join_request(side, certificate_request=request)) == "BAD_CERTIFICATE_REQUEST"


@pytest.mark.parametrize(
    "change", [{"host_id": "xyz"}, {"agent_address": "nowhere"}, {"agent_address": ""}, {"hardware_uuid": "x"}]
)
def test_malformed_join_requests_are_refused(side: WorkloadSide, change: dict[str, str]) -> None:
    """What a host says of itself is checked for its shape, and its token stays unspent."""
    token = side.join_token("host-a")
    assert refusal_of(side, join_request(side, join_token=token, **change)) == "MALFORMED_REQUEST"
    call(side.join_stub().Join, join_request(side, join_token=token))


def test_the_join_port_serves_nothing_else(side: WorkloadSide) -> None:
    """No management RPC, health or reflection answers where callers prove nothing."""
    channel = side.join_stub()
    side.address = side.join_address
    with pytest.raises(RemoteError) as refused:
        call(side.admin().ListHosts, pb.ListHostsRequest())
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert channel is not None


def test_an_agent_must_be_the_very_host(side: WorkloadSide, alice: pb_grpc.ManagementServiceStub) -> None:
    """A joined host that answers at another host's address is not taken for it: its certificate has another name."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = call(side.join_stub().Join, join_request(side, "mallory", certificate_request=certificate_request(key)))
    mallory = Agent("mallory", make_host_id("mallory"), side.principals)
    server = side.start_agent(mallory, answer.certificate_pem, key)
    call(side.join_stub().Join, join_request(side, "host-a", agent_address=f"127.0.0.1:{server.port}"))
    hosts = {host.name: host for host in call(alice.ListHosts, pb.ListHostsRequest()).hosts}
    assert not hosts["host-a"].connected


def test_an_agent_with_a_foreign_certificate_is_not_talked_to(
    side: WorkloadSide, alice: pb_grpc.ManagementServiceStub
) -> None:
    """A certificate that our host CA did not sign fails, though its name is right."""
    agent = side.add_host("host-a")
    side.stop_agent("host-a")
    stranger = CertificateAuthority.create("joined hosts", now=now(), lifetime=DAY)
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"{agent.host_id[:32]}.{agent.host_id[32:]}.host.garant"
    certificate = stranger.issue(
        Identity(SITE, IdentityRole.JOINED_HOST, "host-a"),
        key.public_key(),
        now=now(),
        lifetime=DAY,
        server_names=(name,),
    )
    server = side.start_agent(agent, certificate.public_bytes(serialization.Encoding.PEM), key)
    call(side.join_stub().Join, join_request(side, "host-a", agent_address=f"127.0.0.1:{server.port}"))
    host = call(alice.ListHosts, pb.ListHostsRequest()).hosts[0]
    assert host.agent_address.endswith(str(server.port))
    assert not host.connected
