"""A site's trust authority for tests: its CAs, the real attestation service, and hosts with real software TPMs."""

import contextlib
import datetime
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.__main__ import AttestationDaemon, assemble
from attestation.attester.tpm import Tpm
from attestation.binding import QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.model import EkTemplate, HostId, HpkeKem, LogKind, PcrBank
from attestation.simulator.boot import Recording, play
from attestation.verifier.config import AttestationSettings
from attestation.verifier.ports import Clock
from attestation.verifier.rpc_messages import LOG_KINDS
from garant.attestation.v1 import admin_pb2, admin_pb2_grpc, attestation_pb2, attestation_pb2_grpc
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.client import ClientTls, call, open_channel
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, make_join_token
from tests.software_tpm import EkCa, HostTpm, MakeSoftwareTpm

SITE = "test.example"
AUDIENCE = "key-providers"
PCRS = (0, 2, 4, 7, 9, 11)
PROVIDER_LIST = "signed.provider.list"
_DAY = datetime.timedelta(days=1)
_TEMPLATES = {
    EkTemplate.RSA_2048_LOW: attestation_pb2.EK_TEMPLATE_RSA_2048_LOW,
    EkTemplate.ECC_P256_LOW: attestation_pb2.EK_TEMPLATE_ECC_P256_LOW,
    EkTemplate.RSA_2048_HIGH: attestation_pb2.EK_TEMPLATE_RSA_2048_HIGH,
    EkTemplate.ECC_P256_HIGH: attestation_pb2.EK_TEMPLATE_ECC_P256_HIGH,
    EkTemplate.ECC_P384_HIGH: attestation_pb2.EK_TEMPLATE_ECC_P384_HIGH,
    EkTemplate.RSA_3072_HIGH: attestation_pb2.EK_TEMPLATE_RSA_3072_HIGH,
}


