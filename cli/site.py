"""``garant init``: makes a site in one directory.

A site is two sides that do not trust each other more than they must: the trust authority (its CAs, its two services,
its administrator) and the workload side (management server, its CAs and administrator, hosts). Here both lie beside
each other, each in a directory of its own, so that either can be carried to other machines as it is.
"""

import datetime
import ipaddress
import json
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyprovider.provider_list import ProviderEntry, ProviderList, sign_provider_list
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.errors import ConfigError
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, make_join_token

CA_LIFETIME = datetime.timedelta(days=3650)
LEAF_LIFETIME = datetime.timedelta(days=365)
JOIN_TOKEN_LIFETIME = datetime.timedelta(days=1)
CLUSTER = "default"
AUDIENCE = "garant-key-provider"
KERNEL_EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
KERNEL_COMMAND_LINE = Path("/proc/cmdline")
IMAGES = Path("/var/lib/garant/images")
TRUST_ADMIN = "trust-admin"
VM_ADMIN = "vm-admin"


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A host that the site shall expect."""

    name: str
    agent_address: str
    tcti: str
    event_log: Path
    command_line: Path = KERNEL_COMMAND_LINE
    """Where the kernel shows its command line."""
    image_directories: tuple[Path, ...] = ()
    """Where disk images and kernels that VM administrators name may lie on the host."""
    admitted: bool = True
    """With a join token for the trust authority. Without one it may ask, and an administrator decides."""


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What ``make_site`` shall make."""

    name: str
    attestation_public: str
    attestation_admin: str
    keyprovider: str
    management: str
    join: str
    provider: str
    """Name of the trusted key provider to publish."""
    hosts: tuple[HostPlan, ...] = ()


def make_site(directory: Path, plan: SitePlan, *, now: datetime.datetime) -> None:
    """Write a new site into ``directory``.

    Everything is made here and now: CAs, keys, certificates, configuration files, the signed provider list, join
    tokens. Private files have mode 0600, directories 0700.

    Raises:
        ConfigError: The directory is there and not empty, or cannot be written.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; name another directory or remove it")
    try:
        _SiteWriter(directory, plan, now).write()
    except OSError as exc:
        raise ConfigError(f"cannot write {exc.filename}: {exc.strerror}") from exc


class _SiteWriter:
    """Makes the parts in order: authorities, services, administrators, hosts."""

    def __init__(self, directory: Path, plan: SitePlan, now: datetime.datetime) -> None:
        self._directory = directory
        self._plan = plan
        self._now = now
        self._trust = self._authority("trust authority")
        self._trust_admins = self._authority("trust administrators")
        self._attested_hosts = self._authority("attested hosts")
        self._management = self._authority("management")
        self._vm_admins = self._authority("VM administrators")
        self._joined_hosts = self._authority("joined hosts")

    def write(self) -> None:
        """Write everything."""
        self._write_authority("trust-authority/ca", self._trust)
        self._write_authority("trust-authority/admin-ca", self._trust_admins)
        self._write_authority("management/ca", self._management)
        self._write_authority("management/admin-ca", self._vm_admins)
        token_key = self._write_attestation()
        self._write_keyprovider(token_key)
        self._write_management()
        trust_admin = self._write_leaf("trust-admin", self._trust_admins, Role.TRUST_ADMIN, TRUST_ADMIN)
        vm_admin = self._write_leaf("vm-admin", self._vm_admins, Role.VM_ADMIN, VM_ADMIN)
        for host in self._plan.hosts:
            self._write_host(host, trust_admin, vm_admin)
        self._text("site.json", json.dumps(self._summary(), indent=2) + "\n")

    def _summary(self) -> dict[str, object]:
        plan = self._plan
        return {
            "site": plan.name,
            "provider": plan.provider,
            "attestation": {"public": plan.attestation_public, "admin": plan.attestation_admin},
            "keyprovider": plan.keyprovider,
            "management": plan.management,
            "join": plan.join,
            "cas": {"trust_authority": "trust-authority/ca.pem", "management": "management/ca.pem"},
        }

    def _write_attestation(self) -> ec.EllipticCurvePrivateKey:
        base = "trust-authority/attestation"
        self._write_leaf(
            base,
            self._trust,
            Role.ATTESTATION_SERVICE,
            "attestation",
            server_addresses=(self._plan.attestation_public, self._plan.attestation_admin),
        )
        self._write_authority(f"{base}/host-ca", self._attested_hosts)
        token_key = ec.generate_private_key(ec.SECP256R1())
        self._private(f"{base}/token-key.pem", private_key_pem(token_key))
        self._private(f"{base}/cookie.key", secrets.token_bytes(32))
        entry = ProviderEntry(
            self._plan.provider, (self._plan.keyprovider,), certificate_pem(self._trust.certificate).decode()
        )
        self._text(f"{base}/providers.jws", sign_provider_list(ProviderList(1, (entry,)), self._trust.key) + "\n")
        self._text(
            f"{base}/attestation.toml",
            f"""\
