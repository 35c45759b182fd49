"""What every daemon shares at the wire: mutual TLS, authorization, statuses, health, reflection."""

import contextlib
import datetime
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.authorization import AuthorizationTable, current_caller
from serving.client import ClientTls, call, open_channel
from serving.errors import ConfigError, RemoteError
from serving.identity import Caller, Identity, Role
from serving.server import MAX_MESSAGE_BYTES, RpcServer, ServerTls, Service
from serving.status import Refusal

SITE = "test.example"
HOUR = datetime.timedelta(hours=1)
ADMIN, HOST = Role.TRUST_ADMIN, Role.ATTESTED_HOST


def now() -> datetime.datetime:
    """Current time."""
    return datetime.datetime.now(datetime.UTC)


class Rejected(Exception):
    """An error of a domain."""


class RejectedBadly(Rejected):
    """A special case of it."""


class Echo:
    """A service with one method of each behaviour."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    def service(self) -> Service:
        """It, as a server takes it."""
        methods = {
            "Echo": self.echo,
            "Whoami": lambda _request, _context: str(current_caller().identity).encode(),
            "Fail": self.fail,
            "Unlisted": self.echo,
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        generic = grpc.method_handlers_generic_handler("test.Echo", handlers)
        return Service("test.Echo", lambda server: server.add_generic_rpc_handlers((generic,)))

    def echo(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        """Answer with the request."""
        self.callers.append(request.decode(errors="replace")[:20])
        return request

    def fail(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        """Raise what the request names."""
        raise {b"rejected": Rejected, b"badly": RejectedBadly, b"else": RuntimeError}[request]("secret detail")


@dataclass
class Site:
    """CAs, an echo server, and the clock that it goes by."""

    cas: dict[str, CertificateAuthority]
    echo: Echo
    port: int = 0
    public_port: int = 0
    offset: datetime.timedelta = datetime.timedelta()
    revoked: str = ""

    def clock(self) -> datetime.datetime:
        """The server's time."""
        return now() + self.offset

    def refuse(self, caller: Caller) -> str | None:
        """Refuse a revoked name."""
        return "it was revoked" if caller.identity.name == self.revoked else None

    def tls(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> ClientTls:
        """Connect with this certificate."""
        return ClientTls(
            certificate_pem(self.cas["server"].certificate), certificate_pem(certificate), private_key_pem(key)
        )

    def client(
        self, role: Role, *, issuer: str, name: str = "somebody", lifetime: datetime.timedelta = HOUR
    ) -> ClientTls:
        """Connect as somebody of ``role``, certified by the CA named ``issuer``."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(SITE, role, name)
        return self.tls(self.cas[issuer].issue(identity, key.public_key(), now=now(), lifetime=lifetime), key)

    @contextlib.contextmanager
    def channel(self, tls: ClientTls, *, port: int = 0) -> Iterator[grpc.Channel]:
        """A channel to the server."""
        channel = open_channel(f"127.0.0.1:{port or self.port}", tls)
        try:
            yield channel
        finally:
            channel.close()

    def call(self, tls: ClientTls, method: str = "Echo", request: bytes = b"hello", *, port: int = 0) -> bytes:
        """One call."""
        with self.channel(tls, port=port) as channel:
            answer: bytes = call(channel.unary_unary(f"/test.Echo/{method}"), request)
        return answer

    def refusal(self, tls: ClientTls, method: str = "Echo", request: bytes = b"hello", *, port: int = 0) -> RemoteError:
        """How one call is refused; no handler may have run."""
        self.echo.callers.clear()
        with pytest.raises(RemoteError) as caught:
            self.call(tls, method, request, port=port)
        assert self.echo.callers == []
        return caught.value


def server_tls(cas: dict[str, CertificateAuthority], *clients: str) -> ServerTls:
    """The server's certificate, for clients of these CAs."""
    key = ec.generate_private_key(ec.SECP256R1())
    identity = Identity(SITE, Role.ATTESTATION_SERVICE, "echo")
    certificate = cas["server"].issue(
        identity, key.public_key(), now=now(), lifetime=HOUR, server_names=("127.0.0.1", "localhost")
    )
    client_cas = b"".join(certificate_pem(cas[name].certificate) for name in clients) if clients else None
    return ServerTls(certificate_pem(certificate), private_key_pem(key), client_cas)


STATUSES: list[tuple[type[Exception], Callable[[Exception], Refusal]]] = [
    (RejectedBadly, lambda error: Refusal(grpc.StatusCode.ABORTED, "BADLY", str(error))),
    (Rejected, lambda _: Refusal(grpc.StatusCode.FAILED_PRECONDITION, "REJECTED", "not now")),
]


@pytest.fixture
def site() -> Iterator[Site]:
    """Run an echo server on a mutually authenticated and on a public port."""
    names = ("server", "admin", "host", "stranger")
    cas = {name: CertificateAuthority.create(name, now=now(), lifetime=HOUR) for name in names}
    site = Site(cas, Echo())
    everyone = frozenset({ADMIN, HOST})
    table = AuthorizationTable(
        {"/test.Echo/Echo": frozenset({ADMIN}), "/test.Echo/Whoami": everyone, "/test.Echo/Fail": everyone},
        {ADMIN: (cas["admin"].certificate,), HOST: (cas["host"].certificate,)},
        site.refuse,
    )
    services = [site.echo.service()]
    server = RpcServer(
        "127.0.0.1:0",
        tls=server_tls(cas, "admin", "host"),
        services=services,
        statuses=STATUSES,
        table=table,
        clock=site.clock,
    )
    public = RpcServer("127.0.0.1:0", tls=server_tls(cas), services=services, statuses=STATUSES, table=None)
    site.port, site.public_port = server.port, public.port
    server.start()
    public.start()
    yield site
    server.stop()
    public.stop()


def test_a_proven_caller_with_the_right_role_is_served(site: Site) -> None:
    """The handler runs, and knows who calls."""
    assert site.call(site.client(ADMIN, issuer="admin")) == b"hello"
    assert site.call(site.client(HOST, issuer="host", name="h1"), "Whoami") == b"attested-host/h1"


def test_another_role_is_refused(site: Site) -> None:
    """Proven, but not for this method."""
    error = site.refusal(site.client(HOST, issuer="host"))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


def test_a_method_that_the_table_does_not_name_is_refused(site: Site) -> None:
    """Default deny, even for a method that the server has."""
    error = site.refusal(site.client(ADMIN, issuer="admin"), "Unlisted")
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


def test_a_method_that_the_server_lacks_is_unimplemented(site: Site) -> None:
    """Nothing runs."""
    assert site.refusal(site.client(ADMIN, issuer="admin"), "Missing").code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("role", "issuer"), [(ADMIN, "host"), (HOST, "admin"), (Role.VM_ADMIN, "admin")])
