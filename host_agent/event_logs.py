"""The measurement logs of this boot, read from where firmware and kernel leave them."""

from collections.abc import Mapping
from pathlib import Path

from attestation.model import LogKind
from host_agent.errors import EventLogUnreadable

MAX_LOG_BYTES = 4 * 1024 * 1024
"""What the attestation service takes."""
MAX_COMMAND_LINE = 1024
"""Characters; in any encoding no more than the service takes."""


class LogFiles:
    """``host_agent.ports.MeasurementLogs`` in files (securityfs, as a rule)."""

    def __init__(self, paths: Mapping[LogKind, Path], command_line: Path | None = None) -> None:
        """Read these.

        Args:
            paths: A kind that is absent is a log that this host has not.
            command_line: Where the kernel shows its command line.
        """
        self._paths = paths
        self._command_line = command_line

    def read(self, kinds: tuple[LogKind, ...]) -> Mapping[LogKind, bytes]:
        """See ``MeasurementLogs.read``."""
        return {kind: _read(self._paths[kind]) for kind in kinds if kind in self._paths}

    def command_line(self) -> str:
        """See ``host_agent.ports.MeasurementLogs``. Never an error: nothing is decided by it."""
        if self._command_line is None:
            return ""
        try:
            text = self._command_line.read_text(errors="replace").rstrip("\n")
        except OSError:
            return ""
        return text[:MAX_COMMAND_LINE]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            content = source.read(MAX_LOG_BYTES + 1)
    except OSError as exc:
        raise EventLogUnreadable(f"cannot read the measurement log {path}: {exc.strerror}") from exc
    if len(content) > MAX_LOG_BYTES:
        raise EventLogUnreadable(f"the measurement log {path} has more than {MAX_LOG_BYTES:,} bytes")
    return content
