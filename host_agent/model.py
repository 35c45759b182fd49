"""Values of the host agent beside the VM engine: who this host is, what it holds, how it is.

Pure and frozen. What came over the network is in types of its own (``Challenge``, ``Granted``, …); what was checked is
in ``Enrolment`` and ``AttestedHost``.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import EkTemplate, HostId, HpkeKem, LogKind, PcrBank
from keyprovider.envelope import SealingKey
from keyprovider.provider_list import ProviderList
from serving.jws import key_id


@dataclass(frozen=True, slots=True)
class TrustAuthority:
    """Where the trust authority is, and by what it is known."""

    address: str
    """``host:port`` of the port for enrolment and attestation."""
    ca_pem: bytes
    """Its CA certificate, PEM: signs its servers' certificates and its provider list."""

    def list_keys(self) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """The keys, by key id, that may sign the list of key providers.

        Raises:
            ValueError: The CA is not a certificate for a P-256 key.
        """
        key = x509.load_pem_x509_certificate(self.ca_pem).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the trust authority's CA has no P-256 key")
        return {key_id(key): key}


@dataclass(frozen=True, slots=True)
class EnrolmentOffer:
    """A way to enrol that the administrator of this host gave it."""

    authority: TrustAuthority
    join_token: str = field(default="", repr=False)
    """Empty: an administrator of the trust authority must approve."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Membership of this host, kept over restarts."""

    host_id: HostId
    authority: TrustAuthority
    provider_list_text: str
    """The pinned list as it was signed."""
    providers: ProviderList
    """The same, verified."""


@dataclass(frozen=True, slots=True)
class EnrollmentClaim:
    """What a host says of itself and its TPM."""

    host_name: str
    join_token: str = field(repr=False)
    ek_template: EkTemplate
    ek_public: bytes
    """TPMT_PUBLIC."""
    ek_certificate: bytes
    """DER; empty where the TPM has none."""
    ek_intermediates: tuple[bytes, ...]
    ak_public: bytes
    """TPMT_PUBLIC."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential that only this TPM can open."""

    blob: bytes
    encrypted_secret: bytes
    cookie: bytes


@dataclass(frozen=True, slots=True)
class EnrollmentAnswer:
    """What the attestation service says after the credential was opened."""

    host_id: str
    provider_list: str


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
    cookie: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is handed in for a challenge."""

    cookie: bytes = field(repr=False)
    tls_public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    hpke_public_key: bytes
    quote: bytes
    signature: bytes
    pcr_values: tuple[tuple[int, bytes], ...]
    logs: Mapping[LogKind, bytes] = field(repr=False)
    command_line: str
    """Of the kernel, for administrators to read in a refusal; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What a trusted host gets."""

    token: str = field(repr=False)
    certificate_pem: bytes
    renew_at: datetime.datetime
    server_time: datetime.datetime


@dataclass(frozen=True, slots=True, eq=False)
class AttestedHost:
    """One attestation's fruits: never changed, replaced as a whole by those of the next one."""

    number: int
    """Counts attestations of this agent start."""
    host_id: HostId
    token: str = field(repr=False)
    token_id: str
    certificate_pem: bytes = field(repr=False)
    """Client certificate for ``tls_key``."""
    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    """In memory only."""
    sealing_key: SealingKey = field(repr=False)
    """In memory only; what a key provider seals to."""
    attested_until: datetime.datetime
    """By the attestation service's clock."""
    renew_at: float
    """Seconds of the boot clock."""
    ends_at: float
    """Seconds of the boot clock: the host's wall clock may be wrong."""


@dataclass(frozen=True, slots=True)
class SessionView:
    """How attestation stands at a moment."""

    attested: AttestedHost | None
    reason: str
    """Stable reason why not attested; empty where it is."""
    message: str = ""
    """The same for people."""


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """What a key provider is asked for."""

    grant: str = field(repr=False)
    vm_id: str
    component: str
    key_reference: str = ""
    """Empty: a new key."""
    wrapped_key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class SealedNewKey:
    """A new key as a key provider hands it over."""

    key_reference: str
    wrapped_key: bytes = field(repr=False)
    sealed_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinClaim:
    """What a host says to a management server."""

    join_token: str = field(repr=False)
    certificate_request: bytes
    host_id: str
    agent_address: str
    hardware_uuid: str


@dataclass(frozen=True, slots=True)
class JoinIdentity:
    """Who this host is to its management server. It says which host, never that it is trusted."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)
    management_ca_pem: bytes
    """Who may call the agent."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """How this host is."""

    host_id: str
    """Empty before enrolment."""
    name: str
    attested_until: datetime.datetime | None
    """None: not attested."""
    reason: str
    """Why not; empty where it is."""
    provider_list_version: int
    """0 before enrolment."""
