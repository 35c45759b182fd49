"""Group commit: one thread turns release records of many concurrent calls into few transactions.

A commit waits for the disk; a call waits for the commit that holds its record. While one commit is under way, the
records of other calls gather and go into the next.
"""

import queue
import threading
from concurrent.futures import Future
from typing import Final

from keyprovider.errors import StoreError
from keyprovider.trusted.model import ReleaseRecord
from keyprovider.trusted.ports import ReleaseStore

MAX_BATCH: Final = 256
"""Records in one transaction."""
_ANSWER_SECONDS: Final = 30.0
"""Longer than any store waits for its locks."""

_Entry = tuple[ReleaseRecord, "Future[int]"]


class ReleaseWriter:
    """The only one in this process who appends to the release log."""

    def __init__(self, store: ReleaseStore) -> None:
        """Start the writer thread."""
        self._store = store
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="release-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that no transaction has taken up yet."""
        return self._queue.qsize()

    def write(self, record: ReleaseRecord) -> int:
        """Append a record and wait until it is durable.

        Returns:
            Its index in the log.

        Raises:
            StoreError: It was not stored (or nobody knows), or the writer was closed.
        """
        future: Future[int] = Future()
        with self._closing:
            if self._closed:
                raise StoreError("the release log is closed")
            self._queue.put((record, future))
        try:
            return future.result(timeout=_ANSWER_SECONDS)
        except TimeoutError as exc:
            raise StoreError("the release log does not answer") from exc

    def close(self) -> None:
        """Store what was asked for so far, then end."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ends = self._gather(first)
            self._commit(batch)
            if ends:
                return

    def _gather(self, first: _Entry) -> tuple[list[_Entry], bool]:
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return batch, True
            batch.append(entry)
        return batch, False

    def _commit(self, batch: list[_Entry]) -> None:
        try:
            indexes = self._store.append([record for record, _ in batch])
        except Exception as exc:  # every waiting call must learn of it, and the thread must live
            for _, future in batch:
                future.set_exception(exc)
            return
        for (_, future), index in zip(batch, indexes, strict=True):
            future.set_result(index)
