"""The release log on SQL (SQLite in WAL mode, PostgreSQL), and the tree over it.

Several service processes may share one database. An append takes the log's single ``release_head`` row for itself
(the whole database on SQLite, that row on PostgreSQL) and counts it up in the same transaction: so indexes have no gap,
an append that fails leaves none, and what is durable is exactly what was answered or nobody was told about. The
hashes of the tree are stored with the entries that complete them, in that transaction, too.

A complete subtree never changes, so each process keeps the hashes it has seen; whether they are of this very log is
checked at every append by its last entry.

Serves the port ``ReleaseStore``.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from keyprovider.errors import StoreError
from keyprovider.trusted.log import decode_entry, encode_entry
from keyprovider.trusted.merkle import (
    HASH_SIZE,
    Frontier,
    Node,
    Plan,
    cover,
    fold,
    leaf_hash,
    plan_consistency,
    plan_inclusion,
    prove,
)
from keyprovider.trusted.model import LoggedRelease, ReleaseRecord
from keyprovider.trusted.ports import HeadSigner
from keyprovider.trusted.provider_store import SqlProviderStore
from keyprovider.trusted.schema import open_schema, release_head, release_log
from serving import errors as serving_errors
from serving.database import Database

_KEPT_NODES: Final = 65_536
"""Hashes kept in memory; a tree of a billion entries has 30 on the way to each."""


class SqlReleaseStore:
    """The release log in a table."""

    def __init__(self, database: Database, sign: HeadSigner | None = None) -> None:
        """Use a database that :func:`open_schema` prepared; without ``sign`` heads are not signed."""
        self._database = database
        self._sign = sign
        self._nodes = _KnownNodes()
        last = (
            sa.select(release_log.c.leaf_hash)
            .where(release_log.c.log_index == release_head.c.size - sa.bindparam("count") - 1)
            .scalar_subquery()
        )
        self._take = (
            sa.update(release_head)
            .where(release_head.c.id == 1)
            .values(size=release_head.c.size + sa.bindparam("count"))
            .returning(release_head.c.size, last.label("last_leaf"))
        )

    def append(self, records: Sequence[ReleaseRecord]) -> range:
        """See ``ReleaseStore.append``."""
        if not records:
            raise ValueError("nothing to append")
        entries = [encode_entry(record) for record in records]
        made: dict[Node, bytes] = {}
        rows = []
        try:
            with self._database.write() as connection:
                size, last_leaf = connection.execute(self._take, {"count": len(entries)}).one()
                indexes = range(size - len(entries), size)
                frontier = self._frontier(connection, indexes.start, last_leaf)
                for index, entry in zip(indexes, entries, strict=True):
                    leaf = leaf_hash(entry)
                    above = frontier.append(leaf)
                    made |= {Node(level, index >> level): each for level, each in enumerate((leaf, *above))}
                    rows.append({"log_index": index, "entry": entry, "leaf_hash": leaf, "nodes": b"".join(above)})
                connection.execute(release_log.insert(), rows)
        except IntegrityError as exc:
            raise StoreError("release records could not be stored: their place in the log is taken") from exc
        except serving_errors.StoreError as exc:
            raise StoreError(f"release records could not be stored: {exc}") from exc
        self._nodes.add(made)
        return indexes

    def read(self, start_index: int, count: int) -> list[LoggedRelease]:
        """See ``ReleaseStore.read``."""
        query = (
            sa.select(release_log)
            .where(release_log.c.log_index >= start_index)
            .order_by(release_log.c.log_index)
            .limit(count)
        )
        try:
            with self._database.read() as connection:
                rows = connection.execute(query).all()
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        return [_logged(row.log_index, bytes(row.entry), bytes(row.leaf_hash)) for row in rows]

    def size(self) -> int:
        """See ``ReleaseStore.size``."""
        try:
            with self._database.read() as connection:
                size: int = connection.execute(sa.select(release_head.c.size)).scalar_one()
                return size
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc

    def root(self, size: int) -> bytes:
        """See ``ReleaseStore.root``."""
        nodes = cover(0, size)
        found = self._find(nodes)
        return fold([found[node] for node in nodes])

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """See ``ReleaseStore.inclusion_proof``."""
        return self._prove(plan_inclusion(index, size))

    def consistency_proof(self, old_size: int, new_size: int) -> list[bytes]:
        """See ``ReleaseStore.consistency_proof``."""
        return self._prove(plan_consistency(old_size, new_size))

    def signed_head(self, size: int) -> str:
        """See ``ReleaseStore.signed_head``."""
        return self._sign(size, self.root(size)) if self._sign is not None else ""

    def _prove(self, plan: Plan) -> list[bytes]:
        return prove(plan, self._find([node for nodes in plan for node in nodes]))

    def _find(self, nodes: Sequence[Node]) -> Mapping[Node, bytes]:
        found, missing = self._nodes.find(nodes)
        if missing:
            try:
                with self._database.read() as connection:
                    read = _read_nodes(connection, missing)
            except serving_errors.StoreError as exc:
                raise StoreError(str(exc)) from exc
            self._nodes.add(read)
            found |= read
        return found

    def _frontier(self, connection: sa.Connection, size: int, last_leaf: bytes | None) -> Frontier:
        """The tree over the first ``size`` entries, the last of which the database says to have this hash."""
        if size == 0:
            self._nodes.clear()
            return Frontier()
        nodes, last = cover(0, size), Node(0, size - 1)
        found, missing = self._nodes.find([*nodes, last])
        if missing or found[last] != last_leaf:
            # Another process appended. Or, where we know another last entry, the database was put back to an older
            # state and went on from there: then nothing we know is of this log.
            if last not in missing:
                self._nodes.clear()
            found = _read_nodes(connection, [*nodes, last])
            self._nodes.add(found)
        return Frontier(size, [found[node] for node in nodes])


class _KnownNodes:
    """Hashes of complete subtrees, as many as fit; those added first are forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes: dict[Node, bytes] = {}

    def find(self, nodes: Iterable[Node]) -> tuple[dict[Node, bytes], list[Node]]:
        """Those that are known, and those that are not."""
        found: dict[Node, bytes] = {}
        missing = []
        for node in nodes:
            known = self._hashes.get(node)
            if known is None:
                missing.append(node)
            else:
                found[node] = known
        return found, missing

    def add(self, hashes: Mapping[Node, bytes]) -> None:
        """Keep these."""
        with self._lock:
            self._hashes.update(hashes)
            if len(self._hashes) > _KEPT_NODES:
                for oldest in list(self._hashes)[: _KEPT_NODES // 8]:
                    del self._hashes[oldest]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._hashes = {}


def _read_nodes(connection: sa.Connection, nodes: Sequence[Node]) -> dict[Node, bytes]:
    columns = (release_log.c.log_index, release_log.c.leaf_hash, release_log.c.nodes)
    query = sa.select(*columns).where(release_log.c.log_index.in_({node.last_leaf for node in nodes}))
    rows = {row.log_index: (bytes(row.leaf_hash), bytes(row.nodes)) for row in connection.execute(query)}
    read = {}
    for node in nodes:
        leaf, above = rows.get(node.last_leaf, (b"", b""))
        read[node] = leaf if node.level == 0 else above[(node.level - 1) * HASH_SIZE : node.level * HASH_SIZE]
        if len(read[node]) != HASH_SIZE:
            raise StoreError(f"the release log lacks entry {node.last_leaf}, or the hash of a tree that ends with it")
    return read


def _logged(index: int, entry: bytes, stored_hash: bytes) -> LoggedRelease:
    if leaf_hash(entry) != stored_hash:
        raise StoreError(f"entry {index} of the release log does not match its hash")
    return LoggedRelease(index, decode_entry(entry), stored_hash, entry)


__all__ = ["SqlProviderStore", "SqlReleaseStore", "open_schema"]
