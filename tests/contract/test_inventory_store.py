"""The contract of ``InventoryStore``, on SQLite and on PostgreSQL."""

import datetime
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from management.errors import AlreadyExists, JoinReason, JoinRefused, NotFound
from management.model import EventDraft, Host, Provider, ProviderKind, Vm, VmState
from management.ports import InventoryStore, SpentToken
from management.store import SqlInventoryStore
from serving.database import Database
from serving.errors import StoreError

NOW = 1_000_000
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=datetime.UTC)
HOST = Host("host-a", "ab" * 32, "default", "127.0.0.1:7443", "8d5b9d2e-5a66-4d0e-8e53-000000000001")
TOKEN = SpentToken("token-1", HOST, "11" * 32, NOW + 60)
GOLD = Provider("gold", ProviderKind.TRUSTED, is_default=False)


def event(kind: str = "test") -> EventDraft:
    """Something that happened."""
    return EventDraft(WHEN, kind, "alice", "it happened", "vm-1", "host-a")


def vm(number: int, **changes: object) -> Vm:
    """The VM of that number, on ``HOST``."""
    fields: dict[str, object] = {
        "vm_id": f"00000000-0000-4000-8000-{number:012}",
        "name": f"vm-{number}",
        "host": HOST.name,
        "storage_policy": "encrypted",
        "provider": "gold",
        "vtpm": True,
        "state": VmState.CREATING,
        "generation": 0,
        **changes,
    }
    return Vm(**fields)  # type: ignore[arg-type]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> InventoryStore:
    """A store that knows ``HOST``."""
    made = SqlInventoryStore(database)
    made.join_host(TOKEN, event("host.joined"), now=NOW)
    return made


def test_a_joined_host_is_found(store: InventoryStore) -> None:
    """A host comes back as it was put, alone and in the list; others are absent."""
    assert store.find_host("host-a") == HOST
    assert store.list_hosts() == [HOST]
    assert store.find_host("host-b") is None


def test_the_same_host_may_repeat_its_join(store: InventoryStore) -> None:
    """The first answer may have been lost: token, key and identity are the same, the address may be new."""
    moved = replace(HOST, agent_address="127.0.0.1:7444")
    store.join_host(replace(TOKEN, host=moved), event("host.joined"), now=NOW)
    assert store.list_hosts() == [moved]


@pytest.mark.parametrize(
    "second",
    [
        replace(TOKEN, key_hash="22" * 32),
        replace(TOKEN, host=replace(HOST, host_id="cd" * 32)),
        replace(TOKEN, host=replace(HOST, name="host-b", host_id="cd" * 32)),
    ],
    ids=["key", "host id", "name"],
)
def test_a_spent_token_is_refused_to_everybody_else(store: InventoryStore, second: SpentToken) -> None:
    """A join token is used once: another key, host id or name is refused and changes nothing."""
    with pytest.raises(JoinRefused) as refused:
        store.join_host(second, event("host.joined"), now=NOW)
    assert refused.value.reason is JoinReason.TOKEN_SPENT
    assert store.list_hosts() == [HOST]
    assert len(store.list_events(after=0, limit=10)) == 1


@pytest.mark.parametrize(
    "host",
    [replace(HOST, host_id="cd" * 32), replace(HOST, host_id=""), replace(HOST, name="host-b")],
    ids=["other host id", "no host id", "other name"],
)
def test_an_identity_is_not_taken_over(store: InventoryStore, host: Host) -> None:
    """With a new token too, neither a known name with another host id nor a known host id with another name."""
    with pytest.raises(JoinRefused) as refused:
        store.join_host(SpentToken("token-2", host, "33" * 32, NOW + 60), event("host.joined"), now=NOW)
    assert refused.value.reason is JoinReason.IDENTITY_CONFLICT
    assert store.list_hosts() == [HOST]
    # Nothing was changed, so the token is not spent either.
    other = Host("host-c", "ef" * 32, "default", "127.0.0.1:1", "")
    store.join_host(SpentToken("token-2", other, "44" * 32, NOW + 60), event("host.joined"), now=NOW)


def test_an_installed_again_host_joins_with_a_new_token(store: InventoryStore) -> None:
    """Same name, same host id, a new key: an administrator's new token admits it."""
    store.join_host(SpentToken("token-2", HOST, "55" * 32, NOW + 60), event("host.joined"), now=NOW)
    assert store.list_hosts() == [HOST]


def test_several_hosts_without_a_tpm_may_join(store: InventoryStore) -> None:
    """Having no host id is no conflict."""
    for name in ("x", "y"):
        host = Host(name, "", "default", "127.0.0.1:1", "")
        store.join_host(SpentToken(f"token-{name}", host, "66" * 32, NOW + 60), event("host.joined"), now=NOW)
    assert [host.name for host in store.list_hosts()] == ["host-a", "x", "y"]


