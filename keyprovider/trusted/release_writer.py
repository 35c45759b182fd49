"""Group commit: release records of concurrent calls share a transaction.

A commit waits for the disk; a call waits for the commit that holds its record. The first call to come commits its
record at once, on its own thread. What comes meanwhile gathers, and the first of those commits all of it together: no
thread of its own, no hand-over where there is one call only, and nobody is overtaken.
"""

import threading
from dataclasses import dataclass, field
from typing import Final

from keyprovider.errors import StoreError
from keyprovider.trusted.model import ReleaseRecord
from keyprovider.trusted.ports import ReleaseStore

MAX_BATCH: Final = 256
"""Records in one transaction."""


def _closed_gate() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(slots=True, eq=False)
class _Entry:
    """A record and the call that waits for it."""

    record: ReleaseRecord
    gate: threading.Lock = field(default_factory=_closed_gate)
    """Opened once: when the outcome is known, or when it is this call's turn to commit."""
    outcome: int | Exception | None = None


class ReleaseWriter:
    """The only one in this process who appends to the release log."""

    def __init__(self, store: ReleaseStore) -> None:
        """Append to ``store``."""
        self._store = store
        self._mutex = threading.Lock()
        self._idle = threading.Condition(self._mutex)
        self._pending: list[_Entry] = []
        self._committing = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Records that no transaction has taken up yet."""
        with self._mutex:
            return len(self._pending)

    def write(self, record: ReleaseRecord) -> int:
        """Append a record and wait until it is durable.

        Returns:
            Its index in the log.

        Raises:
            StoreError: It was not stored (or nobody knows), or the writer was closed.
        """
        entry = _Entry(record)
        with self._mutex:
            if self._closed:
                raise StoreError("the release log is closed")
            self._pending.append(entry)
            must_wait = self._committing
            self._committing = True
        if must_wait:
            entry.gate.acquire()
        if entry.outcome is None:
            self._commit_pending()
        if isinstance(entry.outcome, int):
            return entry.outcome
        raise StoreError(f"the release was not recorded: {entry.outcome}") from entry.outcome

    def close(self) -> None:
        """Refuse new records, and wait until those under way are stored."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._committing)

    def _commit_pending(self) -> None:
        """Commit what gathered, the caller's own record first among it; then pass the turn on."""
        with self._mutex:
            batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
        try:
            indexes = self._store.append([entry.record for entry in batch])
            for entry, index in zip(batch, indexes, strict=True):
                entry.outcome = index
        except Exception as exc:  # every waiting call must learn of it, whatever it is
            for entry in batch:
                entry.outcome = exc
        with self._idle:
            successor = self._pending[0] if self._pending else None
            if successor is None:
                self._committing = False
                self._idle.notify_all()
        for entry in batch[1:] if successor is None else [successor, *batch[1:]]:
            entry.gate.release()
