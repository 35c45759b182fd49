"""The host agent's gRPC clients against servers that misbehave, over real TLS."""

# ruff: noqa: ARG002, N802, D102 - methods are named, and described, by the protocol

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId, HpkeKem
from garant.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from garant.keyprovider.v1 import keyprovider_pb2, keyprovider_pb2_grpc
from host_agent.clients import GrpcKeyRelease, GrpcTrustAuthority
from host_agent.errors import PeerRefused, PeerUnreachable
from host_agent.model import AttestedHost, ReleaseRequest, TrustAuthority
from keyprovider.envelope import SealingKey
from keyprovider.provider_list import ProviderEntry
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.authorization import AuthorizationTable
from serving.identity import Identity, Role
from serving.server import RpcServer, ServerTls, Service
from serving.status import Refusal, abort
from tests.host_site import free_addresses

REQUEST = ReleaseRequest("grant", "vm", "home", "reference", b"wrapped")
HOST_ID = HostId("ab" * 32)
HOUR = datetime.timedelta(hours=1)
_RELEASE = "garant.keyprovider.v1.KeyReleaseService"
_METHODS = {f"/{_RELEASE}/{name}": frozenset({Role.ATTESTED_HOST}) for name in ("CreateKey", "UnwrapKey")}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _ca(name: str) -> CertificateAuthority:
    return CertificateAuthority.create(name, now=_now(), lifetime=HOUR)


class Provider(keyprovider_pb2_grpc.KeyReleaseServiceServicer):
    """Answers with what it is told to, and remembers what it was shown."""

    def __init__(self, answer: bytes = b"sealed") -> None:
        self.answer = answer
        self.refusal: Refusal | None = None
        self.wait: Callable[[], object] = lambda: None
        self.tokens: list[str] = []

    def CreateKey(
        self, request: keyprovider_pb2.CreateKeyRequest, context: grpc.ServicerContext
    ) -> keyprovider_pb2.CreateKeyResponse:
        self.tokens.append(request.authority.token)
        return keyprovider_pb2.CreateKeyResponse(key_reference="new", wrapped_key=b"wrapped", sealed_key=self.answer)

    def UnwrapKey(
        self, request: keyprovider_pb2.UnwrapKeyRequest, context: grpc.ServicerContext
    ) -> keyprovider_pb2.UnwrapKeyResponse:
        self.tokens.append(request.authority.token)
        if self.refusal is not None:
            abort(context, self.refusal)
        self.wait()
        return keyprovider_pb2.UnwrapKeyResponse(sealed_key=self.answer)

    def RewrapKeys(
        self, request: keyprovider_pb2.RewrapKeysRequest, context: grpc.ServicerContext
    ) -> keyprovider_pb2.RewrapKeysResponse:
        raise NotImplementedError("no test here rewraps")


class Network:
    """Key provider services of one site."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.ca, self.host_ca = _ca("trust authority"), _ca("attested hosts")
        self.tls_key = ec.generate_private_key(ec.SECP256R1())

    def serve(self, provider: Provider, ca: CertificateAuthority | None = None) -> str:
        """Serve, and tell where."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity("site", Role.KEY_PROVIDER_SERVICE, "kp")
        certificate = (ca or self.ca).issue(
            identity, key.public_key(), now=_now(), lifetime=HOUR, server_names=("127.0.0.1",)
        )
        host_ca = self.host_ca.certificate
        server = RpcServer(
            "127.0.0.1:0",
            tls=ServerTls(certificate_pem(certificate), private_key_pem(key), certificate_pem(host_ca)),
            services=[
                Service(
                    _RELEASE,
                    lambda server: keyprovider_pb2_grpc.add_KeyReleaseServiceServicer_to_server(provider, server),
                )
            ],
            statuses=[],
            table=AuthorizationTable(_METHODS, {Role.ATTESTED_HOST: (host_ca,)}),
        )
        server.start()
        self._stack.callback(server.stop, 0.2)
        return f"127.0.0.1:{server.port}"

    def entry(self, *addresses: str) -> ProviderEntry:
        """The provider as it is pinned."""
        return ProviderEntry("trusted", addresses, certificate_pem(self.ca.certificate).decode())

    def host(self, number: int = 1, *, issued: datetime.datetime | None = None) -> AttestedHost:
        """An attested host, by its ``number``-th attestation."""
        certificate = self.host_ca.issue(
            Identity("site", Role.ATTESTED_HOST, HOST_ID.text),
            self.tls_key.public_key(),
            now=issued or _now(),
            lifetime=datetime.timedelta(minutes=5),
        )
        return AttestedHost(
            number=number,
            host_id=HOST_ID,
            token=f"token-{number}",
            token_id=f"id-{number}",
            certificate_pem=certificate_pem(certificate),
            tls_key=self.tls_key,
            sealing_key=SealingKey.generate(HpkeKem.X25519),
            attested_until=_now(),
            renew_at=0.0,
            ends_at=0.0,
        )


