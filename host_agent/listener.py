"""The agent's own port, which opens as soon as this host has a join identity.

A host that joined before serves at once. One that has not, joins first; where the management server or the TPM is away,
it keeps asking in the background, so that a site may start in any order.
"""

import datetime
import threading
from collections.abc import Callable

import structlog
from cryptography import x509

from attestation.errors import TpmError
from host_agent.errors import HostAgentError, JoinFailed, PeerRefused, PeerUnreachable
from host_agent.join import Joiner
from host_agent.model import JoinIdentity
from host_agent.renewal import pause_after_failures
from host_agent.rpc import METHODS, STATUSES
from serving.authorization import AuthorizationTable
from serving.errors import ConfigError
from serving.identity import Role
from serving.server import RpcServer, ServerTls, Service

_log = structlog.get_logger(__name__)


class Listener:
    """Serves the management server that this host joined, and nobody else."""

    def __init__(
        self,
        address: str,
        *,
        services: list[Service],
        joiner: Joiner,
        host_id: Callable[[], str],
        clock: Callable[[], datetime.datetime],
        jitter: Callable[[], float],
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            address: Where to listen, ``host:port``.
            services: What to serve.
            joiner: Gives the join identity.
            host_id: Reads the host id from the TPM; may raise ``TpmError``.
            clock: Aware times.
            jitter: Chance, from 0 to 1.
        """
        self._address = address
        self._services = services
        self._joiner = joiner
        self._host_id = host_id
        self._clock = clock
        self._jitter = jitter
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._server: RpcServer | None = None

    def start(self) -> None:
        """Serve now, or as soon as this host has joined.

        Raises:
            ConfigError: The port cannot be opened.
            JoinFailed: There is no way to join, or the management server refused.
            StateDamaged: What is remembered of an earlier join is not usable.
        """
        identity = self._joiner.known(self._clock())
        if identity is None:
            try:
                identity = self._joiner.join(self._host_id())
            except PeerRefused as exc:
                raise JoinFailed(f"the management server refused to let this host join: {exc}") from exc
            except (PeerUnreachable, TpmError) as exc:
                _log.warning("not joined yet", error=str(exc))
                self._thread = threading.Thread(target=self._keep_joining, name="join", daemon=True)
                self._thread.start()
                return
        self._serve(identity)

    def stop(self) -> None:
        """Take no more calls; those under way get a moment."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(2.0)
        if self._server is not None:
            self._server.stop()

    def _keep_joining(self) -> None:
        failures = 0
        while True:
            failures += 1
            if self._stopped.wait(pause_after_failures(failures, self._jitter())):
                return
            try:
                self._serve(self._joiner.join(self._host_id()))
            except (PeerUnreachable, TpmError):
                continue
            except (HostAgentError, ConfigError) as exc:
                _log.error("cannot join", error=str(exc))
                continue
            return

    def _serve(self, identity: JoinIdentity) -> None:
        management_ca = x509.load_pem_x509_certificate(identity.management_ca_pem)
        server = RpcServer(
            self._address,
            tls=ServerTls(identity.certificate_pem, identity.private_key_pem, identity.management_ca_pem),
            services=self._services,
            statuses=STATUSES,
            table=AuthorizationTable(METHODS, {Role.MANAGEMENT_SERVER: (management_ca,)}),
        )
        server.start()
        self._server = server
        _log.info("serving", address=self._address, port=server.port)
