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
from keyprovider.errors import Conflict, NotFound, StoreError
from keyprovider.trusted.log import encode_entry
from keyprovider.trusted.merkle import EMPTY_ROOT, leaf_hash, tree_hash, verify_consistency, verify_inclusion
from keyprovider.trusted.model import BackendKind, Principal, Provider, ProviderPolicy
from keyprovider.trusted.ports import ProviderStore, ReleaseStore
from keyprovider.trusted.store import SqlProviderStore, SqlReleaseStore, open_schema
from serving import errors as serving_errors
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
            sa.text("INSERT INTO keyprovider_release_log (log_index, entry, leaf_hash, nodes) VALUES (2, :e, :h, :n)"),
            {"e": b"forged", "h": bytes(32), "n": b""},
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
        connection.execute(sa.text("UPDATE keyprovider_release_log SET entry = :e"), {"e": changed})
    with pytest.raises(StoreError, match="does not match its hash"):
        releases.read(0, 1)


def test_an_entry_out_of_form_is_noticed(releases: ReleaseStore, database: Database) -> None:
    """An entry with an extra space is refused even if its hash was made anew."""
    releases.append([release_record()])
    changed = encode_entry(release_record()).replace(b'":', b'": ', 1)
    with database.write() as connection:
        statement = sa.text("UPDATE keyprovider_release_log SET entry = :e, leaf_hash = :h")
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


def _entries(releases: ReleaseStore) -> list[bytes]:
    return [entry.entry for entry in releases.read(0, 100_000)]


