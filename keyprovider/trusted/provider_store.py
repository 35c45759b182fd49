"""Providers and principals on SQL (SQLite in WAL mode, PostgreSQL).

Serves the port ``ProviderStore``.
"""

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from attestation.model import HostId, HpkeKem
from keyprovider.errors import Conflict, InvalidArgument, NotFound, StoreError
from keyprovider.trusted.model import BackendKind, Principal, Provider, ProviderPolicy
from keyprovider.trusted.schema import principals, providers
from serving import errors as serving_errors
from serving.database import Database


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
                connection.execute(providers.insert().values(row))
        except IntegrityError as exc:
            raise Conflict(f"a provider named {provider.name!r} exists") from exc
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc

    def providers(self) -> list[Provider]:
        """See ``ProviderStore.providers``."""
        try:
            with self._database.read() as connection:
                rows = connection.execute(sa.select(providers).order_by(providers.c.name)).all()
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        return [_provider(row) for row in rows]

    def set_policy(self, name: str, policy: ProviderPolicy) -> Provider:
        """See ``ProviderStore.set_policy``."""
        return self._update(name, providers.c.name == name, policy=_encode_policy(policy))

    def set_primary_version(self, name: str, *, seen: int, version: int) -> Provider:
        """See ``ProviderStore.set_primary_version``."""
        at_seen = sa.and_(providers.c.name == name, providers.c.primary_version == seen)
        return self._update(name, at_seen, primary_version=version)

    def _update(self, name: str, condition: sa.ColumnElement[bool], **values: object) -> Provider:
        statement = sa.update(providers).where(condition).values(**values).returning(*providers.c)
        try:
            with self._database.write() as connection:
                row = connection.execute(statement).one_or_none()
                if row is not None:
                    return _provider(row)
                found = connection.scalar(sa.select(providers.c.primary_version).where(providers.c.name == name))
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        if found is None:
            raise NotFound(f"there is no trusted key provider {name!r}")
        raise Conflict(f"provider {name!r} is at version {found} of its primary key")

    def add_principal(self, principal: Principal) -> None:
        """See ``ProviderStore.add_principal``."""
        row = {"name": principal.name, "key_id": principal.key_id, "public_key": principal.public_key}
        try:
            with self._database.write() as connection:
                connection.execute(principals.insert().values(row))
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
                rows = connection.execute(sa.select(principals).order_by(principals.c.name)).all()
        except serving_errors.StoreError as exc:
            raise StoreError(str(exc)) from exc
        return [Principal(row.name, row.key_id, bytes(row.public_key)) for row in rows]


def _provider(row: sa.Row[Any]) -> Provider:
    try:
        return Provider(row.name, BackendKind(row.backend), row.primary_version, _decode_policy(row.policy))
    except (ValueError, KeyError, TypeError, InvalidArgument) as exc:
        raise StoreError("the table of providers holds something malformed") from exc


def _encode_policy(policy: ProviderPolicy) -> str:
    return json.dumps(
        {
            "clusters": None if policy.clusters is None else sorted(policy.clusters),
            "hosts": None if policy.hosts is None else sorted(host.text for host in policy.hosts),
            "kems": sorted(int(kem) for kem in policy.kems),
            "minimum_policy_version": policy.minimum_policy_version,
        },
        separators=(",", ":"),
    )


def _decode_policy(text: str) -> ProviderPolicy:
    fields = json.loads(text)
    return ProviderPolicy(
        clusters=None if fields["clusters"] is None else frozenset(fields["clusters"]),
        hosts=None if fields["hosts"] is None else frozenset(HostId(host) for host in fields["hosts"]),
        kems=frozenset(HpkeKem(kem) for kem in fields["kems"]),
        # Policies of schema 1 had none.
        minimum_policy_version=fields.get("minimum_policy_version", 0),
    )
