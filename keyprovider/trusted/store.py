"""Stores on SQL: providers, principals and the release log (SQLite in WAL mode, PostgreSQL).

Several service processes may share one database. An append takes the log's single ``release_head`` row for itself
(the whole database on SQLite, that row on PostgreSQL) and counts it up in the same transaction: so indexes have no gap,
an append that fails leaves none, and what is durable is exactly what was answered or nobody was told about.

Serves the ports ``ReleaseStore`` and ``ProviderStore``.
"""

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from attestation.model import HostId, HpkeKem
from keyprovider.errors import Conflict, InvalidArgument, StoreError
from keyprovider.trusted.log import decode_entry, encode_entry, leaf_hash
from keyprovider.trusted.model import BackendKind, LoggedRelease, Principal, Provider, ProviderPolicy, ReleaseRecord
from serving import errors as serving_errors
from serving.database import Database, create_schema

SCHEMA_VERSION = 1
_metadata = sa.MetaData()

_providers = sa.Table(
    "keyprovider_providers",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("backend", sa.String(32), nullable=False),
    sa.Column("primary_version", sa.Integer, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
)
_principals = sa.Table(
    "keyprovider_principals",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(64), nullable=False, unique=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
)
_releases = sa.Table(
    "keyprovider_releases",
    _metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
)
_head = sa.Table(
    "keyprovider_release_head",
    _metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, nullable=False),
)


def open_schema(database: Database) -> None:
    """Make the tables where they are missing; refuse a database that would lose what it acknowledged.

    Raises:
        StoreError: Not usable, of a newer schema, or PostgreSQL with ``synchronous_commit`` off.
    """
    try:
        create_schema(database, _metadata, component="keyprovider", version=SCHEMA_VERSION)
        with database.write() as connection:
            if not database.is_sqlite:
                connection.execute(sa.text("LOCK TABLE keyprovider_release_head IN EXCLUSIVE MODE"))
            if connection.scalar(sa.select(_head.c.size)) is None:
                connection.execute(_head.insert().values(id=1, size=0))
            if not database.is_sqlite and connection.scalar(sa.text("SHOW synchronous_commit")) == "off":
                raise StoreError("PostgreSQL runs with synchronous_commit off: release records would not be durable")
    except serving_errors.StoreError as exc:
        raise StoreError(str(exc)) from exc


class SqlReleaseStore:
    """The release log in a table."""

    def __init__(self, database: Database) -> None:
        """Use a database that :func:`open_schema` prepared."""
        self._database = database
        self._take = (
            sa.update(_head)
            .where(_head.c.id == 1)
            .values(size=_head.c.size + sa.bindparam("count"))
            .returning(_head.c.size)
        )

    def append(self, records: Sequence[ReleaseRecord]) -> range:
        """See ``ReleaseStore.append``."""
        if not records:
            raise ValueError("nothing to append")
        entries = [encode_entry(record) for record in records]
        try:
            with self._database.write() as connection:
                size = connection.execute(self._take, {"count": len(entries)}).scalar_one()
                indexes = range(size - len(entries), size)
                rows = [
                    {"log_index": index, "entry": entry, "leaf_hash": leaf_hash(entry)}
                    for index, entry in zip(indexes, entries, strict=True)
                ]
                connection.execute(_releases.insert(), rows)
        except IntegrityError as exc:
            raise StoreError("release records could not be stored: their place in the log is taken") from exc
        except serving_errors.StoreError as exc:
            raise StoreError(f"release records could not be stored: {exc}") from exc
        return indexes

    def read(self, start_index: int, count: int) -> list[LoggedRelease]:
        """See ``ReleaseStore.read``."""
        query = (
            sa.select(_releases)
            .where(_releases.c.log_index >= start_index)
            .order_by(_releases.c.log_index)
            .limit(count)
        )
        try:
            with self._database.read() as connection:
                rows = connection.execute(query).all()
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        return [_logged(row.log_index, row.entry, row.leaf_hash) for row in rows]

    def size(self) -> int:
        """See ``ReleaseStore.size``."""
        try:
            with self._database.read() as connection:
                size: int = connection.execute(sa.select(_head.c.size)).scalar_one()
                return size
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc


class SqlProviderStore:
    """Providers and principals in tables."""

    def __init__(self, database: Database) -> None:
        """Use a database that :func:`open_schema` prepared."""
        self._database = database

    def add_provider(self, provider: Provider) -> None:
        """See ``ProviderStore.add_provider``."""
        row = {
            "name": provider.name,
            "backend": provider.backend.value,
            "primary_version": provider.primary_version,
            "policy": _encode_policy(provider.policy),
        }
        try:
            with self._database.write() as connection:
                connection.execute(_providers.insert().values(row))
        except IntegrityError as exc:
            raise Conflict(f"a provider named {provider.name!r} exists") from exc
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc

    def providers(self) -> list[Provider]:
        """See ``ProviderStore.providers``."""
        try:
            with self._database.read() as connection:
                rows = connection.execute(sa.select(_providers).order_by(_providers.c.name)).all()
            return [
                Provider(row.name, BackendKind(row.backend), row.primary_version, _decode_policy(row.policy))
                for row in rows
            ]
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        except (ValueError, KeyError, TypeError, InvalidArgument) as exc:
            raise StoreError("the table of providers holds something malformed") from exc

    def add_principal(self, principal: Principal) -> None:
        """See ``ProviderStore.add_principal``."""
        row = {"name": principal.name, "key_id": principal.key_id, "public_key": principal.public_key}
        try:
            with self._database.write() as connection:
                connection.execute(_principals.insert().values(row))
        except IntegrityError as exc:
            if principal in self.principals():
                return
            raise Conflict(f"principal {principal.name!r} or its key is registered otherwise") from exc
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc

    def principals(self) -> list[Principal]:
        """See ``ProviderStore.principals``."""
        try:
            with self._database.read() as connection:
                rows = connection.execute(sa.select(_principals).order_by(_principals.c.name)).all()
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        return [Principal(row.name, row.key_id, bytes(row.public_key)) for row in rows]


def _logged(index: int, entry: bytes, stored_hash: bytes) -> LoggedRelease:
    if leaf_hash(bytes(entry)) != bytes(stored_hash):
        raise StoreError(f"entry {index} of the release log does not match its hash")
    return LoggedRelease(index, decode_entry(bytes(entry)), bytes(stored_hash))


def _encode_policy(policy: ProviderPolicy) -> str:
    return json.dumps(
        {
            "clusters": None if policy.clusters is None else sorted(policy.clusters),
            "hosts": None if policy.hosts is None else sorted(host.text for host in policy.hosts),
            "kems": sorted(int(kem) for kem in policy.kems),
        },
        separators=(",", ":"),
    )


def _decode_policy(text: str) -> ProviderPolicy:
    fields = json.loads(text)
    return ProviderPolicy(
        clusters=None if fields["clusters"] is None else frozenset(fields["clusters"]),
        hosts=None if fields["hosts"] is None else frozenset(HostId(host) for host in fields["hosts"]),
        kems=frozenset(HpkeKem(kem) for kem in fields["kems"]),
    )
