"""One database engine for every store: SQLite (WAL) by default, PostgreSQL where one machine is outgrown.

A write transaction on SQLite is the only one (``BEGIN IMMEDIATE``); on PostgreSQL stores lock the rows they decide on
(``SELECT … FOR UPDATE``, unique constraints). A commit that returned is durable on both.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from serving.errors import StoreError

_BUSY_TIMEOUT_MS = 10_000


class Database:
    """An engine and its transactions."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        """Open the database at ``url``, such as ``sqlite:////var/lib/garant/attestation.db``.

        Raises:
            StoreError: The URL names no database that this product supports.
        """
        try:
            parsed = sa.make_url(url)
        except SQLAlchemyError as exc:
            raise StoreError("the database URL is malformed") from exc
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise StoreError(f"expected a sqlite or postgresql URL, got {parsed.get_backend_name()!r}")
        try:
            if self.is_sqlite:
                self.engine = sa.create_engine(
                    parsed.set(drivername="sqlite"), poolclass=sa.QueuePool, pool_size=pool_size, max_overflow=16
                )
                event.listen(self.engine, "connect", _prepare_sqlite)
            else:
                postgres = parsed.set(drivername="postgresql+psycopg")
                self.engine = sa.create_engine(postgres, pool_size=pool_size, max_overflow=16, pool_pre_ping=True)
        except ImportError as exc:
            raise StoreError("PostgreSQL needs the driver psycopg: install garant[postgres]") from exc

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write: committed (and durable) when the block ends, undone when it raises.

        Raises:
            StoreError: The database refused or was not reachable.
        """
        with self._translated(), self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading one consistent state.

        Raises:
            StoreError: The database refused or was not reachable.
        """
        with self._translated(), self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                # READ COMMITTED, the default, takes a new snapshot with each statement.
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
            connection.rollback()

    @staticmethod
    @contextlib.contextmanager
    def _translated() -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except DBAPIError as exc:
            raise StoreError(f"the database refused: {exc.orig}") from exc
        except SQLAlchemyError as exc:
            raise StoreError("the database is not usable") from exc

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def create_schema(database: Database, metadata: sa.MetaData, *, component: str, version: int) -> None:
    """Make the tables of a component where they are missing, and refuse a schema that is newer than this software.

    Raises:
        StoreError: The schema is newer, or the database is not usable.
    """
    versions = sa.Table(
        "schema_version",
        sa.MetaData(),
        sa.Column("component", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
    )
    with database.write() as connection:
        if not database.is_sqlite:
            # Two services that start at once must not both create the tables.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7208171)"))
        versions.metadata.create_all(connection)
        found = connection.scalar(sa.select(versions.c.version).where(versions.c.component == component))
        if found is not None and found > version:
            raise StoreError(f"the database of {component} has schema {found}; this software knows up to {version}")
        metadata.create_all(connection)
        if found is None:
            connection.execute(versions.insert().values(component=component, version=version))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Switch the driver's own transactions off: ``BEGIN`` is ours to send."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
