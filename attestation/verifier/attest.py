"""Attestation of an enrolled host: challenge, evidence, appraisal, token and certificate.

Steps of ``AttestService.attest``, in this order:

1. the cookie is ours, for this call, has not expired and was not spent;
2. the host is admitted (approved or active);
3. the two keys are of the kinds asked for, the policy is still the one the challenge was made under, and no log came
   that it did not ask for;
4. the evidence is appraised, by the pure core (``attestation.verifier.appraisal``);
5. the cookie is spent, and the appraisal with its evidence is durable;
6. only then, and only for trusted hosts: token and certificate.

Whatever fails, the cookie is spent. The token carries the epoch that was read before the appraisal: what an
administrator changes meanwhile makes it void at once.
"""

import datetime
import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.binding import QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.errors import (
    AttestationError,
    ChallengeReason,
    ChallengeRejected,
    EnrollmentReason,
    EnrollmentRejected,
    EvidenceRejected,
    RejectReason,
)
from attestation.model import BootIdentity, HostId, HpkeKem, LogKind, PcrBank
from attestation.token import TokenClaims, issuer_of, mint_token
from attestation.verifier.admission import require_admitted
from attestation.verifier.appraisal import Appraisal, Evidence, appraise
from attestation.verifier.cookie import ID_BYTES, CookieBox, CookiePurpose
from attestation.verifier.model import (
    AppraisalRecord,
    AttestationView,
    CheckRecord,
    EvidenceRecord,
    HostRecord,
)
from attestation.verifier.ports import AttestStore, Clock, Randomness
from attestation.verifier.rulebook import Rulebook, RulebookCache
from attestation.wire.tpm_public import parse_tpm_public
from serving.authority import CertificateAuthority
from serving.identity import Identity, Role

CHALLENGE_SECONDS = 60
NONCE_BYTES = 32
MAX_LOG_BYTES = 4 * 1024 * 1024
RENEW_AFTER = 0.8
"""Share of a token's life after which to attest again."""
_HPKE_KEY_BYTES = {HpkeKem.X25519: 32, HpkeKem.MLKEM768_X25519: 1184 + 32}


@dataclass(frozen=True, slots=True)
class Challenge:
    """What evidence must cover."""

    nonce: bytes
    bank: PcrBank
    pcrs: tuple[int, ...]
    logs: tuple[LogKind, ...]
    kem: HpkeKem
    service_key: bytes
    audience: str
    cookie: bytes
    expires_at: int
    """Seconds since the epoch."""
    server_time: datetime.datetime


@dataclass(frozen=True, slots=True)
class Submission:
    """What a host hands in; nothing in it is believed yet."""

    cookie: bytes
    tls_public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    hpke_public_key: bytes
    evidence: EvidenceRecord
    untrusted_command_line: str = ""
    """What the host says that its kernel command line is: for people, where its digest was measured."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a trusted host gets."""

    token: str
    certificate: x509.Certificate
    renew_at: datetime.datetime
    server_time: datetime.datetime


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Who signs for the attestation service, for whom, and for how long."""

    site: str
    audience: str
    token_key: ec.EllipticCurvePrivateKey = field(repr=False)
    host_ca: CertificateAuthority = field(repr=False)
    token_seconds: int

    @property
    def issuer(self) -> str:
        """The tokens' ``iss``."""
        return issuer_of(self.site)

    @property
    def service_key(self) -> bytes:
        """SHA-256 of the token-signing SubjectPublicKeyInfo, 32 bytes."""
        der = self.token_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).digest()