def test_of_two_joins_with_one_token_one_wins(database: Database, store: InventoryStore) -> None:
    """A token is single-use at the same moment too, with two servers over one database."""
    stores: list[InventoryStore] = [store, SqlInventoryStore(database)]
    refused: list[JoinReason] = []

    def join(number: int) -> None:
        host = Host(f"racer-{number}", f"{number}{number}" * 32, "default", "127.0.0.1:1", "")
        try:
            stores[number % 2].join_host(
                SpentToken("raced", host, f"{number}0" * 32, NOW + 60), event("host.joined"), now=NOW
            )
        except JoinRefused as exc:
            refused.append(exc.reason)

    threads = [threading.Thread(target=join, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [JoinReason.TOKEN_SPENT] * 5
    assert len(store.list_hosts()) == 2


def test_expired_tokens_are_forgotten(database: Database, store: InventoryStore) -> None:
    """Their date refuses them already, so they need not be remembered for ever."""
    other = SpentToken("token-2", Host("b", "", "default", "h:1", ""), "77" * 32, NOW + 999)
    store.join_host(other, event(), now=NOW + 61)
    with database.read() as connection:
        remembered = connection.scalars(sa.text("SELECT token_id FROM management_spent_tokens")).all()
    assert remembered == ["token-2"]


def test_the_first_provider_is_the_default_one(store: InventoryStore) -> None:
    """R-OP-6: one provider is always the default; a new default takes the place of the old."""
    assert store.put_provider(GOLD, event()).is_default
    assert not store.put_provider(replace(GOLD, name="silver"), event()).is_default
    assert store.put_provider(replace(GOLD, name="bronze", is_default=True), event()).is_default
    assert [(found.name, found.is_default) for found in store.list_providers()] == [
        ("bronze", True),
        ("gold", False),
        ("silver", False),
    ]


def test_registering_a_provider_again_takes_nothing_away(store: InventoryStore) -> None:
    """Putting the default again without saying so leaves it the default."""
    store.put_provider(GOLD, event())
    assert store.put_provider(GOLD, event()).is_default
    assert len(store.list_providers()) == 1


def test_a_vm_is_found_by_id_and_by_name(store: InventoryStore) -> None:
    """Its row comes back as it was put."""
    store.add_vm(vm(1))
    assert store.find_vm(vm(1).vm_id) == vm(1)
    assert store.find_vm("vm-1") == vm(1)
    assert store.find_vm("vm-2") is None
    assert store.find_vm("VM-1") is None


def test_an_id_wins_over_a_name(store: InventoryStore) -> None:
    """A VM named like another's id does not take its place."""
    store.add_vm(vm(1))
    store.add_vm(vm(2, name=vm(1).vm_id))
    found = store.find_vm(vm(1).vm_id)
    assert found is not None
    assert found.name == "vm-1"


@pytest.mark.parametrize("name", ["Büro 7/ü", "虚拟机 🦀", "x" * 255, "'; DROP TABLE management_vms; --"])
def test_names_of_any_script_are_kept(store: InventoryStore, name: str) -> None:
    """Names are stored and found as they are."""
    store.add_vm(vm(1, name=name))
    assert store.find_vm(name) == vm(1, name=name)


def test_a_name_is_taken_once(store: InventoryStore) -> None:
    """A second VM of that name is refused and not stored."""
    store.add_vm(vm(1))
    with pytest.raises(AlreadyExists):
        store.add_vm(vm(2, name="vm-1"))
    assert store.find_vm(vm(2).vm_id) is None


def test_pages_hold_every_vm_once(store: InventoryStore) -> None:
    """Paging by id misses none, though VMs come and go meanwhile."""
    for number in range(7):
        store.add_vm(vm(number))
    first = store.list_vms(after="", limit=3)
    store.remove_vm(vm(1).vm_id, event())
    store.add_vm(vm(9))
    second = store.list_vms(after=first[-1].vm_id, limit=3)
    third = store.list_vms(after=second[-1].vm_id, limit=3)
    assert [found.name for found in first + second + third] == [f"vm-{number}" for number in (0, 1, 2, 3, 4, 5, 6, 9)]
    assert store.list_vms(after=third[-1].vm_id, limit=3) == []


def test_a_vms_state_changes_with_its_event(store: InventoryStore) -> None:
    """State and event are one transaction, and unsettled VMs are found."""
    store.add_vm(vm(1))
    assert store.list_unsettled_vms() == [vm(1)]
    assert store.set_vm_state(vm(1).vm_id, VmState.ACTIVE, event("vm.created")).state is VmState.ACTIVE
    assert store.list_unsettled_vms() == []
    assert store.set_vm_state(vm(1).vm_id, VmState.DELETING, None).state is VmState.DELETING
    assert [found.state for found in store.list_unsettled_vms()] == [VmState.DELETING]
    assert [found.type for found in store.list_events(after=1, limit=10)] == ["vm.created"]


def test_a_removed_vm_is_gone_and_its_name_free(store: InventoryStore) -> None:
    """The name may be used again."""
    store.add_vm(vm(1))
    store.remove_vm(vm(1).vm_id, event("vm.deleted"))
    assert store.find_vm("vm-1") is None
    store.add_vm(vm(2, name="vm-1"))


def test_what_is_not_there_cannot_be_changed(store: InventoryStore) -> None:
    """Each change of an absent VM is refused, and leaves no event behind."""
    absent = vm(5).vm_id
    with pytest.raises(NotFound):
        store.set_vm_state(absent, VmState.ACTIVE, event())
    with pytest.raises(NotFound):
        store.remove_vm(absent, event())
    with pytest.raises(NotFound):
        store.next_generation(absent)
    assert len(store.list_events(after=0, limit=10)) == 1


def test_generations_grow_and_are_given_once(store: InventoryStore) -> None:
    """B-19: concurrent callers never get the same generation of one VM's grants."""
    store.add_vm(vm(1))
    store.add_vm(vm(2))
    taken: list[int] = []

    def take() -> None:
        for _ in range(5):
            taken.append(store.next_generation(vm(1).vm_id))  # noqa: PERF401 - one transaction after the other

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 21))
    assert store.next_generation(vm(2).vm_id) == 1


