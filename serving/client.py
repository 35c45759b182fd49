"""Channels to our servers, and calls whose errors are ``RemoteError``.

Channel credentials are static: a new certificate means a new channel. A missing, foreign or expired client
certificate shows to a client as a bare closed socket, so ``ClientTls`` says what is wrong with its own first.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509

from serving.errors import ConfigError, RemoteError
from serving.server import MAX_MESSAGE_BYTES
from serving.status import remote_error

Answer = TypeVar("Answer")
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client believes of servers, and what it proves of itself."""

    server_cas_pem: bytes
    certificate_pem: bytes | None = None
    private_key_pem: bytes | None = field(default=None, repr=False)

    @classmethod
    def load(cls, server_ca: Path, certificate: Path | None = None, private_key: Path | None = None) -> "ClientTls":
        """Read from PEM files.

        Raises:
            ConfigError: A file cannot be read.
        """
        try:
            return cls(
                server_ca.read_bytes(),
                None if certificate is None else certificate.read_bytes(),
                None if private_key is None else private_key.read_bytes(),
            )
        except OSError as exc:
            raise ConfigError(f"cannot read {exc.filename}: {exc.strerror}") from exc

    def complaint(self, now: datetime.datetime) -> str | None:
        """What is wrong with the client certificate at ``now``, if anything."""
        if self.certificate_pem is None:
            return None
        certificate = x509.load_pem_x509_certificate(self.certificate_pem)
        if now > certificate.not_valid_after_utc:
            return f"the client certificate expired at {certificate.not_valid_after_utc:%FT%TZ}"
        if now < certificate.not_valid_before_utc:
            return f"the client certificate is valid only from {certificate.not_valid_before_utc:%FT%TZ}"
        return None


def open_channel(address: str, tls: ClientTls, *, options: Sequence[tuple[str, str | int]] = ()) -> grpc.Channel:
    """A channel to ``address``, with gRPC ``options`` beside our own; it connects with its first call."""
    credentials = grpc.ssl_channel_credentials(tls.server_cas_pem, tls.private_key_pem, tls.certificate_pem)
    return grpc.secure_channel(address, credentials, options=[*_OPTIONS, *options])


def call(
    method: Callable[..., Answer], request: object, *, timeout_seconds: float = 10.0, wait: bool = False
) -> Answer:
    """Call a unary method.

    Args:
        method: Of a generated stub.
        request: Its message.
        timeout_seconds: Deadline.
        wait: Wait for the server to come up, within the deadline.

    Raises:
        RemoteError: Refused, or not answered in time.
    """
    try:
        return method(request, timeout=timeout_seconds, wait_for_ready=wait)
    except grpc.RpcError as exc:
        raise remote_error(exc) from exc


__all__ = ["ClientTls", "RemoteError", "call", "open_channel"]
