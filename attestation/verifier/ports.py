"""What the attestation service needs from outside: a store, a clock, randomness.

Absent things: a look-up answers ``None``; a change of what does not exist raises ``NotFound``. Each method is one
transaction; what it changed is durable when it returns. Every method raises ``serving.errors.StoreError`` where the
database is not usable.
"""

import datetime
from collections.abc import Callable
from typing import Protocol

from attestation.model import AdmissionState, HostId
from attestation.verifier.model import (
    AnchorRecord,
    AppraisalRecord,
    AttestationView,
    Candidate,
    EvidenceRecord,
    HostRecord,
    PolicyRecord,
    ReferenceRecord,
    RevocationState,
    Rules,
)

Clock = Callable[[], datetime.datetime]
"""Current time, aware."""
Randomness = Callable[[int], bytes]
"""That many bytes, unpredictable."""


class EnrollmentStore(Protocol):
    """What enrolment keeps."""

    def anchors(self) -> tuple[AnchorRecord, ...]:
        """All anchors, by name."""
        ...

    def spend(self, cookie_id: bytes, *, expires_at: int, now: int) -> None:
        """Spend a cookie. It may be forgotten once ``expires_at`` has passed for all replicas.

        Raises:
            ChallengeRejected: CHALLENGE_SPENT.
        """
        ...

    def enroll(self, candidate: Candidate, *, now: int) -> HostRecord:
        """Admit a host as ``admission.admit`` decides, and spend its join token in the same transaction.

        Raises:
            EnrollmentRejected: As ``admission.admit`` has it; nothing was changed.
        """
        ...


class AttestStore(Protocol):
    """What attestation keeps."""

    def revision(self) -> int:
        """The revision of policy and references."""
        ...

    def view(self, host_id: HostId, cookie_id: bytes) -> AttestationView:
        """Read what an appraisal starts from."""
        ...

    def rules(self) -> Rules:
        """Read policy and active references."""
        ...

    def spend(self, cookie_id: bytes, *, expires_at: int, now: int) -> None:
        """As in ``EnrollmentStore``."""
        ...

    def conclude(
        self,
        host_id: HostId,
        appraisal: AppraisalRecord,
        evidence: EvidenceRecord,
        *,
        cookie_id: bytes,
        expires_at: int,
    ) -> bool:
        """Spend the cookie, keep the appraisal and its evidence, and make a trusted host active.

        Returns:
            Whether it stands: False where a quote of a later boot was proven meanwhile, or the host was expelled. Then
            only the cookie was spent.

        Raises:
            ChallengeRejected: CHALLENGE_SPENT; nothing was changed.
        """
        ...


class AdministrationStore(Protocol):
    """What administration keeps."""

    def add_anchor(self, anchor: AnchorRecord) -> None:
        """Add an anchor.

        Raises:
            Conflict: Its name or its certificate is there.
        """
        ...

    def anchors(self) -> tuple[AnchorRecord, ...]:
        """All anchors, by name."""
        ...

    def hosts(self, *, after: str, limit: int, state: AdmissionState | None) -> tuple[HostRecord, ...]:
        """At most ``limit`` hosts whose id is greater than ``after``, by id."""
        ...

    def find_hosts(self, text: str) -> tuple[HostRecord, ...]:
        """At most two hosts whose id begins with ``text``, or whose name it is."""
        ...

    def last_appraisal(self, host_id: HostId) -> AppraisalRecord | None:
        """The newest appraisal of a host."""
        ...

    def last_evidence(self, host_id: HostId) -> EvidenceRecord | None:
        """The evidence of that appraisal."""
        ...

    def approve_host(self, host_id: HostId, cluster: str) -> HostRecord:
        """Approve a host.

        Raises:
            NotFound: There is none.
            Conflict: Its state does not allow that.
        """
        ...

    def ban_host(self, host_id: HostId, reason: str) -> HostRecord:
        """Ban a host, and begin a new epoch.

        Raises:
            NotFound: There is none.
            Conflict: Its state does not allow that.
        """
        ...

    def put_policy(self, policy: PolicyRecord, *, now: int) -> None:
        """Put a policy in force, and begin a new epoch.

        Raises:
            Conflict: Its version is not greater than that in force.
        """
        ...

    def policy(self) -> PolicyRecord | None:
        """The policy in force."""
        ...

    def put_reference(self, reference: ReferenceRecord) -> None:
        """Add a reference.

        Raises:
            Conflict: There is one of that name, with another event log.
        """
        ...

    def set_reference_active(self, name: str, *, active: bool) -> ReferenceRecord:
        """Withdraw a reference, which begins a new epoch, or bring it back.

        Raises:
            NotFound: There is none.
        """
        ...

    def references(self) -> tuple[ReferenceRecord, ...]:
        """All references, by name."""
        ...

    def revocation(self) -> RevocationState:
        """Epoch and banned hosts."""
        ...
