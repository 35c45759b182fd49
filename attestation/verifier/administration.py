"""What trust administrators decide: anchors, admission, policy, references; and what relying parties learn of it."""

import re
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import Conflict, MalformedRequest, NotFound, PolicyRejected
from attestation.model import AdmissionState, HostId
from attestation.token import HeartbeatClaims, mint_heartbeat
from attestation.verifier.endorsement import read_anchor
from attestation.verifier.enrolment import CLUSTER_NAME
from attestation.verifier.model import AnchorRecord, AppraisalRecord, HostRecord, PolicyRecord, ReferenceRecord
from attestation.verifier.policy import canonical_hash, parse_policy
from attestation.verifier.ports import AdministrationStore, Clock
from attestation.verifier.rulebook import read_reference

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
MIN_HOST_PREFIX = 8
MAX_BAN_REASON = 1_000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAGE_TOKEN = re.compile(r"[0-9a-f]{64}|")


@dataclass(frozen=True, slots=True)
class ReferenceSummary:
    """A reference boot, for people."""

    name: str
    active: bool
    event_count: int
    command_line: str
    """Empty where the log names none."""


class Administration:
    """Everything of the admin port."""

    def __init__(
        self,
        store: AdministrationStore,
        *,
        token_key: ec.EllipticCurvePrivateKey,
        heartbeat_seconds: int,
        clock: Clock,
    ) -> None:
        """Administer ``store``; heartbeats are signed with ``token_key`` and live ``heartbeat_seconds``."""
        self._store = store
        self._token_key = token_key
        self._heartbeat_seconds = heartbeat_seconds
        self._clock = clock

    def add_anchor(self, name: str, certificate_pem: str, *, allow_virtual: bool) -> None:
        """Add an anchor for endorsement key certificates.

        Raises:
            MalformedRequest: The name is not one.
            PolicyRejected: The certificate is not that of a CA.
            Conflict: Name or certificate is there.
        """
        _check_name("an anchor", name)
        anchor = read_anchor(name, certificate_pem.encode(), allow_virtual=allow_virtual)
        pem = anchor.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self._store.add_anchor(AnchorRecord(name, pem, anchor.certificate.fingerprint(hashes.SHA256()), allow_virtual))

    def anchors(self) -> tuple[AnchorRecord, ...]:
        """All anchors, by name."""
        return self._store.anchors()

    def hosts(
        self, *, page_size: int, page_token: str, state: AdmissionState | None
    ) -> tuple[tuple[HostRecord, ...], str]:
        """A page of hosts, by id, and the token of the next; empty after the last.

        Raises:
            MalformedRequest: Page size or token is not one.
        """
        size = page_size or DEFAULT_PAGE_SIZE
        if size > MAX_PAGE_SIZE:
            raise MalformedRequest(f"a page has at most {MAX_PAGE_SIZE} hosts, not {size}")
        if _PAGE_TOKEN.fullmatch(page_token) is None:
            raise MalformedRequest("this is not a page token of this service")
        found = self._store.hosts(after=page_token, limit=size + 1, state=state)
        return found[:size], found[size - 1].host_id.text if len(found) > size else ""

    def host(self, text: str) -> tuple[HostRecord, AppraisalRecord | None]:
        """The host of an id, a unique prefix of it, or a name, and its last appraisal.

        Raises:
            MalformedRequest: Empty, or of a prefix too short.
            NotFound: None is meant by it.
            Conflict: More than one is.
        """
        if not text:
            raise MalformedRequest("a host id, a prefix of it, or a host name is needed")
        found = self._store.find_hosts(text)
        named = [host for host in found if host.name == text]
        if not named and len(text) < MIN_HOST_PREFIX:
            found = ()
        chosen = named or found
        if not chosen:
            raise NotFound(f"no host has this name, or an id that begins so: {text[:64]!r}")
        if len(chosen) > 1:
            raise Conflict(f"more than one host id begins with {text[:64]}; give more digits")
        return chosen[0], self._store.last_appraisal(chosen[0].host_id)

    def approve_host(self, host_id: str, cluster: str) -> HostRecord:
        """Admit a host that enrolled without a join token.

        Raises:
            MalformedRequest: Host id or cluster is not one.
            NotFound: There is no such host.
            Conflict: Its state does not allow that.
        """
        if CLUSTER_NAME.fullmatch(cluster) is None:
            raise MalformedRequest("a cluster name has 1 to 64 letters, digits, dots, dashes, underscores")
        return self._store.approve_host(_host_id(host_id), cluster)

    def ban_host(self, host_id: str, reason: str) -> HostRecord:
        """Expel a host. All tokens end; those of other hosts are given anew when they attest.

        Raises:
            MalformedRequest: The host id is not one, or the reason too long.
            NotFound: There is no such host.
            Conflict: Its state does not allow that.
        """
        if len(reason) > MAX_BAN_REASON:
            raise MalformedRequest(f"a reason has at most {MAX_BAN_REASON} characters")
        return self._store.ban_host(_host_id(host_id), reason)

    def put_policy(self, document: str) -> PolicyRecord:
        """Put a policy in force.

        Raises:
            PolicyRejected: The document is not a policy.
            Conflict: Its version is not greater than that in force.
        """
        policy = parse_policy(document)
        record = PolicyRecord(policy.version, document, canonical_hash(policy))
        self._store.put_policy(record, now=self._now())
        return record

    def policy(self) -> PolicyRecord:
        """The policy in force.

        Raises:
            NotFound: There is none.
        """
        record = self._store.policy()
        if record is None:
            raise NotFound("no policy is in force: no host is trusted until there is one")
        return record

    def put_reference(self, name: str, event_log: bytes, *, command_line: str = "") -> ReferenceSummary:
        """Add a reference boot; with an empty log, bring a withdrawn one back.

        Args:
            name: 1 to 64 letters, digits, dots, dashes, underscores.
            event_log: TCG log of a boot to trust.
            command_line: Kernel command line of that boot, to be shown; empty where nobody names it.

        Raises:
            MalformedRequest: The name is not one.
            PolicyRejected: The policy could never trust such a boot, the log does not cover its PCRs, or it
                does not measure the command line.
            NotFound: The log is empty, and there is no reference of that name.
            Conflict: No policy is in force yet, or there is one of that name with another log.
        """
        _check_name("a reference", name)
        if not event_log:
            return self._summary(self._store.set_reference_active(name, active=True))
        record = ReferenceRecord(name, event_log, active=True, command_line=command_line)
        policy = self._store.policy()
        if policy is None:
            raise Conflict("put a policy first: it says which PCRs a reference must cover")
        read_reference(record, parse_policy(policy.document))
        self._store.put_reference(record)
        return self._summary(record)

    def withdraw_reference(self, name: str) -> ReferenceSummary:
        """Withdraw a reference boot; all tokens end.

        Raises:
            NotFound: There is none of that name.
        """
        return self._summary(self._store.set_reference_active(name, active=False))

    def references(self) -> tuple[ReferenceSummary, ...]:
        """All references, by name."""
        return tuple(self._summary(record) for record in self._store.references())

    def heartbeat(self) -> str:
        """The newest heartbeat: a JWS that anyone may deliver."""
        state, now = self._store.revocation(), self._now()
        claims = HeartbeatClaims(
            epoch=state.epoch,
            revoked=state.revoked,
            policy_version=state.policy_version,
            issued_at=now,
            expires_at=now + self._heartbeat_seconds,
        )
        return mint_heartbeat(claims, self._token_key)

    def _summary(self, record: ReferenceRecord) -> ReferenceSummary:
        """A reference as the policy in force sees it: one that does not cover its PCRs holds no event."""
        policy = self._store.policy()
        if policy is None:
            return ReferenceSummary(record.name, record.active, 0, "")
        try:
            boot = read_reference(record, parse_policy(policy.document))
        except PolicyRejected:
            return ReferenceSummary(record.name, record.active, 0, "")
        return ReferenceSummary(record.name, record.active, len(boot.events), boot.command_line)

    def _now(self) -> int:
        return int(self._clock().timestamp())


def _check_name(what: str, name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise MalformedRequest(f"the name of {what} has 1 to 64 letters, digits, dots, dashes, underscores")


def _host_id(text: str) -> HostId:
    try:
        return HostId(text)
    except ValueError as exc:
        raise MalformedRequest(str(exc)) from exc