def test_a_role_is_proven_by_its_own_issuer_only(site: Site, role: Role, issuer: str) -> None:
    """A CA that the port trusts for one role proves no other."""
    error = site.refusal(site.client(role, issuer=issuer), "Whoami")
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_NOT_PROVEN")


def test_a_foreign_certificate_does_not_connect(site: Site) -> None:
    """Nor does a connection without one."""
    for tls in (
        site.client(ADMIN, issuer="stranger"),
        site.client(ADMIN, issuer="admin", lifetime=-datetime.timedelta(seconds=30)),
        ClientTls(certificate_pem(site.cas["server"].certificate)),
    ):
        assert site.refusal(tls).code is grpc.StatusCode.UNAVAILABLE


def test_a_connection_does_not_outlive_its_certificate(site: Site) -> None:
    """Each call is checked anew: what was proven when the connection was made may be over."""
    with site.channel(site.client(ADMIN, issuer="admin")) as channel:
        echo: Any = channel.unary_unary("/test.Echo/Echo")
        assert call(echo, b"first") == b"first"
        site.offset = 2 * HOUR
        with pytest.raises(RemoteError) as caught:
            call(echo, b"second")
        assert caught.value.reason == "CALLER_NOT_PROVEN"
        site.offset = datetime.timedelta()
        assert call(echo, b"third") == b"third"


def test_a_revoked_caller_is_refused_at_once(site: Site) -> None:
    """On the connection that it has."""
    with site.channel(site.client(ADMIN, issuer="admin", name="mallory")) as channel:
        echo: Any = channel.unary_unary("/test.Echo/Echo")
        call(echo, b"first")
        site.revoked = "mallory"
        with pytest.raises(RemoteError) as caught:
            call(echo, b"second")
        assert caught.value.reason == "CALLER_REVOKED"


def signed(site: Site, issuer: str, *extensions: x509.ExtensionType) -> ClientTls:
    """A client certificate with extensions of the test's choice."""
    ca, key = site.cas[issuer], ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now() - HOUR)
        .not_valid_after(now() + HOUR)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return site.tls(builder.sign(ca.key, hashes.SHA256()), key)


