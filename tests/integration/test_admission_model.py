"""A model of admission and attestation beside the real service: the two agree, whatever happens in what order.

The service's own objects run in process on SQLite, with hosts whose TPMs are software. The model is a handful of
fields for each host; what it says of an attestation is exact: trusted, or refused for one reason.
"""

import datetime
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attestation.errors import (
    ChallengeReason,
    ChallengeRejected,
    Conflict,
    EnrollmentReason,
    EnrollmentRejected,
    EvidenceRejected,
    NotFound,
    RejectReason,
)
from attestation.simulator.attacks.attack import strict_policy
from attestation.simulator.attacks.edits import command_line
from attestation.simulator.lying_host import HonestHost
from attestation.token import VerifiedToken, issuer_of, verify_heartbeat, verify_token
from attestation.verifier.attest import CHALLENGE_SECONDS
from garant.attestation.v1 import attestation_pb2 as pb
from tests.in_process_service import AUDIENCE, CLUSTER, REFERENCE, SITE, InProcessService, member, world

FIRST_RESET = 10
HOSTS = st.integers(0, 2)
"""Few, so that things happen to the same host."""
Reason = EnrollmentReason | ChallengeReason | RejectReason
Rejection = EnrollmentRejected | ChallengeRejected | EvidenceRejected
REJECTED: tuple[type[Rejection], ...] = (EnrollmentRejected, ChallengeRejected, EvidenceRejected)
_ADMITTED = ("approved", "active")
_NOT_ADMITTED = {
    "": EnrollmentReason.HOST_UNKNOWN,
    "requested": EnrollmentReason.HOST_NOT_APPROVED,
    "banned": EnrollmentReason.HOST_BANNED,
}


@dataclass
class Model:
    """What should be true of one host."""

    host: HonestHost
    state: str = ""
    """Empty: never enrolled."""
    reset_count: int = FIRST_RESET
    good_boot: bool = True
    highest: int = 0
    """Greatest reset count that a believed quote carried."""

    @property
    def machine(self) -> HonestHost:
        """The host as it is now."""
        host = self.host.quoting(reset_count=self.reset_count)
        return host if self.good_boot else host.booting(command_line("init=/bin/sh"))


@dataclass
class Open:
    """Evidence that was made and not handed in yet."""

    index: int
    request: pb.AttestRequest
    policy_version: int
    expires_at: int
    reset_count: int
    good_boot: bool


@dataclass
class Given:
    """A token that was given."""

    index: int
    token: VerifiedToken
    withdrawals: int
    """How often the reference had been withdrawn by then."""
    policy_version: int


