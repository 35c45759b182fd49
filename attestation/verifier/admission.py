"""Admission of hosts: which state may follow which, and who may attest.

A genuine TPM is not yet a member. The life cycle is the table below; a transition that it does not name raises and
changes nothing.

    requested ──approve──▶ approved ──attest──▶ active ──attest──▶ active
        └─────────┬────────────┴──────────┬────────┘
                 ban ▶ banned         replace ▶ replaced

Pure: no clock, randomness, I/O or logging.
"""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from attestation.errors import Conflict, EnrollmentReason, EnrollmentRejected
from attestation.model import AdmissionState, HostId
from attestation.verifier.model import Candidate, HostRecord


class AdmissionStep(StrEnum):
    """What happens to a host."""

    APPROVE = "approve"
    ATTEST = "attest"
    BAN = "ban"
    REPLACE = "replace"


_REQUESTED, _APPROVED, _ACTIVE = AdmissionState.REQUESTED, AdmissionState.APPROVED, AdmissionState.ACTIVE
TRANSITIONS: Mapping[tuple[AdmissionState, AdmissionStep], AdmissionState] = {
    (_REQUESTED, AdmissionStep.APPROVE): _APPROVED,
    (_APPROVED, AdmissionStep.ATTEST): _ACTIVE,
    (_ACTIVE, AdmissionStep.ATTEST): _ACTIVE,
    **{(state, AdmissionStep.BAN): AdmissionState.BANNED for state in (_REQUESTED, _APPROVED, _ACTIVE)},
    **{(state, AdmissionStep.REPLACE): AdmissionState.REPLACED for state in (_REQUESTED, _APPROVED, _ACTIVE)},
}
"""Banned and replaced hosts stay so: a new start takes a new endorsement key."""

_REFUSALS = {
    AdmissionState.REQUESTED: (EnrollmentReason.HOST_NOT_APPROVED, "an administrator has not approved this host yet"),
    AdmissionState.BANNED: (EnrollmentReason.HOST_BANNED, "this host was banned by an administrator"),
    AdmissionState.REPLACED: (EnrollmentReason.HOST_REPLACED, "this host's TPM was replaced by another"),
}


def next_state(state: AdmissionState, step: AdmissionStep) -> AdmissionState:
    """The state after ``step``.

    Raises:
        Conflict: The table names no such transition.
    """
    after = TRANSITIONS.get((state, step))
    if after is None:
        raise Conflict(f"a host that is {state} cannot be taken through {step!s}")
    return after


def require_admitted(state: AdmissionState | None) -> None:
    """Refuse a host that may not attest; ``None`` stands for a host that never enrolled.

    Raises:
        EnrollmentRejected: HOST_UNKNOWN, HOST_NOT_APPROVED, HOST_BANNED or HOST_REPLACED.
    """
    if state is None:
        raise EnrollmentRejected(EnrollmentReason.HOST_UNKNOWN, "no host of this id has enrolled")
    if (state, AdmissionStep.ATTEST) in TRANSITIONS:
        return
    raise EnrollmentRejected(*_REFUSALS[state])


def admit(
    candidate: Candidate,
    *,
    known: HostRecord | None,
    namesake: HostRecord | None,
    token_spent_by: HostId | None,
    now: int,
) -> HostRecord:
    """Decide on a host that proved its TPM. Identity is immutable: name, endorsement key and attestation key together.

    Args:
        candidate: What it proved.
        known: The host of its id, if any.
        namesake: The host of its name that is not replaced, if any.
        token_spent_by: Which host spent its join token, if any did. A host may show its own once more: the answer to
            its first call may have been lost.
        now: Seconds since the epoch.

    Returns:
        The host as it is to be stored.

    Raises:
        EnrollmentRejected: HOST_BANNED, HOST_REPLACED, JOIN_TOKEN_SPENT or IDENTITY_CONFLICT, in that order.
    """
    if known is not None and known.state in (AdmissionState.BANNED, AdmissionState.REPLACED):
        raise EnrollmentRejected(*_REFUSALS[known.state])
    if token_spent_by not in (None, candidate.host_id):
        raise EnrollmentRejected(EnrollmentReason.JOIN_TOKEN_SPENT, "another host used this join token")
    if namesake is not None and namesake.host_id != candidate.host_id:
        message = f"a host named {candidate.name} is enrolled with another endorsement key"
        raise EnrollmentRejected(EnrollmentReason.IDENTITY_CONFLICT, message)
    if known is None:
        state = _REQUESTED if candidate.join_token_id is None else _APPROVED
        return HostRecord(
            host_id=candidate.host_id,
            name=candidate.name,
            state=state,
            cluster=candidate.cluster,
            anchor=candidate.anchor,
            ek_template=candidate.ek_template,
            ak_public=candidate.ak_public,
            enrolled_at=now,
            boot=None,
        )
    if (known.name, known.ak_public) != (candidate.name, candidate.ak_public):
        message = "this endorsement key is enrolled under another name or with another attestation key"
        raise EnrollmentRejected(EnrollmentReason.IDENTITY_CONFLICT, message)
    if candidate.join_token_id is None:
        return known
    if known.state is _REQUESTED:
        return replace(known, state=next_state(known.state, AdmissionStep.APPROVE), cluster=candidate.cluster)
    if known.cluster != candidate.cluster:
        message = f"this host belongs to cluster {known.cluster!r}; the join token is for {candidate.cluster!r}"
        raise EnrollmentRejected(EnrollmentReason.IDENTITY_CONFLICT, message)
    return known
