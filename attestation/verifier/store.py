"""The attestation service's database: SQLAlchemy Core on SQLite or PostgreSQL.

Single use (cookies, join tokens) rests on unique inserts, so it holds with any number of processes over one database.
Decisions are the pure core's; here they are made and recorded under one lock.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from attestation.errors import (
    ChallengeReason,
    ChallengeRejected,
    Conflict,
    EnrollmentReason,
    EnrollmentRejected,
    NotFound,
)
from attestation.model import AdmissionState, BootIdentity, EkTemplate, HostId, LogKind
from attestation.verifier import schema
from attestation.verifier.admission import TRANSITIONS, AdmissionStep, admit, next_state
from attestation.verifier.model import (
    AnchorRecord,
    AppraisalRecord,
    AttestationView,
    Candidate,
    EvidenceRecord,
    HostRecord,
    PolicyRecord,
    ReferenceRecord,
    RevocationState,
    Rules,
)
from attestation.verifier.schema import hosts
from serving.database import Database, create_schema

_PRUNE_PERIOD_SECONDS = 60
_PRUNE_MARGIN_SECONDS = 300
"""A spent cookie is forgotten only when it has expired by every replica's clock."""


class SqlAttestationStore:
    """Implements the ports of ``attestation.verifier.ports``."""

    def __init__(self, database: Database) -> None:
        """Use ``database``; tables are made where they are missing.

        Raises:
            StoreError: The database is not usable, or of a newer schema.
        """
        self._database = database
        self._insert = sqlite.insert if database.is_sqlite else postgresql.insert
        cookies, of_host = schema.spent_cookies, schema.appraisals.c.host_id == sa.bindparam("host")
        self._spend_cookie = self._insert(cookies).on_conflict_do_nothing().returning(cookies.c.expires_at)
        self._update_appraisal = schema.appraisals.update().where(of_host)
        self._pruned_at = 0
        create_schema(database, schema.metadata, component=schema.COMPONENT, version=schema.VERSION)
        with database.write() as connection:
            first = self._insert(schema.authority).values(id=1, epoch=1, revision=1, policy_version=0)
            connection.execute(first.on_conflict_do_nothing())

    def spend(self, cookie_id: bytes, *, expires_at: int, now: int) -> None:
        """See ``ports.EnrollmentStore``."""
        with self._database.write() as connection:
            self._spend(connection, cookie_id, expires_at)
            self._prune(connection, now)

    def enroll(self, candidate: Candidate, *, now: int) -> HostRecord:
        """See ``ports.EnrollmentStore``."""
        try:
            with self._database.write() as connection:
                return self._enroll(connection, candidate, now)
        except IntegrityError as exc:
            message = f"another host enrolled as {candidate.name}, or with the same join token, at this moment"
            raise EnrollmentRejected(EnrollmentReason.IDENTITY_CONFLICT, message) from exc

    def _enroll(self, connection: sa.Connection, candidate: Candidate, now: int) -> HostRecord:
        rows = connection.execute(
            sa.select(hosts)
            .where(sa.or_(hosts.c.host_id == candidate.host_id.text, hosts.c.name == candidate.name))
            .with_for_update()
        ).all()
        records = [_host(row) for row in rows]
        tokens = schema.join_tokens
        spent_by = connection.scalar(sa.select(tokens.c.host_id).where(tokens.c.token_id == candidate.join_token_id))
        known = next((record for record in records if record.host_id == candidate.host_id), None)
        in_use = [record for record in records if record.state is not AdmissionState.REPLACED]
        host = admit(
            candidate,
            known=known,
            namesake=next((record for record in in_use if record.name == candidate.name), None),
            token_spent_by=None if spent_by is None else HostId(spent_by),
            now=now,
        )
        if known is None:
            connection.execute(hosts.insert().values(**_host_values(host, candidate)))
        elif host != known:
            changed = {"state": host.state.value, "cluster": host.cluster}
            connection.execute(hosts.update().where(hosts.c.host_id == host.host_id.text).values(**changed))
        if candidate.join_token_id is not None and spent_by is None:
            values = {"token_id": candidate.join_token_id, "host_id": host.host_id.text, "spent_at": now}
            connection.execute(tokens.insert().values(**values))
        return host

    def revision(self) -> int:
        """See ``ports.AttestStore``."""
        with self._database.read() as connection:
            revision: int = connection.execute(sa.select(schema.authority.c.revision)).scalar_one()
        return revision

    def view(self, host_id: HostId, cookie_id: bytes) -> AttestationView:
        """See ``ports.AttestStore``."""
        with self._database.read() as connection:
            row = connection.execute(schema.VIEW, {"host": host_id.text, "cookie": cookie_id}).one()
        return AttestationView(
            host=None if row.host_id is None else _host(row),
            cookie_spent=bool(row.cookie_spent),
            epoch=row.epoch,
            revision=row.revision,
        )

    def rules(self) -> Rules:
        """See ``ports.AttestStore``."""
        with self._database.read() as connection:
            revision = connection.execute(sa.select(schema.authority.c.revision)).scalar_one()
            policy = self._policy(connection)
            table = schema.references
            rows = connection.execute(sa.select(table).where(table.c.active).order_by(table.c.name)).all()
        return Rules(revision, policy, tuple(_reference(row) for row in rows))

    def conclude(
        self,
        host_id: HostId,
        appraisal: AppraisalRecord,
        evidence: EvidenceRecord,
        *,
        cookie_id: bytes,
        expires_at: int,
    ) -> bool:
        """See ``ports.AttestStore``."""
        with self._database.write() as connection:
            self._spend(connection, cookie_id, expires_at)
            self._prune(connection, appraisal.appraised_at)
            row = connection.execute(schema.LOCKED_HOST, {"host": host_id.text}).one()
            host, boot = _host(row), appraisal.boot
            overtaken = boot is not None and host.boot is not None and _order(boot) < _order(host.boot)
            if (host.state, AdmissionStep.ATTEST) not in TRANSITIONS or (overtaken and appraisal.trusted):
                return False
            state = next_state(host.state, AdmissionStep.ATTEST) if appraisal.trusted else host.state
            highest = host.boot if boot is None or overtaken else boot
            if (state, highest) != (host.state, host.boot):
                changes: dict[str, Any] = {"state": state.value}
                if highest is not None:
                    changes |= {"reset_count": highest.reset_count, "restart_count": highest.restart_count}
                connection.execute(hosts.update().where(hosts.c.host_id == host_id.text).values(**changes))
            self._keep(connection, host_id, appraisal, evidence, row.logs_digest)
        return True

    def _keep(
        self,
        connection: sa.Connection,
        host_id: HostId,
        appraisal: AppraisalRecord,
        evidence: EvidenceRecord,
        stored_logs: bytes | None,
    ) -> None:
        hashes = [kind.encode() + hashlib.sha256(content).digest() for kind, content in sorted(evidence.logs.items())]
        digest = hashlib.sha256(b"".join(hashes)).digest()
        values = {
            "document": schema.document_of(appraisal),
            "quote": evidence.quote,
            "signature": evidence.signature,
            "pcr_values": json.dumps([[index, value.hex()] for index, value in evidence.pcr_values]),
            "logs_digest": digest,
        }
        table, logs = schema.appraisals, schema.evidence_logs
        if stored_logs is None:
            connection.execute(table.insert(), {"host_id": host_id.text, **values})
        else:
            connection.execute(self._update_appraisal, {"host": host_id.text, **values})
        if stored_logs != digest:
            connection.execute(logs.delete().where(logs.c.host_id == host_id.text))
            for kind, content in evidence.logs.items():
                connection.execute(logs.insert().values(host_id=host_id.text, kind=kind.value, content=content))

    def last_appraisal(self, host_id: HostId) -> AppraisalRecord | None:
        """See ``ports.AdministrationStore``."""
        table = schema.appraisals
        with self._database.read() as connection:
            document = connection.scalar(sa.select(table.c.document).where(table.c.host_id == host_id.text))
        return None if document is None else schema.appraisal_of(document)

    def last_evidence(self, host_id: HostId) -> EvidenceRecord | None:
        """See ``ports.AdministrationStore``."""
        table, logs = schema.appraisals, schema.evidence_logs
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.host_id == host_id.text)).one_or_none()
            log_rows = connection.execute(sa.select(logs).where(logs.c.host_id == host_id.text)).all()
        if row is None:
            return None
        return EvidenceRecord(
            quote=row.quote,
            signature=row.signature,
            pcr_values=tuple((index, bytes.fromhex(value)) for index, value in json.loads(row.pcr_values)),
            logs={LogKind(log.kind): log.content for log in log_rows},
        )

    def hosts(self, *, after: str, limit: int, state: AdmissionState | None) -> tuple[HostRecord, ...]:
        """See ``ports.AdministrationStore``."""
        query = sa.select(hosts).where(hosts.c.host_id > after).order_by(hosts.c.host_id).limit(limit)
        if state is not None:
            query = query.where(hosts.c.state == state.value)
        with self._database.read() as connection:
            return tuple(_host(row) for row in connection.execute(query))

    def find_hosts(self, text: str) -> tuple[HostRecord, ...]:
        """See ``ports.AdministrationStore``."""
        of_id = hosts.c.host_id.startswith(text, autoescape=True)
        named = sa.and_(hosts.c.name == text, hosts.c.state != AdmissionState.REPLACED.value)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(hosts).where(sa.or_(of_id, named)).limit(2)).all()
        return tuple(_host(row) for row in rows)

    def approve_host(self, host_id: HostId, cluster: str) -> HostRecord:
        """See ``ports.AdministrationStore``."""
        with self._database.write() as connection:
            state = next_state(self._locked_host(connection, host_id).state, AdmissionStep.APPROVE)
            values = {"state": state.value, "cluster": cluster}
            connection.execute(hosts.update().where(hosts.c.host_id == host_id.text).values(**values))
            return self._locked_host(connection, host_id)

    def ban_host(self, host_id: HostId, reason: str) -> HostRecord:
        """See ``ports.AdministrationStore``."""
        with self._database.write() as connection:
            state = next_state(self._locked_host(connection, host_id).state, AdmissionStep.BAN)
            values = {"state": state.value, "ban_reason": reason}
            connection.execute(hosts.update().where(hosts.c.host_id == host_id.text).values(**values))
            _advance(connection, new_epoch=True)
            return self._locked_host(connection, host_id)

    def add_anchor(self, anchor: AnchorRecord) -> None:
        """See ``ports.AdministrationStore``."""
        values = {
            "name": anchor.name,
            "certificate_pem": anchor.certificate_pem,
            "fingerprint": anchor.fingerprint,
            "allow_virtual": anchor.allow_virtual,
        }
        try:
            with self._database.write() as connection:
                connection.execute(schema.anchors.insert().values(**values))
        except IntegrityError as exc:
            raise Conflict(f"there is an anchor named {anchor.name}, or one with this certificate") from exc

    def anchors(self) -> tuple[AnchorRecord, ...]:
        """See ``ports.AdministrationStore``."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(schema.anchors).order_by(schema.anchors.c.name)).all()
        return tuple(AnchorRecord(row.name, row.certificate_pem, row.fingerprint, row.allow_virtual) for row in rows)

    def put_policy(self, policy: PolicyRecord, *, now: int) -> None:
        """See ``ports.AdministrationStore``."""
        with self._database.write() as connection:
            in_force = _advance(connection, new_epoch=True).policy_version
            if policy.version <= in_force:
                raise Conflict(f"version {in_force} is in force; {policy.version} is not greater")
            values = {"version": policy.version, "document": policy.document, "digest": policy.digest, "put_at": now}
            connection.execute(schema.policies.insert().values(**values))
            connection.execute(schema.authority.update().values(policy_version=policy.version))

    def policy(self) -> PolicyRecord | None:
        """See ``ports.AdministrationStore``."""
        with self._database.read() as connection:
            return self._policy(connection)

    @staticmethod
    def _policy(connection: sa.Connection) -> PolicyRecord | None:
        table = schema.policies
        row = connection.execute(sa.select(table).order_by(table.c.version.desc()).limit(1)).one_or_none()
        return None if row is None else PolicyRecord(row.version, row.document, row.digest)

    def put_reference(self, reference: ReferenceRecord) -> None:
        """See ``ports.AdministrationStore``."""
        table = schema.references
        with self._database.write() as connection:
            _advance(connection, new_epoch=False)
            stored = connection.scalar(
                sa.select(table.c.event_log).where(table.c.name == reference.name).with_for_update()
            )
            if stored is None:
                connection.execute(table.insert().values(**asdict(reference)))
            elif stored != reference.event_log:
                raise Conflict(f"there is a reference named {reference.name} with another event log")
            else:
                changed = table.update().where(table.c.name == reference.name)
                connection.execute(changed.values(active=reference.active, command_line=reference.command_line))

    def set_reference_active(self, name: str, *, active: bool) -> ReferenceRecord:
        """See ``ports.AdministrationStore``."""
        table = schema.references
        with self._database.write() as connection:
            _advance(connection, new_epoch=not active)
            changed = connection.execute(table.update().where(table.c.name == name).values(active=active))
            if changed.rowcount != 1:
                raise NotFound(f"there is no reference named {name}")
            return _reference(connection.execute(sa.select(table).where(table.c.name == name)).one())

    def references(self) -> tuple[ReferenceRecord, ...]:
        """See ``ports.AdministrationStore``."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(schema.references).order_by(schema.references.c.name)).all()
        return tuple(_reference(row) for row in rows)

    def revocation(self) -> RevocationState:
        """See ``ports.AdministrationStore``."""
        with self._database.read() as connection:
            state = connection.execute(sa.select(schema.authority)).one()
            banned = connection.scalars(
                sa.select(hosts.c.host_id).where(hosts.c.state == AdmissionState.BANNED.value)
            ).all()
        return RevocationState(state.epoch, frozenset(HostId(text) for text in banned), state.policy_version)

    def _spend(self, connection: sa.Connection, cookie_id: bytes, expires_at: int) -> None:
        # What was inserted is returned; rowcount says nothing of an INSERT on PostgreSQL.
        if connection.scalar(self._spend_cookie, {"cookie_id": cookie_id, "expires_at": expires_at}) is None:
            raise ChallengeRejected(ChallengeReason.CHALLENGE_SPENT, "it was used before; ask anew")

    def _prune(self, connection: sa.Connection, now: int) -> None:
        if now >= self._pruned_at + _PRUNE_PERIOD_SECONDS:
            table = schema.spent_cookies
            connection.execute(table.delete().where(table.c.expires_at < now - _PRUNE_MARGIN_SECONDS))
            self._pruned_at = now

    @staticmethod
    def _locked_host(connection: sa.Connection, host_id: HostId) -> HostRecord:
        row = connection.execute(schema.LOCKED_HOST, {"host": host_id.text}).one_or_none()
        if row is None:
            raise NotFound(f"there is no host {host_id}")
        return _host(row)


