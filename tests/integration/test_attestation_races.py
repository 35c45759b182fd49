"""What happens between two steps of one attestation: another boot, another enrolment, another policy."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from attestation.errors import EnrollmentReason, EnrollmentRejected, EvidenceRejected, RejectReason
from attestation.model import BootIdentity, EkTemplate, HostId
from attestation.verifier import schema
from attestation.verifier.model import AnchorRecord, AppraisalRecord, Candidate, EvidenceRecord
from attestation.verifier.store import SqlAttestationStore
from serving.database import Database
from tests.in_process_service import InProcessService, member

LATER = BootIdentity(99, 0)


class OvertakingStore(SqlAttestationStore):
    """A store in which a later boot of each host attests while an earlier one is being appraised."""

    def conclude(
        self,
        host_id: HostId,
        appraisal: AppraisalRecord,
        evidence: EvidenceRecord,
        *,
        cookie_id: bytes,
        expires_at: int,
    ) -> bool:
        """The later boot first."""
        other = bytes(32)
        super().conclude(host_id, replace(appraisal, boot=LATER), evidence, cookie_id=other, expires_at=expires_at)
        return super().conclude(host_id, appraisal, evidence, cookie_id=cookie_id, expires_at=expires_at)


@pytest.fixture
def overtaken() -> Iterator[InProcessService]:
    """Run a service over such a store."""
    service = InProcessService(OvertakingStore)
    yield service
    service.close()


def test_a_later_boot_during_the_appraisal_wins(overtaken: InProcessService) -> None:
    """No token is given to a boot that is over (T7)."""
    overtaken.trust()
    overtaken.enroll(member())
    with pytest.raises(EvidenceRejected) as caught:
        overtaken.submit(overtaken.ask(member()))
    assert caught.value.reason is RejectReason.BOOT_COUNTER_DECREASED


@contextlib.contextmanager
def closing_database(url: str) -> Iterator[Database]:
    """A database, closed in the end."""
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def candidate(number: int) -> Candidate:
    """A host that proved its TPM, with the one join token."""
    return Candidate(
        host_id=HostId(f"{number:064x}"),
        name=f"host-{number}",
        anchor="anchor",
        ek_template=EkTemplate.ECC_P256_LOW,
        ek_public=b"ek",
        ek_certificate=b"",
        ak_public=b"ak",
        join_token_id="token",
        cluster="prod",
    )


@pytest.mark.postgres
def test_two_hosts_cannot_spend_one_join_token_at_once(postgres_url: str) -> None:
    """The second of two enrolments that see an unspent token waits for the first, and is refused (T8)."""
    with closing_database(postgres_url) as database:
        store = SqlAttestationStore(database)
        store.add_anchor(AnchorRecord("anchor", "", bytes(32), allow_virtual=True))
        store.enroll(replace(candidate(1), join_token_id=None), now=0)
        refused: list[EnrollmentReason] = []

        def enroll_second() -> None:
            try:
                store.enroll(candidate(2), now=0)
            except EnrollmentRejected as rejection:
                refused.append(rejection.reason)

        second = threading.Thread(target=enroll_second)
        with database.write() as first:
            row = {"token_id": "token", "host_id": candidate(1).host_id.text, "spent_at": 0}
            first.execute(schema.join_tokens.insert().values(**row))
            second.start()
            with database.read() as observer:
                while not observer.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                    assert second.is_alive()
                    time.sleep(0.01)
        second.join(timeout=30)
        assert refused == [EnrollmentReason.IDENTITY_CONFLICT]
        assert store.find_hosts("host-2") == ()
