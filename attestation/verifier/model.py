"""What the attestation service keeps and passes around. Frozen values, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass

from attestation.model import AdmissionState, BootIdentity, EkTemplate, HostId, LogKind


@dataclass(frozen=True, slots=True)
class AnchorRecord:
    """An anchor as it is stored."""

    name: str
    certificate_pem: str
    fingerprint: bytes
    """SHA-256 of the certificate, 32 bytes; one certificate is one anchor."""
    allow_virtual: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that proved that its endorsement key and its attestation key live in one genuine TPM."""

    host_id: HostId
    name: str
    anchor: str
    """Name of the anchor that its endorsement key rests on."""
    ek_template: EkTemplate
    ek_public: bytes
    """TPMT_PUBLIC."""
    ek_certificate: bytes
    """DER."""
    ak_public: bytes
    """TPMT_PUBLIC."""
    join_token_id: str | None
    """None: it came without a join token, and an administrator must approve it."""
    cluster: str
    """What the join token admits it to; empty without one."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host as it is stored."""

    host_id: HostId
    name: str
    state: AdmissionState
    cluster: str
    anchor: str
    ek_template: EkTemplate
    ak_public: bytes
    """TPMT_PUBLIC."""
    enrolled_at: int
    """Seconds since the epoch."""
    boot: BootIdentity | None
    """Highest boot counters that a proven quote of it carried."""


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """One check of an appraisal and how it came out."""

    rule: str
    title: str
    passed: bool
    expected: str = ""
    seen: str = ""
    event: str = ""


@dataclass(frozen=True, slots=True)
class AppraisalRecord:
    """One appraisal of one host's evidence."""

    appraised_at: int
    """Seconds since the epoch."""
    trusted: bool
    reason: str
    """Empty where trusted."""
    checks: tuple[CheckRecord, ...]
    reference: str
    """Empty where none equals the evidence."""
    policy_version: int
    boot: BootIdentity | None
    """None where the quote was not believed."""


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """Evidence as it came, kept for whoever has to understand a refusal."""

    quote: bytes
    signature: bytes
    pcr_values: tuple[tuple[int, bytes], ...]
    logs: Mapping[LogKind, bytes]


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """The policy in force."""

    version: int
    document: str
    """JSON, as the administrator put it."""
    digest: bytes
    """SHA-256 of its canonical JSON, 32 bytes."""


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """A reference boot as it is stored: the event log it was taken from."""

    name: str
    event_log: bytes
    active: bool
    command_line: str = ""
    """Kernel command line of the boot, which the log measures; empty where nobody named it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that appraisals are made by, at one revision."""

    revision: int
    policy: PolicyRecord | None
    references: tuple[ReferenceRecord, ...]
    """The active ones, by name."""


@dataclass(frozen=True, slots=True)
class AttestationView:
    """What the database says at the start of an appraisal, read at one moment."""

    host: HostRecord | None
    cookie_spent: bool
    epoch: int
    revision: int
    """Grows with each change of policy or references."""


@dataclass(frozen=True, slots=True)
class RevocationState:
    """What relying parties must know."""

    epoch: int
    revoked: frozenset[HostId]
    policy_version: int
    """0 where there is no policy."""
