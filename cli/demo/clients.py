"""The demo's hands: calls as a trust administrator, as a VM administrator, and, to attack, as the management server."""

from dataclasses import dataclass
from pathlib import Path

from cli.site import SitePlan
from garant.attestation.v1.admin_pb2_grpc import AttestationAdminServiceStub
from garant.host.v1.host_pb2_grpc import HostServiceStub
from garant.keyprovider.v1.keyprovider_pb2_grpc import KeyProviderAdminServiceStub
from garant.management.v1.management_pb2_grpc import ManagementServiceStub
from serving.client import ClientTls, open_channel


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
        """A host agent, as the management server: what a VM administrator who owns that server could try."""
        raise NotImplementedError(name)