@pytest.fixture
def network() -> Iterator[Network]:
    """A network whose servers end with the test."""
    with ExitStack() as stack:
        yield Network(stack)


@pytest.fixture
def release() -> Iterator[GrpcKeyRelease]:
    """The client."""
    client = GrpcKeyRelease()
    yield client
    client.close()


def test_next_address_is_asked_when_one_is_silent(network: Network, release: GrpcKeyRelease) -> None:
    """A provider is reached by any address of its list that answers."""
    provider = Provider()
    entry = network.entry(free_addresses(1)[0], network.serve(provider))
    assert release.unwrap_key(network.host(), entry, REQUEST) == b"sealed"


def test_new_key_comes_in_both_forms(network: Network, release: GrpcKeyRelease) -> None:
    """A new key comes wrapped, to be kept, and sealed, to be used."""
    new = release.create_key(network.host(), network.entry(network.serve(Provider())), REQUEST)
    assert (new.key_reference, new.wrapped_key, new.sealed_key) == ("new", b"wrapped", b"sealed")


def test_refusal_is_final_for_all_addresses(network: Network, release: GrpcKeyRelease) -> None:
    """A replica's refusal is not taken to the next replica; its reason comes through."""
    first, second = Provider(), Provider()
    first.refusal = Refusal(grpc.StatusCode.PERMISSION_DENIED, "GRANT_FOR_OTHER_VM", "no")
    with pytest.raises(PeerRefused) as caught:
        release.unwrap_key(network.host(), network.entry(network.serve(first), network.serve(second)), REQUEST)
    assert (caught.value.reason, caught.value.passing, second.tokens) == ("GRANT_FOR_OTHER_VM", False, [])


def test_refusal_that_passes_is_told_apart_from_silence(network: Network, release: GrpcKeyRelease) -> None:
    """A service that answers UNAVAILABLE with a reason of its own did answer."""
    provider = Provider()
    provider.refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "HEARTBEAT_STALE", "wait")
    with pytest.raises(PeerRefused) as caught:
        release.unwrap_key(network.host(), network.entry(network.serve(provider)), REQUEST)
    assert (caught.value.reason, caught.value.passing) == ("HEARTBEAT_STALE", True)


def test_server_of_another_authority_learns_nothing(network: Network, release: GrpcKeyRelease) -> None:
    """An address where somebody else answers gets neither token nor grant (R-TA-2)."""
    impostor = Provider()
    address = network.serve(impostor, ca=_ca("somebody else"))
    with pytest.raises(PeerUnreachable):
        release.unwrap_key(network.host(), network.entry(address), REQUEST)
    assert impostor.tokens == []


def test_refused_client_certificate_is_explained(network: Network, release: GrpcKeyRelease) -> None:
    """A certificate that ended shows as a closed socket; the error says what is wrong."""
    issued = _now() - datetime.timedelta(hours=2)
    with pytest.raises((PeerUnreachable, PeerRefused), match=r"expired|valid from"):
        release.unwrap_key(network.host(issued=issued), network.entry(network.serve(Provider())), REQUEST)


