"""Group commit of release records."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyprovider.errors import StoreError
from keyprovider.trusted.errors import LogShortened, ProofRejected
from keyprovider.trusted.log import encode_entry
from keyprovider.trusted.merkle import Frontier, Node, leaf_hash, plan_consistency, plan_inclusion, prove
from keyprovider.trusted.model import LoggedRelease, LogReceipt, ReleaseRecord
from keyprovider.trusted.release_writer import ReleaseWriter
from keyprovider.trusted.tree_head import (
    TreeHead,
    UnverifiedReceipt,
    VerifiedTreeHead,
    sign_tree_head,
    verify_receipt,
    verify_tree_head,
)
from serving.jws import key_id
from tests.release_records import release_record

NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {key_id(KEY.public_key()): KEY.public_key()}


def _unverified(receipt: LogReceipt) -> UnverifiedReceipt:
    """As a host reads an answer."""
    leaf = leaf_hash(receipt.entry)
    return UnverifiedReceipt(receipt.tree_head, receipt.index, leaf, receipt.inclusion_proof, receipt.consistency_proof)


class _Store:
    """A release store in memory whose disk answers when told to."""

    def __init__(self) -> None:
        self.batches: list[list[ReleaseRecord]] = []
        self.started = threading.Event()
        self.disk = threading.Event()
        self.disk.set()
        self.failing = False
        self.signing_fails = False
        self.signed: list[int] = []

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

    def root(self, size: int) -> bytes:
        """The port's method."""
        return self._tree(size)[1]

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """The port's method."""
        return prove(plan_inclusion(index, size), self._tree(size)[0])

    def consistency_proof(self, old_size: int, new_size: int) -> list[bytes]:
        """The port's method."""
        return prove(plan_consistency(old_size, new_size), self._tree(new_size)[0])

    def signed_head(self, size: int) -> str:
        """The port's method."""
        self.signed.append(size)
        if self.signing_fails:
            raise StoreError("no root")
        return sign_tree_head(TreeHead(size, self.root(size), NOW), KEY)

    def _tree(self, size: int) -> tuple[dict[Node, bytes], bytes]:
        frontier, nodes = Frontier(), dict[Node, bytes]()
        for index, record in enumerate([record for batch in self.batches for record in batch][:size]):
            leaf = leaf_hash(encode_entry(record))
            for level, each in enumerate((leaf, *frontier.append(leaf))):
                nodes[Node(level, index >> level)] = each
        return nodes, frontier.root()


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
        assert waiting.result(10).index == 0
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
        indexes = {first.result(10).index, *(other.result(10).index for other in others)}
    assert indexes == set(range(17))
    assert [len(batch) for batch in store.batches] == [1, 16]
    flat = [record.token_id for batch in store.batches for record in batch]
    assert [flat[other.result().index] for other in others] == [f"other-{number}" for number in range(16)]
    writer.close()


def test_a_failed_commit_fails_its_calls_only() -> None:
    """Every call whose record was not stored learns of it, and the next ones are served (B-4)."""
    store = _Store()
    writer = ReleaseWriter(store)
    store.failing = True
    with pytest.raises(StoreError, match="disk full"):
        writer.write(release_record())
    store.failing = False
    assert writer.write(release_record()).index == 0
    writer.close()


def test_a_commit_is_signed_once() -> None:
    """Records that share a transaction share one head, which holds them all (B-4)."""
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
        assert verify_tree_head(first.result(10).tree_head, keys=KEYS).size == 1
        (head,) = {other.result(10).tree_head for other in others}
    assert verify_tree_head(head, keys=KEYS) == VerifiedTreeHead(17, store.root(17), NOW, head)
    assert store.signed == [1, 17]
    writer.close()


def test_a_witness_follows_the_log() -> None:
    """Who says what head it holds gets what proves its release, and that nothing before was changed (B-4)."""
    writer = ReleaseWriter(_Store())
    seen: VerifiedTreeHead | None = None
    for number in range(20):
        receipt = writer.write(release_record(str(number)), seen.size if seen is not None else 0)
        for _ in range(number % 3):
            writer.write(release_record("another"))
        assert receipt.entry == encode_entry(release_record(str(number)))
        seen = verify_receipt(_unverified(receipt), seen=seen, keys=KEYS)
    writer.close()


def test_a_witness_notices_another_history() -> None:
    """A log that was written anew, with good signatures, is refused by whoever saw the first one (B-4)."""
    writer = ReleaseWriter(_Store())
    seen = verify_receipt(_unverified(writer.write(release_record("real"), 0)), seen=None, keys=KEYS)
    forked = ReleaseWriter(_Store())
    forked.write(release_record("other history"))
    receipt = forked.write(release_record(), seen.size)
    with pytest.raises(ProofRejected, match="does not begin with"):
        verify_receipt(_unverified(receipt), seen=seen, keys=KEYS)


def test_a_witness_believes_no_release_but_its_own() -> None:
    """Another entry, another place, another key's head, an old release shown again: each is refused (B-4)."""
    writer = ReleaseWriter(_Store())
    first = _unverified(writer.write(release_record("first"), 0))
    seen = verify_receipt(first, seen=None, keys=KEYS)
    good = _unverified(writer.write(release_record("second"), 1))
    other = ec.generate_private_key(ec.SECP256R1())
    for changed in (
        replace(good, leaf_hash=leaf_hash(b"other")),
        replace(good, index=0),
        replace(good, tree_head=""),
        replace(good, tree_head=sign_tree_head(TreeHead(2, bytes(32), NOW), KEY)),
        replace(good, tree_head=sign_tree_head(TreeHead(2, bytes(32), NOW), other)),
        replace(good, consistency_proof=()),
        first,
    ):
        with pytest.raises(ProofRejected):
            verify_receipt(changed, seen=seen, keys=KEYS)
    assert verify_receipt(good, seen=seen, keys=KEYS).size == 2


def test_a_log_that_was_cut_gives_no_key() -> None:
    """Where a host has seen more entries than there were, its call fails (B-4)."""
    writer = ReleaseWriter(_Store())
    writer.write(release_record())
    with pytest.raises(LogShortened, match="had 1 entries, but the host has seen 2"):
        writer.write(release_record(), 2)
    assert writer.write(release_record(), 2).index == 2
    writer.close()


def test_who_does_not_witness_gets_no_proofs() -> None:
    """A host that says nothing of heads gets the head alone (B-4)."""
    writer = ReleaseWriter(_Store())
    receipt = writer.write(release_record())
    assert receipt.tree_head
    assert (receipt.entry, receipt.inclusion_proof, receipt.consistency_proof) == (b"", (), ())


def test_a_head_that_cannot_be_signed_fails_the_calls_only() -> None:
    """Without a head there is no key; the log goes on with the next commit (B-4)."""
    store = _Store()
    writer = ReleaseWriter(store)
    store.signing_fails = True
    with pytest.raises(StoreError, match="no root"):
        writer.write(release_record())
    store.signing_fails = False
    assert writer.write(release_record()).index == 1
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
