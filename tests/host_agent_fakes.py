"""Fakes that implement the host agent's ports: a TPM, a trust authority, a key provider, a VM engine, a clock."""

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attester.tpm import EndorsementKey, Quote
from attestation.binding import QuoteBinding, tls_thumbprint
from attestation.model import BootIdentity, EkTemplate, HostId, HpkeKem, LogKind, PcrBank
from attestation.token import TokenClaims, mint_token
from attestation.wire.tpm_public import parse_tpm_public
from host_agent.attestation_session import AttestationSession
from host_agent.enrolment import Enroller
from host_agent.errors import VmNotFound
from host_agent.model import (
    AttestedHost,
    Challenge,
    Credential,
    EnrollmentAnswer,
    EnrollmentClaim,
    EnrolmentOffer,
    Evidence,
    Granted,
    ReleaseRequest,
    SealedNewKey,
    TrustAuthority,
)
from host_agent.vm.keys import KeySource
from host_agent.vm.lifecycle import VmState
from host_agent.vm.model import Vm, VmSpec
from keyprovider.envelope import release_info, release_request_hash, seal_key
from keyprovider.keymaterial import SecretKey
from keyprovider.provider_list import ProviderEntry, ProviderList, sign_provider_list
from serving.authority import CertificateAuthority, certificate_pem
from serving.identity import Identity, Role

NOW = datetime.datetime(2026, 1, 1, 12, 0, tzinfo=datetime.UTC)
TOKEN_SECONDS = 300
KEM = HpkeKem.X25519
SECRET = b"s" * 32


def make_authority(name: str = "trust authority") -> CertificateAuthority:
    """Make a CA that is valid now and later."""
    return CertificateAuthority.create(name, now=NOW, lifetime=datetime.timedelta(days=36500))


def make_ek_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """TPMT_PUBLIC of an ECC P-256 storage key, as an endorsement key has it."""
    numbers = key.public_key().public_numbers()
    point = b"".join(b"\x00\x20" + value.to_bytes(32, "big") for value in (numbers.x, numbers.y))
    head = bytes.fromhex("0023000b000300b2") + b"\x00\x20" + bytes(32)
    return head + bytes.fromhex("00060080004300100003") + b"\x00\x10" + point


@dataclass
class FakeTpm:
    """``HostTpm`` with an endorsement key of its own."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    failure: Exception | None = None

    @property
    def host_id(self) -> HostId:
        """What the trust authority must call it."""
        return HostId.of_spki(parse_tpm_public(make_ek_public(self.key)).spki())

    def endorsement_key(self) -> EndorsementKey:
        """See the port."""
        if self.failure is not None:
            raise self.failure
        return EndorsementKey(EkTemplate.ECC_P256_LOW, make_ek_public(self.key), b"certificate", ())

    def attestation_key(self) -> bytes:
        """See the port."""
        return b"attestation key"

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """See the port."""
        assert (credential_blob, encrypted_secret) == (b"blob", b"encrypted")
        return SECRET

    def quote(self, binding: QuoteBinding, bank: PcrBank, pcrs: tuple[int, ...]) -> Quote:
        """See the port."""
        if self.failure is not None:
            raise self.failure
        return Quote(binding.extra_data(), b"signature", tuple((pcr, bytes(bank.digest_size)) for pcr in pcrs))


@dataclass
class FakeClock:
    """A boot clock that stands still unless told."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds


