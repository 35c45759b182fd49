"""Admission: the table of states, and who is let in."""

from dataclasses import replace

import pytest

from attestation.errors import Conflict, EnrollmentReason, EnrollmentRejected
from attestation.model import AdmissionState, EkTemplate, HostId
from attestation.verifier.admission import AdmissionStep, admit, next_state, require_admitted
from attestation.verifier.model import Candidate, HostRecord

ALLOWED = {
    ("requested", "approve"): "approved",
    ("approved", "attest"): "active",
    ("active", "attest"): "active",
    ("requested", "ban"): "banned",
    ("approved", "ban"): "banned",
    ("active", "ban"): "banned",
    ("requested", "replace"): "replaced",
    ("approved", "replace"): "replaced",
    ("active", "replace"): "replaced",
}
CANDIDATE = Candidate(
    host_id=HostId("a" * 64),
    name="host-a",
    anchor="vendor",
    ek_template=EkTemplate.ECC_P256_LOW,
    ek_public=b"ek",
    ek_certificate=b"certificate",
    ak_public=b"ak",
    join_token_id="token",
    cluster="blue",
)
KNOWN = HostRecord(
    host_id=CANDIDATE.host_id,
    name=CANDIDATE.name,
    state=AdmissionState.ACTIVE,
    cluster="blue",
    anchor="vendor",
    ek_template=EkTemplate.ECC_P256_LOW,
    ak_public=b"ak",
    enrolled_at=1,
    boot=None,
)
OTHER = HostId("b" * 64)


def refusal(
    candidate: Candidate = CANDIDATE,
    *,
    known: HostRecord | None = None,
    namesake: HostRecord | None = None,
    token_spent_by: HostId | None = None,
) -> EnrollmentReason:
    """Why a candidate is refused."""
    with pytest.raises(EnrollmentRejected) as caught:
        admit(candidate, known=known, namesake=namesake, token_spent_by=token_spent_by, now=5)
    return caught.value.reason


@pytest.mark.parametrize("state", AdmissionState)
@pytest.mark.parametrize("step", AdmissionStep)
def test_the_table_is_the_life_cycle(state: AdmissionState, step: AdmissionStep) -> None:
    """Each transition leads where it must, and what the table does not name raises."""
    expected = ALLOWED.get((state.value, step.value))
    if expected is None:
        with pytest.raises(Conflict):
            next_state(state, step)
    else:
        assert next_state(state, step).value == expected


@pytest.mark.parametrize("state", [AdmissionState.APPROVED, AdmissionState.ACTIVE])
def test_admitted_hosts_may_attest(state: AdmissionState) -> None:
    """Approved and active hosts pass."""
    require_admitted(state)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, EnrollmentReason.HOST_UNKNOWN),
        (AdmissionState.REQUESTED, EnrollmentReason.HOST_NOT_APPROVED),
        (AdmissionState.BANNED, EnrollmentReason.HOST_BANNED),
        (AdmissionState.REPLACED, EnrollmentReason.HOST_REPLACED),
    ],
)
def test_other_hosts_may_not_attest(state: AdmissionState | None, reason: EnrollmentReason) -> None:
    """Every other state has its own refusal."""
    with pytest.raises(EnrollmentRejected) as caught:
        require_admitted(state)
    assert caught.value.reason is reason


def test_a_join_token_admits_to_its_cluster() -> None:
    """A new host with a token is approved."""
    host = admit(CANDIDATE, known=None, namesake=None, token_spent_by=None, now=5)
    assert (host.state, host.cluster, host.enrolled_at) == (AdmissionState.APPROVED, "blue", 5)


def test_without_a_join_token_a_host_waits() -> None:
    """A genuine TPM is not yet a member."""
    candidate = replace(CANDIDATE, join_token_id=None, cluster="")
    host = admit(candidate, known=None, namesake=None, token_spent_by=None, now=5)
    assert (host.state, host.cluster) == (AdmissionState.REQUESTED, "")


def test_a_waiting_host_is_approved_by_a_later_token() -> None:
    """The second attempt, with a token, admits the same host."""
    waiting = replace(KNOWN, state=AdmissionState.REQUESTED, cluster="")
    host = admit(CANDIDATE, known=waiting, namesake=waiting, token_spent_by=None, now=5)
    assert (host.state, host.cluster, host.enrolled_at) == (AdmissionState.APPROVED, "blue", 1)


def test_a_repeated_enrolment_changes_nothing() -> None:
    """A host whose answer was lost asks again, with the same token."""
    assert admit(CANDIDATE, known=KNOWN, namesake=KNOWN, token_spent_by=KNOWN.host_id, now=5) == KNOWN


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (AdmissionState.BANNED, EnrollmentReason.HOST_BANNED),
        (AdmissionState.REPLACED, EnrollmentReason.HOST_REPLACED),
    ],
)
def test_an_expelled_host_does_not_return(state: AdmissionState, reason: EnrollmentReason) -> None:
    """A fresh token does not undo a ban."""
    known = replace(KNOWN, state=state)
    assert refusal(known=known, namesake=known) is reason


def test_a_join_token_is_for_one_host() -> None:
    """A token that another host used is spent."""
    assert refusal(token_spent_by=OTHER) is EnrollmentReason.JOIN_TOKEN_SPENT


@pytest.mark.parametrize(
    ("candidate", "known", "namesake"),
    [
        (CANDIDATE, None, replace(KNOWN, host_id=OTHER)),
        (CANDIDATE, replace(KNOWN, name="host-b"), None),
        (CANDIDATE, replace(KNOWN, ak_public=b"other"), KNOWN),
        (CANDIDATE, replace(KNOWN, cluster="green"), KNOWN),
    ],
    ids=["name under another EK", "EK under another name", "another AK", "another cluster"],
)
def test_identity_is_immutable(candidate: Candidate, known: HostRecord | None, namesake: HostRecord | None) -> None:
    """Name, endorsement key, attestation key and cluster stay together, or an administrator acts (CVE-2025-13609)."""
    assert refusal(candidate, known=known, namesake=namesake) is EnrollmentReason.IDENTITY_CONFLICT
