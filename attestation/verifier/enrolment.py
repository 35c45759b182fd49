"""Enrolment: a host shows that its endorsement key and its attestation key live in one genuine TPM.

The first call checks everything that can be checked from outside and answers with a credential that only this TPM can
open, for this attestation key only. The second call shows that it was opened. Between the two the service remembers
nothing: its state travels in a cookie, and the credential's secret is derived from the cookie's id, so it is stored
nowhere, not even in the cookie.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509

from attestation.errors import EnrollmentReason, EnrollmentRejected
from attestation.model import EkTemplate
from attestation.verifier.attestation_key import read_attestation_key
from attestation.verifier.cookie import ID_BYTES, CookieBox, CookiePurpose
from attestation.verifier.credential import RANDOMNESS_BYTES, Credential, make_credential
from attestation.verifier.endorsement import MAX_INTERMEDIATES, read_anchor, read_endorsement_key, require_endorsed
from attestation.verifier.model import Candidate, HostRecord
from attestation.verifier.ports import Clock, EnrollmentStore, Randomness
from serving.errors import JoinTokenError
from serving.identity import Role
from serving.join_token import verify_join_token

COOKIE_SECONDS = 60
_SECRET_LABEL = b"garant/enrollment/secret/v1"
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_ID = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """What a host says of itself; nothing in it is believed yet."""

    host_name: str
    join_token: str
    """Empty: an administrator must approve."""
    ek_template: EkTemplate
    ek_public: bytes
    """TPMT_PUBLIC."""
    ek_certificate: bytes
    """DER; may be empty."""
    ek_intermediates: tuple[bytes, ...]
    """DER."""
    ak_public: bytes
    """TPMT_PUBLIC."""


class EnrollmentService:
    """Both halves of enrolment."""

    def __init__(
        self,
        store: EnrollmentStore,
        cookies: CookieBox,
        *,
        join_token_issuers: tuple[x509.Certificate, ...],
        provider_list: Callable[[], str],
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """Enrol into ``store``.

        Args:
            store: Where anchors and hosts are.
            cookies: Shared by all replicas.
            join_token_issuers: CAs of the trust administrators, who sign join tokens.
            provider_list: Reads the signed list of key providers that hosts pin.
            clock: Current time.
            randomness: For cookies and credentials.
        """
        self._store = store
        self._cookies = cookies
        self._issuers: Mapping[Role, tuple[x509.Certificate, ...]] = {Role.TRUST_ADMIN: join_token_issuers}
        self._provider_list = provider_list
        self._clock = clock
        self._randomness = randomness

    def begin(self, request: EnrollmentRequest) -> tuple[Credential, bytes]:
        """Check what can be seen from outside; answer with a credential and the cookie.

        Raises:
            EnrollmentRejected: MALFORMED_REQUEST (name), JOIN_TOKEN_INVALID, JOIN_TOKEN_FOR_OTHER_HOST, those of the
                endorsement key (``endorsement``), those of the attestation key (``attestation_key``), in that order.
            StoreError: The database is not usable.
        """
        now = self._clock()
        if _HOST_NAME.fullmatch(request.host_name) is None:
            message = "a host name is a DNS name in lower case"
            raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message)
        if len(request.ek_intermediates) > MAX_INTERMEDIATES:
            message = f"at most {MAX_INTERMEDIATES} intermediate certificates are read"
            raise EnrollmentRejected(EnrollmentReason.MALFORMED_REQUEST, message)
        token_id, cluster = self._check_join_token(request) if request.join_token else (None, "")
        endorsement_key = read_endorsement_key(request.ek_template, request.ek_public)
        anchor = require_endorsed(
            endorsement_key,
            certificate=request.ek_certificate,
            intermediates=request.ek_intermediates,
            anchors=[
                read_anchor(record.name, record.certificate_pem.encode(), allow_virtual=record.allow_virtual)
                for record in self._store.anchors()
            ],
            now=now,
        )
        attestation_key = read_attestation_key(request.ak_public)
        candidate = Candidate(
            host_id=endorsement_key.host_id,
            name=request.host_name,
            anchor=anchor.name,
            ek_template=request.ek_template,
            ek_public=request.ek_public,
            ek_certificate=request.ek_certificate,
            ak_public=request.ak_public,
            join_token_id=token_id,
            cluster=cluster,
        )
        cookie_id = self._randomness(ID_BYTES)
        credential = make_credential(
            endorsement_key.key,
            endorsement_key.scheme,
            object_name=attestation_key.name,
            secret=self._cookies.derive(_SECRET_LABEL, cookie_id),
            randomness=self._randomness(RANDOMNESS_BYTES),
        )
        cookie = self._cookies.seal(
            CookiePurpose.ENROLLMENT,
            _encode(candidate),
            cookie_id=cookie_id,
            expires_at=int(now.timestamp()) + COOKIE_SECONDS,
        )
        return credential, cookie

    def complete(self, cookie: bytes, proof: bytes) -> tuple[HostRecord, str]:
        """Check the proof and admit the host; answer with it and the signed list of key providers.

        There is one try: the cookie is spent whether or not the proof is right.

        Raises:
            ChallengeRejected: COOKIE_INVALID, CHALLENGE_EXPIRED or CHALLENGE_SPENT, in that order.
            EnrollmentRejected: BAD_PROOF, then those of ``admission.admit``.
            StoreError: The database is not usable.
        """
        now = int(self._clock().timestamp())
        opened = self._cookies.open(CookiePurpose.ENROLLMENT, cookie, now=now)
        self._store.spend(opened.cookie_id, expires_at=opened.expires_at, now=now)
        secret = self._cookies.derive(_SECRET_LABEL, opened.cookie_id)
        expected = hmac.digest(secret, hashlib.sha256(cookie).digest(), "sha256")
        if not hmac.compare_digest(proof, expected):
            message = "the credential was not opened by this TPM"
            raise EnrollmentRejected(EnrollmentReason.BAD_PROOF, message)
        host = self._store.enroll(_decode(opened.payload), now=now)
        return host, self._provider_list()

    def _check_join_token(self, request: EnrollmentRequest) -> tuple[str, str]:
        """Return the token's id and the cluster that it admits to. That it is spent shows only in the store."""
        try:
            invitation = verify_join_token(
                request.join_token, issuers=self._issuers, role=Role.TRUST_ADMIN, now=self._clock()
            )
        except JoinTokenError as exc:
            raise EnrollmentRejected(EnrollmentReason.JOIN_TOKEN_INVALID, str(exc)) from exc
        if not CLUSTER_NAME.fullmatch(invitation.cluster) or not _TOKEN_ID.fullmatch(invitation.token_id):
            message = "the join token names no cluster or has no usable id"
            raise EnrollmentRejected(EnrollmentReason.JOIN_TOKEN_INVALID, message)
        if invitation.host_name != request.host_name:
            message = f"the join token is for {invitation.host_name!r}, not for {request.host_name!r}"
            raise EnrollmentRejected(EnrollmentReason.JOIN_TOKEN_FOR_OTHER_HOST, message)
        return invitation.token_id, invitation.cluster


def _encode(candidate: Candidate) -> bytes:
    return json.dumps(
        {
            "name": candidate.name,
            "anchor": candidate.anchor,
            "ek_template": candidate.ek_template.value,
            "ek_public": base64.b64encode(candidate.ek_public).decode(),
            "ek_certificate": base64.b64encode(candidate.ek_certificate).decode(),
            "ak_public": base64.b64encode(candidate.ak_public).decode(),
            "join_token_id": candidate.join_token_id,
            "cluster": candidate.cluster,
        }
    ).encode()


def _decode(payload: bytes) -> Candidate:
    """Read back what this service itself wrote and sealed."""
    fields = json.loads(payload)
    template, ek_public = EkTemplate(fields["ek_template"]), base64.b64decode(fields["ek_public"])
    return Candidate(
        host_id=read_endorsement_key(template, ek_public).host_id,
        name=fields["name"],
        anchor=fields["anchor"],
        ek_template=template,
        ek_public=ek_public,
        ek_certificate=base64.b64decode(fields["ek_certificate"]),
        ak_public=base64.b64decode(fields["ak_public"]),
        join_token_id=fields["join_token_id"],
        cluster=fields["cluster"],
    )
