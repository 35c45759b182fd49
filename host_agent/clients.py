"""gRPC clients of the host agent: attestation service, key providers, management server.

Each turns messages into values of ``host_agent.model`` and refusals into ``PeerRefused`` and ``PeerUnreachable``.
"""

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc

from attestation.errors import ChallengeReason
from attestation.model import EkTemplate, HostId, HpkeKem, LogKind, PcrBank
from garant.attestation.v1 import attestation_pb2 as attestation_pb
from garant.attestation.v1 import attestation_pb2_grpc as attestation_rpc
from garant.keyprovider.v1 import keyprovider_pb2 as keyprovider_pb
from garant.keyprovider.v1 import keyprovider_pb2_grpc as keyprovider_rpc
from garant.management.v1 import management_pb2 as management_pb
from garant.management.v1 import management_pb2_grpc as management_rpc
from host_agent.errors import Peer, PeerRefused, PeerUnreachable
from host_agent.model import (
    AttestedHost,
    Challenge,
    Credential,
    EnrollmentAnswer,
    EnrollmentClaim,
    Evidence,
    Granted,
    JoinClaim,
    ReleaseRequest,
    SealedNewKey,
    TrustAuthority,
)
from keyprovider.provider_list import ProviderEntry
from serving.authority import private_key_pem
from serving.client import ClientTls, call, open_channel
from serving.errors import RemoteError

_EK_TEMPLATES: Final = {
    EkTemplate.RSA_2048_LOW: attestation_pb.EK_TEMPLATE_RSA_2048_LOW,
    EkTemplate.ECC_P256_LOW: attestation_pb.EK_TEMPLATE_ECC_P256_LOW,
    EkTemplate.RSA_2048_HIGH: attestation_pb.EK_TEMPLATE_RSA_2048_HIGH,
    EkTemplate.ECC_P256_HIGH: attestation_pb.EK_TEMPLATE_ECC_P256_HIGH,
    EkTemplate.ECC_P384_HIGH: attestation_pb.EK_TEMPLATE_ECC_P384_HIGH,
    EkTemplate.RSA_3072_HIGH: attestation_pb.EK_TEMPLATE_RSA_3072_HIGH,
}
_LOG_KINDS: Final = {
    LogKind.TCG: attestation_pb.LOG_KIND_TCG,
    LogKind.IMA: attestation_pb.LOG_KIND_IMA,
    LogKind.SYSTEMD: attestation_pb.LOG_KIND_SYSTEMD,
}
_KINDS: Final = {value: kind for kind, value in _LOG_KINDS.items()}
_BANKS: Final = {
    attestation_pb.PCR_BANK_SHA256: PcrBank.SHA256,
    attestation_pb.PCR_BANK_SHA384: PcrBank.SHA384,
}
_KEMS: Final = {
    attestation_pb.HPKE_KEM_X25519: HpkeKem.X25519,
    attestation_pb.HPKE_KEM_MLKEM768_X25519: HpkeKem.MLKEM768_X25519,
}
_UNANSWERED: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_PASSING_REASONS: Final = frozenset(reason.value for reason in ChallengeReason)
"""A new challenge cures these."""
_ATTEST_TIMEOUT_SECONDS: Final = 20.0
_RELEASE_TIMEOUT_SECONDS: Final = 10.0

Answer = TypeVar("Answer")


