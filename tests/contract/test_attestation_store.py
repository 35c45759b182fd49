"""The attestation service's store, on SQLite and on PostgreSQL."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

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
from attestation.verifier.model import (
    AnchorRecord,
    AppraisalRecord,
    Candidate,
    CheckRecord,
    EvidenceRecord,
    PolicyRecord,
    ReferenceRecord,
)
from attestation.verifier.store import SqlAttestationStore
from serving.database import Database
from serving.errors import StoreError

NOW = 1_000_000
ANCHOR = AnchorRecord("vendor", "PEM", bytes(32), allow_virtual=False)
APPRAISAL = AppraisalRecord(
    appraised_at=NOW,
    trusted=True,
    reason="",
    checks=(CheckRecord("RULE", "a rule", passed=True), CheckRecord("OTHER", "another", False, "a", "b", "event 3")),
    reference="good",
    policy_version=7,
    boot=BootIdentity(4, 0),
)
EVIDENCE = EvidenceRecord(b"quote", b"signature", ((0, b"\1" * 32), (7, b"\2" * 32)), {LogKind.TCG: b"log"})


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> SqlAttestationStore:
    """A store with one anchor."""
    store = SqlAttestationStore(database)
    store.add_anchor(ANCHOR)
    return store


def candidate(number: int = 0, *, admitted: bool = True, name: str | None = None) -> Candidate:
    """A host that proved its TPM."""
    return Candidate(
        host_id=HostId(f"{number:064x}"),
        name=name or f"host-{number}",
        anchor="vendor",
        ek_template=EkTemplate.ECC_P256_LOW,
        ek_public=b"ek",
        ek_certificate=b"certificate",
        ak_public=b"ak",
        join_token_id=f"token-{number}" if admitted else None,
        cluster="blue" if admitted else "",
    )


def conclude(
    store: SqlAttestationStore,
    cookie: int,
    *,
    appraisal: AppraisalRecord = APPRAISAL,
    evidence: EvidenceRecord = EVIDENCE,
    number: int = 0,
) -> bool:
    """Record an appraisal."""
    host_id = HostId(f"{number:064x}")
    return store.conclude(host_id, appraisal, evidence, cookie_id=cookie.to_bytes(32, "big"), expires_at=NOW + 60)


def test_a_new_store_is_empty(store: SqlAttestationStore) -> None:
    """Nothing is in force, and nobody is known."""
    view = store.view(HostId("a" * 64), bytes(32))
    assert (view.host, view.cookie_spent) == (None, False)
    assert (store.policy(), store.references(), store.rules().policy) == (None, (), None)
    state = store.revocation()
    assert (state.epoch, state.revoked, state.policy_version) == (1, frozenset(), 0)


def test_a_cookie_is_spent_once(store: SqlAttestationStore) -> None:
    """The second time is refused, and the view says so."""
    store.spend(bytes(32), expires_at=NOW + 60, now=NOW)
    assert store.view(HostId("a" * 64), bytes(32)).cookie_spent
    with pytest.raises(ChallengeRejected) as caught:
        store.spend(bytes(32), expires_at=NOW + 60, now=NOW)
    assert caught.value.reason is ChallengeReason.CHALLENGE_SPENT


def _spend_all(url: str, cookies: int) -> int:
    """Spend cookies in a process of its own; say how many were still there."""
    database = Database(url)
    store = SqlAttestationStore(database)
    won = 0
    for number in range(cookies):
        try:
            store.spend(number.to_bytes(32, "big"), expires_at=NOW + 60, now=NOW)
        except ChallengeRejected:
            continue
        won += 1
    database.close()
    return won


def _enroll_all(url: str, names: int, base: int) -> int:
    """Enrol hosts under the same names in a process of its own; say how many were admitted."""
    database = Database(url)
    store = SqlAttestationStore(database)
    won = 0
    for number in range(names):
        try:
            store.enroll(replace(candidate(base + number, name=f"host-{number}"), join_token_id=f"t{number}"), now=NOW)
        except EnrollmentRejected:
            continue
        won += 1
    database.close()
    return won


def test_two_processes_spend_each_cookie_once(store: SqlAttestationStore, database_url: str) -> None:
    """However they race, every cookie is spent exactly once (T8)."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = list(pool.map(_spend_all, [database_url] * 2, [60] * 2))
    assert sum(won) == 60