def uris(*names: str) -> x509.SubjectAlternativeName:
    """URI names."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])


CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
URI = f"spiffe://{SITE}/trust-admin/alice"


def test_an_identity_is_one_uri(site: Site) -> None:
    """Exactly one name of this product, and a certificate that says it is for clients."""
    assert site.call(signed(site, "admin", uris(URI), CLIENT)) == b"hello"
    wrong: list[tuple[x509.ExtensionType, ...]] = [
        (CLIENT,),
        (uris(URI),),
        (uris(URI, URI), CLIENT),
        (uris(f"spiffe://{SITE}/superuser/alice"), CLIENT),
        (uris(f"https://{SITE}/trust-admin/alice"), CLIENT),
        (uris(f"{URI}/more"), CLIENT),
        (uris(f"{URI}?x"), CLIENT),
        (x509.SubjectAlternativeName([x509.DNSName("alice")]), CLIENT),
    ]
    for extensions in wrong:
        assert site.refusal(signed(site, "admin", *extensions)).reason == "CALLER_NOT_PROVEN", extensions


def test_a_certificate_for_servers_does_not_connect(site: Site) -> None:
    """TLS itself refuses it."""
    server_only = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert site.refusal(signed(site, "admin", uris(URI), server_only)).code is grpc.StatusCode.UNAVAILABLE


def test_errors_become_statuses(site: Site) -> None:
    """By the first row that fits; what no row names tells nobody anything."""
    tls = site.client(ADMIN, issuer="admin")
    for request, code, reason, message in (
        (b"rejected", grpc.StatusCode.FAILED_PRECONDITION, "REJECTED", "not now"),
        (b"badly", grpc.StatusCode.ABORTED, "BADLY", "secret detail"),
        (b"else", grpc.StatusCode.INTERNAL, "INTERNAL", "unexpected error; the service's log has it"),
    ):
        error = site.refusal(tls, "Fail", request)
        assert (error.code, error.reason, error.message) == (code, reason, message)


def test_health_and_reflection_are_for_proven_callers(site: Site) -> None:
    """Any role may ask them on the mutually authenticated port; on the public port they are not there."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with site.channel(site.client(HOST, issuer="host")) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = call(health.Check, health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (listed,) = stub.ServerReflectionInfo(iter([question]), timeout=5)
        assert "test.Echo" in [service.name for service in listed.list_services_response.service]
    with site.channel(site.client(ADMIN, issuer="host")) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([question]), timeout=5))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    public = ClientTls(certificate_pem(site.cas["server"].certificate))
    with site.channel(public, port=site.public_port) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(RemoteError) as caught:
            call(health.Check, health_pb2.HealthCheckRequest())
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_the_public_port_serves_anybody(site: Site) -> None:
    """Without a certificate, and with statuses; a handler there has no caller to ask for."""
    public = ClientTls(certificate_pem(site.cas["server"].certificate))
    assert site.call(public, port=site.public_port) == b"hello"
    assert site.refusal(public, "Fail", b"rejected", port=site.public_port).reason == "REJECTED"
    assert site.refusal(public, "Whoami", port=site.public_port).reason == "INTERNAL"


def test_a_client_believes_only_its_ca(site: Site) -> None:
    """A server of another CA is refused by the client."""
    tls = ClientTls(certificate_pem(site.cas["stranger"].certificate))
    assert site.refusal(tls, port=site.public_port).code is grpc.StatusCode.UNAVAILABLE


def test_messages_are_bounded(site: Site) -> None:
    """A message above the limit is refused before the handler sees it."""
    public = ClientTls(certificate_pem(site.cas["server"].certificate))
    error = site.refusal(public, request=bytes(MAX_MESSAGE_BYTES + 1), port=site.public_port)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_port_in_use_is_said(site: Site) -> None:
    """The message names the address and the likely cause."""
    with pytest.raises(ConfigError, match=f"127.0.0.1:{site.port}: is the port in use"):
        RpcServer(f"127.0.0.1:{site.port}", tls=server_tls(site.cas), services=[], statuses=[], table=None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="is the port in use"):
            RpcServer(address, tls=server_tls(site.cas), services=[], statuses=[], table=None)


def test_a_port_is_guarded_wholly_or_not_at_all(site: Site) -> None:
    """A table without client certificates, and the reverse, is a mistake that does not start."""
    with pytest.raises(ConfigError):
        RpcServer("127.0.0.1:0", tls=server_tls(site.cas, "admin"), services=[], statuses=[], table=None)
    with pytest.raises(ConfigError):
        RpcServer("127.0.0.1:0", tls=server_tls(site.cas), services=[], statuses=[], table=AuthorizationTable({}, {}))


def test_a_client_names_what_is_wrong_with_its_certificate(site: Site) -> None:
    """TLS would only say that the socket closed."""
    tls = site.client(ADMIN, issuer="admin")
    assert tls.complaint(now()) is None
    assert "expired" in (tls.complaint(now() + 2 * HOUR) or "")
    assert "valid only from" in (tls.complaint(now() - HOUR) or "")
    assert ClientTls(b"").complaint(now()) is None


def test_keys_are_not_shown(site: Site) -> None:
    """A private key is not part of any representation."""
    assert "PRIVATE" not in repr(site.client(ADMIN, issuer="admin"))
    assert "PRIVATE" not in repr(server_tls(site.cas))