site = "{self._plan.name}"
database = "{self._database(base, "attestation.db")}"
token_key = "token-key.pem"
cookie_key = "cookie.key"
host_ca_certificate = "host-ca.pem"
host_ca_key = "host-ca-key.pem"
trust_admin_ca = "../admin-ca.pem"
service_ca = "../ca.pem"
provider_list = "providers.jws"
audience = "{AUDIENCE}"

[public]
address = "{self._plan.attestation_public}"
certificate = "certificate.pem"
private_key = "private-key.pem"

[admin]
address = "{self._plan.attestation_admin}"
certificate = "certificate.pem"
private_key = "private-key.pem"
""",
        )
        return token_key

    def _write_keyprovider(self, token_key: ec.EllipticCurvePrivateKey) -> None:
        base = "trust-authority/keyprovider"
        self._write_leaf(
            base, self._trust, Role.KEY_PROVIDER_SERVICE, "keyprovider", server_addresses=(self._plan.keyprovider,)
        )
        self._bytes(f"{base}/token-key.pub.pem", _public_pem(token_key.public_key()))
        self._bytes(f"{base}/attested-host-ca.pem", certificate_pem(self._attested_hosts.certificate))
        self._private(f"{base}/storage.key", secrets.token_bytes(32))
        log_key = ec.generate_private_key(ec.SECP256R1())
        self._private(f"{base}/log-key.pem", private_key_pem(log_key))
        self._bytes(f"{base}/log-key.pub.pem", _public_pem(log_key.public_key()))
        self._text(
            f"{base}/keyprovider.toml",
            f"""\
site = "{self._plan.name}"
database = "{self._database(base, "keyprovider.db")}"
trust_admin_ca = "../admin-ca.pem"
attested_host_ca = "attested-host-ca.pem"
token_keys = ["token-key.pub.pem"]
audience = "{AUDIENCE}"
primary_keys = "primary-keys.json"
storage_key = "storage.key"
log_key = "log-key.pem"

[listener]
address = "{self._plan.keyprovider}"
certificate = "certificate.pem"
private_key = "private-key.pem"

[attestation]
address = "{self._plan.attestation_admin}"
ca = "../ca.pem"
""",
        )

    def _write_management(self) -> None:
        base = "management"
        self._write_leaf(
            base,
            self._management,
            Role.MANAGEMENT_SERVER,
            "management",
            server_addresses=(self._plan.management, self._plan.join),
        )
        self._write_authority(f"{base}/host-ca", self._joined_hosts)
        principal = ec.generate_private_key(ec.SECP256R1())
        self._private(f"{base}/principal-key.pem", private_key_pem(principal))
        self._bytes(f"{base}/principal.pub.pem", _public_pem(principal.public_key()))
        self._text(
            f"{base}/management.toml",
            f"""\
site = "{self._plan.name}"
database = "{self._database(base, "management.db")}"
cluster = "{CLUSTER}"
administrators = ["{VM_ADMIN}"]
management_ca = "ca.pem"
vm_admin_ca = "admin-ca.pem"
host_ca_certificate = "host-ca.pem"
host_ca_key = "host-ca-key.pem"
principal = "management"
principal_key = "principal-key.pem"

[listener]
address = "{self._plan.management}"
certificate = "certificate.pem"
private_key = "private-key.pem"

[join]
address = "{self._plan.join}"
certificate = "certificate.pem"
private_key = "private-key.pem"
""",
        )

    def _write_host(
        self,
        host: HostPlan,
        trust_admin: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
        vm_admin: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    ) -> None:
        base = f"hosts/{host.name}"
        join = self._invitation(host, self._plan.join, self._management)
        self._private(f"{base}/join-token", self._signed(join, vm_admin))
        lines = ['join_token = "join-token"']
        authority = ""
        if host.admitted:
            enrolment = self._invitation(host, self._plan.attestation_public, self._trust)
            self._private(f"{base}/enrolment-token", self._signed(enrolment, trust_admin))
            lines.append('enrolment_token = "enrolment-token"')
        else:
            self._bytes(f"{base}/trust-authority-ca.pem", certificate_pem(self._trust.certificate))
            authority = f"""
[trust_authority]
address = "{self._plan.attestation_public}"
ca = "trust-authority-ca.pem"
"""
        tokens = "\n".join(lines)
        self._text(
            f"{base}/agent.toml",
            f"""\
site = "{self._plan.name}"
name = "{host.name}"
hardware_uuid = "{uuid.uuid4()}"
tcti = "{host.tcti}"
event_log = "{host.event_log}"
command_line = "{host.command_line}"
state_directory = "state"
vm_directory = "vms"
run_directory = "run"
image_directories = {json.dumps([str(path) for path in host.image_directories])}
{tokens}

