"""Tables of the attestation service, and how the documents in them are written."""

import json
from typing import Any

import sqlalchemy as sa

from attestation.model import BootIdentity
from attestation.verifier.model import AppraisalRecord, CheckRecord

COMPONENT = "attestation"
VERSION = 1
"""Of the schema; grows with each migration."""

metadata = sa.MetaData()
_Id = sa.String(64)
_Bytes = sa.LargeBinary
_Number = sa.BigInteger

authority = sa.Table(
    "authority",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", _Number, nullable=False),
    sa.Column("revision", _Number, nullable=False),
    sa.Column("policy_version", _Number, nullable=False),
)
"""One row. Locked by each administrative change, so that epoch and revision never go back."""

anchors = sa.Table(
    "anchors",
    metadata,
    sa.Column("name", _Id, primary_key=True),
    sa.Column("certificate_pem", sa.Text, nullable=False),
    sa.Column("fingerprint", _Bytes(32), nullable=False, unique=True),
    sa.Column("allow_virtual", sa.Boolean, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("host_id", _Id, primary_key=True),
    sa.Column("name", sa.String(253), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("cluster", sa.String(64), nullable=False),
    sa.Column("anchor", _Id, sa.ForeignKey("anchors.name"), nullable=False),
    sa.Column("ek_template", sa.String(32), nullable=False),
    sa.Column("ek_public", _Bytes, nullable=False),
    sa.Column("ek_certificate", _Bytes, nullable=False),
    sa.Column("ak_public", _Bytes, nullable=False),
    sa.Column("enrolled_at", _Number, nullable=False),
    sa.Column("reset_count", _Number),
    sa.Column("restart_count", _Number),
    sa.Column("ban_reason", sa.Text, nullable=False, server_default=""),
)
_in_use = hosts.c.state != "replaced"
sa.Index("hosts_name", hosts.c.name, unique=True, sqlite_where=_in_use, postgresql_where=_in_use)
"""A replaced host leaves its name to the next."""

join_tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("token_id", sa.String(256), primary_key=True),
    sa.Column("host_id", _Id, sa.ForeignKey("hosts.host_id"), nullable=False),
    sa.Column("spent_at", _Number, nullable=False),
)

spent_cookies = sa.Table(
    "spent_cookies",
    metadata,
    sa.Column("cookie_id", _Bytes(32), primary_key=True),
    sa.Column("expires_at", _Number, nullable=False, index=True),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("version", _Number, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("digest", _Bytes(32), nullable=False),
    sa.Column("put_at", _Number, nullable=False),
)

references = sa.Table(
    "reference_boots",
    metadata,
    sa.Column("name", _Id, primary_key=True),
    sa.Column("event_log", _Bytes, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("command_line", sa.Text, nullable=False),
)

appraisals = sa.Table(
    "appraisals",
    metadata,
    sa.Column("host_id", _Id, sa.ForeignKey("hosts.host_id"), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("quote", _Bytes, nullable=False),
    sa.Column("signature", _Bytes, nullable=False),
    sa.Column("pcr_values", sa.Text, nullable=False),
    sa.Column("logs_digest", _Bytes(32), nullable=False),
)
"""The newest of each host."""

evidence_logs = sa.Table(
    "evidence_logs",
    metadata,
    sa.Column("host_id", _Id, sa.ForeignKey("hosts.host_id"), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("content", _Bytes, nullable=False),
)
"""Logs of that appraisal; rewritten only where they changed: within one boot, they seldom do."""


_of_host = hosts.c.host_id == sa.bindparam("host")
VIEW = (
    sa.select(
        authority.c.epoch,
        authority.c.revision,
        sa.exists().where(spent_cookies.c.cookie_id == sa.bindparam("cookie")).label("cookie_spent"),
        hosts,
    )
    .select_from(authority.outerjoin(hosts, _of_host))
    .where(authority.c.id == 1)
)
"""What an appraisal starts from. These two are built once: each attestation runs them."""
LOCKED_HOST = (
    sa.select(hosts, appraisals.c.logs_digest)
    .select_from(hosts.outerjoin(appraisals, appraisals.c.host_id == hosts.c.host_id))
    .where(_of_host)
    .with_for_update(of=hosts)
)
"""A host, locked, and which logs its last appraisal was over."""


def document_of(appraisal: AppraisalRecord) -> str:
    """An appraisal as JSON. Spelled out: ``dataclasses.asdict`` takes fifteen times as long."""
    boot = appraisal.boot
    return json.dumps(
        {
            "appraised_at": appraisal.appraised_at,
            "trusted": appraisal.trusted,
            "reason": appraisal.reason,
            "checks": [
                [check.rule, check.title, check.passed, check.expected, check.seen, check.event]
                for check in appraisal.checks
            ],
            "reference": appraisal.reference,
            "policy_version": appraisal.policy_version,
            "boot": None if boot is None else [boot.reset_count, boot.restart_count],
        },
        separators=(",", ":"),
    )


def appraisal_of(document: str) -> AppraisalRecord:
    """An appraisal from its JSON."""
    fields: dict[str, Any] = json.loads(document)
    boot = fields.pop("boot")
    checks = tuple(CheckRecord(*check) for check in fields.pop("checks"))
    return AppraisalRecord(**fields, checks=checks, boot=None if boot is None else BootIdentity(*boot))
