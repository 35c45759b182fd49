"""Keeps the newest revocation heartbeat: asks the attestation service every two seconds.

A heartbeat replaces the kept one only if it is verified and newer, and its epoch and policy version have not gone back:
whoever can delay or replay messages cannot undo a revocation that was seen.

Serves the port ``HeartbeatSource``.
"""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from attestation.errors import TokenRejected
from attestation.token import PublicKeys, VerifiedHeartbeat, verify_heartbeat
from keyprovider.errors import HeartbeatRefused
from keyprovider.trusted.ports import HeartbeatFetcher
from serving.errors import RemoteError

POLL_SECONDS: Final = 2.0
FIRST_POLL_SECONDS: Final = 0.2
"""Until there is a first heartbeat: a site starts in any order, and its hosts wait for us."""
_log = structlog.get_logger(__name__)


class HeartbeatKeeper:
    """Accepts heartbeats from wherever they come, keeps the newest."""

    def __init__(self, keys: PublicKeys, clock: Callable[[], int]) -> None:
        """Believe ``keys``; ``clock`` gives seconds since the epoch."""
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: VerifiedHeartbeat | None = None

    def newest(self) -> VerifiedHeartbeat | None:
        """See ``HeartbeatSource.newest``."""
        return self._newest

    def offer(self, text: str) -> VerifiedHeartbeat:
        """Take in a heartbeat; one as old as the kept one or older changes nothing.

        Returns:
            The newest one known.

        Raises:
            TokenRejected: Not genuine, or expired.
            HeartbeatRefused: Issued later than the kept one, but of an older epoch or policy version.
        """
        offered = verify_heartbeat(text, keys=self._keys, now=self._clock())
        with self._lock:
            kept = self._newest
            if kept is not None and offered.issued_at < kept.issued_at:
                return kept
            if kept is not None and (offered.epoch < kept.epoch or offered.policy_version < kept.policy_version):
                raise HeartbeatRefused(
                    f"epoch {kept.epoch} and policy {kept.policy_version} were seen; a later heartbeat says"
                    f" epoch {offered.epoch} and policy {offered.policy_version}"
                )
            self._newest = offered
            return offered


class HeartbeatPoller:
    """Offers the attestation service's heartbeat to a keeper, again and again."""

    def __init__(
        self, keeper: HeartbeatKeeper, fetcher: HeartbeatFetcher, interval_seconds: float = POLL_SECONDS
    ) -> None:
        """Start asking at once."""
        self._keeper = keeper
        self._fetcher = fetcher
        self._interval_seconds = interval_seconds
        self._stopped = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="heartbeat-poller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._poll()
            waiting_for_first = self._keeper.newest() is None
            pause = min(FIRST_POLL_SECONDS, self._interval_seconds) if waiting_for_first else self._interval_seconds
            if self._stopped.wait(pause):
                return

    def _poll(self) -> None:
        try:
            heartbeat = self._keeper.offer(self._fetcher.fetch())
        except (RemoteError, TokenRejected, HeartbeatRefused) as exc:
            # Said once per outage; releases refuse by the kept one's age.
            if not self._failing:
                _log.warning("no heartbeat", error=str(exc))
            self._failing = True
            return
        if self._failing:
            _log.info("heartbeat is back", epoch=heartbeat.epoch)
        self._failing = False