def test_new_certificate_is_a_new_channel_and_the_old_one_is_drained(network: Network, release: GrpcKeyRelease) -> None:
    """A call under way when the host attests anew comes to its end; the channel then closes."""
    provider, gate, entered = Provider(), threading.Event(), threading.Event()
    entry = network.entry(network.serve(provider))

    def block_once() -> None:
        provider.wait = lambda: None
        entered.set()
        gate.wait(10)

    provider.wait = block_once
    with futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(release.unwrap_key, network.host(1), entry, REQUEST)
        assert entered.wait(10)
        (old,) = release._channels.values()
        assert release.unwrap_key(network.host(2), entry, REQUEST) == b"sealed"
        (new,) = release._channels.values()
        assert (old.replaced, old.users, new.number) == (True, 1, 2)
        gate.set()
        assert slow.result(10) == b"sealed"
    assert old.users == 0
    with pytest.raises(ValueError, match="closed"):
        keyprovider_pb2_grpc.KeyReleaseServiceStub(old.channel).UnwrapKey(keyprovider_pb2.UnwrapKeyRequest())
    # Who still holds the former value goes on over the new channel.
    assert release.unwrap_key(network.host(1), entry, REQUEST) == b"sealed"
    assert provider.tokens == ["token-1", "token-2", "token-1"]


class Authority(attestation_pb2_grpc.AttestationServiceServicer):
    """Challenges with what it is told to."""

    def __init__(self) -> None:
        self.challenge = attestation_pb2.CreateChallengeResponse(
            nonce=bytes(32),
            bank=attestation_pb2.PCR_BANK_SHA256,
            pcrs=[0],
            logs=[attestation_pb2.LOG_KIND_TCG],
            kem=attestation_pb2.HPKE_KEM_X25519,
            service_key=bytes(32),
            audience="kp",
        )

    def CreateChallenge(
        self,
        request: attestation_pb2.CreateChallengeRequest,
        context: grpc.ServicerContext,
    ) -> attestation_pb2.CreateChallengeResponse:
        return self.challenge

    def Attest(
        self, request: attestation_pb2.AttestRequest, context: grpc.ServicerContext
    ) -> attestation_pb2.AttestResponse:
        raise NotImplementedError


@pytest.mark.parametrize(
    "change",
    [
        {"bank": attestation_pb2.PCR_BANK_UNSPECIFIED},
        {"kem": attestation_pb2.HPKE_KEM_UNSPECIFIED},
        {"kem": 99},
        {"nonce": b"short"},
        {"service_key": b""},
    ],
    ids=["bank", "no KEM", "unknown KEM", "nonce", "service key"],
)
def test_challenge_that_is_not_understood_is_refused(change: dict[str, object]) -> None:
    """A challenge of a newer service, or a malformed one, is one clear refusal; no quote is made for it."""
    authority, ca, key = Authority(), _ca("trust authority"), ec.generate_private_key(ec.SECP256R1())
    certificate = ca.issue(
        Identity("site", Role.ATTESTATION_SERVICE, "as"),
        key.public_key(),
        now=_now(),
        lifetime=HOUR,
        server_names=("127.0.0.1",),
    )
    server = RpcServer(
        "127.0.0.1:0",
        tls=ServerTls(certificate_pem(certificate), private_key_pem(key), None),
        services=[
            Service(
                "garant.attestation.v1.AttestationService",
                lambda server: attestation_pb2_grpc.add_AttestationServiceServicer_to_server(authority, server),
            )
        ],
        statuses=[],
        table=None,
    )
    server.start()
    client = GrpcTrustAuthority(TrustAuthority(f"127.0.0.1:{server.port}", certificate_pem(ca.certificate)))
    try:
        assert client.create_challenge(HOST_ID).pcrs == (0,)
        for name, value in change.items():
            setattr(authority.challenge, name, value)
        with pytest.raises(PeerRefused) as caught:
            client.create_challenge(HOST_ID)
        assert caught.value.reason == "CHALLENGE_NOT_UNDERSTOOD"
    finally:
        client.close()
        server.stop(0.2)