def _check_tree(releases: ReleaseStore) -> None:
    """Roots and proofs of every size are those of the entries."""
    entries = _entries(releases)
    size = len(entries)
    assert releases.size() == size
    for old in {*range(min(size, 20)), size // 2, max(size - 1, 0), size}:
        assert releases.root(old) == tree_hash(entries[:old])
        verify_consistency(
            old_size=old,
            old_root=tree_hash(entries[:old]),
            new_size=size,
            new_root=tree_hash(entries),
            proof=releases.consistency_proof(old, size),
        )
    for index in {0, 1, size // 3, size - 1} & set(range(size)):
        verify_inclusion(
            leaf=leaf_hash(entries[index]),
            index=index,
            size=size,
            proof=releases.inclusion_proof(index, size),
            root=tree_hash(entries),
        )


@pytest.mark.parametrize("batches", [[], [1], [1, 1, 1, 1, 1], [7, 1, 8, 17], [64, 64, 1]])
def test_the_tree_is_over_the_entries(releases: ReleaseStore, database: Database, batches: list[int]) -> None:
    """However records share transactions, and whoever reads, roots and proofs are those of RFC 6962 (B-4)."""
    for number, count in enumerate(batches):
        releases.append([release_record(f"{number}-{each}") for each in range(count)])
    _check_tree(releases)
    _check_tree(SqlReleaseStore(database))  # which has seen nothing yet


def test_two_processes_grow_one_tree(releases: ReleaseStore, database_url: str) -> None:
    """Two processes append while a third reads: one tree, whoever is asked (B-4)."""
    appenders = [_appender(database_url, name, 50) for name in ("one", "two")]
    for number in range(20):
        releases.append([release_record(f"three-{number}")])
    for appender in appenders:
        appender.communicate(timeout=120)
        assert appender.returncode == 0
    assert releases.size() == 120
    _check_tree(releases)


def test_a_killed_process_leaves_a_whole_tree(releases: ReleaseStore, database_url: str) -> None:
    """After kill -9 the tree is that of the entries, and grows on (B-4)."""
    appender = _appender(database_url, "killed", 100_000)
    assert appender.stdout is not None
    for _ in range(25):
        appender.stdout.readline()
    appender.kill()
    appender.communicate()
    _check_tree(releases)
    releases.append([release_record("after")])
    _check_tree(releases)


def test_nothing_is_proven_past_the_end(releases: ReleaseStore) -> None:
    """A root or proof for more entries than there are is an error, not a guess."""
    releases.append([release_record(str(number)) for number in range(3)])
    for attempt in (
        lambda: releases.root(4),
        lambda: releases.inclusion_proof(0, 4),
        lambda: releases.consistency_proof(3, 4),
    ):
        with pytest.raises(StoreError, match="lacks entry 3"):
            attempt()


def test_a_log_put_back_to_an_older_state_has_the_tree_of_its_entries(
    releases: ReleaseStore, database: Database
) -> None:
    """A process that knew a longer history builds on what the database holds, not on what it remembers (B-4)."""
    releases.append([release_record(f"before-{number}") for number in range(5)])
    remembered = releases.root(5)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM keyprovider_release_log WHERE log_index >= 3"))
        connection.execute(sa.text("UPDATE keyprovider_release_head SET size = 3"))
    releases.append([release_record("another")])
    SqlReleaseStore(database).append([release_record("from another process")])
    releases.append([release_record("after")])
    entries = _entries(releases)
    assert releases.root(6) == tree_hash(entries)
    assert releases.root(5) != remembered


def test_heads_are_signed_where_there_is_a_key(database: Database) -> None:
    """Size and root go to the signer as they are; without one there is no head (B-4)."""
    store = SqlReleaseStore(database, lambda size, root: f"{size} {root.hex()}")
    assert store.signed_head(0) == f"0 {EMPTY_ROOT.hex()}"
    store.append([release_record()])
    assert store.signed_head(1) == f"1 {leaf_hash(encode_entry(release_record())).hex()}"
    assert SqlReleaseStore(database).signed_head(1) == ""


def _make_schema_1(database: Database, entries: list[bytes], *, size: int) -> None:
    """The tables as the first schema had them."""
    blob = "BLOB" if database.is_sqlite else "BYTEA"
    with database.write() as connection:
        for statement in (
            "CREATE TABLE schema_version (component VARCHAR(64) PRIMARY KEY, version INTEGER NOT NULL)",
            "INSERT INTO schema_version VALUES ('keyprovider', 1)",
            "CREATE TABLE keyprovider_release_head (id INTEGER PRIMARY KEY CHECK (id = 1), size BIGINT NOT NULL)",
            f"INSERT INTO keyprovider_release_head VALUES (1, {size})",  # noqa: S608 - a number
            "CREATE TABLE keyprovider_releases"
            f" (log_index BIGINT PRIMARY KEY, entry {blob} NOT NULL, leaf_hash {blob} NOT NULL)",
            "CREATE TABLE keyprovider_providers (name VARCHAR(64) PRIMARY KEY, backend VARCHAR(32) NOT NULL,"
            " primary_version INTEGER NOT NULL, policy TEXT NOT NULL)",
            "INSERT INTO keyprovider_providers VALUES"
            """ ('gold', 'software', 2, '{"clusters":["prod"],"hosts":null,"kems":[32]}')""",
        ):
            connection.exec_driver_sql(statement)
        insert = sa.text("INSERT INTO keyprovider_releases (log_index, entry, leaf_hash) VALUES (:i, :e, :h)")
        for index, entry in enumerate(entries):
            connection.execute(insert, {"i": index, "e": entry, "h": leaf_hash(entry)})


def test_an_older_log_is_brought_up_to_date(database_url: str) -> None:
    """Entries and providers of schema 1 are kept, get their tree once, and who still runs schema 1 is refused (B-4)."""
    database = Database(database_url)
    entries = [encode_entry(release_record(str(number))) for number in range(2_345)]
    _make_schema_1(database, entries, size=len(entries))
    for _ in range(2):
        open_schema(database)
    store = SqlReleaseStore(database)
    assert store.root(2_345) == tree_hash(entries)
    assert store.append([release_record("next")]) == range(2_345, 2_346)
    (provider,) = SqlProviderStore(database).providers()
    assert provider == Provider(
        "gold", BackendKind.SOFTWARE, 2, ProviderPolicy(frozenset({"prod"}), None, frozenset({HpkeKem.X25519}))
    )
    with pytest.raises(serving_errors.StoreError), database.write() as connection:
        connection.execute(sa.text("DELETE FROM keyprovider_releases"))
    database.close()


def test_an_older_log_with_a_gap_is_not_taken_over(database_url: str) -> None:
    """A log that lost an entry stops the service, and stays as it is (B-4)."""
    database = Database(database_url)
    _make_schema_1(database, [b"one", b"two"], size=3)
    with pytest.raises(StoreError, match="gap"):
        open_schema(database)
    with database.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM keyprovider_releases")) == 2
    database.close()


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


def test_a_policy_is_replaced_as_a_whole(providers: ProviderStore) -> None:
    """The new policy is there at once, the rest of the provider and other providers stay (R-TA-4)."""
    gold, silver = (Provider(name, BackendKind.SOFTWARE, 1, ProviderPolicy()) for name in ("gold", "silver"))
    providers.add_provider(gold)
    providers.add_provider(silver)
    policy = ProviderPolicy(frozenset({"prod"}), frozenset(), frozenset({HpkeKem.X25519}), 7)
    assert providers.set_policy("gold", policy) == replace(gold, policy=policy)
    assert providers.providers() == [replace(gold, policy=policy), silver]
    with pytest.raises(NotFound):
        providers.set_policy("bronze", policy)


def test_a_primary_key_version_moves_from_the_one_that_was_seen(providers: ProviderStore) -> None:
    """Of two rotations that saw the same version one is done, and the other is a conflict."""
    gold = Provider("gold", BackendKind.SOFTWARE, 1, ProviderPolicy())
    providers.add_provider(gold)
    assert providers.set_primary_version("gold", seen=1, version=2) == replace(gold, primary_version=2)
    with pytest.raises(Conflict, match="version 2"):
        providers.set_primary_version("gold", seen=1, version=2)
    with pytest.raises(NotFound):
        providers.set_primary_version("bronze", seen=1, version=2)
    assert providers.providers() == [replace(gold, primary_version=2)]


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
