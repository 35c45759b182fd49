"""Group commit of release records."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from keyprovider.errors import StoreError
from keyprovider.trusted.model import LoggedRelease, ReleaseRecord
from keyprovider.trusted.release_writer import ReleaseWriter
from tests.release_records import release_record


class _Store:
    """A release store in memory whose disk answers when told to."""

    def __init__(self) -> None:
        self.batches: list[list[ReleaseRecord]] = []
        self.started = threading.Event()
        self.disk = threading.Event()
        self.disk.set()
        self.failing = False

    def append(self, records: Sequence[ReleaseRecord]) -> range:
        """The port's method."""
        self.started.set()
        assert self.disk.wait(10)
        if self.failing:
            raise StoreError("disk full")
        start = self.size()
        self.batches.append(list(records))
        return range(start, self.size())

    def read(self, start_index: int, count: int) -> list[LoggedRelease]:
        """The port's method; nothing here reads."""
        raise NotImplementedError

    def size(self) -> int:
        """The port's method."""
        return sum(len(batch) for batch in self.batches)


def test_no_call_returns_before_its_record_is_stored() -> None:
    """While the disk has not answered, no release is answered (B-4)."""
    store = _Store()
    store.disk.clear()
    writer = ReleaseWriter(store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(writer.write, release_record())
        assert store.started.wait(10)
        assert not waiting.done()
        store.disk.set()
        assert waiting.result(10) == 0
    writer.close()


def test_records_of_concurrent_calls_share_a_transaction() -> None:
    """What comes during one commit goes into the next together, each call with its own index."""
    store = _Store()
    store.disk.clear()
    writer = ReleaseWriter(store)
    with ThreadPoolExecutor(17) as pool:
        first = pool.submit(writer.write, release_record("first"))
        assert store.started.wait(10)
        others = [pool.submit(writer.write, release_record(f"other-{number}")) for number in range(16)]
        while writer.waiting < 16:
            pass
        store.disk.set()
        indexes = {first.result(10), *(other.result(10) for other in others)}
    assert indexes == set(range(17))
    assert [len(batch) for batch in store.batches] == [1, 16]
    flat = [record.token_id for batch in store.batches for record in batch]
    assert [flat[other.result()] for other in others] == [f"other-{number}" for number in range(16)]
    writer.close()


def test_a_failed_commit_fails_its_calls_only() -> None:
    """Every call whose record was not stored learns of it, and the next ones are served (B-4)."""
    store = _Store()
    writer = ReleaseWriter(store)
    store.failing = True
    with pytest.raises(StoreError, match="disk full"):
        writer.write(release_record())
    store.failing = False
    assert writer.write(release_record()) == 0
    writer.close()


def test_a_closed_writer_refuses() -> None:
    """After close nothing is stored and nothing is answered."""
    store = _Store()
    writer = ReleaseWriter(store)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.write(release_record())
    assert store.size() == 0
