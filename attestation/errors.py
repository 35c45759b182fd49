"""Errors of the attestation component.

    AttestationError
    ├── WireError             bytes from outside are not what their specification says
    ├── EvidenceRejected      the evidence was read, and is not believed (reason: RejectReason)
    ├── EnrollmentRejected    the host is not admitted (reason: EnrollmentReason)
    ├── TokenRejected         a token or heartbeat is not believed (reason: TokenReason)
    ├── MalformedRequest      an administrator's request is not one: a name, an id, a page
    ├── PolicyRejected        a policy or reference document is not acceptable
    ├── NotFound              a host, anchor or reference of that name does not exist
    ├── Conflict              the change contradicts what is there
    ├── ChallengeRejected     a cookie is unknown, stale or spent (reason: ChallengeReason)
    └── TpmError              the TPM refused or did not answer

Reasons are enums: stable, part of the interface, one per rule. Messages name what was expected and what was seen,
never a secret.
"""

from enum import StrEnum


class AttestationError(Exception):
    """Root of this component's errors."""


class WireError(AttestationError):
    """Bytes from outside are malformed; the only error that a parser in ``attestation.wire`` lets out."""


class RejectReason(StrEnum):
    """Why evidence was not believed. One value per rule of the appraisal, in the order they are checked."""

    MALFORMED_QUOTE = "MALFORMED_QUOTE"
    WRONG_SIGNATURE_SCHEME = "WRONG_SIGNATURE_SCHEME"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    BAD_MAGIC = "BAD_MAGIC"
    NOT_A_QUOTE = "NOT_A_QUOTE"
    NONCE_MISMATCH = "NONCE_MISMATCH"
    WRONG_QUALIFIED_SIGNER = "WRONG_QUALIFIED_SIGNER"
    WRONG_PCR_SELECTION = "WRONG_PCR_SELECTION"
    PCR_DIGEST_MISMATCH = "PCR_DIGEST_MISMATCH"
    CLOCK_NOT_SAFE = "CLOCK_NOT_SAFE"
    BOOT_COUNTER_DECREASED = "BOOT_COUNTER_DECREASED"
    RESUMED_WITHOUT_MEASUREMENT = "RESUMED_WITHOUT_MEASUREMENT"
    FIRMWARE_VERSION_DENIED = "FIRMWARE_VERSION_DENIED"
    MISSING_LOG = "MISSING_LOG"
    MALFORMED_LOG = "MALFORMED_LOG"
    LOG_DOES_NOT_REPLAY = "LOG_DOES_NOT_REPLAY"
    UNMEASURED_PCR = "UNMEASURED_PCR"
    WRONG_STARTUP_LOCALITY = "WRONG_STARTUP_LOCALITY"
    EVENT_TYPE_NOT_ALLOWED = "EVENT_TYPE_NOT_ALLOWED"
    EVENT_DATA_MISMATCH = "EVENT_DATA_MISMATCH"
    BAD_SEPARATOR = "BAD_SEPARATOR"
    SECURE_BOOT_REQUIRED = "SECURE_BOOT_REQUIRED"
    NO_ACTIVE_REFERENCE = "NO_ACTIVE_REFERENCE"
    REFERENCE_MISMATCH = "REFERENCE_MISMATCH"
    IMA_LIST_MISSING = "IMA_LIST_MISSING"
    IMA_LIST_MALFORMED = "IMA_LIST_MALFORMED"
    IMA_OTHER_PCR = "IMA_OTHER_PCR"
    IMA_LIST_DOES_NOT_REPLAY = "IMA_LIST_DOES_NOT_REPLAY"
    IMA_BOOT_AGGREGATE = "IMA_BOOT_AGGREGATE"
    IMA_KEXEC = "IMA_KEXEC"
    IMA_VIOLATION = "IMA_VIOLATION"
    IMA_TEMPLATE_HASH = "IMA_TEMPLATE_HASH"
    IMA_BUFFER_DIGEST = "IMA_BUFFER_DIGEST"
    IMA_BUFFER_NOT_ALLOWED = "IMA_BUFFER_NOT_ALLOWED"
    IMA_DIGEST_NOT_ALLOWED = "IMA_DIGEST_NOT_ALLOWED"
    IMA_BAD_SIGNATURE = "IMA_BAD_SIGNATURE"
    IMA_FILE_NOT_ALLOWED = "IMA_FILE_NOT_ALLOWED"


