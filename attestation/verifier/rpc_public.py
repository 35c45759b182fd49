"""The public port: enrolment and attestation, where only the server proves itself by TLS. Nothing else is served there.

Messages are checked for shape and size here; everything else is the services' to decide.
"""

# ruff: noqa: ARG002, N802 - names and signatures are gRPC's

from typing import NoReturn

import grpc

from attestation.errors import EnrollmentReason, EnrollmentRejected
from attestation.model import HostId
from attestation.verifier.attest import MAX_LOG_BYTES, AttestService, Submission
from attestation.verifier.enrolment import EnrollmentRequest, EnrollmentService
from attestation.verifier.model import EvidenceRecord
from attestation.verifier.rpc_messages import (
    ADMISSION_STATES,
    BANKS,
    EK_TEMPLATES,
    KEMS,
    LOG_KINDS,
    timestamp,
)
from garant.attestation.v1 import attestation_pb2 as pb
from garant.attestation.v1 import attestation_pb2_grpc as rpc
from serving.authority import certificate_pem
from serving.server import Service

MAX_SMALL_BYTES = 1024
MAX_COMMAND_LINE_BYTES = 4096
"""Of a public area, a quote or a signature."""
MAX_CERTIFICATE_BYTES = 8 * 1024
MAX_TLS_KEY_BYTES = 1024
MAX_HPKE_KEY_BYTES = 2048
MAX_JOIN_TOKEN_BYTES = 16 * 1024
_PCRS = 24
_MAX_PCR_BYTES = 64


def public_services(enrollment: EnrollmentService, attestation: AttestService) -> tuple[Service, ...]:
    """What the public port serves."""
    enrolling, attesting = _Enrollment(enrollment), _Attestation(attestation)
    return (
        Service(
            "garant.attestation.v1.EnrollmentService",
            lambda server: rpc.add_EnrollmentServiceServicer_to_server(enrolling, server),
        ),
        Service(
            "garant.attestation.v1.AttestationService",
            lambda server: rpc.add_AttestationServiceServicer_to_server(attesting, server),
        ),
    )


class _Enrollment(rpc.EnrollmentServiceServicer):
    def __init__(self, service: EnrollmentService) -> None:
        self._service = service

    def BeginEnrollment(
        self, request: pb.BeginEnrollmentRequest, context: grpc.ServicerContext
    ) -> pb.BeginEnrollmentResponse:
        """First half."""
        _require_at_most("ek_public", request.ek_public, MAX_SMALL_BYTES)
        _require_at_most("ak_public", request.ak_public, MAX_SMALL_BYTES)
        for certificate in (request.ek_certificate, *request.ek_intermediates):
            _require_at_most("a certificate", certificate, MAX_CERTIFICATE_BYTES)
        _require_at_most("join_token", request.join_token.encode(), MAX_JOIN_TOKEN_BYTES)
        template = EK_TEMPLATES.get(request.ek_template)
        if template is None:
            _malformed("ek_template is not one that is known")
        credential, cookie = self._service.begin(
            EnrollmentRequest(
                host_name=request.host_name,
                join_token=request.join_token,
                ek_template=template,
                ek_public=request.ek_public,
                ek_certificate=request.ek_certificate,
                ek_intermediates=tuple(request.ek_intermediates),
                ak_public=request.ak_public,
            )
        )
        return pb.BeginEnrollmentResponse(
            credential_blob=credential.credential_blob, encrypted_secret=credential.encrypted_secret, cookie=cookie
        )

    def CompleteEnrollment(
        self, request: pb.CompleteEnrollmentRequest, context: grpc.ServicerContext
    ) -> pb.CompleteEnrollmentResponse:
        """Second half."""
        host, provider_list = self._service.complete(request.cookie, request.proof)
        return pb.CompleteEnrollmentResponse(
            host_id=host.host_id.text, state=ADMISSION_STATES[host.state], provider_list=provider_list
        )


class _Attestation(rpc.AttestationServiceServicer):
    def __init__(self, service: AttestService) -> None:
        self._service = service

    def CreateChallenge(
        self, request: pb.CreateChallengeRequest, context: grpc.ServicerContext
    ) -> pb.CreateChallengeResponse:
        """Ask for a nonce."""
        try:
            host_id = HostId(request.host_id)
        except ValueError as exc:
            _malformed(str(exc))
        challenge = self._service.challenge(host_id)
        return pb.CreateChallengeResponse(
            nonce=challenge.nonce,
            bank=BANKS[challenge.bank],
            pcrs=challenge.pcrs,
            logs=[LOG_KINDS[kind] for kind in challenge.logs],
            kem=KEMS[challenge.kem],
            service_key=challenge.service_key,
            audience=challenge.audience,
            cookie=challenge.cookie,
            expires_at=timestamp(challenge.expires_at),
            server_time=timestamp(challenge.server_time.timestamp()),
        )

    def Attest(self, request: pb.AttestRequest, context: grpc.ServicerContext) -> pb.AttestResponse:
        """Hand in evidence."""
        grant = self._service.attest(
            Submission(
                cookie=request.cookie,
                tls_public_key=request.tls_public_key,
                hpke_public_key=request.hpke_public_key,
                evidence=_evidence(request),
                untrusted_command_line=request.command_line,
            )
        )
        return pb.AttestResponse(
            token=grant.token,
            certificate_pem=certificate_pem(grant.certificate),
            renew_at=timestamp(grant.renew_at.timestamp()),
            server_time=timestamp(grant.server_time.timestamp()),
        )


def _evidence(request: pb.AttestRequest) -> EvidenceRecord:
    _require_at_most("quote", request.quote, MAX_SMALL_BYTES)
    _require_at_most("signature", request.signature, MAX_SMALL_BYTES)
    _require_at_most("tls_public_key", request.tls_public_key, MAX_TLS_KEY_BYTES)
    _require_at_most("hpke_public_key", request.hpke_public_key, MAX_HPKE_KEY_BYTES)
    _require_at_most("command_line", request.command_line.encode(), MAX_COMMAND_LINE_BYTES)
    indices = [value.index for value in request.pcr_values]
    if indices != sorted(set(indices)) or any(index >= _PCRS for index in indices):
        _malformed(f"PCR values are in ascending order, each once, below {_PCRS}")
    for value in request.pcr_values:
        _require_at_most("a PCR value", value.digest, _MAX_PCR_BYTES)
    kinds = {number: kind for kind, number in LOG_KINDS.items()}
    logs = {}
    for log in request.logs:
        kind = kinds.get(log.kind)
        if kind is None or kind in logs:
            _malformed("each log is of a known kind, and there is one of each at most")
        _require_at_most("a log", log.content, MAX_LOG_BYTES)
        logs[kind] = log.content
    return EvidenceRecord(
        quote=request.quote,
        signature=request.signature,
        pcr_values=tuple((value.index, value.digest) for value in request.pcr_values),
        logs=logs,
    )


def _require_at_most(what: str, value: bytes, limit: int) -> None:
    if len(value) > limit:
        _malformed(f"{what} has {len(value)} bytes; at most {limit} are read")


def _malformed(message: str) -> NoReturn:
    raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message)
