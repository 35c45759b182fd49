"""The database engine: transactions on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.database import Database, create_schema
from serving.errors import StoreError

metadata = sa.MetaData()
counter = sa.Table("counter", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", sa.Integer))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with one counter at 0."""
    database = Database(database_url)
    create_schema(database, metadata, component="test", version=1)
    with database.write() as connection:
        connection.execute(counter.insert().values(id=1, value=0))
    yield database
    database.close()


def value(database: Database) -> int:
    """The counter."""
    with database.read() as connection:
        return int(connection.execute(sa.select(counter.c.value)).scalar_one())


def test_what_was_committed_stays(database: Database, database_url: str) -> None:
    """Another engine over the same database sees it."""
    with database.write() as connection:
        connection.execute(counter.update().values(value=5))
    other = Database(database_url)
    assert value(other) == 5
    other.close()


def test_a_block_that_raises_changes_nothing(database: Database) -> None:
    """Whatever it raises comes out unchanged, and the connection is good for the next."""
    with pytest.raises(KeyError), database.write() as connection:  # noqa: PT012 - the block is what is tested
        connection.execute(counter.update().values(value=5))
        raise KeyError("stop")
    assert value(database) == 0


def test_a_reader_sees_one_state(database: Database) -> None:
    """What commits while a block reads is seen by the next block only."""
    with database.read() as connection:
        before = connection.execute(sa.select(counter.c.value)).scalar_one()
        with database.write() as writer:
            writer.execute(counter.update().values(value=7))
        assert connection.execute(sa.select(counter.c.value)).scalar_one() == before
    assert value(database) == 7


def test_a_reader_changes_nothing(database: Database) -> None:
    """What a read block writes is undone."""
    with database.read() as connection:
        connection.execute(counter.update().values(value=9))
    assert value(database) == 0


def test_writers_wait_for_each_other(database: Database) -> None:
    """Read, compute and write under one lock loses nothing."""

    def increment(_: int) -> None:
        with database.write() as connection:
            found = connection.execute(sa.select(counter.c.value).with_for_update()).scalar_one()
            connection.execute(counter.update().values(value=found + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(80)))
    assert value(database) == 80


def test_a_broken_statement_is_a_store_error(database: Database) -> None:
    """A driver's error does not leave the engine."""
    with pytest.raises(StoreError), database.write() as connection:
        connection.execute(sa.text("SELECT * FROM missing"))


def test_a_broken_constraint_is_told_apart(database: Database) -> None:
    """Stores decide on it."""
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(counter.insert().values(id=1, value=0))


def test_services_that_start_at_once_make_one_schema(database_url: str) -> None:
    """Both succeed; a newer schema than the software's is refused."""

    def start(_: int) -> None:
        database = Database(database_url)
        create_schema(database, metadata, component="other", version=2)
        database.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    database = Database(database_url)
    with pytest.raises(StoreError, match="schema 2; this software knows up to 1"):
        create_schema(database, metadata, component="other", version=1)
    database.close()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    """A commit that returned is on the disk."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    database.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name", "oracle://host/name"])
def test_other_databases_are_refused(url: str) -> None:
    """With an error of ours, before anything is opened."""
    with pytest.raises(StoreError):
        Database(url)


def test_a_database_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    """The first use says so."""
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'test.db'}")
    with pytest.raises(StoreError):
        create_schema(database, metadata, component="test", version=1)
    database.close()
