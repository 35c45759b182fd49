"""Attestation over gRPC, with real software TPMs that booted real recordings: who gets a token, and who does not."""

import datetime
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.attester.tpm import Tpm
from attestation.binding import tls_thumbprint
from attestation.errors import EnrollmentReason, EnrollmentRejected
from attestation.model import HostId, HpkeKem, LogKind, PcrBank
from attestation.simulator.boot import Recording, play
from attestation.token import VerifiedHeartbeat, VerifiedToken, verify_heartbeat, verify_token
from attestation.verifier.attest import AttestService, Submission, TokenIssuer
from attestation.verifier.cookie import CookieBox
from attestation.verifier.model import AppraisalRecord, EvidenceRecord
from attestation.verifier.store import SqlAttestationStore
from attestation.wire.ima_log import iter_ima_log
from garant.attestation.v1 import admin_pb2, admin_pb2_grpc, attestation_pb2
from serving.client import call
from serving.database import Database
from serving.errors import RemoteError
from serving.identity import Identity, Role, prove_caller
from serving.jws import key_id
from swtpm.process import SoftwareTpm
from tests.attestation_site import (
    AUDIENCE,
    PCRS,
    SITE,
    Host,
    MakeHost,
    MovableClock,
    Service,
    Site,
    now,
    policy_document,
    running_process,
)
from tests.ima_list import List
from tests.software_tpm import EkCa, MakeSoftwareTpm
from tests.unit.test_wire_systemd_log import record, sequence

Request = attestation_pb2.AttestRequest
REFUSED = "APPRAISAL_REFUSED"