[listener]
address = "{host.agent_address}"
{authority}""",
        )

    def _invitation(self, host: HostPlan, address: str, authority: CertificateAuthority) -> JoinInvitation:
        expires_at = int((self._now + JOIN_TOKEN_LIFETIME).timestamp())
        ca_pem = certificate_pem(authority.certificate)
        return JoinInvitation(str(uuid.uuid4()), host.name, CLUSTER, expires_at, address, ca_pem)

    def _signed(self, invitation: JoinInvitation, admin: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]) -> bytes:
        certificate, key = admin
        return make_join_token(invitation, certificate=certificate, key=key).encode() + b"\n"

    def _authority(self, name: str) -> CertificateAuthority:
        return CertificateAuthority.create(f"{self._plan.name} {name}", now=self._now, lifetime=CA_LIFETIME)

    def _write_authority(self, stem: str, authority: CertificateAuthority) -> None:
        self._bytes(f"{stem}.pem", certificate_pem(authority.certificate))
        self._private(f"{stem}-key.pem", private_key_pem(authority.key))

    def _write_leaf(
        self,
        base: str,
        authority: CertificateAuthority,
        role: Role,
        name: str,
        *,
        server_addresses: tuple[str, ...] = (),
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.issue(
            Identity(self._plan.name, role, name),
            key.public_key(),
            now=self._now,
            lifetime=LEAF_LIFETIME,
            server_names=_server_names(server_addresses),
        )
        self._bytes(f"{base}/certificate.pem", certificate_pem(certificate))
        self._private(f"{base}/private-key.pem", private_key_pem(key))
        return certificate, key

    def _database(self, base: str, name: str) -> str:
        return f"sqlite:///{(self._directory / base / name).resolve()}"

    def _path(self, relative: str) -> Path:
        path = self._directory / relative
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def _bytes(self, relative: str, content: bytes) -> None:
        self._path(relative).write_bytes(content)

    def _text(self, relative: str, content: str) -> None:
        self._path(relative).write_text(content)

    def _private(self, relative: str, content: bytes) -> None:
        path = self._path(relative)
        path.touch(mode=0o600)
        path.write_bytes(content)


def _server_names(addresses: tuple[str, ...]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]")
        names |= dict.fromkeys(("localhost", "127.0.0.1", "::1") if _is_loopback(host) else (host,))
    return tuple(names)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def init_command(
    directory: Annotated[Path, typer.Argument(help="Directory to make the site in; must be empty or not exist.")],
    name: Annotated[str, typer.Option(help="Name of the site, like a domain name.")] = "garant.local",
    address: Annotated[str, typer.Option(help="Address that the services listen on and are reached at.")] = "127.0.0.1",
    base_port: Annotated[int, typer.Option(help="First of the ports.")] = 7443,
    provider: Annotated[str, typer.Option(help="Trusted key provider to publish.")] = "trusted",
    host: Annotated[list[str] | None, typer.Option(help="Host to expect, as NAME or NAME=ADDRESS; repeatable.")] = None,
    images: Annotated[Path, typer.Option(help="Where disk images may lie on hosts.")] = IMAGES,
    tcti: Annotated[str, typer.Option(help="Where hosts find their TPM.")] = "device:/dev/tpmrm0",
    event_log: Annotated[Path, typer.Option(help="Where hosts find their event log.")] = KERNEL_EVENT_LOG,
) -> None:
    """Make a site: certificate authorities, identities, configurations, join tokens, signed provider list.

    Example: garant init site --host kvm1=10.0.0.11 --host kvm2=10.0.0.12
    """
    public, admin, keyprovider, management, join = (f"{address}:{base_port + offset}" for offset in range(5))
    hosts = tuple(
        HostPlan(
            host_name,
            f"{host_address or address}:{base_port + 10 + number}",
            tcti,
            event_log,
            image_directories=(images,),
        )
        for number, (host_name, _, host_address) in enumerate(entry.partition("=") for entry in host or ())
    )
    plan = SitePlan(name, public, admin, keyprovider, management, join, provider=provider, hosts=hosts)
    make_site(directory, plan, now=datetime.datetime.now(datetime.UTC))
    typer.echo(f"site {name} made in {directory}")
    typer.echo("start its services with:")
    for module, config in (
        ("attestation", "trust-authority/attestation/attestation.toml"),
        ("keyprovider", "trust-authority/keyprovider/keyprovider.toml"),
        ("management", "management/management.toml"),
        *(("host_agent", f"hosts/{entry.name}/agent.toml") for entry in hosts),
    ):
        typer.echo(f"  python -m {module} {directory / config}")