def _advance(connection: sa.Connection, *, new_epoch: bool) -> Any:
    """Lock the authority's row, move its revision, and its epoch if asked; return it as it was."""
    table = schema.authority
    before = connection.execute(sa.select(table).with_for_update()).one()
    epoch = before.epoch + 1 if new_epoch else before.epoch
    connection.execute(table.update().values(epoch=epoch, revision=before.revision + 1))
    return before


def _order(boot: BootIdentity) -> tuple[int, int]:
    return boot.reset_count, boot.restart_count


def _host(row: Any) -> HostRecord:
    return HostRecord(
        host_id=HostId(row.host_id),
        name=row.name,
        state=AdmissionState(row.state),
        cluster=row.cluster,
        anchor=row.anchor,
        ek_template=EkTemplate(row.ek_template),
        ak_public=row.ak_public,
        enrolled_at=row.enrolled_at,
        boot=None if row.reset_count is None else BootIdentity(row.reset_count, row.restart_count),
    )


def _host_values(host: HostRecord, candidate: Candidate) -> dict[str, Any]:
    return {
        "host_id": host.host_id.text,
        "name": host.name,
        "state": host.state.value,
        "cluster": host.cluster,
        "anchor": host.anchor,
        "ek_template": host.ek_template.value,
        "ek_public": candidate.ek_public,
        "ek_certificate": candidate.ek_certificate,
        "ak_public": host.ak_public,
        "enrolled_at": host.enrolled_at,
    }


def _reference(row: Any) -> ReferenceRecord:
    return ReferenceRecord(row.name, row.event_log, row.active, row.command_line)