@pytest.fixture
def member(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> Host:
    """Enrol a host that booted the one reference there is."""
    attestation_service.trust(ek_ca, "good")
    host = make_host("host-a")
    host.enroll(attestation_service.site.join_token("host-a"))
    return host


def verified(site: Site, token: str) -> VerifiedToken:
    """A token as a relying party sees it."""
    public = site.token_key.public_key()
    issuer = f"spiffe://{SITE}/attestation-service"
    return verify_token(
        token, keys={key_id(public): public}, issuer=issuer, audience=AUDIENCE, now=int(now().timestamp())
    )


def heartbeat(service: Service) -> VerifiedHeartbeat:
    """The newest heartbeat."""
    public = service.site.token_key.public_key()
    answer = call(service.revocation().GetHeartbeat, admin_pb2.GetHeartbeatRequest())
    return verify_heartbeat(answer.heartbeat, keys={key_id(public): public}, now=int(now().timestamp()))


def refusal(action: Callable[[], object]) -> tuple[str, str]:
    """Why a call is refused: reason and message."""
    with pytest.raises(RemoteError) as caught:
        action()
    return caught.value.reason, caught.value.message


def last_appraisal(host: Host) -> admin_pb2.Appraisal:
    """What administrators see of a host's last appraisal."""
    request = admin_pb2.GetHostRequest(host=host.host_id)
    return call(host.service.admin().GetHost, request).host.last_appraisal


def test_an_admitted_host_gets_a_token(member: Host) -> None:
    """The token names host, keys, boot, reference, policy and epoch (R-TA-5)."""
    site = member.service.site
    answer = member.attest()
    token = verified(site, answer.token)
    assert (token.host_id.text, token.host_name, token.cluster) == (member.host_id, "host-a", "cluster-a")
    assert token.tls_thumbprint == tls_thumbprint(member.tls_key.public_key())
    assert (token.hpke_kem, token.hpke_public_key) == (
        HpkeKem.X25519,
        member.hpke_key.public_key().public_bytes_raw(),
    )
    assert (token.boot, token.reference, token.policy_version) == (member.tpm.clock().boot, "good", 1)
    assert (token.expires_at - token.issued_at, token.epoch) == (300, heartbeat(member.service).epoch)
    assert answer.renew_at.seconds - token.issued_at == 240
    shown = last_appraisal(member)
    assert (shown.trusted, shown.reference, shown.reset_count) == (True, "good", token.boot.reset_count)


def test_an_admitted_host_gets_a_certificate(member: Host) -> None:
    """It is for the attested TLS key, names the host, lives as long as the token, and began a minute ago."""
    site = member.service.site
    answer = member.attest()
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
    caller = prove_caller(certificate, {Role.ATTESTED_HOST: (site.cas["host"].certificate,)}, now())
    assert caller.identity == Identity(SITE, Role.ATTESTED_HOST, member.host_id)
    assert certificate.public_key() == member.tls_key.public_key()
    token = verified(site, answer.token)
    assert certificate.not_valid_after_utc.timestamp() == token.expires_at
    assert certificate.not_valid_before_utc.timestamp() == token.issued_at - 60


def test_a_first_attestation_makes_a_host_active(member: Host) -> None:
    """Approved becomes active, and stays so."""
    for _ in range(2):
        member.attest()
        shown = call(member.service.admin().GetHost, admin_pb2.GetHostRequest(host="host-a")).host
        assert shown.state == attestation_pb2.ADMISSION_STATE_ACTIVE


def test_a_changed_boot_is_refused_and_explained(member: Host) -> None:
    """The host learns that its boot equals no reference; administrators learn which event differs (T4)."""
    member.attest()
    member.reboot("changed-command-line")
    reason, message = refusal(member.attest)
    assert reason == REFUSED
    assert "REFERENCE_MISMATCH" in message
    shown = last_appraisal(member)
    failed = next(check for check in shown.checks if not check.passed)
    assert (shown.trusted, shown.reason, failed.rule) == (False, "REFERENCE_MISMATCH", "REFERENCE_MISMATCH")
    assert failed.event.startswith("event ")
    assert failed.expected != failed.seen
    assert failed.seen not in message
    member.reboot("good")
    assert member.attest().token


def test_a_genuine_tpm_that_never_enrolled_is_refused(member: Host, make_host: MakeHost) -> None:
    """The right boot of a genuine TPM does not make a member."""
    stranger = make_host("host-c")
    stranger.host_id = "c" * 64
    assert refusal(stranger.attest)[0] == "HOST_UNKNOWN"


def test_a_host_that_waits_is_refused(member: Host, make_host: MakeHost) -> None:
    """Enrolled is not admitted; once approved, it attests."""
    waiting = make_host("host-b")
    waiting.enroll()
    assert refusal(waiting.attest)[0] == "HOST_NOT_APPROVED"
    request = admin_pb2.ApproveHostRequest(host_id=waiting.host_id, cluster="blue")
    call(member.service.admin().ApproveHost, request)
    assert verified(member.service.site, waiting.attest().token).cluster == "blue"


def test_a_banned_host_is_refused(member: Host) -> None:
    """Its tokens end with the epoch, the heartbeat names it, and it gets no more (T9)."""
    token = verified(member.service.site, member.attest().token)
    call(member.service.admin().BanHost, admin_pb2.BanHostRequest(host_id=member.host_id, reason="stolen"))
    assert refusal(member.attest)[0] == "HOST_BANNED"
    beat = heartbeat(member.service)
    assert beat.epoch > token.epoch
    assert {host.text for host in beat.revoked} == {member.host_id}


def test_a_withdrawn_reference_ends_trust(member: Host) -> None:
    """Tokens given under it are of an older epoch; brought back, it counts again."""
    token = verified(member.service.site, member.attest().token)
    admin = member.service.admin()
    call(admin.WithdrawReference, admin_pb2.WithdrawReferenceRequest(name="good"))
    assert heartbeat(member.service).epoch > token.epoch
    reason, message = refusal(member.attest)
    assert reason == REFUSED
    assert "NO_ACTIVE_REFERENCE" in message
    call(admin.PutReference, admin_pb2.PutReferenceRequest(name="good"))
    again = verified(member.service.site, member.attest().token)
    assert again.epoch == heartbeat(member.service).epoch


def test_without_a_policy_nothing_is_trusted(attestation_service: Service, make_host: MakeHost) -> None:
    """A new service refuses to ask for evidence that it could not judge."""
    host = make_host("host-a")
    reason, message = refusal(lambda: host.challenge("a" * 64))
    assert reason == REFUSED
    assert "NO_ACTIVE_REFERENCE" in message


def test_a_new_policy_ends_open_challenges(member: Host) -> None:
    """Evidence is judged by the policy that its challenge was made under, or not at all."""
    token = verified(member.service.site, member.attest().token)
    evidence = member.evidence(member.challenge())
    call(member.service.admin().PutPolicy, admin_pb2.PutPolicyRequest(document=policy_document(2)))
    assert refusal(lambda: member.submit(evidence))[0] == "CHALLENGE_EXPIRED"
    renewed = verified(member.service.site, member.attest().token)
    assert (renewed.policy_version, renewed.epoch) == (2, token.epoch + 1)


def test_measured_files_are_held_against_the_policy(member: Host) -> None:
    """R-TA-4, B-3: a policy of files asks for the list; a file that is not allowed ends trust and is named."""
    tool = hashlib.sha256(b"tool").hexdigest()
    fields = {"systemd_log": True, "ima": {"allowed": {"/opt/tool": [f"sha256:{tool}"]}}}
    document = json.dumps({**json.loads(policy_document(2)), "pcrs": [*PCRS, 10], **fields})
    call(member.service.admin().PutPolicy, admin_pb2.PutPolicyRequest(document=document))
    assert list(member.challenge().logs) == [
        attestation_pb2.LOG_KIND_TCG,
        attestation_pb2.LOG_KIND_IMA,
        attestation_pb2.LOG_KIND_SYSTEMD,
    ]
    assert "IMA_LIST_MISSING" in refusal(member.attest)[1]

    pcrs = dict(member.tpm.quote(bytes(32), PcrBank.SHA256, tuple(range(10))).pcr_values)
    kernel = List(aggregate=hashlib.sha256(b"".join(pcrs[pcr] for pcr in range(10))).digest())
    kernel.file("/opt/tool", b"tool")
    _measure(member, kernel)
    member.tpm.extend(11, {PcrBank.SHA256: hashlib.sha256(b"ready").digest()})
    member.later_logs[LogKind.SYSTEMD] = sequence(record(11, "ready"))
    assert member.attest().token
    assert last_appraisal(member).checks[-1].rule == "IMA_FILE_NOT_ALLOWED"

    _measure(member, kernel.file("/opt/other", b"other"))
    assert "IMA_FILE_NOT_ALLOWED" in refusal(member.attest)[1]
    failed = [check for check in last_appraisal(member).checks if not check.passed]
    assert [check.event for check in failed] == ["IMA entry 2: /opt/other"]


def _measure(host: Host, kernel: List) -> None:
    """Extend what the kernel measured and has not extended, and show its list."""
    known = len(host.later_logs.get(LogKind.IMA, b""))
    for entry in list(iter_ima_log(kernel.data[known:])):
        host.tpm.extend(10, {PcrBank.SHA256: hashlib.sha256(entry.data).digest()})
    host.later_logs[LogKind.IMA] = kernel.data


def test_a_challenge_is_used_once(member: Host) -> None:
    """Neither good nor bad evidence gets a second answer (T8, CVE-2026-6420)."""
    evidence = member.evidence(member.challenge())
    member.submit(evidence)
    assert refusal(lambda: member.submit(evidence))[0] == "CHALLENGE_SPENT"
    good = member.evidence(member.challenge())
    bad = Request.FromString(good.SerializeToString())
    bad.quote = b"junk"
    assert refusal(lambda: member.submit(bad))[0] == REFUSED
    assert refusal(lambda: member.submit(good))[0] == "CHALLENGE_SPENT"


def test_malformed_keys_spend_the_challenge(member: Host) -> None:
    """Whatever fails, there is one try."""
    good = member.evidence(member.challenge())
    bad = Request.FromString(good.SerializeToString())
    bad.hpke_public_key = b""
    assert refusal(lambda: member.submit(bad))[0] == "MALFORMED_REQUEST"
    assert refusal(lambda: member.submit(good))[0] == "CHALLENGE_SPENT"


def test_nonces_are_fresh(member: Host) -> None:
    """Each challenge has 32 bytes of its own."""
    nonces = {member.challenge().nonce for _ in range(20)}
    assert len(nonces) == 20
    assert {len(nonce) for nonce in nonces} == {32}


def test_a_challenge_ends_after_a_minute(member: Host, attestation_clock: MovableClock) -> None:
    """Late evidence is told so."""
    evidence = member.evidence(member.challenge())
    attestation_clock.advance(60)
    assert refusal(lambda: member.submit(evidence))[0] == "CHALLENGE_EXPIRED"


@pytest.mark.parametrize("cookie", [b"", b"\1" + bytes(100)])
def test_an_invented_cookie_is_refused(member: Host, cookie: bytes) -> None:
    """A host cannot choose its own challenge."""
    evidence = member.evidence(member.challenge())
    evidence.cookie = cookie
    assert refusal(lambda: member.submit(evidence))[0] == "COOKIE_INVALID"


def test_a_cookie_of_an_enrolment_is_refused(member: Host) -> None:
    """The two cookies are not interchangeable."""
    evidence = member.evidence(member.challenge())
    evidence.cookie = member.begin().cookie
    assert refusal(lambda: member.submit(evidence))[0] == "COOKIE_INVALID"


def test_a_challenge_of_another_host_is_refused(member: Host, make_host: MakeHost) -> None:
    """One host's quote is no answer to another's challenge, whoever it says that it is (T6)."""
    other = make_host("host-b")
    other.enroll(member.service.site.join_token("host-b"))
    for claimed in (member.host_id, other.host_id):
        challenge = member.challenge()
        evidence = other.evidence(challenge, host_id=claimed)
        reason, message = refusal(lambda evidence=evidence: other.submit(evidence))  # type: ignore[misc]
        assert (reason, "BAD_SIGNATURE" in message) == (REFUSED, True)


def _other_tls_key(evidence: Request) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    evidence.tls_public_key = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _other_hpke_key(evidence: Request) -> None:
    evidence.hpke_public_key = bytes(range(32))


def _other_log(evidence: Request) -> None:
    evidence.logs[0].content = Recording.load("changed-command-line").log


def _other_pcr(evidence: Request) -> None:
    evidence.pcr_values[0].digest = bytes(32)


def _other_signature(evidence: Request) -> None:
    evidence.signature = evidence.signature[:-1] + bytes([evidence.signature[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_other_tls_key, "NONCE_MISMATCH"),
        (_other_hpke_key, "NONCE_MISMATCH"),
        (_other_log, "NONCE_MISMATCH"),
        (_other_pcr, "PCR_DIGEST_MISMATCH"),
        (_other_signature, "BAD_SIGNATURE"),
    ],
)
def test_a_quote_holds_only_for_what_it_binds(member: Host, change: Callable[[Request], None], rule: str) -> None:
    """Keys, logs and values that the quote does not vouch for are refused (T2)."""
    evidence = member.evidence(member.challenge())
    change(evidence)
    reason, message = refusal(lambda: member.submit(evidence))
    assert (reason, rule in message) == (REFUSED, True)
    assert last_appraisal(member).reason == rule


def _p384_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_malformed_evidence_is_refused(member: Host) -> None:
    """Kinds and sizes of everything are checked before anything is computed (T15)."""
    pcr, log = attestation_pb2.PcrValue, attestation_pb2.MeasurementLog
    tcg = attestation_pb2.LOG_KIND_TCG
    changes: list[Request] = [
        Request(tls_public_key=b"junk"),
        Request(tls_public_key=_p384_key()),
        Request(tls_public_key=bytes(1025)),
        Request(hpke_public_key=bytes(31)),
        Request(hpke_public_key=bytes(1216)),
        Request(quote=bytes(1025)),
        Request(signature=bytes(1025)),
        Request(pcr_values=[pcr(index=1), pcr(index=0)]),
        Request(pcr_values=[pcr(index=1), pcr(index=1)]),
        Request(pcr_values=[pcr(index=24)]),
        Request(pcr_values=[pcr(index=0, digest=bytes(65))]),
        Request(logs=[log(kind=tcg), log(kind=tcg)]),
        Request(logs=[log(kind=attestation_pb2.LOG_KIND_UNSPECIFIED)]),
        Request(logs=[log(kind=attestation_pb2.LOG_KIND_IMA, content=b"not asked for")]),
        Request(logs=[log(kind=tcg, content=bytes(4 * 1024 * 1024 + 1))]),
    ]
    for change in changes:
        evidence = member.evidence(member.challenge())
        for field, _ in change.ListFields():
            evidence.ClearField(field.name)  # type: ignore[arg-type]
        evidence.MergeFrom(change)
        reason, message = refusal(lambda evidence=evidence: member.submit(evidence))  # type: ignore[misc]
        assert reason == "MALFORMED_REQUEST", message


@pytest.mark.parametrize("host_id", ["", "a" * 63, "A" * 64, "../" * 20])
def test_a_host_id_is_64_digits(member: Host, host_id: str) -> None:
    """What is not one gets no challenge."""
    request = attestation_pb2.CreateChallengeRequest(host_id=host_id)
    assert refusal(lambda: call(member.service.attestation().CreateChallenge, request))[0] == "MALFORMED_REQUEST"


def test_a_copied_tpm_is_noticed(member: Host, tpm_dir: Path) -> None:
    """An older copy of a TPM's state makes genuine quotes; its boot counters betray it (T7)."""
    copy = tpm_dir / "copy"
    member.hardware.process.stop()
    copy.mkdir()
    shutil.copy(member.hardware.state_dir / "tpm2-00.permall", copy)
    with ExitStack() as stack:
        state = member.hardware.state_dir
        original = stack.enter_context(SoftwareTpm.start(state, state / "tpm", key=member.hardware.key))
        original.reset()
        member.tpm = stack.enter_context(Tpm.open(original.tcti))
        play(Recording.load("good"), member.tpm.extend)
        member.attest()
        clone = stack.enter_context(SoftwareTpm.start(copy, copy / "tpm", key=member.hardware.key))
        member.tpm = stack.enter_context(Tpm.open(clone.tcti))
        play(Recording.load("good"), member.tpm.extend)
        assert "BOOT_COUNTER_DECREASED" in refusal(member.attest)[1]


class BanningStore(SqlAttestationStore):
    """A store where an administrator bans each host while it is being appraised."""

    def conclude(
        self,
        host_id: HostId,
        appraisal: AppraisalRecord,
        evidence: EvidenceRecord,
        *,
        cookie_id: bytes,
        expires_at: int,
    ) -> bool:
        """Ban first."""
        self.ban_host(host_id, "meanwhile")
        return super().conclude(host_id, appraisal, evidence, cookie_id=cookie_id, expires_at=expires_at)


def test_a_ban_during_the_appraisal_wins(member: Host) -> None:
    """No token is given on what was true a moment ago (T9)."""
    site = member.service.site
    database = Database(str(site.settings["database"]))
    issuer = TokenIssuer(SITE, AUDIENCE, site.token_key, site.cas["host"], 300)
    cookies = CookieBox((site.directory / "cookie.key").read_bytes())
    service = AttestService(BanningStore(database), cookies, issuer, clock=now, randomness=secrets.token_bytes)
    request = member.evidence(member.challenge())
    evidence = EvidenceRecord(
        request.quote,
        request.signature,
        tuple((value.index, value.digest) for value in request.pcr_values),
        {LogKind.TCG: request.logs[0].content},
    )
    with pytest.raises(EnrollmentRejected) as caught:
        service.attest(Submission(request.cookie, request.tls_public_key, request.hpke_public_key, evidence))
    assert caught.value.reason is EnrollmentReason.HOST_BANNED
    database.close()


def test_the_public_port_serves_nothing_else(member: Host) -> None:
    """Administration, heartbeat, health and reflection are not there for people without a certificate."""
    channel = member.service.channel(member.service.public_port, None)
    stub = admin_pb2_grpc.AttestationAdminServiceStub(channel)
    with pytest.raises(RemoteError) as caught:
        call(stub.ListHosts, admin_pb2.ListHostsRequest())
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    for path in ("/grpc.health.v1.Health/Check", "/garant.attestation.v1.RevocationService/GetHeartbeat"):
        with pytest.raises(RemoteError) as caught:
            call(channel.unary_unary(path), b"")
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("other", ["audience", "token_key"])
def test_evidence_for_another_service_is_refused(member: Host, other: str) -> None:
    """A rogue attestation service cannot forward a host's evidence to this one."""
    challenge = member.challenge()
    if other == "audience":
        challenge.audience = "elsewhere"
    else:
        challenge.service_key = bytes(32)
    evidence = member.evidence(challenge)
    assert "NONCE_MISMATCH" in refusal(lambda: member.submit(evidence))[1]


def test_two_processes_answer_each_challenge_once(
    tmp_path: Path, database_url: str, ek_ca: EkCa, make_software_tpm: MakeSoftwareTpm
) -> None:
    """Two services over one database: any answers what the other asked, and each challenge gives one token (T8)."""
    site = Site.create(tmp_path, database_url)
    boot = Recording.load("good")
    hardware = make_software_tpm()
    with (
        running_process(site) as one,
        running_process(site) as two,
        Tpm.open(hardware.tcti) as tpm,
        ThreadPoolExecutor(2) as pool,
    ):
        one.trust(ek_ca, "good")
        play(boot, tpm.extend)
        host = Host(one, hardware, tpm, "host-a", boot.log)
        begun = host.begin(site.join_token("host-a"))
        host.service = two
        host.complete(host.prove(begun))
        stubs = [service.attestation() for service in (one, two)]
        for _ in range(5):
            evidence = host.evidence(host.challenge())
            answers = [pool.submit(call, stub.Attest, evidence) for stub in stubs]
            errors = [answer.exception() for answer in answers]
            assert sum(error is None for error in errors) == 1
            refused = next(error for error in errors if error is not None)
            assert isinstance(refused, RemoteError)
            assert refused.reason == "CHALLENGE_SPENT"


def test_renewal_keeps_the_certificate_in_step(member: Host, attestation_clock: MovableClock) -> None:
    """Each renewal is a whole attestation, with times of its own."""
    first = member.attest()
    attestation_clock.advance(10)
    second = member.attest()
    assert second.renew_at.seconds - first.renew_at.seconds in (10, 11)
    ends = [x509.load_pem_x509_certificate(one.certificate_pem).not_valid_after_utc for one in (first, second)]
    assert ends[1] - ends[0] >= datetime.timedelta(seconds=10)
