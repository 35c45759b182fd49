"""A workload side for tests: authorities, a running management server, and host agents that keep VMs in memory.

The agents hold the host protocol honestly (grants are verified, a VM is made once, a running VM is not deleted) and
run no VM. Everything goes over real mutually authenticated connections.
"""

# ruff: noqa: N802, D102 - methods are named, and described, by the protocol

import datetime
import hashlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from garant.host.v1 import host_pb2 as host_pb
from garant.host.v1 import host_pb2_grpc as host_grpc
from garant.management.v1 import management_pb2 as pb
from garant.management.v1 import management_pb2_grpc as pb_grpc
from keyprovider.errors import GrantRejected
from keyprovider.grant import VerifiedGrant, verify_grant
from management.grants import GrantSigner
from management.hosts import GrpcHosts
from management.join import HostJoining, JoinSettings
from management.operations import RunningOperations
from management.privileges import Role as PrivilegeRole
from management.rpc import (
    STATUSES,
    HostJoinServicer,
    ManagementServicer,
    authorization_table,
    host_join_service,
    management_service,
)
from management.service import ManagementService, Settings
from management.store import SqlInventoryStore
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.authorization import AuthorizationTable
from serving.client import ClientTls, call, open_channel
from serving.database import Database
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, make_join_token
from serving.jws import key_id
from serving.server import RpcServer, ServerTls, Service
from serving.status import Refusal, abort

SITE = "test"
CLUSTER = "default"
DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    """The time, aware."""
    return datetime.datetime.now(datetime.UTC)


def make_host_id(name: str) -> str:
    """A host id that looks like one, for the host of that name."""
    return hashlib.sha256(name.encode()).hexdigest()


def certificate_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS #10 request (DER) for ``key``, without names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class Agent:
    """What a host agent has, and how it shall behave."""

    name: str
    host_id: str
    principals: dict[str, ec.EllipticCurvePublicKey]
    attested: bool = True
    reason: str = ""
    refuse: Refusal | None = None
    """Refuse whatever would change something."""
    gate: threading.Event | None = None
    """Wait for this inside whatever would change something."""
    entered: threading.Event = field(default_factory=threading.Event)
    """Set when something that changes something was begun."""
    vms: dict[str, host_pb.Vm] = field(default_factory=dict)
    specs: dict[str, host_pb.VmSpec] = field(default_factory=dict)
    grants: list[VerifiedGrant] = field(default_factory=list)