def now() -> datetime.datetime:
    """Current time."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Principal:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Site:
    """CAs and configuration of a trust authority in a directory."""

    directory: Path
    cas: dict[str, CertificateAuthority]
    token_key: ec.EllipticCurvePrivateKey
    settings: dict[str, object]

    @classmethod
    def create(cls, directory: Path, database_url: str) -> "Site":
        """Make everything that the service's configuration names."""
        names = ("server", "trust-admin", "service", "host", "management")
        cas = {name: CertificateAuthority.create(f"{name} CA", now=now(), lifetime=_DAY) for name in names}
        token_key = ec.generate_private_key(ec.SECP256R1())
        server_key = ec.generate_private_key(ec.SECP256R1())
        server = cas["server"].issue(
            Identity(SITE, Role.ATTESTATION_SERVICE, "test"),
            server_key.public_key(),
            now=now(),
            lifetime=_DAY,
            server_names=("127.0.0.1", "localhost"),
        )
        files = {
            "token.key": private_key_pem(token_key),
            "cookie.key": secrets.token_bytes(32),
            "host-ca.pem": certificate_pem(cas["host"].certificate),
            "host-ca.key": private_key_pem(cas["host"].key),
            "trust-admin-ca.pem": certificate_pem(cas["trust-admin"].certificate),
            "service-ca.pem": certificate_pem(cas["service"].certificate),
            "server.pem": certificate_pem(server),
            "server.key": private_key_pem(server_key),
            "providers.jws": PROVIDER_LIST.encode(),
        }
        for name, content in files.items():
            (directory / name).write_bytes(content)
            (directory / name).chmod(0o600)
        listener = {"address": "127.0.0.1:0", "certificate": "server.pem", "private_key": "server.key"}
        settings: dict[str, object] = {
            "site": SITE,
            "database": database_url,
            "token_key": "token.key",
            "cookie_key": "cookie.key",
            "host_ca_certificate": "host-ca.pem",
            "host_ca_key": "host-ca.key",
            "trust_admin_ca": "trust-admin-ca.pem",
            "service_ca": "service-ca.pem",
            "provider_list": "providers.jws",
            "audience": AUDIENCE,
            "public": listener,
            "admin": listener,
        }
        return cls(directory, cas, token_key, settings)

    def load_settings(self) -> AttestationSettings:
        """The configuration, checked."""
        return AttestationSettings.model_validate(self.settings, context={"base": self.directory})

    def write_config(self) -> Path:
        """The configuration as a TOML file."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items() if not isinstance(value, dict)]
        for key, value in self.settings.items():
            if isinstance(value, dict):
                lines += [f"[{key}]", *(f"{name} = {json.dumps(entry)}" for name, entry in value.items())]
        path = self.directory / "attestation.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def principal(self, role: Role, name: str, *, issuer: str, lifetime: datetime.timedelta = _DAY) -> Principal:
        """Somebody of ``role``, certified by the CA named ``issuer``."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.cas[issuer].issue(Identity(SITE, role, name), key.public_key(), now=now(), lifetime=lifetime)
        return Principal(certificate, key)

    def trust_admin(self) -> Principal:
        """A trust administrator."""
        return self.principal(Role.TRUST_ADMIN, "alice", issuer="trust-admin")

    def client_tls(self, principal: Principal | None) -> ClientTls:
        """How ``principal`` connects."""
        ca = certificate_pem(self.cas["server"].certificate)
        if principal is None:
            return ClientTls(ca)
        return ClientTls(ca, certificate_pem(principal.certificate), private_key_pem(principal.key))

    def join_token(
        self,
        host_name: str,
        *,
        token_id: str | None = None,
        cluster: str = "cluster-a",
        signer: Principal | None = None,
        valid_for: int = 600,
    ) -> str:
        """A join token for ``host_name``."""
        admin = signer or self.trust_admin()
        invitation = JoinInvitation(
            token_id=token_id or secrets.token_hex(8),
            host_name=host_name,
            cluster=cluster,
            expires_at=int(now().timestamp()) + valid_for,
            address="127.0.0.1:1",
            ca_pem=certificate_pem(self.cas["server"].certificate),
        )
        return make_join_token(invitation, certificate=admin.certificate, key=admin.key)


@dataclass(frozen=True)
class Service:
    """A running attestation service, and stubs to it."""

    site: Site
    public_port: int
    admin_port: int
    channels: contextlib.ExitStack = field(repr=False)

    def channel(self, port: int, principal: Principal | None) -> grpc.Channel:
        """A channel, closed with the service."""
        channel = open_channel(f"127.0.0.1:{port}", self.site.client_tls(principal))
        self.channels.callback(channel.close)
        return channel

    def enrollment(self) -> attestation_pb2_grpc.EnrollmentServiceStub:
        """Enrolment, as anybody."""
        return attestation_pb2_grpc.EnrollmentServiceStub(self.channel(self.public_port, None))

    def attestation(self) -> attestation_pb2_grpc.AttestationServiceStub:
        """Attestation, as anybody."""
        return attestation_pb2_grpc.AttestationServiceStub(self.channel(self.public_port, None))

    def admin(self, principal: Principal | None = None) -> admin_pb2_grpc.AttestationAdminServiceStub:
        """Administration, by default as a trust administrator."""
        channel = self.channel(self.admin_port, principal or self.site.trust_admin())
        return admin_pb2_grpc.AttestationAdminServiceStub(channel)

    def revocation(self, principal: Principal | None = None) -> admin_pb2_grpc.RevocationServiceStub:
        """The heartbeat, by default as a trust administrator."""
        channel = self.channel(self.admin_port, principal or self.site.trust_admin())
        return admin_pb2_grpc.RevocationServiceStub(channel)

    def trust(self, ek_ca: EkCa, *recordings: str, allow_virtual: bool = True) -> None:
        """Add the anchor, a policy of version 1, and the recordings as references."""
        admin = self.admin()
        pem = certificate_pem(ek_ca.certificate).decode()
        anchor = admin_pb2.Anchor(name="ek-ca", certificate_pem=pem, allow_virtual=allow_virtual)
        call(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
        call(admin.PutPolicy, admin_pb2.PutPolicyRequest(document=policy_document(1)))
        for name in recordings:
            log = Recording.load(name).log
            call(admin.PutReference, admin_pb2.PutReferenceRequest(name=name, event_log=log))


def policy_document(version: int) -> str:
    """The policy that tests demand."""
    return json.dumps({"name": "test", "version": version, "bank": "sha256", "pcrs": list(PCRS)})


@contextlib.contextmanager
def running(site: Site, clock: Clock = now) -> Iterator[Service]:
    """Run the service in this process."""
    daemon: AttestationDaemon = assemble(site.load_settings(), clock)
    daemon.start()
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.stop)
        channels = stack.enter_context(contextlib.ExitStack())
        yield Service(site, daemon.public.port, daemon.admin.port, channels)


