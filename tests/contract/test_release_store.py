"""Contract of the key provider's stores, on SQLite and on PostgreSQL."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from attestation.model import HostId, HpkeKem
from keyprovider.errors import Conflict, StoreError
from keyprovider.trusted.log import encode_entry, leaf_hash
from keyprovider.trusted.model import BackendKind, Principal, Provider, ProviderPolicy
from keyprovider.trusted.ports import ProviderStore, ReleaseStore
from keyprovider.trusted.store import SqlProviderStore, SqlReleaseStore, open_schema
from serving.database import Database
from tests.postgres import PostgresServer
from tests.release_records import release_record


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database with the schema in it."""
    database = Database(database_url)
    open_schema(database)
    yield database
    database.close()


@pytest.fixture
def releases(database: Database) -> ReleaseStore:
    """The release log."""
    return SqlReleaseStore(database)


@pytest.fixture
def providers(database: Database) -> ProviderStore:
    """Providers and principals."""
    return SqlProviderStore(database)


def _appender(url: str, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.release_records", url, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_indexes_start_at_zero_and_have_no_gap(releases: ReleaseStore) -> None:
    """Appends of several records continue where the last ended (B-4)."""
    assert releases.size() == 0
    assert releases.append([release_record("a")]) == range(1)
    assert releases.append([release_record("b"), release_record("c")]) == range(1, 3)
    assert releases.size() == 3
    assert [entry.record.token_id for entry in releases.read(0, 10)] == ["a", "b", "c"]


def test_a_record_comes_back_as_it_was(releases: ReleaseStore) -> None:
    """Every field survives, and the leaf hash is that of the canonical entry (B-4)."""
    record = release_record()
    releases.append([record])
    (entry,) = releases.read(0, 1)
    assert entry.record == record
    assert entry.leaf_hash == leaf_hash(encode_entry(record))


def test_reading_is_by_page(releases: ReleaseStore) -> None:
    """A page has at most as many entries as asked, from the index on; past the end there are none."""
    releases.append([release_record(str(number)) for number in range(5)])
    assert [entry.index for entry in releases.read(1, 2)] == [1, 2]
    assert [entry.index for entry in releases.read(4, 2)] == [4]
    assert releases.read(5, 2) == []


def test_an_append_is_visible_to_another_connection_when_it_returns(releases: ReleaseStore, database_url: str) -> None:
    """No release is answered before others can read its record (B-4)."""
    other = Database(database_url)
    try:
        for number in range(5):
            releases.append([release_record(str(number))])
            assert SqlReleaseStore(other).read(number, 1)[0].record.token_id == str(number)
    finally:
        other.close()


def test_a_failed_append_leaves_neither_record_nor_gap(
    releases: ReleaseStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records of an append or none, and the next append takes the index (B-4)."""
    releases.append([release_record("a")])
    with database.write() as connection:  # somebody forged the next place in the log
        connection.execute(
            sa.text("INSERT INTO keyprovider_releases (log_index, entry, leaf_hash) VALUES (2, :e, :h)"),
            {"e": b"forged", "h": bytes(32)},
        )
    with pytest.raises(StoreError, match="could not be stored"):
        releases.append([release_record("b"), release_record("c")])
    assert releases.size() == 1
    assert releases.append([release_record("d")]) == range(1, 2)


def test_a_changed_entry_is_noticed(releases: ReleaseStore, database: Database) -> None:
    """Reading an entry that does not match its hash is an error, not an answer (B-4)."""
    releases.append([release_record()])
    changed = encode_entry(replace(release_record(), host_id=HostId("cd" * 32)))
    with database.write() as connection:
        connection.execute(sa.text("UPDATE keyprovider_releases SET entry = :e"), {"e": changed})
    with pytest.raises(StoreError, match="does not match its hash"):
        releases.read(0, 1)


def test_an_entry_out_of_form_is_noticed(releases: ReleaseStore, database: Database) -> None:
    """An entry with an extra space is refused even if its hash was made anew."""
    releases.append([release_record()])
    changed = encode_entry(release_record()).replace(b'":', b'": ', 1)
    with database.write() as connection:
        statement = sa.text("UPDATE keyprovider_releases SET entry = :e, leaf_hash = :h")
        connection.execute(statement, {"e": changed, "h": leaf_hash(changed)})
    with pytest.raises(StoreError, match="canonical"):
        releases.read(0, 1)


def test_two_processes_append_without_gap_or_loss(releases: ReleaseStore, database_url: str) -> None:
    """200 releases each from two processes: 400 entries, indexes 0 to 399, each answered once (B-4)."""
    appenders = [_appender(database_url, name, 200) for name in ("one", "two")]
    answered = {}
    for name, appender in zip(("one", "two"), appenders, strict=True):
        output, _ = appender.communicate(timeout=120)
        assert appender.returncode == 0
        answered[name] = [int(line) for line in output.split()]
    assert sorted(itertools.chain(*answered.values())) == list(range(400))
    entries = releases.read(0, 1000)
    assert [entry.index for entry in entries] == list(range(400))
    for name, indexes in answered.items():
        mine = [entry for entry in entries if entry.record.token_id == name]
        assert [entry.index for entry in mine] == indexes
        assert [entry.record.generation for entry in mine] == list(range(200))


def test_a_killed_process_loses_no_answered_release(releases: ReleaseStore, database_url: str) -> None:
    """After kill -9 every answered release is in the log, and the log goes on without a gap (B-4)."""
    appender = _appender(database_url, "killed", 100_000)
    assert appender.stdout is not None
    answered = [int(appender.stdout.readline()) for _ in range(25)]
    appender.kill()
    answered += [int(line) for line in appender.stdout.read().split()]
    appender.wait()
    appender.stdout.close()
    entries = releases.read(0, 100_000)
    assert [entry.index for entry in entries] == list(range(len(entries)))
    assert set(answered) <= {entry.index for entry in entries}
    assert releases.append([release_record("after")]).start == len(entries) == releases.size() - 1


def test_an_unreachable_store_says_so(tmp_path: Path) -> None:
    """A database that cannot be opened is a StoreError, not a traceback."""
    with pytest.raises(StoreError):
        open_schema(Database(f"sqlite:///{tmp_path / 'missing' / 'x.db'}"))


@pytest.mark.postgres
def test_a_postgresql_that_forgets_commits_is_refused(postgres_server: PostgresServer) -> None:
    """With synchronous_commit off a release record would not be durable: the service does not start (B-4)."""
    url = postgres_server.create_database()
    database = Database(url)
    try:
        with database.write() as connection:
            name = connection.scalar(sa.text("SELECT current_database()"))
            connection.execute(sa.text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
        database.close()
        with pytest.raises(StoreError, match="synchronous_commit off"):
            open_schema(database)
    finally:
        database.close()
        postgres_server.drop_database(url)


def test_providers_are_kept_by_name(providers: ProviderStore) -> None:
    """Providers come back in full, sorted by name."""
    narrow = ProviderPolicy(frozenset({"prod", "test"}), frozenset({HostId("ab" * 32)}), frozenset({HpkeKem.X25519}))
    silver = Provider("silver", BackendKind.SOFTWARE, 1, ProviderPolicy())
    gold = Provider("gold", BackendKind.SOFTWARE, 3, narrow)
    assert providers.providers() == []
    providers.add_provider(silver)
    providers.add_provider(gold)
    assert providers.providers() == [gold, silver]


def test_a_provider_name_is_taken_once(providers: ProviderStore) -> None:
    """A second provider of one name is a conflict, and the first stays as it was."""
    first = Provider("gold", BackendKind.SOFTWARE, 1, ProviderPolicy())
    providers.add_provider(first)
    with pytest.raises(Conflict):
        providers.add_provider(replace(first, primary_version=2))
    assert providers.providers() == [first]


def test_principals_are_kept_by_name(providers: ProviderStore) -> None:
    """Principals come back in full; the same one again changes nothing."""
    principal = Principal("management", "kid-1", b"spki")
    assert providers.principals() == []
    providers.add_principal(principal)
    providers.add_principal(principal)
    assert providers.principals() == [principal]


@pytest.mark.parametrize("other", [Principal("management", "kid-2", b"spki-2"), Principal("other", "kid-1", b"spki")])
def test_a_principal_is_not_replaced(providers: ProviderStore, other: Principal) -> None:
    """Another key under the name, or another name for the key, is a conflict (B-19)."""
    principal = Principal("management", "kid-1", b"spki")
    providers.add_principal(principal)
    with pytest.raises(Conflict):
        providers.add_principal(other)
    assert providers.principals() == [principal]