def test_two_processes_admit_each_name_and_token_once(store: SqlAttestationStore, database_url: str) -> None:
    """Two TPMs that show one join token at the same moment: one is admitted, and no database error comes out."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = list(pool.map(_enroll_all, [database_url] * 2, [30] * 2, [0, 1000]))
    assert sum(won) == 30
    assert len(store.hosts(after="", limit=1000, state=None)) == 30


def test_spent_cookies_are_forgotten_after_their_end(store: SqlAttestationStore, database: Database) -> None:
    """The table does not grow for ever; what could still be shown is kept."""
    store.spend(b"\1" * 32, expires_at=NOW, now=NOW)
    store.spend(b"\2" * 32, expires_at=NOW + 5_000, now=NOW)
    store.spend(b"\3" * 32, expires_at=NOW + 5_000, now=NOW + 301)
    with database.read() as connection:
        ids = set(connection.scalars(sa.select(schema.spent_cookies.c.cookie_id)))
    assert ids == {b"\2" * 32, b"\3" * 32}


def test_a_host_is_admitted_once_by_a_token(store: SqlAttestationStore) -> None:
    """Token and host row are one transaction; another host does not get in with the same token."""
    host = store.enroll(candidate(0), now=NOW)
    assert (host.state, host.cluster, host.enrolled_at) == (AdmissionState.APPROVED, "blue", NOW)
    assert store.view(host.host_id, bytes(32)).host == host
    with pytest.raises(EnrollmentRejected) as caught:
        store.enroll(replace(candidate(1), join_token_id="token-0"), now=NOW)
    assert caught.value.reason is EnrollmentReason.JOIN_TOKEN_SPENT
    assert store.view(HostId(f"{1:064x}"), bytes(32)).host is None


def test_a_refused_enrolment_leaves_its_token(store: SqlAttestationStore) -> None:
    """A token is spent with the host row or not at all."""
    store.enroll(candidate(0, name="same"), now=NOW)
    with pytest.raises(EnrollmentRejected) as caught:
        store.enroll(candidate(1, name="same"), now=NOW)
    assert caught.value.reason is EnrollmentReason.IDENTITY_CONFLICT
    assert store.enroll(candidate(1), now=NOW).state is AdmissionState.APPROVED


def test_enrolling_again_changes_nothing(store: SqlAttestationStore) -> None:
    """A host may ask for its answer twice."""
    assert store.enroll(candidate(0), now=NOW) == store.enroll(candidate(0), now=NOW + 5)


def test_a_waiting_host_is_approved(store: SqlAttestationStore) -> None:
    """By an administrator, once."""
    host = store.enroll(candidate(0, admitted=False), now=NOW)
    assert host.state is AdmissionState.REQUESTED
    approved = store.approve_host(host.host_id, "green")
    assert (approved.state, approved.cluster) == (AdmissionState.APPROVED, "green")
    with pytest.raises(Conflict):
        store.approve_host(host.host_id, "blue")
    with pytest.raises(NotFound):
        store.approve_host(HostId("f" * 64), "blue")


def test_a_waiting_host_is_approved_by_a_token(store: SqlAttestationStore) -> None:
    """A join token shown later does what an administrator would have."""
    store.enroll(candidate(0, admitted=False), now=NOW)
    host = store.enroll(candidate(0), now=NOW)
    assert (host.state, host.cluster) == (AdmissionState.APPROVED, "blue")
    assert store.view(host.host_id, bytes(32)).host == host


def test_a_ban_begins_an_epoch(store: SqlAttestationStore) -> None:
    """Ban and epoch are one transaction, and the host is named."""
    host = store.enroll(candidate(0), now=NOW)
    before = store.revocation().epoch
    assert store.ban_host(host.host_id, "stolen").state is AdmissionState.BANNED
    state = store.revocation()
    assert (state.epoch, state.revoked) == (before + 1, frozenset({host.host_id}))
    with pytest.raises(Conflict):
        store.ban_host(host.host_id, "again")
    with pytest.raises(NotFound):
        store.ban_host(HostId("f" * 64), "nobody")
    assert store.revocation().epoch == before + 1


def test_an_appraisal_is_kept_with_its_evidence(store: SqlAttestationStore) -> None:
    """The newest one, whole, and the host becomes active."""
    store.enroll(candidate(0), now=NOW)
    host_id = HostId(f"{0:064x}")
    assert (store.last_appraisal(host_id), store.last_evidence(host_id)) == (None, None)
    assert conclude(store, 1)
    assert store.last_appraisal(host_id) == APPRAISAL
    assert store.last_evidence(host_id) == EVIDENCE
    host = store.view(host_id, bytes(32)).host
    assert host is not None
    assert (host.state, host.boot) == (AdmissionState.ACTIVE, BootIdentity(4, 0))
    later = replace(APPRAISAL, appraised_at=NOW + 9)
    changed = replace(EVIDENCE, quote=b"other", logs={LogKind.TCG: b"longer log", LogKind.IMA: b"ima"})
    assert conclude(store, 2, appraisal=later, evidence=changed)
    assert (store.last_appraisal(host_id), store.last_evidence(host_id)) == (later, changed)


def test_a_refusal_is_kept_and_activates_nobody(store: SqlAttestationStore) -> None:
    """A host that was never trusted stays approved; its proven boot counters count."""
    store.enroll(candidate(0), now=NOW)
    refused = replace(APPRAISAL, trusted=False, reason="REFERENCE_MISMATCH", reference="")
    assert conclude(store, 1, appraisal=refused)
    host = store.view(HostId(f"{0:064x}"), bytes(32)).host
    assert host is not None
    assert (host.state, host.boot) == (AdmissionState.APPROVED, BootIdentity(4, 0))
    assert store.last_appraisal(host.host_id) == refused


def test_an_unproven_quote_moves_no_counter(store: SqlAttestationStore) -> None:
    """Counters of a quote that was not believed are nobody's."""
    store.enroll(candidate(0), now=NOW)
    conclude(store, 1)
    conclude(store, 2, appraisal=replace(APPRAISAL, trusted=False, reason="BAD_SIGNATURE", boot=None))
    host = store.view(HostId(f"{0:064x}"), bytes(32)).host
    assert host is not None
    assert host.boot == BootIdentity(4, 0)


