"""Enrolment: becoming a member of the trust authority's site, once, and remembering it.

The TPM shows that endorsement key and attestation key live in it (credential activation); the answer is this host's
id, which must be the one that the host computes itself, and the signed list of key providers, which is pinned.

Must not: go back to an older provider list, or take over another TPM's membership.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import replace

from attestation.attester.tpm import EndorsementKey
from attestation.errors import WireError
from attestation.model import HostId
from attestation.wire.tpm_public import parse_tpm_public
from host_agent.errors import NotAttested, NotAttestedReason, StateDamaged
from host_agent.model import EnrollmentClaim, Enrolment, EnrolmentOffer, TrustAuthority
from host_agent.ports import HostTpm, StateStore, TrustAuthorityClient
from host_agent.provider_pin import check_provider_list
from host_agent.records import decode_enrolment, encode_enrolment
from serving.errors import ConfigError

RECORD = "enrolment.json"
_MAX_INTERMEDIATES = 8

Connect = Callable[[TrustAuthority], TrustAuthorityClient]


def host_id_of(endorsement_key: EndorsementKey) -> HostId:
    """Name the host: by the public key in its TPM, never from a certificate's bytes.

    Raises:
        NotAttested: HOST_ID_MISMATCH: the key is of a kind that has no host id.
    """
    try:
        return HostId.of_spki(parse_tpm_public(endorsement_key.public).spki())
    except WireError as exc:
        raise NotAttested(NotAttestedReason.HOST_ID_MISMATCH, f"the endorsement key is not usable: {exc}") from exc


class Enroller:
    """Enrols this host where it is not enrolled yet."""

    def __init__(
        self,
        *,
        host_name: str,
        state: StateStore,
        tpm: HostTpm,
        connect: Connect,
        offer: Callable[[], EnrolmentOffer | None],
        address: str | None = None,
    ) -> None:
        """Enrol ``host_name``.

        Args:
            host_name: Name to enrol under.
            state: Where membership is remembered.
            tpm: Whose membership it is.
            connect: Opens a client.
            offer: How to enrol, if there is a way; asked only while not enrolled, so that a spent token may be gone.
            address: Where the trust authority is by now, if it moved since enrolment.
        """
        self._host_name = host_name
        self._state = state
        self._tpm = tpm
        self._connect = connect
        self._offer = offer
        self._address = address
        self._lock = threading.Lock()
        self._checked: Enrolment | None = None

    def known(self) -> Enrolment | None:
        """The enrolment as far as it was read and found to be this TPM's; never blocks."""
        return self._checked

    def ensure(self) -> Enrolment:
        """The enrolment: read, or made now.

        Raises:
            NotAttested: STATE_DAMAGED, NOT_ENROLLED, HOST_ID_MISMATCH, HOST_IDENTITY_CHANGED, PROVIDER_LIST_REFUSED.
            PeerUnreachable: The trust authority did not answer.
            PeerRefused: It refused.
            TpmError: The TPM refused or did not answer.
        """
        with self._lock:
            if self._checked is None:
                self._checked = self._read_or_enroll()
            return self._checked

    def refresh_providers(self) -> Enrolment:
        """Fetch the list of key providers anew, which a member gets by enrolling once more, and pin it.

        Raises:
            NotAttested: As ``ensure``; PROVIDER_LIST_REFUSED where the list is older than the pinned one, too.
            PeerUnreachable: The trust authority did not answer.
            PeerRefused: It refused.
            TpmError: The TPM refused or did not answer.
        """
        enrolment = self.ensure()
        with self._lock:
            # Without a token: a member needs none, and membership lost meanwhile is not won back by this.
            offer = EnrolmentOffer(enrolment.authority)
            self._checked = self._enroll(offer, self._tpm.endorsement_key(), enrolment)
            return self._checked

    def _read_or_enroll(self) -> Enrolment:
        enrolment = self._read()
        endorsement_key = self._tpm.endorsement_key()
        host_id = host_id_of(endorsement_key)
        if enrolment is None:
            return self._enroll(self._require_offer(), endorsement_key, None)
        if enrolment.host_id != host_id:
            raise NotAttested(
                NotAttestedReason.HOST_IDENTITY_CHANGED,
                f"the state directory is that of host {enrolment.host_id}, the TPM is that of host {host_id}; "
                f"put the old TPM back, or remove {RECORD} to enrol as a new host",
            )
        if self._address is not None:
            return replace(enrolment, authority=TrustAuthority(self._address, enrolment.authority.ca_pem))
        return enrolment

    def _read(self) -> Enrolment | None:
        try:
            content = self._state.read(RECORD)
            return None if content is None else decode_enrolment(content)
        except StateDamaged as exc:
            raise NotAttested(
                NotAttestedReason.STATE_DAMAGED, f"{RECORD}: {exc}; restore it, or remove it to enrol anew"
            ) from exc

    def _require_offer(self) -> EnrolmentOffer:
        try:
            offer = self._offer()
        except ConfigError as exc:
            raise NotAttested(NotAttestedReason.NOT_ENROLLED, f"the host is not enrolled: {exc}") from exc
        if offer is None:
            raise NotAttested(
                NotAttestedReason.NOT_ENROLLED,
                "the host is not enrolled, and neither enrolment_token nor trust_authority is configured",
            )
        return offer

    def _enroll(self, offer: EnrolmentOffer, endorsement_key: EndorsementKey, former: Enrolment | None) -> Enrolment:
        client = self._connect(offer.authority)
        try:
            enrolment = self._exchange(client, offer, endorsement_key, former)
        finally:
            client.close()
        try:
            self._state.write(RECORD, encode_enrolment(enrolment))
        except StateDamaged as exc:
            raise NotAttested(NotAttestedReason.STATE_DAMAGED, str(exc)) from exc
        return enrolment

    def _exchange(
        self,
        client: TrustAuthorityClient,
        offer: EnrolmentOffer,
        endorsement_key: EndorsementKey,
        former: Enrolment | None,
    ) -> Enrolment:
        host_id = host_id_of(endorsement_key)
        claim = EnrollmentClaim(
            host_name=self._host_name,
            join_token=offer.join_token,
            ek_template=endorsement_key.template,
            ek_public=endorsement_key.public,
            ek_certificate=endorsement_key.certificate or b"",
            ek_intermediates=endorsement_key.intermediates[:_MAX_INTERMEDIATES],
            ak_public=self._tpm.attestation_key(),
        )
        credential = client.begin_enrollment(claim)
        secret = self._tpm.activate_credential(credential.blob, credential.encrypted_secret)
        proof = hmac.digest(secret, hashlib.sha256(credential.cookie).digest(), "sha256")
        answer = client.complete_enrollment(credential.cookie, proof)
        if answer.host_id != host_id.text:
            raise NotAttested(
                NotAttestedReason.HOST_ID_MISMATCH,
                f"the trust authority enrolled host {answer.host_id[:64]!r}; this is host {host_id}",
            )
        pinned = None if former is None else former.providers
        providers = check_provider_list(answer.provider_list, authority=offer.authority, pinned=pinned)
        return Enrolment(host_id, offer.authority, answer.provider_list, providers)
