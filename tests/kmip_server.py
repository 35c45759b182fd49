"""A KMIP key server for tests: PyKMIP's, over TLS on loopback, in a process of its own; and the certificates for it."""

import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyprovider.kmip.client import KmipClient
from keyprovider.kmip.connection import KmipTls, ServerAddress

_REPOSITORY = Path(__file__).parents[1]
_HOUR = datetime.timedelta(hours=1)


class KmipAuthority:
    """The authority of a key server and its clients."""

    def __init__(self, name: str = "kmip test authority") -> None:
        """Make key and certificate."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def server(self, names: Sequence[str] = ("127.0.0.1", "localhost")) -> bytes:
        """Key and certificate of a server under these names, PEM."""
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        key, certificate = self._leaf("key server", ExtendedKeyUsageOID.SERVER_AUTH, alternatives)
        return key + certificate

    def client(self, name: str = "garant", *, trusted: bytes | None = None) -> KmipTls:
        """Identity of a client, that trusts this authority or another."""
        key, certificate = self._leaf(name, ExtendedKeyUsageOID.CLIENT_AUTH, None)
        return KmipTls(trusted or self.pem, certificate, key)

    def _leaf(
        self, name: str, usage: x509.ObjectIdentifier, alternatives: x509.SubjectAlternativeName | None
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _HOUR)
            .not_valid_after(now + 24 * _HOUR)
        )


@dataclass
class KmipServer:
    """A key server with its database in a directory. One stopped and started again has the same port and keys."""

    directory: Path
    authority: KmipAuthority = field(default_factory=KmipAuthority)
    port: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "ca.pem").write_bytes(self.authority.pem)
        (self.directory / "server.pem").write_bytes(self.authority.server())
        argv = [sys.executable, "-m", "tests.pykmip_server", str(self.directory), str(self.port)]
        with (self.directory / "stderr").open("ab") as errors:
            self._process = subprocess.Popen(
                argv, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, (self.directory / "stderr").read_text()
        self.port = int(said)

    def stop(self) -> None:
        """End it, as a power failure would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    @property
    def address(self) -> ServerAddress:
        """Where it listens."""
        return ServerAddress("127.0.0.1", self.port)

    def client(self, name: str = "garant") -> KmipClient:
        """A client of it; objects belong to the client of that name."""
        return KmipClient([self.address], self.authority.client(name))


@pytest.fixture(scope="module")
def kmip_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmipServer]:
    """A running key server, shared by a module's tests."""
    server = KmipServer(tmp_path_factory.mktemp("kmip"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def kmip_client(kmip_server: KmipServer) -> Iterator[KmipClient]:
    """A client of the running key server."""
    with kmip_server.client() as client:
        yield client


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
