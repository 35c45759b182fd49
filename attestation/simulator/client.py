"""How a software host talks to an attestation service: over gRPC, on its public port, as any host does."""

import hashlib
import hmac
from dataclasses import dataclass, replace

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.binding import QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.errors import TpmError
from attestation.model import EkTemplate, HpkeKem, LogKind
from attestation.simulator.lying_host import HonestHost
from garant.attestation.v1 import attestation_pb2 as pb
from garant.attestation.v1 import attestation_pb2_grpc as rpc
from serving.client import call
from serving.errors import RemoteError

_APPRAISAL_REFUSED = "APPRAISAL_REFUSED"
_TEMPLATES = {
    EkTemplate.ECC_P256_LOW: pb.EK_TEMPLATE_ECC_P256_LOW,
    EkTemplate.ECC_P384_HIGH: pb.EK_TEMPLATE_ECC_P384_HIGH,
    EkTemplate.RSA_2048_LOW: pb.EK_TEMPLATE_RSA_2048_LOW,
}
_KINDS = {
    LogKind.TCG: pb.LOG_KIND_TCG,
    LogKind.IMA: pb.LOG_KIND_IMA,
    LogKind.SYSTEMD: pb.LOG_KIND_SYSTEMD,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a host fared."""

    token: str
    """Empty where it was refused."""
    reason: str
    """Why it was refused: a reject, enrolment or challenge reason; empty where it got a token."""
    message: str = ""


class HostClient:
    """Carries software hosts to one attestation service."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Use ``channel``, which stays the caller's."""
        self._enrollment = rpc.EnrollmentServiceStub(channel)
        self._attestation = rpc.AttestationServiceStub(channel)

    def enroll(self, host: HonestHost) -> pb.CompleteEnrollmentResponse:
        """Enrol, both halves.

        Raises:
            RemoteError: The service refused.
        """
        claim = pb.BeginEnrollmentRequest(
            host_name=host.name,
            join_token=host.join_token,
            ek_template=_TEMPLATES[host.tpm.template],
            ek_public=host.tpm.endorsement_public(),
            ek_certificate=host.tpm.certificate,
            ak_public=host.tpm.attestation_key.public.encoded,
        )
        host.edit_claim(claim)
        begun: pb.BeginEnrollmentResponse = call(self._enrollment.BeginEnrollment, claim)
        secret = bytes(32)
        if host.opens_credential:
            try:
                secret = host.tpm.activate_credential(begun.credential_blob, begun.encrypted_secret)
            except TpmError:
                # A liar whose TPM does not help guesses.
                secret = bytes(32)
        proof = hmac.digest(secret, hashlib.sha256(begun.cookie).digest(), "sha256")
        request = pb.CompleteEnrollmentRequest(cookie=begun.cookie, proof=host.edit_proof(proof))
        answer: pb.CompleteEnrollmentResponse = call(self._enrollment.CompleteEnrollment, request)
        return answer

    def attest(self, host: HonestHost) -> pb.AttestResponse:
        """Ask for a challenge and answer it, as often as the host wants; the last answer counts.

        Raises:
            RemoteError: The service refused.
        """
        asked_as = (host.asks_as or host.host_id).text
        challenge: pb.CreateChallengeResponse = call(
            self._attestation.CreateChallenge, pb.CreateChallengeRequest(host_id=asked_as)
        )
        request = answer_challenge(host, challenge)
        for _ in range(host.submissions - 1):
            call(self._attestation.Attest, request)
        answer: pb.AttestResponse = call(self._attestation.Attest, request)
        return answer

    def run(self, host: HonestHost) -> Outcome:
        """Enrol where the host does, attest, and say how it went."""
        try:
            if host.enrolls:
                self.enroll(host)
            return Outcome(self.attest(host).token, "")
        except RemoteError as error:
            return Outcome("", refusal_reason(error), error.message)


def answer_challenge(host: HonestHost, challenge: pb.CreateChallengeResponse) -> pb.AttestRequest:
    """What a host hands in for a challenge."""
    log_hashes = {kind: hashlib.sha256(log).digest() for kind, log in host.boot.evidence().logs.items()}
    binding = host.edit_binding(
        QuoteBinding(
            nonce=challenge.nonce,
            tls_thumbprint=tls_thumbprint(host.tls_key),
            hpke_thumbprint=hpke_thumbprint(HpkeKem.X25519, host.hpke_key),
            log_hashes=log_hashes,
            host_id=host.host_id,
            service_key=challenge.service_key,
            audience=challenge.audience,
        )
    )
    extra_data = host.edit_extra_data(binding.extra_data())
    fields = replace(host.boot.fields, extra_data=extra_data)
    evidence = replace(host.boot, fields=fields).evidence()
    request = pb.AttestRequest(
        cookie=challenge.cookie,
        tls_public_key=host.tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        hpke_public_key=host.hpke_key,
        quote=evidence.quote,
        signature=evidence.signature,
        pcr_values=[pb.PcrValue(index=index, digest=value) for index, value in sorted(evidence.pcr_values.items())],
        logs=[pb.MeasurementLog(kind=_KINDS[kind], content=log) for kind, log in evidence.logs.items()],
    )
    host.edit_evidence(request)
    return request


def refusal_reason(error: RemoteError) -> str:
    """The stable reason of a refusal; that of an appraisal stands in its message."""
    if error.reason != _APPRAISAL_REFUSED:
        return error.reason
    _, _, rest = error.message.partition(": ")
    return rest.partition(";")[0]