class AgentServicer(host_grpc.HostServiceServicer):
    """``HostService`` of an ``Agent``."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def _begin(self, context: grpc.ServicerContext) -> None:
        self._agent.entered.set()
        if self._agent.gate is not None:
            self._agent.gate.wait(20)
        if self._agent.refuse is not None:
            abort(context, self._agent.refuse)

    def _vm(self, vm_id: str, context: grpc.ServicerContext) -> host_pb.Vm:
        vm = self._agent.vms.get(vm_id)
        if vm is None:
            abort(context, Refusal(grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND", "no such VM"))
        return vm

    def _check_grant(self, text: str, vm_id: str, context: grpc.ServicerContext) -> None:
        try:
            grant = verify_grant(text, principals=self._agent.principals, now=int(now().timestamp()))
        except GrantRejected as exc:
            abort(context, Refusal(grpc.StatusCode.PERMISSION_DENIED, exc.reason.value, str(exc)))
        if grant.vm_id != vm_id or grant.host_id.text != self._agent.host_id:
            abort(context, Refusal(grpc.StatusCode.PERMISSION_DENIED, "GRANT_FOR_OTHER_VM", "of another VM or host"))
        self._agent.grants.append(grant)

    def GetHostStatus(
        self, _request: host_pb.GetHostStatusRequest, _context: grpc.ServicerContext
    ) -> host_pb.GetHostStatusResponse:
        agent = self._agent
        return host_pb.GetHostStatusResponse(
            host_id=agent.host_id, name=agent.name, attested=agent.attested, reason=agent.reason
        )

    def Attest(self, _request: host_pb.AttestRequest, _context: grpc.ServicerContext) -> host_pb.AttestResponse:
        return host_pb.AttestResponse(attested=self._agent.attested, reason=self._agent.reason)

    def CreateVm(self, request: host_pb.CreateVmRequest, context: grpc.ServicerContext) -> host_pb.CreateVmResponse:
        self._begin(context)
        spec = request.spec
        if request.provider:
            self._check_grant(request.grant, spec.vm_id, context)
        if spec.vm_id in self._agent.vms:
            abort(context, Refusal(grpc.StatusCode.ALREADY_EXISTS, "VM_EXISTS", "made already"))
        vm = host_pb.Vm(
            vm_id=spec.vm_id,
            name=spec.name,
            power_state=host_pb.POWER_STATE_OFF,
            provider=request.provider,
            bundle_path=f"/vms/{spec.vm_id}",
        )
        self._agent.vms[spec.vm_id] = vm
        self._agent.specs[spec.vm_id] = spec
        return host_pb.CreateVmResponse(vm=vm)

    def PowerOnVm(self, request: host_pb.PowerOnVmRequest, context: grpc.ServicerContext) -> host_pb.PowerOnVmResponse:
        self._begin(context)
        vm = self._vm(request.vm_id, context)
        if vm.provider:
            self._check_grant(request.grant, vm.vm_id, context)
        vm.power_state = host_pb.POWER_STATE_ON
        vm.qemu_pid = 4711
        return host_pb.PowerOnVmResponse(vm=vm)

    def PowerOffVm(
        self, request: host_pb.PowerOffVmRequest, context: grpc.ServicerContext
    ) -> host_pb.PowerOffVmResponse:
        self._begin(context)
        vm = self._vm(request.vm_id, context)
        vm.power_state = host_pb.POWER_STATE_OFF
        vm.qemu_pid = 0
        return host_pb.PowerOffVmResponse(vm=vm)

    def GetVm(self, request: host_pb.GetVmRequest, context: grpc.ServicerContext) -> host_pb.GetVmResponse:
        return host_pb.GetVmResponse(vm=self._vm(request.vm_id, context))

    def ListVms(self, _request: host_pb.ListVmsRequest, _context: grpc.ServicerContext) -> host_pb.ListVmsResponse:
        return host_pb.ListVmsResponse(vms=[self._agent.vms[vm_id] for vm_id in sorted(self._agent.vms)])

    def ReadConsole(
        self, request: host_pb.ReadConsoleRequest, context: grpc.ServicerContext
    ) -> host_pb.ReadConsoleResponse:
        self._vm(request.vm_id, context)
        output = b"login: "[request.offset :]
        return host_pb.ReadConsoleResponse(output=output, next_offset=request.offset + len(output))

    def DeleteVm(self, request: host_pb.DeleteVmRequest, context: grpc.ServicerContext) -> host_pb.DeleteVmResponse:
        self._begin(context)
        vm = self._vm(request.vm_id, context)
        if vm.power_state == host_pb.POWER_STATE_ON:
            abort(context, Refusal(grpc.StatusCode.FAILED_PRECONDITION, "VM_IS_ON", "power it off first"))
        del self._agent.vms[request.vm_id]
        return host_pb.DeleteVmResponse()


class WorkloadSide:
    """Authorities and a management server that listens; hosts are added by joining."""

    def __init__(
        self,
        database_url: str,
        *,
        roles: dict[str, PrivilegeRole] | None = None,
        clock: Callable[[], datetime.datetime] = now,
    ) -> None:
        """Start on ports that are free."""
        self.management = CertificateAuthority.create("management", now=now(), lifetime=DAY)
        self.vm_admins = CertificateAuthority.create("VM administrators", now=now(), lifetime=DAY)
        self.joined_hosts = CertificateAuthority.create("joined hosts", now=now(), lifetime=DAY)
        self.principal_key = ec.generate_private_key(ec.SECP256R1())
        self.principals = {key_id(self.principal_key.public_key()): self.principal_key.public_key()}
        self._server_key = ec.generate_private_key(ec.SECP256R1())
        self._server_certificate = self.management.issue(
            Identity(SITE, Role.MANAGEMENT_SERVER, "management"),
            self._server_key.public_key(),
            now=now(),
            lifetime=DAY,
            server_names=("127.0.0.1", "localhost"),
        )
        self._database_url = database_url
        self._roles = {"alice": PrivilegeRole.ADMINISTRATOR} if roles is None else roles
        self._clock = clock
        self._channels: list[grpc.Channel] = []
        self._agents: dict[str, RpcServer] = {}
        self._identities: dict[str, tuple[Agent, bytes, ec.EllipticCurvePrivateKey]] = {}
        self.start()

    def start(self) -> None:
        """Start the management server over the database as it is."""
        self._database = Database(self._database_url)
        self.store = SqlInventoryStore(self._database)
        self._hosts = GrpcHosts(self._client_tls(self.joined_hosts, self._server_certificate, self._server_key))
        self.service = ManagementService(
            self.store,
            self._hosts,
            GrantSigner("management", self.principal_key),
            RunningOperations(),
            Settings(CLUSTER, self._clock, lambda: str(uuid.uuid4())),
        )
        issuers = {Role.VM_ADMIN: (self.vm_admins.certificate,)}
        joining = HostJoining(
            self.store,
            JoinSettings(
                SITE, CLUSTER, self.joined_hosts, certificate_pem(self.management.certificate), issuers, self._clock
            ),
        )
        pem, key = certificate_pem(self._server_certificate), private_key_pem(self._server_key)
        self._server = RpcServer(
            "127.0.0.1:0",
            tls=ServerTls(pem, key, certificate_pem(self.vm_admins.certificate)),
            services=[management_service(ManagementServicer(self.service, self._roles))],
            statuses=STATUSES,
            table=authorization_table(self.vm_admins.certificate),
        )
        self._join_server = RpcServer(
            "127.0.0.1:0",
            tls=ServerTls(pem, key, None),
            services=[host_join_service(HostJoinServicer(joining))],
            statuses=STATUSES,
            table=None,
        )
        self._server.start()
        self._join_server.start()
        self.address = f"127.0.0.1:{self._server.port}"
        self.join_address = f"127.0.0.1:{self._join_server.port}"

    def stop(self) -> None:
        """Stop the management server; the database stays."""
        self._server.stop(0)
        self._join_server.stop(0)
        self._hosts.close()
        self._database.close()

    def close(self) -> None:
        """Stop everything."""
        for channel in self._channels:
            channel.close()
        self.stop()
        for agent in self._agents.values():
            agent.stop(0)

    def admin(self, name: str = "alice") -> pb_grpc.ManagementServiceStub:
        """The management service as the VM administrator of that name sees it."""
        certificate, key = self.admin_identity(name)
        channel = open_channel(self.address, self._client_tls(self.management, certificate, key))
        self._channels.append(channel)
        return pb_grpc.ManagementServiceStub(channel)

    def admin_identity(self, name: str = "alice") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Certificate and key of a VM administrator."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(SITE, Role.VM_ADMIN, name)
        return self.vm_admins.issue(identity, key.public_key(), now=now(), lifetime=DAY), key

    def join_stub(self) -> pb_grpc.HostJoinServiceStub:
        """The join service as a host sees it."""
        channel = open_channel(self.join_address, ClientTls(certificate_pem(self.management.certificate)))
        self._channels.append(channel)
        return pb_grpc.HostJoinServiceStub(channel)

    def join_token(
        self,
        host: str,
        *,
        cluster: str = CLUSTER,
        lifetime: datetime.timedelta = DAY,
        admin: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    ) -> str:
        """A join token for ``host`` by a VM administrator."""
        certificate, key = self.admin_identity() if admin is None else admin
        expires_at = int((now() + lifetime).timestamp())
        ca_pem = certificate_pem(self.management.certificate)
        invitation = JoinInvitation(str(uuid.uuid4()), host, cluster, expires_at, self.join_address, ca_pem)
        return make_join_token(invitation, certificate=certificate, key=key)

    def add_host(self, name: str, *, host_id: str | None = None, attested: bool = True, reason: str = "") -> Agent:
        """Join a host and start its agent."""
        identifier = make_host_id(name) if host_id is None else host_id
        agent = Agent(name, identifier, self.principals, attested=attested, reason=reason)
        key = ec.generate_private_key(ec.SECP256R1())
        # The port is known only once the agent listens, and it listens only with its certificate: join twice.
        request = pb.JoinRequest(
            join_token=self.join_token(name),
            certificate_request=certificate_request(key),
            host_id=identifier,
            agent_address="127.0.0.1:1",
        )
        pem = call(self.join_stub().Join, request).certificate_pem
        server = self.start_agent(agent, pem, key)
        request.agent_address = f"127.0.0.1:{server.port}"
        call(self.join_stub().Join, request)
        return agent

    def start_agent(
        self, agent: Agent, pem: bytes, key: ec.EllipticCurvePrivateKey, *, address: str = "127.0.0.1:0"
    ) -> RpcServer:
        """Let an agent listen with this certificate."""
        self._identities[agent.name] = (agent, pem, key)
        service = "garant.host.v1.HostService"
        methods = {
            f"/{service}/{method.name}": frozenset({Role.MANAGEMENT_SERVER})
            for method in host_pb.DESCRIPTOR.services_by_name["HostService"].methods
        }
        server = RpcServer(
            address,
            tls=ServerTls(pem, private_key_pem(key), certificate_pem(self.management.certificate)),
            services=[
                Service(service, lambda added: host_grpc.add_HostServiceServicer_to_server(AgentServicer(agent), added))
            ],
            statuses=(),
            table=AuthorizationTable(methods, {Role.MANAGEMENT_SERVER: (self.management.certificate,)}),
        )
        server.start()
        self._agents[agent.name] = server
        return server

    def stop_agent(self, name: str) -> None:
        """Let a host go silent."""
        self._agents.pop(name).stop(0)

    def restart_agent(self, name: str, *, while_away: Callable[[], object]) -> None:
        """Stop a host's agent, do something, and start it again at the same address."""
        address = f"127.0.0.1:{self._agents[name].port}"
        self.stop_agent(name)
        while_away()
        agent, pem, key = self._identities[name]
        self.start_agent(agent, pem, key, address=address)

    @staticmethod
    def _client_tls(
        server_authority: CertificateAuthority, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> ClientTls:
        return ClientTls(
            certificate_pem(server_authority.certificate), certificate_pem(certificate), private_key_pem(key)
        )
