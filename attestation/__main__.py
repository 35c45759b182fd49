"""The attestation service: ``python -m attestation CONFIG.toml``."""

import datetime
import secrets
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.verifier.administration import Administration
from attestation.verifier.attest import AttestService, TokenIssuer
from attestation.verifier.config import AttestationSettings
from attestation.verifier.cookie import CookieBox
from attestation.verifier.enrolment import EnrollmentService
from attestation.verifier.ports import Clock
from attestation.verifier.rpc_admin import METHODS, admin_services
from attestation.verifier.rpc_messages import STATUSES
from attestation.verifier.rpc_public import public_services
from attestation.verifier.store import SqlAttestationStore
from serving.authority import CertificateAuthority
from serving.authorization import AuthorizationTable
from serving.daemon import run_daemon
from serving.database import Database
from serving.errors import ConfigError
from serving.identity import Role
from serving.server import RpcServer, ServerTls

_log = structlog.get_logger(__name__)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class AttestationDaemon:
    """The service's two ports and its database."""

    public: RpcServer
    admin: RpcServer
    database: Database

    def start(self) -> None:
        """Begin to serve."""
        self.public.start()
        self.admin.start()

    def stop(self) -> None:
        """End."""
        self.public.stop()
        self.admin.stop()
        self.database.close()


def start(path: Path) -> Callable[[], None]:
    """Start the service as the file at ``path`` configures it; return what stops it. The ports are logged.

    Raises:
        ServingError: The configuration, a key, the database or a port is not usable.
    """
    daemon = assemble(AttestationSettings.load(path))
    daemon.start()
    _log.info("listening", public_port=daemon.public.port, admin_port=daemon.admin.port)
    return daemon.stop


def assemble(settings: AttestationSettings, clock: Clock = _now) -> AttestationDaemon:
    """Put the service together.

    Raises:
        ServingError: A file, a key, the database or a port is not usable.
    """
    trust_admin_ca, service_ca, host_ca = (
        _read_certificate(ca) for ca in (settings.trust_admin_ca, settings.service_ca, settings.host_ca_certificate)
    )
    token_key = _read_signing_key(settings.token_key)
    issuer = TokenIssuer(
        site=settings.site,
        audience=settings.audience,
        token_key=token_key,
        host_ca=CertificateAuthority(host_ca, _read_signing_key(settings.host_ca_key)),
        token_seconds=settings.token_seconds,
    )
    cookies = _read_cookie_key(settings.cookie_key)
    _read_text(settings.provider_list)
    database = Database(settings.database)
    store = SqlAttestationStore(database)
    enrollment = EnrollmentService(
        store,
        cookies,
        join_token_issuers=(trust_admin_ca,),
        # Read anew each time: the list may be signed anew while the service runs.
        provider_list=lambda: _read_text(settings.provider_list),
        clock=clock,
        randomness=secrets.token_bytes,
    )
    attestation = AttestService(store, cookies, issuer, clock=clock, randomness=secrets.token_bytes)
    administration = Administration(
        store, token_key=token_key, heartbeat_seconds=settings.heartbeat_seconds, clock=clock
    )
    public = RpcServer(
        settings.public.address,
        tls=ServerTls.load(settings.public.certificate, settings.public.private_key, None),
        services=public_services(enrollment, attestation),
        statuses=STATUSES,
        table=None,
        clock=clock,
    )
    issuers = {
        Role.TRUST_ADMIN: (trust_admin_ca,),
        Role.ATTESTED_HOST: (host_ca,),
        Role.KEY_PROVIDER_SERVICE: (service_ca,),
        Role.ATTESTATION_SERVICE: (service_ca,),
    }
    client_cas = (settings.trust_admin_ca, settings.host_ca_certificate, settings.service_ca)
    admin = RpcServer(
        settings.admin.address,
        tls=ServerTls.load(settings.admin.certificate, settings.admin.private_key, client_cas),
        services=admin_services(administration),
        statuses=STATUSES,
        table=AuthorizationTable(METHODS, issuers),
        clock=clock,
    )
    return AttestationDaemon(public, admin, database)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read_bytes(path))
    except ValueError as exc:
        raise ConfigError(f"{path} is not a certificate in PEM") from exc


def _read_signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read_secret(path), password=None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{path} is not an unencrypted private key in PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path} is not a key on P-256")
    return key


def _read_cookie_key(path: Path) -> CookieBox:
    try:
        return CookieBox(_read_secret(path))
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _read_secret(path: Path) -> bytes:
    content = _read_bytes(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} may be read by others; run: chmod 600 {path}")
    return content


def _read_text(path: Path) -> str:
    return _read_bytes(path).decode(errors="replace").strip()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc


if __name__ == "__main__":
    sys.exit(run_daemon("attestation", start))
