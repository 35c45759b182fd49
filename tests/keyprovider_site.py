"""A key provider service as a process of its own, and everything around it.

CAs, hosts, a management server, and an attestation service of which only the heartbeat answers.
"""

import datetime
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.binding import tls_thumbprint
from attestation.model import BootIdentity, HostId, HpkeKem
from attestation.token import HeartbeatClaims, TokenClaims, issuer_of, mint_heartbeat, mint_token
from garant.attestation.v1 import admin_pb2, admin_pb2_grpc
from garant.keyprovider.v1 import keyprovider_pb2 as pb
from garant.keyprovider.v1 import keyprovider_pb2_grpc as pb_grpc
from keyprovider.envelope import SealingKey, release_info, release_request_hash
from keyprovider.grant import PlacementGrant, sign_grant
from keyprovider.keymaterial import SecretKey
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.authorization import AuthorizationTable
from serving.client import ClientTls, call, open_channel
from serving.identity import Identity, Role
from serving.server import RpcServer, ServerTls, Service

SITE = "site.test"
AUDIENCE = "garant-key-provider"
PROVIDER = "gold"
HOUR = datetime.timedelta(hours=1)
_REPOSITORY = Path(__file__).parents[1]


class _Heartbeats(admin_pb2_grpc.RevocationServiceServicer):
    """Answers with the site's present heartbeat."""

    def __init__(self, site: "KeyProviderSite") -> None:
        self._site = site

    def GetHeartbeat(  # noqa: N802
        self,
        request: admin_pb2.GetHeartbeatRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> admin_pb2.GetHeartbeatResponse:
        """See the proto."""
        return admin_pb2.GetHeartbeatResponse(heartbeat=self._site.heartbeat())


@dataclass
class TestHost:
    """An attested host: in-memory keys, certificate, token."""

    __test__ = False
    site: "KeyProviderSite"
    name: str
    kem: HpkeKem = HpkeKem.X25519
    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        """Make keys and certificate."""
        self.host_id = HostId(uuid.uuid5(uuid.NAMESPACE_DNS, self.name).hex * 2)
        self.sealing = SealingKey.generate(self.kem)

    def tls(self, role: Role = Role.ATTESTED_HOST) -> ClientTls:
        """What this host shows by TLS."""
        return self.site.client_tls(role, self.host_id.text, self.tls_key)

    def claims(self) -> TokenClaims:
        """What the host's token says."""
        now = int(time.time())
        return TokenClaims(
            token_id=f"token-{uuid.uuid4()}",
            issuer=issuer_of(SITE),
            audience=AUDIENCE,
            host_id=self.host_id,
            host_name=self.name,
            cluster="default",
            issued_at=now,
            expires_at=now + 300,
            tls_thumbprint=tls_thumbprint(self.tls_key.public_key()),
            hpke_kem=self.kem,
            hpke_public_key=self.sealing.public_bytes,
            boot=BootIdentity(3, 1),
            reference="debian-12",
            evidence_digest=bytes(32),
            policy_version=1,
            policy_hash=bytes(32),
            epoch=1,
        )


@dataclass
class KeyProviderSite:
    """Everything around the service, in one directory."""

    directory: Path
    database_url: str

    def __post_init__(self) -> None:
        """Make CAs and keys, write the files that every service shares."""
        self.now = datetime.datetime.now(datetime.UTC)
        self.authorities = {
            role: CertificateAuthority.create(role.value, now=self.now, lifetime=HOUR)
            for role in (
                Role.TRUST_ADMIN,
                Role.ATTESTED_HOST,
                Role.KEY_PROVIDER_SERVICE,
                Role.MANAGEMENT_SERVER,
                Role.JOINED_HOST,
            )
        }
        self.token_key = ec.generate_private_key(ec.SECP256R1())
        self.principal_key = ec.generate_private_key(ec.SECP256R1())
        self.epoch = 1
        self.revoked: frozenset[HostId] = frozenset()
        self._lock = threading.Lock()
        for role, authority in self.authorities.items():
            (self.directory / f"{role}-ca.pem").write_bytes(certificate_pem(authority.certificate))
        service_key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.authorities[Role.KEY_PROVIDER_SERVICE].issue(
            Identity(SITE, Role.KEY_PROVIDER_SERVICE, "keyprovider"),
            service_key.public_key(),
            now=self.now,
            lifetime=HOUR,
            server_names=["127.0.0.1"],
        )
        (self.directory / "certificate.pem").write_bytes(certificate_pem(certificate))
        (self.directory / "private-key.pem").write_bytes(private_key_pem(service_key))
        (self.directory / "token-key.pub.pem").write_bytes(
            self.token_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        (self.directory / "storage.key").touch(mode=0o600)
        (self.directory / "storage.key").write_bytes(os.urandom(32))

    def client_tls(self, role: Role, name: str, key: ec.EllipticCurvePrivateKey) -> ClientTls:
        """A client certificate of that role."""
        certificate = self.authorities[role].issue(
            Identity(SITE, role, name), key.public_key(), now=self.now, lifetime=HOUR
        )
        ca = certificate_pem(self.authorities[Role.KEY_PROVIDER_SERVICE].certificate)
        return ClientTls(ca, certificate_pem(certificate), private_key_pem(key))

    def heartbeat(self) -> str:
        """The present heartbeat."""
        now = int(time.time())
        with self._lock:
            return mint_heartbeat(HeartbeatClaims(self.epoch, self.revoked, 1, now, now + 30), self.token_key)

    def revoke(self, host: TestHost) -> None:
        """Revoke a host, as the attestation service would."""
        with self._lock:
            self.revoked |= {host.host_id}

    def token(self, host: TestHost, **changes: object) -> str:
        """A token for a host, with claims changed."""
        return mint_token(replace(host.claims(), **changes), self.token_key)  # type: ignore[arg-type]

    def grant(self, host: TestHost, vm_id: str, **changes: object) -> str:
        """A placement grant of the registered management server, with fields changed."""
        now = int(time.time())
        grant = PlacementGrant(f"grant-{uuid.uuid4()}", "management", vm_id, host.host_id, 1, now, now + 120)
        return sign_grant(replace(grant, **changes), self.principal_key)  # type: ignore[arg-type]

    @contextmanager
    def attestation(self) -> Iterator[str]:
        """Serve heartbeats; gives the address."""
        cas = self.directory / f"{Role.KEY_PROVIDER_SERVICE}-ca.pem"
        issuer = self.authorities[Role.KEY_PROVIDER_SERVICE].certificate
        method = "/garant.attestation.v1.RevocationService/GetHeartbeat"
        server = RpcServer(
            "127.0.0.1:0",
            tls=ServerTls.load(self.directory / "certificate.pem", self.directory / "private-key.pem", [cas]),
            services=[
                Service(
                    "garant.attestation.v1.RevocationService",
                    lambda grpc_server: admin_pb2_grpc.add_RevocationServiceServicer_to_server(
                        _Heartbeats(self), grpc_server
                    ),
                )
            ],
            statuses=[],
            table=AuthorizationTable(
                {method: frozenset({Role.KEY_PROVIDER_SERVICE})}, {Role.KEY_PROVIDER_SERVICE: (issuer,)}
            ),
        )
        server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            server.stop(0)

    def write_config(self, attestation: str, *, max_staleness_seconds: int = 300) -> Path:
        """Write the service's configuration file."""
        path = self.directory / "keyprovider.toml"
        path.write_text(
            f"""\
site = "{SITE}"
database = "{self.database_url}"
trust_admin_ca = "{Role.TRUST_ADMIN}-ca.pem"
attested_host_ca = "{Role.ATTESTED_HOST}-ca.pem"
management_ca = "{Role.MANAGEMENT_SERVER}-ca.pem"
token_keys = ["token-key.pub.pem"]
audience = "{AUDIENCE}"
primary_keys = "primary-keys.json"
storage_key = "storage.key"
[listener]
address = "127.0.0.1:0"
certificate = "certificate.pem"
private_key = "private-key.pem"
[attestation]
address = "{attestation}"
ca = "{Role.KEY_PROVIDER_SERVICE}-ca.pem"
[release]
max_staleness_seconds = {max_staleness_seconds}
"""
        )
        return path

    @contextmanager
    def service(self, config: Path, name: str = "keyprovider") -> Iterator["RunningService"]:
        """Run the service as a process; gives its address."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "keyprovider", config], stdout=output, stderr=output, cwd=_REPOSITORY
            )
        try:
            yield RunningService(process, f"127.0.0.1:{_port(process, log)}", log)
        finally:
            process.terminate()
            process.wait(timeout=30)

    def prepare(self, service: "RunningService") -> None:
        """Make the provider and register the management server, as a trust administrator does."""
        admin = self.client_tls(Role.TRUST_ADMIN, "admin", ec.generate_private_key(ec.SECP256R1()))
        with open_channel(service.address, admin) as channel:
            stub = pb_grpc.KeyProviderAdminServiceStub(channel)
            call(stub.CreateProvider, pb.CreateProviderRequest(name=PROVIDER, backend=pb.BACKEND_SOFTWARE), wait=True)
            spki = self.principal_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            call(stub.RegisterPrincipal, pb.RegisterPrincipalRequest(name="management", public_key=spki))


@dataclass
class RunningService:
    """A service process."""

    process: "subprocess.Popen[bytes]"
    address: str
    log: Path


@dataclass
class HostClient:
    """A host that asks for keys."""

    host: TestHost
    channel: grpc.Channel

    def create(self, vm_id: str, component: str, token: str, grant: str) -> tuple[pb.CreateKeyResponse, SecretKey]:
        """Have a key made, and open it."""
        answer = call(
            pb_grpc.KeyReleaseServiceStub(self.channel).CreateKey,
            pb.CreateKeyRequest(
                authority=pb.Authority(token=token, grant=grant),
                provider=PROVIDER,
                vm_id=vm_id,
                component=pb.Component(name=component),
            ),
            wait=True,
        )
        request_hash = release_request_hash(
            operation="create", token=token, grant=grant, provider=PROVIDER, vm_id=vm_id, component=component
        )
        return answer, self._open(answer.sealed_key, token, vm_id, component, answer.key_reference, request_hash)

    def unwrap(
        self, vm_id: str, component: str, token: str, grant: str, reference: str, wrapped: bytes
    ) -> tuple[pb.UnwrapKeyResponse, SecretKey]:
        """Have a key unwrapped, and open it."""
        answer = call(
            pb_grpc.KeyReleaseServiceStub(self.channel).UnwrapKey,
            pb.UnwrapKeyRequest(
                authority=pb.Authority(token=token, grant=grant),
                provider=PROVIDER,
                vm_id=vm_id,
                component=pb.Component(name=component),
                key_reference=reference,
                wrapped_key=wrapped,
            ),
            wait=True,
        )
        request_hash = release_request_hash(
            operation="unwrap",
            token=token,
            grant=grant,
            provider=PROVIDER,
            vm_id=vm_id,
            component=component,
            key_reference=reference,
            wrapped_key=wrapped,
        )
        return answer, self._open(answer.sealed_key, token, vm_id, component, reference, request_hash)

    def _open(
        self, sealed: bytes, token: str, vm_id: str, component: str, reference: str, request_hash: bytes
    ) -> SecretKey:
        info = release_info(
            token_id=_token_id(token),
            provider=PROVIDER,
            key_reference=reference,
            vm_id=vm_id,
            component=component,
            host_id=self.host.host_id.text,
            request_hash=request_hash,
        )
        return self.host.sealing.open(sealed, info)


def _token_id(token: str) -> str:
    claims: dict[str, str] = jwt.decode(token, options={"verify_signature": False})
    return claims["jti"]


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and (event := json.loads(line)).get("event") == "serving":
                return int(event["port"])
        time.sleep(0.02)
    raise AssertionError(f"the service did not start: {log.read_text()}")
