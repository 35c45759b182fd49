"""The management server: ``python -m management CONFIG.toml``."""

import datetime
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog

from management.config import ManagementSettings, load_authority, load_certificate, load_key
from management.grants import GrantSigner
from management.hosts import GrpcHosts
from management.join import HostJoining, JoinSettings
from management.operations import RunningOperations
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
from serving.authority import certificate_pem
from serving.client import ClientTls
from serving.daemon import run_daemon
from serving.database import Database
from serving.errors import StoreError
from serving.identity import Role
from serving.server import RpcServer, ServerTls

SETTLE_INTERVAL_SECONDS = 15.0
LISTENER_WORKERS = 64
"""Making a VM holds a thread for as long as its disks take; looking at another must not wait for that."""
_log = structlog.get_logger(__name__)


def start(path: Path) -> Callable[[], None]:
    """Start everything from a configuration file.

    Returns:
        What stops it.

    Raises:
        ConfigError: The file, or one that it names, is wrong; or a port cannot be listened on.
        StoreError: The database is not usable.
    """
    settings = ManagementSettings.load(path)
    roles = settings.roles()
    host_authority = load_authority(settings.host_ca_certificate, settings.host_ca_key)
    management_ca = load_certificate(settings.management_ca)
    vm_admin_ca = load_certificate(settings.vm_admin_ca)
    signer = GrantSigner(settings.principal, load_key(settings.principal_key))
    listener, join = settings.listener, settings.join
    listener_tls = ServerTls.load(listener.certificate, listener.private_key, [settings.vm_admin_ca])
    join_tls = ServerTls.load(join.certificate, join.private_key, None)

    store = SqlInventoryStore(Database(settings.database))
    hosts = GrpcHosts(ClientTls.load(settings.host_ca_certificate, listener.certificate, listener.private_key))
    service = ManagementService(
        store, hosts, signer, RunningOperations(), Settings(settings.cluster, _now, lambda: str(uuid.uuid4()))
    )
    joining = HostJoining(
        store,
        JoinSettings(
            site=settings.site,
            cluster=settings.cluster,
            host_authority=host_authority,
            management_ca_pem=certificate_pem(management_ca),
            issuers={Role.VM_ADMIN: (vm_admin_ca,)},
            clock=_now,
        ),
    )
    servers = [
        RpcServer(
            listener.address,
            tls=listener_tls,
            services=[management_service(ManagementServicer(service, roles))],
            statuses=STATUSES,
            table=authorization_table(vm_admin_ca),
            workers=LISTENER_WORKERS,
        ),
        RpcServer(
            join.address,
            tls=join_tls,
            services=[host_join_service(HostJoinServicer(joining))],
            statuses=STATUSES,
            table=None,
            workers=4,
        ),
    ]
    stopping = threading.Event()
    settler = threading.Thread(target=_settle_until, args=(service, stopping), name="settle", daemon=True)
    for server in servers:
        server.start()
    settler.start()

    def stop() -> None:
        stopping.set()
        for server in servers:
            server.stop()
        hosts.close()

    return stop


def _settle_until(service: ManagementService, stopping: threading.Event) -> None:
    """Settle what was cut off, at the start and then every few seconds."""
    while not stopping.is_set():
        try:
            unsettled = service.settle()
            if unsettled:
                _log.info("VMs are not settled yet", count=unsettled)
        except StoreError as exc:
            _log.error("cannot settle VMs", error=str(exc))
        stopping.wait(SETTLE_INTERVAL_SECONDS)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


if __name__ == "__main__":
    sys.exit(run_daemon("management", start))