@dataclass(frozen=True, slots=True)
class _SealedChallenge:
    """What a challenge's cookie holds."""

    host_id: HostId
    nonce: bytes
    policy_version: int

    def encode(self) -> bytes:
        return self.nonce + bytes.fromhex(self.host_id.text) + self.policy_version.to_bytes(8, "big")

    @classmethod
    def decode(cls, payload: bytes) -> "_SealedChallenge":
        return cls(HostId(payload[32:64].hex()), payload[:32], int.from_bytes(payload[64:], "big"))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything an appraisal needs, none of it believed because of that."""

    host: HostRecord
    rulebook: Rulebook
    evidence: Evidence
    binding: QuoteBinding
    tls_key: ec.EllipticCurvePublicKey
    hpke_public_key: bytes


class AttestService:
    """Challenges hosts and appraises what they answer."""

    def __init__(
        self,
        store: AttestStore,
        cookies: CookieBox,
        issuer: TokenIssuer,
        *,
        clock: Clock,
        randomness: Randomness,
        kem: HpkeKem = HpkeKem.X25519,
    ) -> None:
        """Attest hosts of ``store``; hosts are asked for an HPKE key of ``kem``."""
        self._store = store
        self._cookies = cookies
        self._issuer = issuer
        self._service_key = issuer.service_key
        self._clock = clock
        self._randomness = randomness
        self._kem = kem
        self._rulebooks = RulebookCache(store)

    def challenge(self, host_id: HostId) -> Challenge:
        """Make a challenge. It says nothing about whether such a host exists.

        Raises:
            EvidenceRejected: NO_ACTIVE_REFERENCE: no policy is in force, so no evidence could be believed.
            StoreError: The database is not usable.
        """
        now = self._clock()
        policy = self._rulebooks.at(self._store.revision()).policy
        nonce = self._randomness(NONCE_BYTES)
        expires_at = int(now.timestamp()) + CHALLENGE_SECONDS
        cookie = self._cookies.seal(
            CookiePurpose.CHALLENGE,
            _SealedChallenge(host_id, nonce, policy.version).encode(),
            cookie_id=self._randomness(ID_BYTES),
            expires_at=expires_at,
        )
        return Challenge(
            nonce=nonce,
            bank=policy.bank,
            pcrs=tuple(policy.pcrs),
            logs=policy.logs,
            kem=self._kem,
            service_key=self._service_key,
            audience=self._issuer.audience,
            cookie=cookie,
            expires_at=expires_at,
            server_time=now,
        )

    def attest(self, submission: Submission) -> Grant:
        """Appraise evidence; the steps are this module's list.

        Raises:
            ChallengeRejected: COOKIE_INVALID, CHALLENGE_EXPIRED, CHALLENGE_SPENT.
            EnrollmentRejected: HOST_UNKNOWN, HOST_NOT_APPROVED, HOST_BANNED, HOST_REPLACED; MALFORMED_REQUEST.
            EvidenceRejected: As the appraisal has it.
            StoreError: The database is not usable.
        """
        now = self._clock()
        # 1: the cookie.
        opened = self._cookies.open(CookiePurpose.CHALLENGE, submission.cookie, now=int(now.timestamp()))
        challenge = _SealedChallenge.decode(opened.payload)
        view = self._store.view(challenge.host_id, opened.cookie_id)
        if view.cookie_spent:
            raise ChallengeRejected(ChallengeReason.CHALLENGE_SPENT, "it was used before; ask anew")
        try:
            prepared = self._prepare(submission, challenge, view)
        except AttestationError:
            self._store.spend(opened.cookie_id, expires_at=opened.expires_at, now=int(now.timestamp()))
            raise
        # 4: the appraisal.
        appraisal = appraise(
            prepared.evidence,
            ak=parse_tpm_public(prepared.host.ak_public),
            expected_extra_data=prepared.binding.extra_data(),
            policy=prepared.rulebook.policy,
            references=prepared.rulebook.references,
            ima_rules=prepared.rulebook.ima_rules,
            previous_boot=prepared.host.boot,
        )
        # 5: spent and recorded.
        stands = self._store.conclude(
            prepared.host.host_id,
            _record(appraisal, prepared.rulebook.policy.version, int(now.timestamp())),
            submission.evidence,
            cookie_id=opened.cookie_id,
            expires_at=opened.expires_at,
        )
        if appraisal.reason is not None or appraisal.boot is None:
            reason = appraisal.reason or RejectReason.MALFORMED_QUOTE
            raise EvidenceRejected(reason, "the evidence was not believed; trust administrators see why")
        if not stands:
            current = self._store.view(prepared.host.host_id, opened.cookie_id).host
            require_admitted(None if current is None else current.state)
            raise EvidenceRejected(RejectReason.BOOT_COUNTER_DECREASED, "a later boot attested meanwhile")
        # 6: token and certificate.
        return self._grant(prepared, appraisal, appraisal.boot, view.epoch, now)

    def _prepare(self, submission: Submission, challenge: _SealedChallenge, view: AttestationView) -> _Prepared:
        # 2: the host.
        require_admitted(None if view.host is None else view.host.state)
        if view.host is None:
            raise AssertionError("a host that is not there was admitted")
        # 3: the keys, the policy and the logs.
        tls_key = _read_tls_key(submission.tls_public_key)
        if len(submission.hpke_public_key) != _HPKE_KEY_BYTES[self._kem]:
            message = f"an HPKE key of {self._kem.name} has {_HPKE_KEY_BYTES[self._kem]} bytes"
            raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message)
        rulebook = self._rulebooks.at(view.revision)
        if rulebook.policy.version != challenge.policy_version:
            raise ChallengeRejected(ChallengeReason.CHALLENGE_EXPIRED, "the policy changed meanwhile; ask anew")
        logs = submission.evidence.logs
        if not set(logs) <= set(rulebook.policy.logs) or any(len(log) > MAX_LOG_BYTES for log in logs.values()):
            message = f"a log was not asked for, or has more than {MAX_LOG_BYTES} bytes"
            raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message)
        evidence = Evidence(
            quote=submission.evidence.quote,
            signature=submission.evidence.signature,
            pcr_values=dict(submission.evidence.pcr_values),
            logs=logs,
            untrusted_command_line=submission.untrusted_command_line,
        )
        binding = QuoteBinding(
            nonce=challenge.nonce,
            tls_thumbprint=tls_thumbprint(tls_key),
            hpke_thumbprint=hpke_thumbprint(self._kem, submission.hpke_public_key),
            log_hashes=evidence.log_hashes,
            host_id=challenge.host_id,
            service_key=self._service_key,
            audience=self._issuer.audience,
        )
        return _Prepared(view.host, rulebook, evidence, binding, tls_key, submission.hpke_public_key)

    def _grant(
        self, prepared: _Prepared, appraisal: Appraisal, boot: BootIdentity, epoch: int, now: datetime.datetime
    ) -> Grant:
        issued_at, lifetime = int(now.timestamp()), self._issuer.token_seconds
        host = prepared.host
        claims = TokenClaims(
            token_id=self._randomness(16).hex(),
            issuer=self._issuer.issuer,
            audience=self._issuer.audience,
            host_id=host.host_id,
            host_name=host.name,
            cluster=host.cluster,
            issued_at=issued_at,
            expires_at=issued_at + lifetime,
            tls_thumbprint=prepared.binding.tls_thumbprint,
            hpke_kem=self._kem,
            hpke_public_key=prepared.hpke_public_key,
            boot=boot,
            reference=appraisal.reference,
            evidence_digest=appraisal.evidence_digest,
            policy_version=prepared.rulebook.policy.version,
            policy_hash=prepared.rulebook.policy_hash,
            epoch=epoch,
        )
        certificate = self._issuer.host_ca.issue(
            Identity(self._issuer.site, Role.ATTESTED_HOST, host.host_id.text),
            prepared.tls_key,
            now=now,
            lifetime=datetime.timedelta(seconds=lifetime),
        )
        token = mint_token(claims, self._issuer.token_key)
        return Grant(token, certificate, now + datetime.timedelta(seconds=lifetime * RENEW_AFTER), now)


def _read_tls_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as exc:
        message = "the TLS key is not a SubjectPublicKeyInfo"
        raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, "the TLS key must be on P-256")
    return key


def _record(appraisal: Appraisal, policy_version: int, appraised_at: int) -> AppraisalRecord:
    return AppraisalRecord(
        appraised_at=appraised_at,
        trusted=appraisal.trusted,
        reason="" if appraisal.reason is None else appraisal.reason.value,
        checks=tuple(
            CheckRecord(check.rule, check.title, check.passed, check.expected, check.seen, check.event)
            for check in appraisal.checks
        ),
        reference=appraisal.reference,
        policy_version=policy_version,
        boot=appraisal.boot,
    )
