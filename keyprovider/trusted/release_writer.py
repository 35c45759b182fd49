"""Group commit: release records of concurrent calls share a transaction.

A commit waits for the disk; a call waits for the commit that holds its record. The first call to come commits its
record at once, on its own thread. What comes meanwhile gathers, and the first of those commits all of it together: no
thread of its own, no hand-over where there is one call only, and nobody is overtaken.

Each commit gets one signed tree head for all its records, made while the next commit waits for the disk.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from keyprovider.errors import StoreError
from keyprovider.trusted.errors import LogShortened
from keyprovider.trusted.log import encode_entry
from keyprovider.trusted.model import LogReceipt, ReleaseRecord
from keyprovider.trusted.ports import ReleaseStore

MAX_BATCH: Final = 256
"""Records in one transaction."""
_log = structlog.get_logger(__name__)


def _closed_gate() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(frozen=True, slots=True)
class _Committed:
    """A record's place, and the head that was signed after its transaction."""

    index: int
    tree_size: int
    tree_head: str


@dataclass(slots=True, eq=False)
class _Entry:
    """A record and the call that waits for it."""

    record: ReleaseRecord
    gate: threading.Lock = field(default_factory=_closed_gate)
    """Opened once: when the outcome is known, or when it is this call's turn to commit."""
    outcome: _Committed | Exception | None = None


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

    def write(self, record: ReleaseRecord, known_tree_size: int | None = None) -> LogReceipt:
        """Append a record and wait until it is durable.

        Args:
            record: What to append.
            known_tree_size: Size of the head that whoever asks holds; proofs are made only where it is given.

        Returns:
            Its index in the log, and the signed head of a tree that holds it.

        Raises:
            LogShortened: The log had fewer entries than ``known_tree_size`` when the record was appended.
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
        if isinstance(entry.outcome, _Committed):
            return self._receipt(entry.outcome, record, known_tree_size)
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
        indexes, failure = range(0), None
        try:
            indexes = self._store.append([entry.record for entry in batch])
        except Exception as exc:  # every waiting call must learn of it, whatever it is
            failure = exc
        self._pass_on()
        try:
            outcomes = [failure] * len(batch) if failure is not None else self._committed(indexes)
        except Exception as exc:  # they are recorded, but nobody can show it: no key for them
            outcomes = [exc] * len(batch)
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.outcome = outcome
        for entry in batch[1:]:
            entry.gate.release()

    def _pass_on(self) -> None:
        """Have the first of those who wait commit next."""
        with self._idle:
            successor = self._pending[0] if self._pending else None
            if successor is None:
                self._committing = False
                self._idle.notify_all()
        if successor is not None:
            successor.gate.release()

    def _committed(self, indexes: range) -> Sequence[_Committed | Exception]:
        head = self._store.signed_head(indexes.stop)
        return [_Committed(index, indexes.stop, head) for index in indexes]

    def _receipt(self, committed: _Committed, record: ReleaseRecord, known_tree_size: int | None) -> LogReceipt:
        index, size = committed.index, committed.tree_size
        if known_tree_size is None or not committed.tree_head:
            return LogReceipt(index, committed.tree_head)
        if known_tree_size > index:
            _log.error("the release log was cut", entries=index, entries_seen_by_host=known_tree_size)
            raise LogShortened(f"the release log had {index} entries, but the host has seen {known_tree_size}")
        return LogReceipt(
            index,
            committed.tree_head,
            encode_entry(record),
            tuple(self._store.inclusion_proof(index, size)),
            tuple(self._store.consistency_proof(known_tree_size, size)),
        )
