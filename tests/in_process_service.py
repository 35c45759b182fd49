"""The attestation service's own objects in this process, on SQLite, for hosts whose TPMs are software.

No ports and no daemons: what needs thousands of attestations, or a store or a clock of its own.
"""

import datetime
import functools
import hashlib
import hmac
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import LogKind
from attestation.simulator.attacks.attack import golden_events, strict_policy
from attestation.simulator.client import answer_challenge
from attestation.simulator.lying_host import HonestHost, SoftwareTpm, Surroundings
from attestation.simulator.software_host import make_log
from attestation.verifier.administration import Administration
from attestation.verifier.attest import AttestService, Grant, Submission, TokenIssuer
from attestation.verifier.cookie import CookieBox
from attestation.verifier.enrolment import EnrollmentRequest, EnrollmentService
from attestation.verifier.model import EvidenceRecord
from attestation.verifier.store import SqlAttestationStore
from garant.attestation.v1 import attestation_pb2 as pb
from serving.authority import CertificateAuthority, certificate_pem
from serving.database import Database
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, make_join_token
from serving.jws import key_id
from tests.attack_site import certify_with, golden_boot
from tests.software_tpm import make_test_ek_ca

SITE, AUDIENCE, REFERENCE, CLUSTER = "model.test", "key-providers", "golden", "prod"
START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class World:
    """What is the same in every run: keys, authorities, TPMs."""

    token_key: ec.EllipticCurvePrivateKey
    host_ca: CertificateAuthority
    admin_ca: CertificateAuthority
    anchor_pem: str
    tpms: tuple[SoftwareTpm, ...]
    surroundings: Surroundings

    def join_token(self, name: str) -> str:
        """A trust administrator's invitation that does not expire in a run."""
        key = ec.derive_private_key(0x3001, ec.SECP256R1())
        day = datetime.timedelta(days=1)
        identity = Identity(SITE, Role.TRUST_ADMIN, "alice")
        certificate = self.admin_ca.issue(identity, key.public_key(), now=START, lifetime=day)
        expires_at = int((START + day).timestamp())
        invitation = JoinInvitation(secrets.token_hex(8), name, CLUSTER, expires_at, "127.0.0.1:1", b"ca")
        return make_join_token(invitation, certificate=certificate, key=key)


@functools.cache
def world() -> World:
    """The one world."""
    year = datetime.timedelta(days=365)
    ek_ca = make_test_ek_ca()
    certify = certify_with(ek_ca)
    tpms = tuple(SoftwareTpm.make(certify) for _ in range(3))
    return World(
        ec.generate_private_key(ec.SECP256R1()),
        CertificateAuthority.create("host CA", now=START, lifetime=year),
        CertificateAuthority.create("trust-admin CA", now=START, lifetime=year),
        certificate_pem(ek_ca.certificate).decode(),
        tpms,
        Surroundings(tpms[0], "", tpms[0], "", "", "", certify, certify),
    )


@dataclass
class InProcessService:
    """The real thing, on a new database."""

    store_type: type[SqlAttestationStore] = SqlAttestationStore
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="garant-model-")))
    now: datetime.datetime = START

    def __post_init__(self) -> None:
        """Put it together as the daemon does."""
        here = world()
        self.database = Database(f"sqlite:///{self.directory / 'attestation.db'}")
        self.store = store = self.store_type(self.database)
        cookies = CookieBox(bytes(range(32)))
        issuer = TokenIssuer(SITE, AUDIENCE, here.token_key, here.host_ca, 300)
        clock = lambda: self.now  # noqa: E731 - it moves
        self.enrollment = EnrollmentService(
            store,
            cookies,
            join_token_issuers=(here.admin_ca.certificate,),
            provider_list=lambda: "",
            clock=clock,
            randomness=secrets.token_bytes,
        )
        self.attestation = AttestService(store, cookies, issuer, clock=clock, randomness=secrets.token_bytes)
        self.administration = Administration(store, token_key=here.token_key, heartbeat_seconds=60, clock=clock)
        self.keys = {key_id(here.token_key.public_key()): here.token_key.public_key()}

    def trust(self) -> None:
        """Anchor, policy and reference, as on the first day of a site."""
        self.administration.add_anchor("software", world().anchor_pem, allow_virtual=True)
        self.administration.put_policy(strict_policy(1))
        self.administration.put_reference(REFERENCE, make_log(golden_events(), ("sha256", "sha384")))

    def enroll(self, host: HonestHost) -> None:
        """Both halves of enrolment."""
        tpm = host.tpm
        request = EnrollmentRequest(
            host_name=host.name,
            join_token=host.join_token,
            ek_template=tpm.template,
            ek_public=tpm.endorsement_public(),
            ek_certificate=tpm.certificate,
            ek_intermediates=(),
            ak_public=tpm.attestation_key.public.encoded,
        )
        credential, cookie = self.enrollment.begin(request)
        secret = tpm.activate_credential(credential.credential_blob, credential.encrypted_secret)
        self.enrollment.complete(cookie, hmac.digest(secret, hashlib.sha256(cookie).digest(), "sha256"))

    def ask(self, host: HonestHost) -> pb.AttestRequest:
        """A challenge, and the evidence for it."""
        challenge = self.attestation.challenge(host.host_id)
        message = pb.CreateChallengeResponse(
            nonce=challenge.nonce,
            pcrs=challenge.pcrs,
            service_key=challenge.service_key,
            audience=challenge.audience,
            cookie=challenge.cookie,
        )
        return answer_challenge(host, message)

    def submit(self, request: pb.AttestRequest) -> Grant:
        """Hand evidence in."""
        values = tuple((value.index, value.digest) for value in request.pcr_values)
        evidence = EvidenceRecord(request.quote, request.signature, values, {LogKind.TCG: request.logs[0].content})
        return self.attestation.attest(
            Submission(request.cookie, request.tls_public_key, request.hpke_public_key, evidence)
        )

    def close(self) -> None:
        """Leave nothing behind."""
        self.database.close()
        shutil.rmtree(self.directory)


def member(index: int = 0) -> HonestHost:
    """One of the world's hosts, with an invitation."""
    tpm, name = world().tpms[index], f"host-{index}"
    return HonestHost(name, world().join_token(name), tpm, world().surroundings, golden_boot(tpm))
