"""Tables of the key provider service, and how older ones are brought up to date.

Schema 2 keeps the release log in ``keyprovider_release_log``: each row holds, beside an entry and its leaf hash, the
hashes of the subtrees that the entry completes (``merkle.Frontier.append``), so that the tree is as durable as the
records, at the cost of no row or statement of its own. Schema 1 had ``keyprovider_releases``, without them.
"""

import sqlalchemy as sa

from keyprovider.errors import StoreError
from keyprovider.trusted.merkle import Frontier
from serving import errors as serving_errors
from serving.database import Database, create_schema

SCHEMA_VERSION = 2
_PAGE_SIZE = 1_000
_metadata = sa.MetaData()

providers = sa.Table(
    "keyprovider_providers",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("backend", sa.String(32), nullable=False),
    sa.Column("primary_version", sa.Integer, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
)
principals = sa.Table(
    "keyprovider_principals",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(64), nullable=False, unique=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
)
release_log = sa.Table(
    "keyprovider_release_log",
    _metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("nodes", sa.LargeBinary, nullable=False),
)
release_head = sa.Table(
    "keyprovider_release_head",
    _metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, nullable=False),
)

_before = sa.MetaData()
_releases_1 = sa.Table(
    "keyprovider_releases",
    _before,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
)
_schema_version = sa.Table(
    "schema_version",
    _before,
    sa.Column("component", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
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
            if connection.scalar(sa.select(release_head.c.size)) is None:
                connection.execute(release_head.insert().values(id=1, size=0))
            if not database.is_sqlite and connection.scalar(sa.text("SHOW synchronous_commit")) == "off":
                raise StoreError("PostgreSQL runs with synchronous_commit off: release records would not be durable")
            _upgrade(connection)
    except serving_errors.StoreError as exc:
        raise StoreError(str(exc)) from exc


def _upgrade(connection: sa.Connection) -> None:
    """Move the log of schema 1 over, if that is what there is; a service that still runs on it is refused then."""
    of_us = _schema_version.c.component == "keyprovider"
    if connection.scalar(sa.select(_schema_version.c.version).where(of_us)) == SCHEMA_VERSION:
        return
    frontier = Frontier()
    while rows := connection.execute(
        sa.select(_releases_1)
        .where(_releases_1.c.log_index >= frontier.size)
        .order_by(_releases_1.c.log_index)
        .limit(_PAGE_SIZE)
    ).all():
        moved = [
            {
                "log_index": row.log_index,
                "entry": row.entry,
                "leaf_hash": row.leaf_hash,
                "nodes": b"".join(frontier.append(bytes(row.leaf_hash))),
            }
            for row in rows
        ]
        connection.execute(release_log.insert(), moved)
    if frontier.size != connection.scalar(sa.select(release_head.c.size)):
        raise StoreError("the release log has a gap: it was changed from outside")
    _releases_1.drop(connection)
    connection.execute(sa.update(_schema_version).where(of_us).values(version=SCHEMA_VERSION))
