"""The join identity: who this host is to its management server.

A P-256 key in the state directory (mode 0600) and a certificate that the management server signs for it at join. It
says which host this is, never that it is trusted: no key is released on it. It is asked for again where there is none,
where it ended, or where the agent's address changed. Renewal without a token comes with the join service's renewal.
"""

import datetime
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from host_agent.errors import JoinFailed, StateDamaged
from host_agent.model import JoinClaim, JoinIdentity
from host_agent.ports import JoinServer, StateStore
from host_agent.records import JoinRecord, decode_join, encode_join
from serving.authority import private_key_pem
from serving.join_token import JoinInvitation

RECORD = "join.json"
KEY = "join-key.pem"

Invitation = Callable[[], tuple[str, JoinInvitation] | None]


class Joiner:
    """Gets the join identity, and remembers it."""

    def __init__(
        self,
        *,
        host_name: str,
        hardware_uuid: str,
        agent_address: str,
        state: StateStore,
        invitation: Invitation,
        connect: Callable[[JoinInvitation], JoinServer],
    ) -> None:
        """Join as ``host_name``; ``invitation`` is asked only while there is no usable identity."""
        self._host_name = host_name
        self._hardware_uuid = hardware_uuid
        self._agent_address = agent_address
        self._state = state
        self._invitation = invitation
        self._connect = connect

    def known(self, now: datetime.datetime) -> JoinIdentity | None:
        """The identity of an earlier join, if it is still of use.

        Raises:
            StateDamaged: What was remembered is not what this agent wrote.
        """
        content, key_pem = self._state.read(RECORD), self._state.read(KEY)
        if content is None or key_pem is None:
            return None
        try:
            record = decode_join(content)
        except StateDamaged as exc:
            raise StateDamaged(f"{RECORD}: {exc}; restore it, or remove it to join anew") from exc
        certificate = _certificate(record.certificate_pem)
        if certificate.public_key() != _load_key(key_pem).public_key():
            raise StateDamaged(f"{RECORD} and {KEY} do not belong together; remove both and join anew")
        _certificate(record.management_ca_pem)
        if record.agent_address != self._agent_address or now >= certificate.not_valid_after_utc:
            return None
        return JoinIdentity(record.certificate_pem, key_pem, record.management_ca_pem)

    def join(self, host_id: str) -> JoinIdentity:
        """Join now.

        Args:
            host_id: Of this host at the trust authority, whether enrolled there or not.

        Raises:
            JoinFailed: There is no join token, or the answer is not for our key.
            PeerUnreachable: The management server did not answer.
            PeerRefused: It refused.
            StateDamaged: Key or identity cannot be read or remembered.
        """
        invitation = self._invitation()
        if invitation is None:
            raise JoinFailed("this host has not joined a management server (or its identity ended): set join_token")
        token, terms = invitation
        key = self._key()
        claim = JoinClaim(
            join_token=token,
            certificate_request=_certificate_request(key, self._host_name),
            host_id=host_id,
            agent_address=self._agent_address,
            hardware_uuid=self._hardware_uuid,
        )
        certificate_pem, management_ca_pem = self._connect(terms).join(claim)
        try:
            certificate = _certificate(certificate_pem)
            _certificate(management_ca_pem)
        except StateDamaged as exc:
            raise JoinFailed("the management server's answer holds no certificate") from exc
        if certificate.public_key() != key.public_key():
            raise JoinFailed("the management server's certificate is for another key than ours")
        self._state.write(RECORD, encode_join(JoinRecord(self._agent_address, certificate_pem, management_ca_pem)))
        return JoinIdentity(certificate_pem, private_key_pem(key), management_ca_pem)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        """The key, kept from before the first try on: a token that was spent may be shown again with the same key."""
        known = self._state.read(KEY)
        if known is not None:
            return _load_key(known)
        key = ec.generate_private_key(ec.SECP256R1())
        self._state.write(KEY, private_key_pem(key))
        return key


def _certificate_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as exc:
        raise StateDamaged(f"{KEY} holds no private key") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StateDamaged(f"{KEY} holds no P-256 key")
    return key


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as exc:
        raise StateDamaged(f"{RECORD} holds no certificate") from exc