@dataclass
class FakeAuthority:
    """``TrustAuthorityClient``: an attestation service that believes every quote, unless told otherwise."""

    ca: CertificateAuthority = field(default_factory=make_authority)
    host_ca: CertificateAuthority = field(default_factory=lambda: make_authority("attested hosts"))
    token_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    clock: FakeClock = field(default_factory=FakeClock)
    providers: ProviderList = field(default_factory=lambda: ProviderList(1, (make_entry(),)))
    list_key: ec.EllipticCurvePrivateKey | None = None
    """Signs the provider list in place of the CA's own key."""
    host_id: str | None = None
    """Told at enrolment in place of the right one."""
    failure: Exception | None = None
    claims: dict[str, object] = field(default_factory=dict)
    """Replaces claims of tokens."""
    certificate_pem: bytes | None = None
    """Handed out in place of the right one."""
    enrolled: list[EnrollmentClaim] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)

    @property
    def authority(self) -> TrustAuthority:
        """As a host knows it."""
        return TrustAuthority("authority.example:1", certificate_pem(self.ca.certificate))

    def connect(self, authority: TrustAuthority) -> "FakeAuthority":
        """Give a client."""
        assert authority.ca_pem == self.authority.ca_pem
        return self

    def close(self) -> None:
        """See the port."""

    def begin_enrollment(self, claim: EnrollmentClaim) -> Credential:
        """See the port."""
        self._fail()
        self.enrolled.append(claim)
        return Credential(b"blob", b"encrypted", b"cookie")

    def complete_enrollment(self, cookie: bytes, proof: bytes) -> EnrollmentAnswer:
        """See the port."""
        assert proof == hmac.digest(SECRET, hashlib.sha256(cookie).digest(), "sha256")
        spki = parse_tpm_public(self.enrolled[-1].ek_public).spki()
        text = sign_provider_list(self.providers, self.list_key or self.ca.key)
        return EnrollmentAnswer(self.host_id or HostId.of_spki(spki).text, text)

    def create_challenge(self, host_id: HostId) -> Challenge:
        """See the port."""
        self._fail()
        return Challenge(
            nonce=bytes(32),
            bank=PcrBank.SHA256,
            pcrs=(0, 7),
            logs=(LogKind.TCG,),
            kem=KEM,
            service_key=bytes(32),
            audience="kp",
            cookie=host_id.text.encode(),
        )

    def attest(self, evidence: Evidence) -> Granted:
        """See the port."""
        self._fail()
        self.evidence.append(evidence)
        now = self._now()
        key = serialization.load_der_public_key(evidence.tls_public_key)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        host_id = HostId(evidence.cookie.decode())
        claims = TokenClaims(
            token_id=f"token-{len(self.evidence)}",
            issuer="site",
            audience="kp",
            host_id=host_id,
            host_name="host-a",
            cluster="default",
            issued_at=int(now.timestamp()),
            expires_at=int(now.timestamp()) + TOKEN_SECONDS,
            tls_thumbprint=tls_thumbprint(key),
            hpke_kem=KEM,
            hpke_public_key=evidence.hpke_public_key,
            boot=BootIdentity(1, 0),
            reference="good",
            evidence_digest=bytes(32),
            policy_version=1,
            policy_hash=bytes(32),
            epoch=1,
        )
        life = datetime.timedelta(seconds=TOKEN_SECONDS)
        certificate = self.host_ca.issue(
            Identity("site", Role.ATTESTED_HOST, host_id.text), key, now=now, lifetime=life
        )
        token = mint_token(replace(claims, **self.claims), self.token_key)  # type: ignore[arg-type]
        return Granted(token, self.certificate_pem or certificate_pem(certificate), now + 0.8 * life, now)

    def _now(self) -> datetime.datetime:
        return NOW + datetime.timedelta(seconds=self.clock.seconds)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class FakeState:
    """``StateStore`` in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """See the port."""
        return self.files.get(name)

    def write(self, name: str, content: bytes) -> None:
        """See the port."""
        self.files[name] = content


class FakeLogs:
    """``MeasurementLogs`` that has a firmware log."""

    def read(self, kinds: tuple[LogKind, ...]) -> Mapping[LogKind, bytes]:
        """See the port."""
        return {kind: b"log" for kind in kinds if kind is LogKind.TCG}

    def command_line(self) -> str:
        """What the host says it was booted with."""
        return "quiet"


@dataclass
class FakeRelease:
    """``KeyRelease``: a key provider that seals what it is asked for, after the refusals it was told to give."""

    refusals: list[Exception] = field(default_factory=list)
    tamper: str = ""
    """Seals for this component in place of the one asked for."""
    asked: list[tuple[AttestedHost, ReleaseRequest]] = field(default_factory=list)
    size: int = 32

    def create_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> SealedNewKey:
        """See the port."""
        reference = secrets.token_hex(8)
        return SealedNewKey(reference, b"wrapped", self._seal("create", reference, host, provider, request))

    def unwrap_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> bytes:
        """See the port."""
        return self._seal("unwrap", request.key_reference, host, provider, request)

    def _seal(
        self, operation: str, reference: str, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest
    ) -> bytes:
        self.asked.append((host, request))
        if self.refusals:
            raise self.refusals.pop(0)
        component = self.tamper or request.component
        request_hash = release_request_hash(
            operation=operation,
            token=host.token,
            grant=request.grant,
            provider=provider.name,
            vm_id=request.vm_id,
            component=component,
            key_reference=request.key_reference,
            wrapped_key=request.wrapped_key,
        )
        info = release_info(
            token_id=host.token_id,
            provider=provider.name,
            key_reference=reference,
            vm_id=request.vm_id,
            component=component,
            host_id=host.host_id.text,
            request_hash=request_hash,
        )
        with SecretKey.adopt(b"k" * self.size) as key:
            return seal_key(KEM, host.sealing_key.public_bytes, key, info)


class FakeVms:
    """``VmEngine`` that has no QEMU, but asks for keys as the real one does."""

    def __init__(self) -> None:
        self.vms: dict[str, Vm] = {}
        self.failure: Exception | None = None

    def create(self, spec: VmSpec, keys: KeySource | None) -> Vm:
        """See the port."""
        if keys is not None:
            keys.create("home").kek.close()
        provider = "" if keys is None else keys.provider
        self.vms[spec.vm_id] = Vm(spec.vm_id, spec.name, VmState.OFF, provider, "/vms", 0)
        return self.vms[spec.vm_id]

    def power_on(self, vm_id: str, keys: KeySource | None) -> Vm:
        """See the port."""
        if keys is not None:
            keys.unwrap("home", "reference", b"wrapped").close()
        if self.failure is not None:
            raise self.failure
        return self._put(vm_id, VmState.ON)

    def power_off(self, vm_id: str, grace_seconds: int) -> Vm:
        """See the port."""
        assert grace_seconds >= 0
        return self._put(vm_id, VmState.OFF)

    def get(self, vm_id: str) -> Vm:
        """See the port."""
        if vm_id not in self.vms:
            raise VmNotFound(f"no VM {vm_id}")
        return self.vms[vm_id]

    def list(self) -> tuple[Vm, ...]:
        """See the port."""
        return tuple(self.vms[vm_id] for vm_id in sorted(self.vms))

    def read_console(self, vm_id: str, offset: int) -> tuple[bytes, int]:
        """See the port."""
        self.get(vm_id)
        return b"login:"[offset:], 6

    def delete(self, vm_id: str) -> None:
        """See the port."""
        del self.vms[vm_id]

    def end_by_itself(self, vm_id: str) -> None:
        """Let a guest shut down."""
        self._put(vm_id, VmState.OFF)

    def _put(self, vm_id: str, state: VmState) -> Vm:
        self.vms[vm_id] = replace(self.get(vm_id), state=state)
        return self.vms[vm_id]


def make_entry(name: str = "trusted") -> ProviderEntry:
    """Make an entry of the provider list."""
    return ProviderEntry(name, ("kp.example:1",), certificate_pem(make_authority("kp").certificate).decode())


@dataclass
class Host:
    """A host and what surrounds it, all fakes."""

    tpm: FakeTpm = field(default_factory=FakeTpm)
    authority: FakeAuthority = field(default_factory=FakeAuthority)
    state: FakeState = field(default_factory=FakeState)
    offered: bool = True

    def enroller(self) -> Enroller:
        """Give an enroller, as a fresh start of the agent makes it."""
        return Enroller(
            host_name="host-a",
            state=self.state,
            tpm=self.tpm,
            connect=self.authority.connect,
            offer=lambda: EnrolmentOffer(self.authority.authority, "join token") if self.offered else None,
        )

    def session(self, enroller: Enroller | None = None) -> AttestationSession:
        """Give a session, as a fresh start of the agent makes it."""
        return AttestationSession(
            enroller=enroller or self.enroller(),
            tpm=self.tpm,
            logs=FakeLogs(),
            connect=self.authority.connect,
            clock=self.authority.clock,
        )