@pytest.mark.parametrize("boot", [BootIdentity(3, 9), BootIdentity(4, 0)])
def test_an_overtaken_appraisal_does_not_stand(store: SqlAttestationStore, boot: BootIdentity) -> None:
    """Where a later boot was proven meanwhile, an earlier one is not trusted, and the counters stay (T7)."""
    store.enroll(candidate(0), now=NOW)
    conclude(store, 1, appraisal=replace(APPRAISAL, boot=BootIdentity(4, 1)))
    assert not conclude(store, 2, appraisal=replace(APPRAISAL, boot=boot))
    host = store.view(HostId(f"{0:064x}"), (2).to_bytes(32, "big")).host
    assert host is not None
    assert host.boot == BootIdentity(4, 1)
    assert store.view(host.host_id, (2).to_bytes(32, "big")).cookie_spent


def test_an_appraisal_of_an_expelled_host_does_not_stand(store: SqlAttestationStore) -> None:
    """A ban that came during the appraisal wins."""
    host = store.enroll(candidate(0), now=NOW)
    store.ban_host(host.host_id, "")
    assert not conclude(store, 1)
    assert store.last_appraisal(host.host_id) is None


def test_an_appraisal_spends_its_cookie(store: SqlAttestationStore) -> None:
    """A second conclusion over the same cookie changes nothing."""
    store.enroll(candidate(0), now=NOW)
    conclude(store, 1)
    with pytest.raises(ChallengeRejected) as caught:
        conclude(store, 1, appraisal=replace(APPRAISAL, appraised_at=NOW + 1))
    assert caught.value.reason is ChallengeReason.CHALLENGE_SPENT
    assert store.last_appraisal(HostId(f"{0:064x}")) == APPRAISAL


