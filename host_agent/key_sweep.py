"""Forgets the keys of VMs that ended by themselves: a guest that shuts down tells nobody."""

import threading

import structlog

from host_agent.agent import HostAgent

_PERIOD_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class KeySweep:
    """A thread that looks every few seconds."""

    def __init__(self, agent: HostAgent, period_seconds: float = _PERIOD_SECONDS) -> None:
        """Sweep for ``agent`` once started."""
        self._agent = agent
        self._period_seconds = period_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._period_seconds):
            try:
                self._agent.forget_idle_keys()
            except Exception as exc:
                # Were this thread to end, keys would stay in memory without anybody noticing.
                _log.error("cannot look for idle keys", exc_info=exc)