class GrpcTrustAuthority:
    """``host_agent.ports.TrustAuthorityClient`` over one channel, on which this host proves nothing by TLS."""

    def __init__(self, authority: TrustAuthority) -> None:
        """Talk to ``authority``; connects with the first call."""
        self._channel = open_channel(authority.address, ClientTls(authority.ca_pem))
        self._enrolment = attestation_rpc.EnrollmentServiceStub(self._channel)
        self._attestation = attestation_rpc.AttestationServiceStub(self._channel)

    def begin_enrollment(self, claim: EnrollmentClaim) -> Credential:
        """See ``TrustAuthorityClient.begin_enrollment``."""
        answer = self._call(
            self._enrolment.BeginEnrollment,
            attestation_pb.BeginEnrollmentRequest(
                host_name=claim.host_name,
                join_token=claim.join_token,
                ek_template=_EK_TEMPLATES[claim.ek_template],
                ek_public=claim.ek_public,
                ek_certificate=claim.ek_certificate,
                ek_intermediates=claim.ek_intermediates,
                ak_public=claim.ak_public,
            ),
        )
        return Credential(answer.credential_blob, answer.encrypted_secret, answer.cookie)

    def complete_enrollment(self, cookie: bytes, proof: bytes) -> EnrollmentAnswer:
        """See ``TrustAuthorityClient.complete_enrollment``."""
        request = attestation_pb.CompleteEnrollmentRequest(cookie=cookie, proof=proof)
        answer = self._call(self._enrolment.CompleteEnrollment, request)
        return EnrollmentAnswer(answer.host_id, answer.provider_list)

    def create_challenge(self, host_id: HostId) -> Challenge:
        """See ``TrustAuthorityClient.create_challenge``."""
        request = attestation_pb.CreateChallengeRequest(host_id=host_id.text)
        answer = self._call(self._attestation.CreateChallenge, request)
        bank, kem = _BANKS.get(answer.bank), _KEMS.get(answer.kem)
        kinds = tuple(_KINDS[kind] for kind in answer.logs if kind in _KINDS)
        if bank is None or kem is None or len(answer.nonce) != 32 or len(answer.service_key) != 32:
            raise PeerRefused(
                Peer.TRUST_AUTHORITY, "CHALLENGE_NOT_UNDERSTOOD", "the challenge names what this agent does not know"
            )
        return Challenge(
            nonce=answer.nonce,
            bank=bank,
            pcrs=tuple(answer.pcrs),
            logs=kinds,
            kem=kem,
            service_key=answer.service_key,
            audience=answer.audience,
            cookie=answer.cookie,
        )

    def attest(self, evidence: Evidence) -> Granted:
        """See ``TrustAuthorityClient.attest``."""
        request = attestation_pb.AttestRequest(
            cookie=evidence.cookie,
            tls_public_key=evidence.tls_public_key,
            hpke_public_key=evidence.hpke_public_key,
            quote=evidence.quote,
            signature=evidence.signature,
            pcr_values=[attestation_pb.PcrValue(index=index, digest=digest) for index, digest in evidence.pcr_values],
            logs=[
                attestation_pb.MeasurementLog(kind=_LOG_KINDS[kind], content=content)
                for kind, content in evidence.logs.items()
            ],
            command_line=evidence.command_line,
        )
        answer = self._call(self._attestation.Attest, request)
        return Granted(
            answer.token,
            answer.certificate_pem,
            answer.renew_at.ToDatetime(datetime.UTC),
            answer.server_time.ToDatetime(datetime.UTC),
        )

    def close(self) -> None:
        """See ``TrustAuthorityClient.close``."""
        self._channel.close()

    def _call(self, method: Callable[..., Answer], request: object) -> Answer:
        try:
            return call(method, request, timeout_seconds=_ATTEST_TIMEOUT_SECONDS)
        except RemoteError as exc:
            raise _told(Peer.TRUST_AUTHORITY, exc) from exc


class GrpcJoinServer:
    """``host_agent.ports.JoinServer`` at one address."""

    def __init__(self, address: str, ca_pem: bytes) -> None:
        """Join at ``address``, whose certificate ``ca_pem`` signs."""
        self._address = address
        self._ca_pem = ca_pem

    def join(self, claim: JoinClaim) -> tuple[bytes, bytes]:
        """See ``JoinServer.join``."""
        request = management_pb.JoinRequest(
            join_token=claim.join_token,
            certificate_request=claim.certificate_request,
            host_id=claim.host_id,
            agent_address=claim.agent_address,
            hardware_uuid=claim.hardware_uuid,
        )
        with open_channel(self._address, ClientTls(self._ca_pem)) as channel:
            try:
                answer = call(management_rpc.HostJoinServiceStub(channel).Join, request)
            except RemoteError as exc:
                raise _told(Peer.MANAGEMENT_SERVER, exc) from exc
        return answer.certificate_pem, answer.management_ca_pem


@dataclass
class _Channel:
    """A channel and who uses it; closed when it is replaced and nobody does."""

    channel: grpc.Channel
    number: int
    """Of the attestation whose certificate it shows."""
    users: int = 0
    replaced: bool = False


