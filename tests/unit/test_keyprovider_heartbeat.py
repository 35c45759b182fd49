"""The newest heartbeat, and nothing older."""

import threading
from dataclasses import replace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import TokenRejected
from attestation.model import HostId
from attestation.token import HeartbeatClaims, mint_heartbeat
from keyprovider.errors import HeartbeatRefused
from keyprovider.trusted.heartbeat import HeartbeatKeeper, HeartbeatPoller
from serving.errors import RemoteError
from serving.jws import key_id

NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {key_id(KEY.public_key()): KEY.public_key()}
CLAIMS = HeartbeatClaims(5, frozenset({HostId("ab" * 32)}), 7, NOW, NOW + 30)


def _keeper() -> HeartbeatKeeper:
    return HeartbeatKeeper(KEYS, lambda: NOW)


def test_nothing_is_known_before_the_first() -> None:
    """A service that never heard of the attestation service has no heartbeat."""
    assert _keeper().newest() is None


def test_the_newest_is_kept() -> None:
    """A later heartbeat of the same or a newer epoch replaces the kept one."""
    keeper = _keeper()
    keeper.offer(mint_heartbeat(CLAIMS, KEY))
    keeper.offer(mint_heartbeat(replace(CLAIMS, epoch=6, issued_at=NOW + 1), KEY))
    newest = keeper.newest()
    assert newest is not None
    assert (newest.epoch, newest.issued_at) == (6, NOW + 1)


def test_an_older_one_changes_nothing() -> None:
    """A delayed heartbeat cannot make a revocation unseen."""
    keeper = _keeper()
    kept = keeper.offer(mint_heartbeat(CLAIMS, KEY))
    older = replace(CLAIMS, issued_at=NOW - 5, epoch=4, revoked=frozenset())
    assert keeper.offer(mint_heartbeat(older, KEY)) == kept
    assert keeper.newest() == kept


@pytest.mark.parametrize("back", [{"epoch": 4}, {"policy_version": 6}])
def test_a_rollback_is_refused(back: dict[str, int]) -> None:
    """A later heartbeat with an older epoch or policy version is refused, and the kept one stays."""
    keeper = _keeper()
    kept = keeper.offer(mint_heartbeat(CLAIMS, KEY))
    later = replace(CLAIMS, issued_at=NOW + 1, **back)  # type: ignore[arg-type]
    with pytest.raises(HeartbeatRefused):
        keeper.offer(mint_heartbeat(later, KEY))
    assert keeper.newest() == kept


def test_a_forged_or_expired_one_is_refused() -> None:
    """Only the pinned key is believed, and only in time."""
    keeper = _keeper()
    with pytest.raises(TokenRejected):
        keeper.offer(mint_heartbeat(CLAIMS, ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(TokenRejected):
        keeper.offer(mint_heartbeat(replace(CLAIMS, expires_at=NOW), KEY))
    assert keeper.newest() is None


class _Service:
    """An attestation service that fails first, then answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.answered = threading.Event()

    def fetch(self) -> str:
        """The port's method."""
        self.calls += 1
        if self.calls == 1:
            raise RemoteError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "not up yet")
        if self.calls == 2:
            return "not a heartbeat"
        if self.calls > 3:
            self.answered.set()
        return mint_heartbeat(CLAIMS, KEY)


def test_the_poller_outlives_outages() -> None:
    """An unreachable service and a senseless answer are asked again, until there is a heartbeat."""
    keeper, service = _keeper(), _Service()
    poller = HeartbeatPoller(keeper, service, interval_seconds=0.01)
    assert service.answered.wait(10)
    poller.close()
    newest = keeper.newest()
    assert newest is not None
    assert newest.epoch == 5