class EnrollmentReason(StrEnum):
    """Why a host was not enrolled or may not attest."""

    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    EK_TEMPLATE_MISMATCH = "EK_TEMPLATE_MISMATCH"
    EK_CERTIFICATE_MISSING = "EK_CERTIFICATE_MISSING"
    EK_CERTIFICATE_MALFORMED = "EK_CERTIFICATE_MALFORMED"
    EK_CERTIFICATE_UNTRUSTED = "EK_CERTIFICATE_UNTRUSTED"
    EK_CERTIFICATE_OF_OTHER_KEY = "EK_CERTIFICATE_OF_OTHER_KEY"
    VIRTUAL_TPM_NOT_ALLOWED = "VIRTUAL_TPM_NOT_ALLOWED"
    AK_ATTRIBUTES = "AK_ATTRIBUTES"
    AK_ALGORITHM = "AK_ALGORITHM"
    BAD_PROOF = "BAD_PROOF"
    JOIN_TOKEN_INVALID = "JOIN_TOKEN_INVALID"  # noqa: S105 - a reason, not a password
    JOIN_TOKEN_SPENT = "JOIN_TOKEN_SPENT"  # noqa: S105 - a reason, not a password
    JOIN_TOKEN_FOR_OTHER_HOST = "JOIN_TOKEN_FOR_OTHER_HOST"  # noqa: S105 - a reason, not a password
    IDENTITY_CONFLICT = "IDENTITY_CONFLICT"
    HOST_UNKNOWN = "HOST_UNKNOWN"
    HOST_NOT_APPROVED = "HOST_NOT_APPROVED"
    HOST_BANNED = "HOST_BANNED"
    HOST_REPLACED = "HOST_REPLACED"


class ChallengeReason(StrEnum):
    """Why a cookie was not accepted."""

    COOKIE_INVALID = "COOKIE_INVALID"
    CHALLENGE_EXPIRED = "CHALLENGE_EXPIRED"
    CHALLENGE_SPENT = "CHALLENGE_SPENT"


class TokenReason(StrEnum):
    """Why a token or heartbeat is not believed."""

    MALFORMED = "MALFORMED"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    WRONG_TYPE = "WRONG_TYPE"
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    NOT_YET_VALID = "NOT_YET_VALID"
    EXPIRED = "EXPIRED"
    MISSING_CLAIM = "MISSING_CLAIM"
    NOT_AFFIRMING = "NOT_AFFIRMING"


class EvidenceRejected(AttestationError):
    """Evidence was read and is not believed.

    ``expected`` and ``seen`` are what the rule compared, ``event`` the place in the log; each may be empty.
    """

    def __init__(
        self, reason: RejectReason, message: str, *, expected: str = "", seen: str = "", event: str = ""
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.detail = message
        self.expected = expected
        self.seen = seen
        self.event = event


class EnrollmentRejected(AttestationError):
    """A host is not admitted."""

    def __init__(self, reason: EnrollmentReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class ChallengeRejected(AttestationError):
    """A cookie was not accepted."""

    def __init__(self, reason: ChallengeReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class TokenRejected(AttestationError):
    """A token or heartbeat is not believed."""

    def __init__(self, reason: TokenReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.detail = message


class MalformedRequest(AttestationError):
    """An administrator's request is not one: a name, an id, a page."""


class PolicyRejected(AttestationError):
    """A policy or reference document is not acceptable."""


class NotFound(AttestationError):
    """Nothing of that name exists."""


class Conflict(AttestationError):
    """The change contradicts what is there."""


class TpmError(AttestationError):
    """The TPM refused a command or did not answer."""