class GrpcKeyRelease:
    """``host_agent.ports.KeyRelease``: mTLS with the attested certificate; believes the pinned CA and no other.

    Channel credentials are static: each attestation has a channel of its own, and the one before is drained.
    """

    def __init__(self) -> None:
        """Connect with the first call."""
        self._lock = threading.Lock()
        self._channels: dict[tuple[str, str], _Channel] = {}

    def create_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> SealedNewKey:
        """See ``KeyRelease.create_key``."""
        message = keyprovider_pb.CreateKeyRequest(
            authority=keyprovider_pb.Authority(token=host.token, grant=request.grant),
            provider=provider.name,
            vm_id=request.vm_id,
            component=keyprovider_pb.Component(name=request.component),
        )
        answer = self._first(host, provider, lambda stub: _release(stub.CreateKey, message))
        return SealedNewKey(answer.key_reference, answer.wrapped_key, answer.sealed_key)

    def unwrap_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> bytes:
        """See ``KeyRelease.unwrap_key``."""
        message = keyprovider_pb.UnwrapKeyRequest(
            authority=keyprovider_pb.Authority(token=host.token, grant=request.grant),
            provider=provider.name,
            vm_id=request.vm_id,
            component=keyprovider_pb.Component(name=request.component),
            key_reference=request.key_reference,
            wrapped_key=request.wrapped_key,
        )
        return self._first(host, provider, lambda stub: _release(stub.UnwrapKey, message)).sealed_key

    def close(self) -> None:
        """Close all channels."""
        with self._lock:
            for each in self._channels.values():
                each.channel.close()
            self._channels.clear()

    def _first(
        self,
        host: AttestedHost,
        provider: ProviderEntry,
        ask: Callable[[keyprovider_rpc.KeyReleaseServiceStub], Answer],
    ) -> Answer:
        """Ask the first address that answers."""
        silent: list[str] = []
        for address in provider.addresses:
            try:
                with self._borrow(host, address, provider.ca_pem) as channel:
                    return ask(keyprovider_rpc.KeyReleaseServiceStub(channel))
            except PeerUnreachable as exc:
                # A client certificate that is refused shows as a socket that was closed: say what is wrong with ours.
                complaint = _tls(host, provider.ca_pem).complaint(datetime.datetime.now(datetime.UTC))
                silent.append(f"{address}: {exc}" + (f"; by this host's clock {complaint}" if complaint else ""))
        raise PeerUnreachable(
            Peer.KEY_PROVIDER, f"key provider {provider.name!r} does not answer ({'; '.join(silent)})"
        )

    @contextmanager
    def _borrow(self, host: AttestedHost, address: str, ca_pem: str) -> Iterator[grpc.Channel]:
        with self._lock:
            used = self._channels.get((address, ca_pem))
            if used is None or used.number < host.number:
                if used is not None:
                    _retire(used)
                used = self._channels[address, ca_pem] = _Channel(
                    open_channel(address, _tls(host, ca_pem)), host.number
                )
            used.users += 1
        try:
            yield used.channel
        finally:
            with self._lock:
                used.users -= 1
                if used.replaced:
                    _retire(used)


def _tls(host: AttestedHost, ca_pem: str) -> ClientTls:
    return ClientTls(ca_pem.encode(), host.certificate_pem, private_key_pem(host.tls_key))


def _retire(used: _Channel) -> None:
    used.replaced = True
    if used.users == 0:
        used.channel.close()


def _release(method: Callable[..., Answer], request: object) -> Answer:
    try:
        return call(method, request, timeout_seconds=_RELEASE_TIMEOUT_SECONDS)
    except RemoteError as exc:
        raise _told(Peer.KEY_PROVIDER, exc) from exc


def _told(peer: Peer, error: RemoteError) -> PeerRefused | PeerUnreachable:
    # A peer that gave a reason of its own did answer, whatever its code.
    if error.code in _UNANSWERED and error.reason == error.code.name:
        return PeerUnreachable(peer, error.message)
    passing = error.code in _PASSING or error.reason in _PASSING_REASONS
    return PeerRefused(peer, error.reason, error.message, passing=passing)
