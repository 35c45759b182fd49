"""The key provider service: ``python -m keyprovider CONFIG.toml``."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography import x509

from attestation.token import issuer_of
from keyprovider.errors import KeyProviderError
from keyprovider.trusted import rpc
from keyprovider.trusted.administration import Administration
from keyprovider.trusted.attestation_client import AttestationClient
from keyprovider.trusted.backends.software import WARNING, SoftwareBackend
from keyprovider.trusted.config import KeyProviderSettings, load_head_signer, load_token_keys
from keyprovider.trusted.directory import Directory
from keyprovider.trusted.heartbeat import HeartbeatKeeper, HeartbeatPoller
from keyprovider.trusted.model import BackendKind
from keyprovider.trusted.ports import PrimaryKeyBackend
from keyprovider.trusted.release import ReleaseRules
from keyprovider.trusted.release_writer import ReleaseWriter
from keyprovider.trusted.service import KeyReleaseService
from keyprovider.trusted.store import SqlProviderStore, SqlReleaseStore, open_schema
from keyprovider.trusted.verification import TokenVerifier
from serving.authorization import AuthorizationTable
from serving.client import ClientTls
from serving.config import load_settings
from serving.daemon import run_daemon
from serving.database import Database
from serving.errors import ConfigError
from serving.identity import Role
from serving.server import RpcServer, ServerTls

_log = structlog.get_logger("keyprovider")


def start(config: Path) -> Callable[[], None]:
    """Start the service from a configuration file.

    Returns:
        What stops it.

    Raises:
        ServingError: The configuration or the environment is wrong.
    """
    settings = load_settings(KeyProviderSettings, config)
    with contextlib.ExitStack() as stack:
        try:
            server = _assemble(settings, stack)
        except KeyProviderError as exc:
            raise ConfigError(str(exc)) from exc
        server.start()
        # Calls end first, then what they need, in the reverse order of making.
        stack.callback(server.stop)
        _log.info("serving", address=settings.listener.address, port=server.port)
        return stack.pop_all().close
    raise AssertionError("unreachable")


def _assemble(settings: KeyProviderSettings, stack: contextlib.ExitStack) -> RpcServer:
    keys = load_token_keys(settings.token_keys)
    database = Database(settings.database)
    stack.callback(database.close)
    open_schema(database)
    providers = SqlProviderStore(database)
    releases = SqlReleaseStore(database, load_head_signer(settings.log_key, _now))
    directory = Directory(providers, time.monotonic)
    software = SoftwareBackend(settings.primary_keys, settings.storage_key)
    stack.callback(software.close)
    _log.warning(WARNING)
    backends: dict[BackendKind, PrimaryKeyBackend] = {BackendKind.SOFTWARE: software}
    writer = ReleaseWriter(releases)
    stack.callback(writer.close)
    keeper = HeartbeatKeeper(keys, _now)
    listener = settings.listener
    client = AttestationClient(
        settings.attestation.address,
        ClientTls.load(settings.attestation.ca, listener.certificate, listener.private_key),
    )
    stack.callback(client.close)
    poller = HeartbeatPoller(keeper, client)
    stack.callback(poller.close)
    service = KeyReleaseService(
        tokens=TokenVerifier(keys, issuer=issuer_of(settings.site), audience=settings.audience),
        directory=directory,
        backends=backends,
        heartbeats=keeper,
        writer=writer,
        rules=ReleaseRules(settings.release.max_staleness_seconds, settings.release.minimum_policy_version),
        clock=_now,
    )
    administration = Administration(providers=providers, releases=releases, backends=backends, directory=directory)
    cas = _client_cas(settings)
    return RpcServer(
        listener.address,
        tls=ServerTls.load(listener.certificate, listener.private_key, list(cas.values())),
        services=rpc.services(service, administration),
        statuses=rpc.STATUSES,
        table=AuthorizationTable(rpc.METHODS, {role: (_certificate(path),) for role, path in cas.items()}),
        workers=settings.workers,
    )


def _client_cas(settings: KeyProviderSettings) -> dict[Role, Path]:
    cas: dict[Role, Path] = {
        Role.TRUST_ADMIN: settings.trust_admin_ca,
        Role.ATTESTED_HOST: settings.attested_host_ca,
    }
    if settings.management_ca is not None:
        cas[Role.MANAGEMENT_SERVER] = settings.management_ca
    return cas


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path} holds no certificate in PEM") from exc


def _now() -> int:
    return int(time.time())


if __name__ == "__main__":
    sys.exit(run_daemon("keyprovider", start))
