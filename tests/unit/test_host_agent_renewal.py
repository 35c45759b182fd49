"""When the host agent attests again."""

import datetime

import pytest

from attestation.errors import TpmError
from host_agent.attestation_loop import AttestationLoop
from host_agent.errors import Peer, PeerRefused, PeerUnreachable
from host_agent.renewal import pause_after_failures, token_life
from tests.host_agent_fakes import NOW, TOKEN_SECONDS, Host


def _life(*, seconds: float, renew: float, skew: float = 0.0) -> tuple[float, float]:
    server_time = NOW + datetime.timedelta(seconds=skew)
    life = token_life(
        expires_at=server_time + datetime.timedelta(seconds=seconds),
        renew_at=server_time + datetime.timedelta(seconds=renew),
        server_time=server_time,
        asked_at=1000.0,
    )
    return life.renew_at, life.ends_at


def test_renewal_is_due_at_the_time_that_the_service_names() -> None:
    """A token of 300 s whose service names 240 s is renewed at 80 % of its life (R-TA-4)."""
    assert _life(seconds=300, renew=240) == (1240.0, 1300.0)


@pytest.mark.parametrize(("named", "renew_at"), [(299, 1240.0), (0, 1030.0), (-1000, 1030.0), (10**6, 1240.0)])
def test_renewal_stays_within_the_token(named: float, renew_at: float) -> None:
    """Whatever time the service names, renewal is neither at once for ever nor after 80 % of the token's life."""
    assert _life(seconds=300, renew=named) == (renew_at, 1300.0)


def test_wrong_wall_clock_does_not_change_a_tokens_life() -> None:
    """A host whose clock is an hour off keeps a token exactly as long as one whose clock is right."""
    assert _life(seconds=300, renew=240, skew=3600) == _life(seconds=300, renew=240)


def test_pauses_grow_to_ten_seconds() -> None:
    """Failures in a row double the pause from half a second to 10 s, and no further."""
    pauses = [pause_after_failures(failures, 1.0) for failures in range(1, 9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert pause_after_failures(10**9, 1.0) == 10.0


def test_jitter_spreads_half_of_a_pause() -> None:
    """Chance takes away up to half of a pause, so that a fleet does not come back all at once."""
    assert (pause_after_failures(4, 0.0), pause_after_failures(4, 1.0)) == (2.0, 4.0)


def _loop(host: Host) -> AttestationLoop:
    return AttestationLoop(host.session(), clock=host.authority.clock, jitter=lambda: 1.0)


def test_loop_attests_at_once_and_then_waits() -> None:
    """The first step attests; until 80 % of the token's life nothing is due."""
    host = Host()
    loop = _loop(host)
    assert loop.step() == pytest.approx(0.8 * TOKEN_SECONDS)
    assert loop.step() == pytest.approx(0.8 * TOKEN_SECONDS)
    assert len(host.authority.evidence) == 1


def test_loop_renews_when_it_is_time() -> None:
    """At 80 % of the token's life the next attestation is made."""
    host = Host()
    loop = _loop(host)
    host.authority.clock.seconds += loop.step()
    assert loop.step() == pytest.approx(0.8 * TOKEN_SECONDS)
    assert len(host.authority.evidence) == 2


@pytest.mark.parametrize(
    "failure",
    [
        PeerUnreachable(Peer.TRUST_AUTHORITY, "away"),
        PeerRefused(Peer.TRUST_AUTHORITY, "HOST_NOT_APPROVED", "wait"),
        PeerRefused(Peer.TRUST_AUTHORITY, "STORE_UNAVAILABLE", "wait", passing=True),
    ],
)
def test_loop_keeps_trying_with_growing_pauses(failure: Exception) -> None:
    """Whatever the trust authority's trouble is, the loop goes on, and starts over once it succeeds."""
    host = Host()
    loop = _loop(host)
    host.authority.failure = failure
    assert [loop.step() for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    host.authority.failure = None
    assert loop.step() == pytest.approx(0.8 * TOKEN_SECONDS)
    host.authority.clock.seconds += TOKEN_SECONDS
    host.authority.failure = failure
    assert loop.step() == 0.5


def test_loop_waits_for_a_tpm_that_is_away() -> None:
    """An agent that starts before its TPM attests once the TPM is there."""
    host = Host()
    loop = _loop(host)
    host.tpm.failure = TpmError("no such device")
    assert loop.step() == 0.5
    host.tpm.failure = None
    assert loop.step() == pytest.approx(0.8 * TOKEN_SECONDS)
