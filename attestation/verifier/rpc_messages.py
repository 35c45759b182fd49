"""Messages from values, and the statuses of errors: what both ports' RPCs share."""

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from attestation.errors import (
    ChallengeReason,
    ChallengeRejected,
    Conflict,
    EnrollmentReason,
    EnrollmentRejected,
    EvidenceRejected,
    MalformedRequest,
    NotFound,
    PolicyRejected,
)
from attestation.model import AdmissionState, EkTemplate, HpkeKem, LogKind, PcrBank
from garant.attestation.v1 import attestation_pb2 as pb
from serving.errors import StoreError
from serving.status import Refusal, StatusRow

EK_TEMPLATES = {
    pb.EK_TEMPLATE_RSA_2048_LOW: EkTemplate.RSA_2048_LOW,
    pb.EK_TEMPLATE_ECC_P256_LOW: EkTemplate.ECC_P256_LOW,
    pb.EK_TEMPLATE_RSA_2048_HIGH: EkTemplate.RSA_2048_HIGH,
    pb.EK_TEMPLATE_ECC_P256_HIGH: EkTemplate.ECC_P256_HIGH,
    pb.EK_TEMPLATE_ECC_P384_HIGH: EkTemplate.ECC_P384_HIGH,
    pb.EK_TEMPLATE_RSA_3072_HIGH: EkTemplate.RSA_3072_HIGH,
}
ADMISSION_STATES = {
    AdmissionState.REQUESTED: pb.ADMISSION_STATE_REQUESTED,
    AdmissionState.APPROVED: pb.ADMISSION_STATE_APPROVED,
    AdmissionState.ACTIVE: pb.ADMISSION_STATE_ACTIVE,
    AdmissionState.BANNED: pb.ADMISSION_STATE_BANNED,
    AdmissionState.REPLACED: pb.ADMISSION_STATE_REPLACED,
}
LOG_KINDS = {
    LogKind.TCG: pb.LOG_KIND_TCG,
    LogKind.IMA: pb.LOG_KIND_IMA,
    LogKind.SYSTEMD: pb.LOG_KIND_SYSTEMD,
}
BANKS = {PcrBank.SHA256: pb.PCR_BANK_SHA256, PcrBank.SHA384: pb.PCR_BANK_SHA384}
KEMS = {HpkeKem.X25519: pb.HPKE_KEM_X25519, HpkeKem.MLKEM768_X25519: pb.HPKE_KEM_MLKEM768_X25519}

APPRAISAL_REFUSED = "APPRAISAL_REFUSED"

_ENROLLMENT_CODES = {
    EnrollmentReason.MALFORMED_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    EnrollmentReason.IDENTITY_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
}
_CHALLENGE_CODES = {
    ChallengeReason.COOKIE_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ChallengeReason.CHALLENGE_EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    ChallengeReason.CHALLENGE_SPENT: grpc.StatusCode.FAILED_PRECONDITION,
}


def _evidence(error: EvidenceRejected) -> Refusal:
    """Coarse: expected and seen values are for administrators, who read them with ``GetHost``."""
    message = f"the evidence was refused: {error.reason}; trust administrators see the details"
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, APPRAISAL_REFUSED, message)


def _enrollment(error: EnrollmentRejected) -> Refusal:
    code = _ENROLLMENT_CODES.get(error.reason, grpc.StatusCode.PERMISSION_DENIED)
    return Refusal(code, error.reason.value, str(error))


def _challenge(error: ChallengeRejected) -> Refusal:
    return Refusal(_CHALLENGE_CODES[error.reason], error.reason.value, str(error))


STATUSES: tuple[StatusRow, ...] = (
    (EvidenceRejected, _evidence),
    (EnrollmentRejected, _enrollment),
    (ChallengeRejected, _challenge),
    (MalformedRequest, lambda error: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", str(error))),
    (PolicyRejected, lambda error: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "POLICY_REJECTED", str(error))),
    (NotFound, lambda error: Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", str(error))),
    (Conflict, lambda error: Refusal(grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT", str(error))),
    (
        StoreError,
        lambda _: Refusal(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "the service's database is not usable"),
    ),
)
"""Every error of this service and how a caller is told."""


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message."""
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
