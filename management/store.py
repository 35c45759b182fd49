"""The inventory in a SQL database: SQLite or PostgreSQL.

No column could hold a key: names, ids, states, counters and texts for people are all there is.
"""

import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from management.errors import AlreadyExists, JoinReason, JoinRefused, NotFound
from management.model import Event, EventDraft, Host, Provider, ProviderKind, Vm, VmState, is_vm_id
from management.ports import SpentToken
from serving.database import Database, create_schema

SCHEMA_VERSION = 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_metadata = sa.MetaData()

_hosts = sa.Table(
    "management_hosts",
    _metadata,
    sa.Column("name", sa.String(253), primary_key=True),
    # Null, not empty, for a host without a TPM: several of those may join.
    sa.Column("host_id", sa.String(64), unique=True),
    sa.Column("cluster", sa.Text, nullable=False),
    sa.Column("agent_address", sa.Text, nullable=False),
    sa.Column("hardware_uuid", sa.String(36), nullable=False),
)
_spent_tokens = sa.Table(
    "management_spent_tokens",
    _metadata,
    sa.Column("token_id", sa.Text, primary_key=True),
    sa.Column("host", sa.String(253), nullable=False),
    sa.Column("host_id", sa.String(64), nullable=False),
    sa.Column("key_hash", sa.String(64), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)
_providers = sa.Table(
    "management_providers",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
)
_vms = sa.Table(
    "management_vms",
    _metadata,
    sa.Column("vm_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("host", sa.String(253), sa.ForeignKey(_hosts.c.name), nullable=False, index=True),
    sa.Column("storage_policy", sa.String(255), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("vtpm", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
)
_events = sa.Table(
    "management_events",
    _metadata,
    sa.Column("cursor", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("occurred_at_us", sa.BigInteger, nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("vm_id", sa.String(36), nullable=False),
    sa.Column("host", sa.String(253), nullable=False),
)
# One row, locked by whoever appends until it commits: a sequence would show later cursors before earlier ones.
_event_cursor = sa.Table(
    "management_event_cursor",
    _metadata,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
)


class SqlInventoryStore:
    """``management.ports.InventoryStore`` on a database."""

    def __init__(self, database: Database) -> None:
        """Use ``database``, making the tables that are missing.

        Raises:
            StoreError: The schema is newer than this software, or the database is not usable.
        """
        self._database = database
        create_schema(database, _metadata, component="management", version=SCHEMA_VERSION)
        with database.write() as connection:
            if connection.scalar(sa.select(_event_cursor.c.value)) is None:
                insert = _insert_or_ignore(database, _event_cursor)
                connection.execute(insert, {"only": 1, "value": 0})

    def join_host(self, token: SpentToken, event: EventDraft, *, now: int) -> None:
        """See ``InventoryStore.join_host``."""
        host = token.host
        with self._database.write() as connection:
            connection.execute(_spent_tokens.delete().where(_spent_tokens.c.expires_at <= now))
            # Row counts of such an INSERT are not reported by every driver; what it returns is.
            spent = connection.scalar(
                _insert_or_ignore(self._database, _spent_tokens).returning(_spent_tokens.c.token_id),
                {
                    "token_id": token.token_id,
                    "host": host.name,
                    "host_id": host.host_id,
                    "key_hash": token.key_hash,
                    "expires_at": token.expires_at,
                },
            )
            if spent is None:
                _check_repeated(connection, token)
            _put_host(connection, host)
            _append(connection, event)

    def list_hosts(self) -> list[Host]:
        """See ``InventoryStore.list_hosts``."""
        with self._database.read() as connection:
            return [_host(row) for row in connection.execute(sa.select(_hosts).order_by(_hosts.c.name))]

    def find_host(self, name: str) -> Host | None:
        """See ``InventoryStore.find_host``."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_hosts).where(_hosts.c.name == name)).one_or_none()
        return None if row is None else _host(row)

    def put_provider(self, provider: Provider, event: EventDraft) -> Provider:
        """See ``InventoryStore.put_provider``."""
        with self._database.write() as connection:
            _lock_providers(self._database, connection)
            rows = {row.name: _provider(row) for row in connection.execute(sa.select(_providers))}
            known = rows.get(provider.name)
            becomes_default = provider.is_default or not rows
            if becomes_default:
                connection.execute(_providers.update().values(is_default=False))
            stored = Provider(provider.name, provider.kind, becomes_default or (known is not None and known.is_default))
            values = {"kind": stored.kind.value, "is_default": stored.is_default}
            if known is None:
                connection.execute(_providers.insert().values(name=stored.name, **values))
            else:
                connection.execute(_providers.update().where(_providers.c.name == stored.name).values(**values))
            _append(connection, event)
        return stored

    def list_providers(self) -> list[Provider]:
        """See ``InventoryStore.list_providers``."""
        with self._database.read() as connection:
            return [_provider(row) for row in connection.execute(sa.select(_providers).order_by(_providers.c.name))]

    def add_vm(self, vm: Vm) -> None:
        """See ``InventoryStore.add_vm``."""
        try:
            with self._database.write() as connection:
                connection.execute(_vms.insert().values(**_vm_values(vm)))
        except IntegrityError as exc:
            raise AlreadyExists(f"a VM named {vm.name!r} exists already") from exc

    def set_vm_state(self, vm_id: str, state: VmState, event: EventDraft | None) -> Vm:
        """See ``InventoryStore.set_vm_state``."""
        with self._database.write() as connection:
            statement = _vms.update().where(_vms.c.vm_id == vm_id).values(state=state.value).returning(*_vms.c)
            row = connection.execute(statement).one_or_none()
            if row is None:
                raise NotFound(f"no VM {vm_id}")
            if event is not None:
                _append(connection, event)
            return _vm(row)

    def remove_vm(self, vm_id: str, event: EventDraft) -> None:
        """See ``InventoryStore.remove_vm``."""
        with self._database.write() as connection:
            if connection.execute(_vms.delete().where(_vms.c.vm_id == vm_id)).rowcount == 0:
                raise NotFound(f"no VM {vm_id}")
            _append(connection, event)

    def next_generation(self, vm_id: str) -> int:
        """See ``InventoryStore.next_generation``."""
        statement = (
            _vms.update()
            .where(_vms.c.vm_id == vm_id)
            .values(generation=_vms.c.generation + 1)
            .returning(_vms.c.generation)
        )
        with self._database.write() as connection:
            generation = connection.scalar(statement)
        if generation is None:
            raise NotFound(f"no VM {vm_id}")
        return int(generation)

    def find_vm(self, reference: str) -> Vm | None:
        """See ``InventoryStore.find_vm``."""
        with self._database.read() as connection:
            row = None
            if is_vm_id(reference):
                row = connection.execute(sa.select(_vms).where(_vms.c.vm_id == reference)).one_or_none()
            if row is None:
                row = connection.execute(sa.select(_vms).where(_vms.c.name == reference)).one_or_none()
        return None if row is None else _vm(row)

    def list_vms(self, *, after: str, limit: int) -> list[Vm]:
        """See ``InventoryStore.list_vms``."""
        statement = sa.select(_vms).where(_vms.c.vm_id > after).order_by(_vms.c.vm_id).limit(limit)
        with self._database.read() as connection:
            return [_vm(row) for row in connection.execute(statement)]

    def list_unsettled_vms(self) -> list[Vm]:
        """See ``InventoryStore.list_unsettled_vms``."""
        unsettled = [VmState.CREATING.value, VmState.DELETING.value]
        statement = sa.select(_vms).where(_vms.c.state.in_(unsettled)).order_by(_vms.c.vm_id)
        with self._database.read() as connection:
            return [_vm(row) for row in connection.execute(statement)]

    def count_vms_by_host(self) -> dict[str, int]:
        """See ``InventoryStore.count_vms_by_host``."""
        statement = sa.select(_vms.c.host, sa.func.count()).group_by(_vms.c.host)
        with self._database.read() as connection:
            return {str(name): int(count) for name, count in connection.execute(statement)}

    def append_event(self, event: EventDraft) -> None:
        """See ``InventoryStore.append_event``."""
        with self._database.write() as connection:
            _append(connection, event)

    def list_events(self, *, after: int, limit: int) -> list[Event]:
        """See ``InventoryStore.list_events``."""
        if after >= 1 << 63:
            return []
        statement = sa.select(_events).where(_events.c.cursor > after).order_by(_events.c.cursor).limit(limit)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(statement)]


def _insert_or_ignore(database: Database, table: sa.Table) -> Any:
    """An INSERT that does nothing, and returns nothing, where the key is there."""
    if database.is_sqlite:
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def _lock_providers(database: Database, connection: sa.Connection) -> None:
    """Keep others from choosing a default at the same time; on SQLite a write transaction is the only one anyway."""
    if not database.is_sqlite:
        connection.execute(sa.text("LOCK TABLE management_providers IN SHARE ROW EXCLUSIVE MODE"))


def _check_repeated(connection: sa.Connection, token: SpentToken) -> None:
    row = connection.execute(sa.select(_spent_tokens).where(_spent_tokens.c.token_id == token.token_id)).one()
    if (row.host, row.host_id, row.key_hash) != (token.host.name, token.host.host_id, token.key_hash):
        raise JoinRefused(JoinReason.TOKEN_SPENT, f"the join token was used already, by host {row.host}")


def _put_host(connection: sa.Connection, host: Host) -> None:
    values: dict[str, object] = {
        "cluster": host.cluster,
        "agent_address": host.agent_address,
        "hardware_uuid": host.hardware_uuid,
    }
    known = connection.execute(sa.select(_hosts).where(_hosts.c.name == host.name).with_for_update()).one_or_none()
    if known is not None and (known.host_id or "") != host.host_id:
        raise JoinRefused(
            JoinReason.IDENTITY_CONFLICT,
            f"host {host.name} is known by host id {known.host_id or '(none)'}, not {host.host_id or '(none)'}",
        )
    try:
        if known is None:
            connection.execute(_hosts.insert().values(name=host.name, host_id=host.host_id or None, **values))
        else:
            connection.execute(_hosts.update().where(_hosts.c.name == host.name).values(**values))
    except IntegrityError as exc:
        raise JoinRefused(
            JoinReason.IDENTITY_CONFLICT, f"host id {host.host_id} belongs to a host of another name than {host.name}"
        ) from exc


def _append(connection: sa.Connection, event: EventDraft) -> None:
    count_up = _event_cursor.update().values(value=_event_cursor.c.value + 1).returning(_event_cursor.c.value)
    connection.execute(
        _events.insert().values(
            cursor=connection.execute(count_up).scalar_one(),
            occurred_at_us=(event.occurred_at - _EPOCH) // datetime.timedelta(microseconds=1),
            type=event.type,
            principal=event.principal,
            message=event.message,
            vm_id=event.vm_id,
            host=event.host,
        )
    )


def _host(row: sa.Row[Any]) -> Host:
    return Host(row.name, row.host_id or "", row.cluster, row.agent_address, row.hardware_uuid)


def _provider(row: sa.Row[Any]) -> Provider:
    return Provider(row.name, ProviderKind(row.kind), bool(row.is_default))


def _vm_values(vm: Vm) -> dict[str, object]:
    return {
        "vm_id": vm.vm_id,
        "name": vm.name,
        "host": vm.host,
        "storage_policy": vm.storage_policy,
        "provider": vm.provider,
        "vtpm": vm.vtpm,
        "state": vm.state.value,
        "generation": vm.generation,
    }


def _vm(row: sa.Row[Any]) -> Vm:
    return Vm(
        vm_id=row.vm_id,
        name=row.name,
        host=row.host,
        storage_policy=row.storage_policy,
        provider=row.provider,
        vtpm=bool(row.vtpm),
        state=VmState(row.state),
        generation=int(row.generation),
    )


def _event(row: sa.Row[Any]) -> Event:
    occurred_at = _EPOCH + datetime.timedelta(microseconds=int(row.occurred_at_us))
    return Event(int(row.cursor), occurred_at, row.type, row.principal, row.message, row.vm_id, row.host)