@contextlib.contextmanager
def running_process(site: Site) -> Iterator[Service]:
    """Run the service as the process that administrators start."""
    command = [sys.executable, "-m", "attestation", str(site.write_config())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, contextlib.ExitStack() as channels:
        try:
            ports: dict[str, int] = {}
            for line in process.stderr or ():
                entry = json.loads(line)
                if entry["event"] == "listening":
                    ports = entry
                if entry["event"] in ("ready", "cannot start"):
                    break
            yield Service(site, ports["public_port"], ports["admin_port"], channels)
        finally:
            process.terminate()
            process.communicate(timeout=30)


@dataclass
class Host:
    """A host that enrols and attests with its TPM."""

    service: Service
    hardware: HostTpm
    tpm: Tpm
    name: str
    log: bytes
    host_id: str = ""
    later_logs: dict[LogKind, bytes] = field(default_factory=dict)
    """Logs beside the firmware's, sent where they are asked for."""
    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    hpke_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    def reboot(self, recording: str) -> None:
        """Cycle the TPM's power and boot another recording."""
        self.hardware.reset()
        boot = Recording.load(recording)
        play(boot, self.tpm.extend)
        self.log = boot.log

    def begin_request(self, join_token: str = "") -> attestation_pb2.BeginEnrollmentRequest:
        """What it says of itself."""
        endorsement = self.tpm.endorsement_key()
        return attestation_pb2.BeginEnrollmentRequest(
            host_name=self.name,
            join_token=join_token,
            ek_template=_TEMPLATES[endorsement.template],
            ek_public=endorsement.public,
            ek_certificate=endorsement.certificate or b"",
            ek_intermediates=endorsement.intermediates,
            ak_public=self.tpm.attestation_key(),
        )

    def begin(self, join_token: str = "") -> attestation_pb2.BeginEnrollmentResponse:
        """First half of enrolment."""
        return call(self.service.enrollment().BeginEnrollment, self.begin_request(join_token))

    def prove(self, begun: attestation_pb2.BeginEnrollmentResponse) -> attestation_pb2.CompleteEnrollmentRequest:
        """Open the credential."""
        secret = self.tpm.activate_credential(begun.credential_blob, begun.encrypted_secret)
        proof = hmac.digest(secret, hashlib.sha256(begun.cookie).digest(), "sha256")
        return attestation_pb2.CompleteEnrollmentRequest(cookie=begun.cookie, proof=proof)

    def complete(
        self, request: attestation_pb2.CompleteEnrollmentRequest
    ) -> attestation_pb2.CompleteEnrollmentResponse:
        """Second half of enrolment."""
        answer = call(self.service.enrollment().CompleteEnrollment, request)
        self.host_id = answer.host_id
        return answer

    def enroll(self, join_token: str = "") -> attestation_pb2.CompleteEnrollmentResponse:
        """Both halves."""
        return self.complete(self.prove(self.begin(join_token)))

    def challenge(self, host_id: str = "") -> attestation_pb2.CreateChallengeResponse:
        """Ask for a challenge."""
        request = attestation_pb2.CreateChallengeRequest(host_id=host_id or self.host_id)
        return call(self.service.attestation().CreateChallenge, request)

    def evidence(
        self, challenge: attestation_pb2.CreateChallengeResponse, *, host_id: str = ""
    ) -> attestation_pb2.AttestRequest:
        """Answer a challenge honestly, with the keys as they are."""
        tls_public = self.tls_key.public_key()
        hpke_public = self.hpke_key.public_key().public_bytes_raw()
        logs = self._logs(challenge)
        binding = QuoteBinding(
            nonce=challenge.nonce,
            tls_thumbprint=tls_thumbprint(tls_public),
            hpke_thumbprint=hpke_thumbprint(HpkeKem.X25519, hpke_public),
            log_hashes={kind: hashlib.sha256(log).digest() for kind, log in logs.items()},
            host_id=HostId(host_id or self.host_id),
            service_key=challenge.service_key,
            audience=challenge.audience,
        )
        quote = self.tpm.quote(binding.extra_data(), PcrBank.SHA256, tuple(challenge.pcrs))
        return attestation_pb2.AttestRequest(
            cookie=challenge.cookie,
            tls_public_key=tls_public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            hpke_public_key=hpke_public,
            quote=quote.attest,
            signature=quote.signature,
            pcr_values=[attestation_pb2.PcrValue(index=index, digest=value) for index, value in quote.pcr_values],
            logs=[attestation_pb2.MeasurementLog(kind=LOG_KINDS[kind], content=log) for kind, log in logs.items()],
        )

    def _logs(self, challenge: attestation_pb2.CreateChallengeResponse) -> dict[LogKind, bytes]:
        """The logs that were asked for and are there."""
        return {
            kind: log
            for kind, log in {LogKind.TCG: self.log, **self.later_logs}.items()
            if LOG_KINDS[kind] in challenge.logs
        }

    def submit(self, evidence: attestation_pb2.AttestRequest) -> attestation_pb2.AttestResponse:
        """Hand evidence in."""
        return call(self.service.attestation().Attest, evidence)

    def attest(self) -> attestation_pb2.AttestResponse:
        """A whole attestation."""
        return self.submit(self.evidence(self.challenge()))


MakeHost = Callable[..., Host]


@dataclass
class MovableClock:
    """A clock that tests move."""

    offset: datetime.timedelta = datetime.timedelta()

    def __call__(self) -> datetime.datetime:
        """The real time, moved."""
        return now() + self.offset

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.offset += datetime.timedelta(seconds=seconds)


@pytest.fixture
def attestation_site(tmp_path: Path) -> Site:
    """Make a site on SQLite."""
    return Site.create(tmp_path, f"sqlite:///{tmp_path / 'attestation.db'}")


@pytest.fixture
def attestation_clock() -> MovableClock:
    """Make the clock of ``attestation_service``."""
    return MovableClock()


@pytest.fixture
def attestation_service(attestation_site: Site, attestation_clock: MovableClock) -> Iterator[Service]:
    """Run the attestation service of ``attestation_site``, with nothing in it."""
    with running(attestation_site, attestation_clock) as service:
        yield service


@pytest.fixture
def make_host(attestation_service: Service, make_software_tpm: MakeSoftwareTpm) -> Iterator[MakeHost]:
    """Make hosts of ``attestation_service``, each with a software TPM that booted a recording."""
    with contextlib.ExitStack() as stack:

        def make(name: str, recording: str = "good", template: EkTemplate | None = None) -> Host:
            boot = Recording.load(recording)
            hardware = make_software_tpm()
            tpm = stack.enter_context(Tpm.open(hardware.tcti, template=template))
            play(boot, tpm.extend)
            return Host(attestation_service, hardware, tpm, name, boot.log)

        yield make
