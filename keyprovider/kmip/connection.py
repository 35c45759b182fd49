"""One TLS connection to a key server: a message out, a message in, each under a deadline.

The host name is checked, TLS is 1.2 or newer, and a client certificate is shown. What a server announces is capped
before memory is taken. After a timeout, an interruption or any error the connection is closed: the next thing read on
it could be the answer to another request. Answers may hold keys: whoever gets one wipes it.
"""

import os
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Final

from keyprovider.errors import KmipConnectionFailed, KmipConnectionReason, KmipMalformed, TtlvError
from keyprovider.kmip.ttlv import message_size

DEFAULT_PORT: Final = 5696
_HEADER_SIZE: Final = 8
_CLIENT_ALERTS: Final = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "UNSUPPORTED_CERTIFICATE",
    "ACCESS_DENIED",
    "DECRYPT_ERROR",
    "HANDSHAKE_FAILURE",
)
"""Alerts by which servers refuse a client; TLS 1.2 knows no better one than the last for "no certificate"."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a key server is."""

    host: str
    port: int = DEFAULT_PORT
    certificate_name: str = ""
    """Name that its certificate must be for; nothing for the host's."""

    def __str__(self) -> str:
        """As in events and messages: host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class KmipTls:
    """Whom this client trusts and who it is. All PEM."""

    trusted_certificates: bytes
    """Authorities of the servers' certificates, or the servers' very certificates."""
    certificate: bytes
    """This client's, and those between it and its authority."""
    private_key: bytes = field(repr=False)

    def context(self) -> ssl.SSLContext:
        """The settings of every connection.

        Raises:
            ValueError: Not PEM, or key and certificate do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A certificate that an administrator confirmed is trusted as it is, whoever issued it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=self.trusted_certificates.decode("ascii"))
            self._load_identity(context)
        except (ssl.SSLError, UnicodeDecodeError) as exc:
            raise ValueError("certificates or private key are not PEM, or do not belong together") from exc
        return context

    def _load_identity(self, context: ssl.SSLContext) -> None:
        # Only files can be loaded; this one is in memory and has no name.
        descriptor = os.memfd_create("kmip-identity", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.private_key + b"\n" + self.certificate)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
            os.pwrite(descriptor, bytes(len(self.private_key)), 0)
        finally:
            os.close(descriptor)


class Connection:
    """A connection that is open until its first error. For one thread at a time."""

    def __init__(self, server: ServerAddress, context: ssl.SSLContext, *, deadline: float) -> None:
        """Connect and shake hands.

        Args:
            server: Whom to connect to.
            context: From :meth:`KmipTls.context`.
            deadline: By ``time.monotonic``.

        Raises:
            KmipConnectionFailed: UNREACHABLE, TIMED_OUT, SERVER_NOT_TRUSTED, CLIENT_NOT_TRUSTED or CLOSED.
        """
        self.server = server
        self.used_at = 0.0
        """When the last answer came, by ``time.monotonic``; 0 before the first."""
        self._socket: ssl.SSLSocket | None = None
        try:
            plain = socket.create_connection((server.host, server.port), timeout=_remaining(deadline))
        except OSError as exc:
            raise self._failed(exc, KmipConnectionReason.UNREACHABLE) from exc
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(_remaining(deadline))
            self._socket = context.wrap_socket(plain, server_hostname=server.certificate_name or server.host)
        except (OSError, ValueError) as exc:  # ValueError: a host name that no certificate can be for
            plain.close()
            raise self._failed(exc, KmipConnectionReason.CLOSED) from exc
        except BaseException:
            plain.close()
            raise
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether nothing came since the last answer: neither an end nor something that nobody asked for."""
        return self._socket is not None and self._socket.pending() == 0 and not self._readable.poll(0)

    def peer_certificate(self) -> bytes:
        """The server's certificate, DER."""
        certificate = None if self._socket is None else self._socket.getpeercert(binary_form=True)
        return certificate or b""

    def exchange(self, message: bytes | bytearray, *, deadline: float) -> bytearray:
        """Send a message and receive one.

        Returns:
            The answer, which the caller wipes.

        Raises:
            KmipConnectionFailed: TIMED_OUT, CLIENT_NOT_TRUSTED or CLOSED; the connection is closed.
            KmipMalformed: The answer is no message, or too large; the connection is closed.
        """
        if self._socket is None:
            raise KmipConnectionFailed(KmipConnectionReason.CLOSED, "closed before", server=str(self.server))
        try:
            self._socket.settimeout(_remaining(deadline))
            self._socket.sendall(message)
            header = bytearray(_HEADER_SIZE)
            self._receive(memoryview(header), deadline)
            answer = bytearray(message_size(bytes(header)))
            answer[:_HEADER_SIZE] = header
            self._receive(memoryview(answer)[_HEADER_SIZE:], deadline)
        except OSError as exc:
            self.close()
            raise self._failed(exc, KmipConnectionReason.CLOSED, sent=True) from exc
        except TtlvError as exc:
            self.close()
            raise KmipMalformed(f"the answer is not TTLV: {exc}", server=str(self.server)) from exc
        except BaseException:
            self.close()
            raise
        self.used_at = time.monotonic()
        return answer

    def close(self) -> None:
        """Close, without the farewell that a dead server would not answer. May be repeated."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _receive(self, target: memoryview, deadline: float) -> None:
        assert self._socket is not None  # noqa: S101 - for the type checker
        done = 0
        while done < len(target):
            self._socket.settimeout(_remaining(deadline))
            count = self._socket.recv_into(target[done:])
            if not count:
                raise ConnectionResetError("the server closed the connection")
            done += count

    def _failed(self, exc: Exception, otherwise: KmipConnectionReason, *, sent: bool = False) -> KmipConnectionFailed:
        reason, text = otherwise, str(exc)
        if isinstance(exc, ssl.SSLCertVerificationError):
            reason, text = KmipConnectionReason.SERVER_NOT_TRUSTED, exc.verify_message
        elif isinstance(exc, TimeoutError):
            reason, text = KmipConnectionReason.TIMED_OUT, "no answer in time"
        elif isinstance(exc, ssl.SSLError) and any(alert in (exc.reason or "") for alert in _CLIENT_ALERTS):
            reason, text = KmipConnectionReason.CLIENT_NOT_TRUSTED, f"the server says {exc.reason}"
        unknown = sent and reason is not KmipConnectionReason.CLIENT_NOT_TRUSTED
        return KmipConnectionFailed(reason, text, server=str(self.server), outcome_unknown=unknown)


def wipe(buffer: bytearray) -> None:
    """Overwrite a message with zeros, in place."""
    buffer[:] = bytes(len(buffer))


def read_server_certificate(server: ServerAddress, *, timeout_seconds: float) -> bytes:
    """The certificate that a server shows, DER, unchecked: for an administrator to look at and confirm.

    Raises:
        KmipConnectionFailed: There is no server, or it shows none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = Connection(server, context, deadline=time.monotonic() + timeout_seconds)
    try:
        return connection.peer_certificate()
    finally:
        connection.close()


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _no_password() -> str:
    # Without this, OpenSSL would ask for the password of an encrypted key on the terminal.
    return ""
