"""Keeps the host attested: a background thread that renews in time and tries again where that fails.

A site may start in any order: whatever is away at first, this keeps asking, with growing pauses.
"""

import threading
from collections.abc import Callable

import structlog

from host_agent.attestation_session import AttestationSession, Clock
from host_agent.errors import NotAttested
from host_agent.renewal import pause_after_failures

_LONGEST_WAIT_SECONDS = 30.0
"""A machine that was suspended wakes up with a wait that stood still; look at the clock at least this often."""
_log = structlog.get_logger(__name__)


class AttestationLoop:
    """Calls ``AttestationSession.renew`` when it is time."""

    def __init__(self, session: AttestationSession, *, clock: Clock, jitter: Callable[[], float]) -> None:
        """Renew ``session`` once started."""
        self._session = session
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._told = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attestation", daemon=True)

    def start(self) -> None:
        """Attest now, and whenever it is time."""
        self._thread.start()

    def stop(self) -> None:
        """End; an attestation under way is not waited for long."""
        self._stopped.set()
        self._thread.join(2.0)

    def step(self) -> float:
        """Do what is due and return for how many seconds nothing will be."""
        held = self._session.view().attested
        if held is None or self._clock() >= held.renew_at:
            try:
                held = self._session.renew(held)
            except NotAttested as exc:
                self._failures += 1
                self._tell(exc)
                return pause_after_failures(self._failures, self._jitter())
            self._failures = 0
            self._told = ""
        return max(0.0, held.renew_at - self._clock())

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                pause = self.step()
            except Exception as exc:
                # The thread must outlive whatever a service sends, or the host silently falls out of trust.
                _log.error("unexpected error while attesting", exc_info=exc)
                pause = _LONGEST_WAIT_SECONDS
            self._stopped.wait(min(pause, _LONGEST_WAIT_SECONDS))

    def _tell(self, failure: NotAttested) -> None:
        # Once per reason: a site that is away for a night must not fill the log.
        if failure.reason != self._told:
            self._told = failure.reason
            _log.warning("not attested", reason=failure.reason, error=str(failure))
