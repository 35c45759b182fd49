"""The demo's hands: calls as a trust administrator, as a VM administrator, and, to attack, as the management server."""

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId
from cli.site import SitePlan
from garant.attestation.v1.admin_pb2_grpc import AttestationAdminServiceStub
from garant.host.v1.host_pb2_grpc import HostServiceStub
from garant.keyprovider.v1.keyprovider_pb2_grpc import KeyProviderAdminServiceStub
from garant.management.v1.management_pb2 import ListHostsRequest
from garant.management.v1.management_pb2_grpc import ManagementServiceStub
from keyprovider.grant import PlacementGrant, sign_grant
from management.host_name import agent_server_name
from serving.client import ClientTls, call, open_channel


@dataclass(frozen=True, slots=True)
class Clients:
    """Stubs to all services of a site that lies in one directory."""

    directory: Path
    plan: SitePlan

    @property
    def attestation(self) -> AttestationAdminServiceStub:
        """The attestation service, as a trust administrator."""
        return AttestationAdminServiceStub(open_channel(self.plan.attestation_admin, self._tls("trust-admin")))

    @property
    def keyprovider(self) -> KeyProviderAdminServiceStub:
        """The key provider service, as a trust administrator."""
        return KeyProviderAdminServiceStub(open_channel(self.plan.keyprovider, self._tls("trust-admin")))

    @property
    def management(self) -> ManagementServiceStub:
        """The management server, as a VM administrator."""
        return ManagementServiceStub(open_channel(self.plan.management, self._tls("vm-admin")))

    def _tls(self, who: str) -> ClientTls:
        side = "trust-authority" if who == "trust-admin" else "management"
        leaf = self.directory / who
        return ClientTls.load(self.directory / side / "ca.pem", leaf / "certificate.pem", leaf / "private-key.pem")

    def host(self, name: str) -> HostServiceStub:
        """A host agent, as the management server: what somebody could try who owns that server."""
        host = next(host for host in call(self.management.ListHosts, ListHostsRequest()).hosts if host.name == name)
        own = self.directory / "management"
        tls = ClientTls.load(own / "host-ca.pem", own / "certificate.pem", own / "private-key.pem")
        options = [("grpc.ssl_target_name_override", agent_server_name(host.name, host.host_id))]
        return HostServiceStub(open_channel(host.agent_address, tls, options=options))

    def grant_for_other_vm(self, host_id: str) -> str:
        """A grant as the management server would sign it, for a VM that does not exist."""
        pem = (self.directory / "management/principal-key.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the principal's key is not on a curve")
        now = int(time.time())
        grant = PlacementGrant(
            grant_id=str(uuid.uuid4()),
            principal="management",
            vm_id=str(uuid.uuid4()),
            host_id=HostId(host_id),
            generation=1,
            issued_at=now,
            expires_at=now + 120,
        )
        return sign_grant(grant, key)
