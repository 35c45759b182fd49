"""How every daemon runs: hardened, logging to standard error as JSON, announced when ready, stopped by a signal."""

import ctypes
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from serving.errors import ServingError

_PR_SET_DUMPABLE = 4
READY = "ready"
"""Event name of the log line that says a daemon serves."""


def harden_process() -> None:
    """Keep memory out of core dumps and away from other processes of the same user.

    ``RLIMIT_CORE`` alone is not honoured where core dumps go to a pipe; ``PR_SET_DUMPABLE`` is.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")


def configure_logging() -> None:
    """One JSON object per line on standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def run_daemon(name: str, start: Callable[[Path], Callable[[], None]]) -> int:
    """Run a daemon until SIGTERM or SIGINT: ``python -m NAME CONFIG``.

    Args:
        name: For messages.
        start: Starts everything from a configuration file and returns what stops it.

    Returns:
        Exit code: 0 after a signal, 2 where the configuration or the environment is wrong.
    """
    if len(sys.argv) != 2:
        print(f"usage: python -m {name} CONFIG.toml", file=sys.stderr)
        return 2
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    harden_process()
    configure_logging()
    log = structlog.get_logger(name)
    try:
        stop = start(Path(sys.argv[1]))
    except ServingError as exc:
        log.error("cannot start", error=str(exc))
        return 2
    log.info(READY)
    stopped.wait()
    stop()
    log.info("stopped")
    return 0
