"""How a host joins: a join token of a VM administrator against a certificate that says which host this is.

The certificate (join identity) says *which* host, never that it is trusted: no key of a trusted provider is released
on it. A token is spent with its first use. Its holder may repeat the call with the same key and host id while the
token lives, since the first answer may have been lost; the certificate is then made anew. A host that was installed
again needs a new token and keeps its name and host id; another host id under its name is refused.
"""

import datetime
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from management.errors import InvalidArgument, JoinReason, JoinRefused
from management.host_name import agent_server_name
from management.model import EventDraft, Host
from management.ports import InventoryStore, SpentToken
from serving.authority import CertificateAuthority, certificate_pem
from serving.errors import JoinTokenError
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, verify_join_token

JOIN_IDENTITY_LIFETIME = datetime.timedelta(days=365)
_MAX_REQUEST_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a host that wants to join says."""

    join_token: str
    certificate_request: bytes
    """PKCS #10, DER, for a P-256 key."""
    host_id: str
    """64 hexadecimal digits; empty for a host without a TPM."""
    agent_address: str
    """``host:port``."""
    hardware_uuid: str


@dataclass(frozen=True, slots=True)
class JoinIdentity:
    """What it gets."""

    certificate_pem: bytes
    management_ca_pem: bytes
    """CA of the management server: who may call the agent."""


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """What joining is told at its start."""

    site: str
    cluster: str
    host_authority: CertificateAuthority
    """Signs join identities and nothing else."""
    management_ca_pem: bytes
    issuers: Mapping[Role, tuple[x509.Certificate, ...]]
    """CA of the VM administrators."""
    clock: Callable[[], datetime.datetime]


class HostJoining:
    """Admits hosts to the inventory."""

    def __init__(self, store: InventoryStore, settings: JoinSettings) -> None:
        """Put hosts into ``store``."""
        self._store = store
        self._settings = settings

    def join(self, request: JoinRequest) -> JoinIdentity:
        """Admit a host.

        Raises:
            JoinRefused: JOIN_TOKEN_INVALID, OTHER_CLUSTER, MALFORMED_REQUEST, BAD_CERTIFICATE_REQUEST,
                JOIN_TOKEN_SPENT, IDENTITY_CONFLICT, in that order; nothing was changed.
        """
        now = self._settings.clock()
        invitation = self._invitation(request.join_token, now)
        try:
            host = Host(
                invitation.host_name, request.host_id, invitation.cluster, request.agent_address, request.hardware_uuid
            )
        except InvalidArgument as exc:
            raise JoinRefused(JoinReason.MALFORMED_REQUEST, str(exc)) from exc
        key = _requested_key(request.certificate_request)
        certificate = self._settings.host_authority.issue(
            Identity(self._settings.site, Role.JOINED_HOST, host.name),
            key,
            now=now,
            lifetime=JOIN_IDENTITY_LIFETIME,
            server_names=(agent_server_name(host.name, host.host_id),),
        )
        event = EventDraft(
            occurred_at=now,
            type="host.joined",
            principal="",
            message=f"host {host.name} joined cluster {host.cluster}; its agent is at {host.agent_address}",
            host=host.name,
        )
        spent = SpentToken(invitation.token_id, host, _key_hash(key), invitation.expires_at)
        # The last step: an identity is handed out only after its token is spent for good.
        self._store.join_host(spent, event, now=int(now.timestamp()))
        return JoinIdentity(certificate_pem(certificate), self._settings.management_ca_pem)

    def _invitation(self, token: str, now: datetime.datetime) -> JoinInvitation:
        try:
            invitation = verify_join_token(token, issuers=self._settings.issuers, role=Role.VM_ADMIN, now=now)
        except JoinTokenError as exc:
            raise JoinRefused(JoinReason.TOKEN_INVALID, str(exc)) from exc
        if invitation.cluster != self._settings.cluster:
            raise JoinRefused(
                JoinReason.OTHER_CLUSTER,
                f"the join token is for cluster {invitation.cluster[:100]!r}, not {self._settings.cluster!r}",
            )
        return invitation


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a certificate request proves possession of; its names are not read."""
    if len(request) > _MAX_REQUEST_BYTES:
        raise JoinRefused(
            JoinReason.BAD_CERTIFICATE_REQUEST,
            f"a certificate request has at most {_MAX_REQUEST_BYTES:,} bytes, this one has {len(request):,}",
        )
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        is_signed = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise JoinRefused(JoinReason.BAD_CERTIFICATE_REQUEST, "the certificate request cannot be read") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinRefused(JoinReason.BAD_CERTIFICATE_REQUEST, "the certificate request is not for a P-256 key")
    if not is_signed:
        raise JoinRefused(JoinReason.BAD_CERTIFICATE_REQUEST, "the certificate request is not signed by its own key")
    return key


def _key_hash(key: ec.EllipticCurvePublicKey) -> str:
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