def test_vms_are_counted_by_host(store: InventoryStore) -> None:
    """Hosts without VMs are absent."""
    assert store.count_vms_by_host() == {}
    store.add_vm(vm(1))
    store.add_vm(vm(2))
    assert store.count_vms_by_host() == {"host-a": 2}


def test_events_are_read_by_cursor(store: InventoryStore) -> None:
    """Cursors count from 1 without gaps; an event comes back as it was, to the microsecond."""
    for number in range(5):
        store.append_event(event(f"test.{number}"))
    assert [found.cursor for found in store.list_events(after=0, limit=100)] == [1, 2, 3, 4, 5, 6]
    page = store.list_events(after=2, limit=2)
    assert [(found.cursor, found.type) for found in page] == [(3, "test.1"), (4, "test.2")]
    assert (page[0].occurred_at, page[0].principal, page[0].message) == (WHEN, "alice", "it happened")
    assert (page[0].vm_id, page[0].host) == ("vm-1", "host-a")
    assert store.list_events(after=6, limit=100) == []
    assert store.list_events(after=(1 << 64) - 1, limit=100) == []


def test_a_reader_by_cursor_misses_no_event(database: Database, store: InventoryStore) -> None:
    """While four writers append, a reader that goes on from its last cursor sees each event, in order."""
    other = SqlInventoryStore(database)
    writers = [
        threading.Thread(target=lambda writer=writer: [writer.append_event(event()) for _ in range(10)])
        for writer in (store, other, store, other)
    ]
    for thread in writers:
        thread.start()
    seen = [1]
    while any(thread.is_alive() for thread in writers) or len(seen) < 41:
        seen += [found.cursor for found in store.list_events(after=seen[-1], limit=7)]
    for thread in writers:
        thread.join()
    assert seen == list(range(1, 42))


def test_everything_is_there_after_a_restart(database_url: str) -> None:
    """A new process over the same database finds what the old one stored."""
    first = Database(database_url)
    store = SqlInventoryStore(first)
    store.join_host(TOKEN, event(), now=NOW)
    store.add_vm(vm(1))
    first.close()
    second = Database(database_url)
    try:
        again = SqlInventoryStore(second)
        assert again.find_vm("vm-1") == vm(1)
        assert [found.cursor for found in again.list_events(after=0, limit=10)] == [1]
    finally:
        second.close()


def test_a_newer_schema_is_refused(database: Database, store: InventoryStore) -> None:
    """A database of a newer version is left alone."""
    with database.write() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99 WHERE component = 'management'"))
    with pytest.raises(StoreError, match="schema 99"):
        SqlInventoryStore(database)


def test_no_column_could_hold_a_key(database: Database, store: InventoryStore) -> None:
    """R-TA-3: the inventory has no column for bytes, and none is named after a key but the hash of a join key."""
    inspector = sa.inspect(database.engine)
    columns = [
        (column["name"], column["type"])
        for table in inspector.get_table_names()
        if table.startswith("management_")
        for column in inspector.get_columns(table)
    ]
    assert columns
    assert not any(isinstance(kind, sa.LargeBinary) for _, kind in columns)
    assert [name for name, _ in columns if "key" in name or "secret" in name] == ["key_hash"]