def test_hosts_are_listed_in_pages(store: SqlAttestationStore) -> None:
    """By id, from where the last page ended, and by state."""
    for number in range(5):
        store.enroll(candidate(number, admitted=bool(number % 2)), now=NOW)
    first = store.hosts(after="", limit=3, state=None)
    rest = store.hosts(after=first[-1].host_id.text, limit=3, state=None)
    assert [host.name for host in (*first, *rest)] == [f"host-{number}" for number in range(5)]
    waiting = store.hosts(after="", limit=10, state=AdmissionState.REQUESTED)
    assert [host.name for host in waiting] == ["host-0", "host-2", "host-4"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("host-1", ["host-1"]),
        (f"{1:064x}", ["host-1"]),
        ("0" * 64, ["host-0"]),
        ("0" * 8, ["host-0", "host-1"]),
        ("f" * 8, []),
        ("%", []),
        ("host-_", []),
    ],
)
def test_hosts_are_found_by_id_prefix_and_name(store: SqlAttestationStore, text: str, names: list[str]) -> None:
    """Patterns of SQL are ordinary characters."""
    for number in range(2):
        store.enroll(candidate(number), now=NOW)
    assert sorted(host.name for host in store.find_hosts(text)) == names


def test_an_anchor_is_unique_by_name_and_certificate(store: SqlAttestationStore) -> None:
    """One certificate could otherwise be flagged in one anchor and not in another."""
    other = AnchorRecord("another", "PEM", b"\1" * 32, allow_virtual=True)
    store.add_anchor(other)
    assert store.anchors() == (other, ANCHOR)
    for anchor in (replace(ANCHOR, fingerprint=b"\2" * 32), replace(ANCHOR, name="third")):
        with pytest.raises(Conflict):
            store.add_anchor(anchor)
    assert store.anchors() == (other, ANCHOR)


def test_policy_versions_only_grow(store: SqlAttestationStore) -> None:
    """Equal and lower versions are refused and change nothing (T14)."""
    store.put_policy(PolicyRecord(5, "five", b"\5" * 32), now=NOW)
    epoch = store.revocation().epoch
    for version in (5, 4, 1):
        with pytest.raises(Conflict):
            store.put_policy(PolicyRecord(version, "old", bytes(32)), now=NOW)
    assert store.policy() == PolicyRecord(5, "five", b"\5" * 32)
    assert (store.revocation().epoch, store.revocation().policy_version) == (epoch, 5)
    store.put_policy(PolicyRecord(6, "six", bytes(32)), now=NOW)
    assert (store.revocation().epoch, store.revocation().policy_version) == (epoch + 1, 6)


def test_references_come_and_go(store: SqlAttestationStore) -> None:
    """Withdrawing begins an epoch; bringing back and adding do not; each shows in the revision."""
    first = ReferenceRecord("first", b"log", active=True)
    store.put_reference(first)
    epoch, revision = store.revocation().epoch, store.revision()
    assert store.rules().references == (first,)
    assert store.set_reference_active("first", active=False) == replace(first, active=False)
    assert (store.revocation().epoch, store.rules().references) == (epoch + 1, ())
    assert store.set_reference_active("first", active=True) == first
    assert (store.revocation().epoch, store.rules().references) == (epoch + 1, (first,))
    assert store.revision() == store.rules().revision == revision + 2
    with pytest.raises(NotFound):
        store.set_reference_active("second", active=False)
    assert store.revocation().epoch == epoch + 1


def test_a_reference_keeps_its_log(store: SqlAttestationStore) -> None:
    """Its name never means another boot; putting the same log again brings it back."""
    reference = ReferenceRecord("first", b"log", active=True)
    store.put_reference(reference)
    store.set_reference_active("first", active=False)
    with pytest.raises(Conflict):
        store.put_reference(replace(reference, event_log=b"other"))
    assert store.references() == (replace(reference, active=False),)
    store.put_reference(reference)
    assert store.references() == (reference,)


def test_state_survives_a_restart(store: SqlAttestationStore, database_url: str) -> None:
    """What was committed is there for the next process; opening twice changes nothing."""
    host = store.enroll(candidate(0), now=NOW)
    store.ban_host(host.host_id, "")
    database = Database(database_url)
    again = SqlAttestationStore(database)
    assert again.revocation() == store.revocation()
    database.close()


def test_a_newer_schema_is_refused(store: SqlAttestationStore, database: Database) -> None:
    """Software does not write into what it does not understand."""
    with database.write() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    with pytest.raises(StoreError, match="schema 99"):
        SqlAttestationStore(database)
