"""Mutually authenticated gRPC servers: TLS, authorization, statuses, health and reflection.

Servers are synchronous with a thread pool: what they call blocks (TPM, SQL, key servers). Options bound message size
and idle connections.
"""

import datetime
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.authorization import AuthorizationInterceptor, AuthorizationTable
from serving.errors import ConfigError
from serving.status import StatusInterceptor, StatusRow

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer and how it is added to a server."""

    name: str
    """Full name, such as ``garant.host.v1.HostService``."""
    add: Callable[[grpc.Server], None]


@dataclass(frozen=True, slots=True)
class ServerTls:
    """A server's own certificate, and whom it lets connect."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)
    client_cas_pem: bytes | None
    """CAs of clients; none: clients prove nothing by TLS."""

    @classmethod
    def load(cls, certificate: Path, private_key: Path, client_cas: Sequence[Path] | None) -> "ServerTls":
        """Read from PEM files.

        Raises:
            ConfigError: A file cannot be read.
        """
        try:
            cas = None if client_cas is None else b"".join(path.read_bytes() for path in client_cas)
            return cls(certificate.read_bytes(), private_key.read_bytes(), cas)
        except OSError as exc:
            raise ConfigError(f"cannot read {exc.filename}: {exc.strerror}") from exc


class RpcServer:
    """One listening port."""

    def __init__(
        self,
        address: str,
        *,
        tls: ServerTls,
        services: Sequence[Service],
        statuses: Sequence[StatusRow],
        table: AuthorizationTable | None,
        workers: int = 16,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """Listen on ``address`` (``host:port``; port 0 picks one).

        With a ``table`` the port is mutually authenticated and serves health and reflection too; without one it serves
        ``services`` and nothing else.

        Raises:
            ConfigError: The address cannot be listened on, or mutual authentication lacks client CAs.
        """
        if (table is None) != (tls.client_cas_pem is None):
            raise ConfigError("a port has both an authorization table and client CAs, or neither")
        interceptors: list[grpc.ServerInterceptor] = [StatusInterceptor(statuses)]
        if table is not None:
            interceptors.append(AuthorizationInterceptor(table, clock))
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix="rpc"), interceptors=interceptors, options=_OPTIONS
        )
        for service in services:
            service.add(self._server)
        self._health = health.HealthServicer()
        if table is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names = [service.name for service in services]
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        credentials = grpc.ssl_server_credentials(
            [(tls.private_key_pem, tls.certificate_pem)],
            root_certificates=tls.client_cas_pem,
            require_client_auth=tls.client_cas_pem is not None,
        )
        try:
            self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise ConfigError(f"cannot listen on {address}: is the port in use?") from exc
        if self.port == 0:
            raise ConfigError(f"cannot listen on {address}: is the port in use?")

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_seconds: float = 2.0) -> None:
        """End: no new calls, those under way get ``grace_seconds``."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()