class AdmissionMachine(RuleBasedStateMachine):
    """Everything that hosts and administrators can do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.service = InProcessService()
        self.policy_version = 0
        self.reference_active = False
        self.withdrawals = 0
        self.epoch = 0
        self.open: list[Open] = []
        self.spent: list[pb.AttestRequest] = []
        self.given: list[Given] = []
        self.models = [Model(replace(member(index), join_token="")) for index in range(3)]

    @initialize()
    def begin(self) -> None:
        """Anchor, policy and reference, as on the first day of a site."""
        self.service.trust()
        self.policy_version = 1
        self.reference_active = True

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.service.close()

    # Administrators.

    @rule()
    def put_policy(self) -> None:
        """A new version; all tokens end."""
        self.policy_version += 1
        self.service.administration.put_policy(strict_policy(self.policy_version))

    @rule()
    def put_an_older_policy(self) -> None:
        """Refused, whoever asks (T14)."""
        with pytest.raises(Conflict):
            self.service.administration.put_policy(strict_policy(self.policy_version))

    @rule()
    def withdraw_reference(self) -> None:
        """All tokens end, and nothing is trusted until it is back."""
        self.service.administration.withdraw_reference(REFERENCE)
        self.reference_active = False
        self.withdrawals += 1

    @rule()
    def restore_reference(self) -> None:
        """It counts again; what was given before does not."""
        self.service.administration.put_reference(REFERENCE, b"")
        self.reference_active = True

    @rule(index=HOSTS)
    def approve(self, index: int) -> None:
        """Only a host that waits can be approved."""
        model = self.models[index]
        if model.state != "requested":
            with pytest.raises((Conflict, NotFound)):
                self.service.administration.approve_host(model.host.host_id.text, CLUSTER)
            return
        self.service.administration.approve_host(model.host.host_id.text, CLUSTER)
        model.state = "approved"

    @rule(index=HOSTS)
    def ban(self, index: int) -> None:
        """For good, from any state but the last."""
        model = self.models[index]
        if model.state in ("", "banned"):
            with pytest.raises((Conflict, NotFound)):
                self.service.administration.ban_host(model.host.host_id.text, "test")
            return
        self.service.administration.ban_host(model.host.host_id.text, "test")
        model.state = "banned"

    # Hosts.

    @rule(index=HOSTS, invited=st.booleans())
    def enroll(self, index: int, invited: bool) -> None:
        """With an invitation a host is approved, without one it waits, and a banned one stays outside."""
        model = self.models[index]
        host = replace(model.machine, join_token=world().join_token(model.host.name) if invited else "")
        if model.state == "banned":
            with pytest.raises(EnrollmentRejected) as caught:
                self.service.enroll(host)
            assert caught.value.reason is EnrollmentReason.HOST_BANNED
            return
        self.service.enroll(host)
        if invited and model.state in ("", "requested"):
            model.state = "approved"
        model.state = model.state or "requested"

    @rule(index=HOSTS, other=HOSTS)
    def enroll_as_another(self, index: int, other: int) -> None:
        """A name that is taken stays with its TPM (CVE-2025-13609)."""
        model = self.models[index]
        if index == other or not self.models[other].state:
            return
        with pytest.raises(EnrollmentRejected) as caught:
            self.service.enroll(replace(model.machine, name=self.models[other].host.name))
        expected = EnrollmentReason.HOST_BANNED if model.state == "banned" else EnrollmentReason.IDENTITY_CONFLICT
        assert caught.value.reason is expected

    @rule(index=HOSTS, good=st.booleans())
    def reboot(self, index: int, good: bool) -> None:
        """The counters go up; the boot is that of the reference, or is not."""
        model = self.models[index]
        model.reset_count += 1
        model.good_boot = good

    @rule(index=HOSTS)
    def roll_back(self, index: int) -> None:
        """An older copy of the TPM's state answers, with a good boot."""
        model = self.models[index]
        model.reset_count = max(model.reset_count - 1, 1)
        model.good_boot = True

    @rule(index=HOSTS)
    def ask(self, index: int) -> None:
        """Evidence is made, to be handed in at another time."""
        model = self.models[index]
        request = self.service.ask(model.machine)
        expires_at = int(self.service.now.timestamp()) + CHALLENGE_SECONDS
        self.open.append(Open(index, request, self.policy_version, expires_at, model.reset_count, model.good_boot))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Evidence is handed in: trusted, or refused for the one reason that the model has."""
        answer = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self._submit(answer)

    @rule(index=HOSTS)
    def attest(self, index: int) -> None:
        """A whole attestation."""
        self.ask(index)
        self._submit(self.open.pop())

    @precondition(lambda self: self.spent)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Evidence that was handed in once never gets a second answer (T8)."""
        request = data.draw(st.sampled_from(self.spent))
        with pytest.raises(ChallengeRejected) as caught:
            self.service.submit(request)
        assert caught.value.reason in (ChallengeReason.CHALLENGE_SPENT, ChallengeReason.CHALLENGE_EXPIRED)

    @precondition(lambda self: self.spent and self.open)
    @rule(data=st.data())
    def replay_under_a_fresh_challenge(self, data: st.DataObject) -> None:
        """Nor does it under the cookie of another challenge (CVE-2026-6420)."""
        request = pb.AttestRequest.FromString(data.draw(st.sampled_from(self.spent)).SerializeToString())
        request.cookie = self.open.pop().request.cookie
        with pytest.raises(REJECTED):
            self.service.submit(request)

    @rule(seconds=st.sampled_from([1, 59, 61, 400]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.service.now += datetime.timedelta(seconds=seconds)

    def _submit(self, answer: Open) -> None:
        model, expected = self.models[answer.index], self._expected(answer)
        if expected is not None:
            with pytest.raises(REJECTED) as caught:
                self.service.submit(answer.request)
            assert caught.value.reason is expected
        else:
            grant = self.service.submit(answer.request)
            model.state = "active"
            self.given.append(Given(answer.index, self._verified(grant.token), self.withdrawals, self.policy_version))
        self.spent.append(answer.request)
        if expected is None or (isinstance(expected, RejectReason) and model.state in _ADMITTED):
            model.highest = max(model.highest, answer.reset_count)

    def _expected(self, answer: Open) -> Reason | None:
        """What the service must say; None: a token."""
        model = self.models[answer.index]
        if int(self.service.now.timestamp()) >= answer.expires_at:
            return ChallengeReason.CHALLENGE_EXPIRED
        if model.state not in _ADMITTED:
            return _NOT_ADMITTED[model.state]
        if answer.policy_version != self.policy_version:
            return ChallengeReason.CHALLENGE_EXPIRED
        if answer.reset_count < model.highest:
            return RejectReason.BOOT_COUNTER_DECREASED
        if not self.reference_active:
            return RejectReason.NO_ACTIVE_REFERENCE
        return None if answer.good_boot else RejectReason.REFERENCE_MISMATCH

    def _verified(self, token: str) -> VerifiedToken:
        now = int(self.service.now.timestamp())
        return verify_token(token, keys=self.service.keys, issuer=issuer_of(SITE), audience=AUDIENCE, now=now)

    # What must always hold.

    @invariant()
    def what_relying_parties_see_is_true(self) -> None:
        """The heartbeat names exactly the banned hosts, and tokens of the present epoch are of the trusted alone."""
        now = int(self.service.now.timestamp())
        beat = verify_heartbeat(self.service.administration.heartbeat(), keys=self.service.keys, now=now)
        assert beat.epoch >= self.epoch
        self.epoch = beat.epoch
        assert beat.revoked == {model.host.host_id for model in self.models if model.state == "banned"}
        assert beat.policy_version == self.policy_version
        for given in self.given:
            if given.token.epoch < self.epoch:
                continue
            assert self.models[given.index].state == "active"
            assert given.token.host_id == self.models[given.index].host.host_id
            assert self.reference_active
            assert (given.withdrawals, given.policy_version) == (self.withdrawals, self.policy_version)


AdmissionMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    # A failure's steps are printed as they were: to make them fewer would take minutes.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


class TestAdmission(AdmissionMachine.TestCase):  # type: ignore[misc, valid-type]
    """No token without a host that was admitted, attested under an active reference, and was not banned (R-TA-4)."""
