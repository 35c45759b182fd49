"""Policy and references of one revision, parsed, ready to appraise by.

References are stored as the logs they were taken from and looked at anew under each policy: the policy says which
bank and PCRs count.
"""

import contextlib
import threading
from dataclasses import dataclass

from attestation.errors import EvidenceRejected, PolicyRejected, RejectReason
from attestation.verifier.ima_policy import ImaRules
from attestation.verifier.model import ReferenceRecord, Rules
from attestation.verifier.policy import AppraisalPolicy, canonical_hash, parse_policy
from attestation.verifier.ports import AttestStore
from attestation.verifier.reference import ReferenceBoot


@dataclass(frozen=True, slots=True)
class Rulebook:
    """What appraisals are made by."""

    revision: int
    policy: AppraisalPolicy
    policy_hash: bytes
    """SHA-256 of the policy's canonical JSON, 32 bytes."""
    references: tuple[ReferenceBoot, ...]
    """The active ones that cover what the policy demands."""
    ima_rules: ImaRules | None = None
    """The policy's ``ima``, made ready; None where it has none."""


class RulebookCache:
    """Keeps the rulebook of the newest revision that was asked for."""

    def __init__(self, store: AttestStore) -> None:
        """Read rules from ``store``."""
        self._store = store
        self._rulebook: Rulebook | None = None
        self._loading = threading.Lock()

    def at(self, revision: int) -> Rulebook:
        """The rulebook of ``revision`` or, where that has passed, of a later one.

        Raises:
            EvidenceRejected: NO_ACTIVE_REFERENCE: no policy is in force.
            StoreError: The database is not usable.
        """
        rulebook = self._rulebook
        if rulebook is not None and rulebook.revision == revision:
            return rulebook
        with self._loading:
            rulebook = self._rulebook
            if rulebook is None or rulebook.revision != revision:
                rulebook = self._rulebook = read_rules(self._store.rules())
            return rulebook


def read_rules(rules: Rules) -> Rulebook:
    """Parse stored rules.

    Raises:
        EvidenceRejected: NO_ACTIVE_REFERENCE: no policy is in force, so nothing can be believed.
    """
    if rules.policy is None:
        message = "no policy is in force: no host is trusted until there is one"
        raise EvidenceRejected(RejectReason.NO_ACTIVE_REFERENCE, message)
    policy = parse_policy(rules.policy.document)
    references = []
    for record in rules.references:
        # A reference that does not cover what the policy demands vouches for nothing.
        with contextlib.suppress(PolicyRejected):
            references.append(read_reference(record, policy))
    ima_rules = None if policy.ima is None else ImaRules(policy.ima)
    return Rulebook(rules.revision, policy, canonical_hash(policy), tuple(references), ima_rules)


def read_reference(record: ReferenceRecord, policy: AppraisalPolicy) -> ReferenceBoot:
    """A stored reference as ``policy`` looks at it.

    Raises:
        PolicyRejected: The log does not cover what the policy demands, or breaks its rules.
    """
    return ReferenceBoot.from_log(
        record.name,
        record.event_log,
        policy.bank,
        policy.boot_pcrs,
        command_line=record.command_line,
        quirks=policy.quirks,
    )
