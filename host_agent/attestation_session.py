"""The attestation session: this agent start's two keys, and the newest token and certificate for them.

Each agent start makes a P-256 key for TLS and an HPKE key of the kind that the challenge names, in memory only. What an
attestation yields is one immutable value that is swapped as a whole: whoever took the former one goes on with it.

A renewal that the trust authority refuses ends trust at once: the token held is dropped. One that fails for any other
reason leaves it until its own end.
"""

import base64
import datetime
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.binding import QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.errors import TpmError
from attestation.model import HostId, HpkeKem
from host_agent.enrolment import Connect, Enroller
from host_agent.errors import EventLogUnreadable, NotAttested, NotAttestedReason, PeerRefused, PeerUnreachable
from host_agent.model import AttestedHost, Challenge, Enrolment, Evidence, Granted, SessionView
from host_agent.ports import HostTpm, MeasurementLogs, TrustAuthorityClient
from host_agent.renewal import token_life
from keyprovider.envelope import SealingKey

Clock = Callable[[], float]
"""Seconds since boot, those of suspension included: CLOCK_BOOTTIME."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """What a host reads from its own token, whose signature it has no key to check: it came from its issuer by TLS."""

    token_id: str
    host_id: str
    expires_at: datetime.datetime
    tls_thumbprint: str


class AttestationSession:
    """Attests, and holds what came of it. Methods may be called from any thread."""

    def __init__(
        self, *, enroller: Enroller, tpm: HostTpm, logs: MeasurementLogs, connect: Connect, clock: Clock
    ) -> None:
        """Make the TLS key; nothing is sent yet."""
        self._enroller = enroller
        self._tpm = tpm
        self._logs = logs
        self._connect = connect
        self._clock = clock
        self._tls_key = ec.generate_private_key(ec.SECP256R1())
        self._sealing_keys: dict[HpkeKem, SealingKey] = {}
        self._attesting = threading.Lock()
        self._count = 0
        self._view = SessionView(None, NotAttestedReason.STARTING, "the agent has not attested yet")

    def view(self) -> SessionView:
        """How things stand now; never blocks."""
        view = self._view
        if view.attested is not None and self._clock() >= view.attested.ends_at:
            return SessionView(None, view.reason or NotAttestedReason.TOKEN_EXPIRED, view.message)
        return SessionView(view.attested, "" if view.attested is not None else view.reason, view.message)

    def current(self) -> AttestedHost:
        """What the newest attestation yielded; never blocks.

        Raises:
            NotAttested: There is none that still lives.
        """
        view = self.view()
        if view.attested is None:
            raise NotAttested(view.reason, view.message or "the attestation token has expired")
        return view.attested

    def require(self) -> AttestedHost:
        """What the newest attestation yielded; where there is none that lives, attests now.

        Raises:
            NotAttested: That failed.
        """
        try:
            return self.current()
        except NotAttested:
            return self.renew(None)

    def renew(self, stale: AttestedHost | None) -> AttestedHost:
        """Attest now, in place of ``stale``.

        Calls that come while another attests share its outcome, if it is newer than ``stale``.

        Raises:
            NotAttested: The trust authority refused, or it, the TPM or a log could not be had.
        """
        with self._attesting:
            held = self.view().attested
            if held is not None and (stale is None or held.number > stale.number):
                return held
            try:
                attested = self._attest()
            except NotAttested as exc:
                self._view = SessionView(self._kept(exc), exc.reason, str(exc))
                raise
            self._view = SessionView(attested, "")
            _log.info("attested", token_id=attested.token_id, until=attested.attested_until.isoformat())
            return attested

    def _kept(self, failure: NotAttested) -> AttestedHost | None:
        cause = failure.__cause__
        refused = isinstance(cause, PeerRefused) and not cause.passing
        return None if refused else self.view().attested

    def _attest(self) -> AttestedHost:
        try:
            enrolment = self._enroller.ensure()
            client = self._connect(enrolment.authority)
            try:
                return self._exchange(client, enrolment)
            finally:
                client.close()
        except PeerRefused as exc:
            raise NotAttested(exc.reason, str(exc)) from exc
        except PeerUnreachable as exc:
            raise NotAttested(NotAttestedReason.TRUST_AUTHORITY_UNREACHABLE, str(exc)) from exc
        except TpmError as exc:
            raise NotAttested(NotAttestedReason.TPM_UNAVAILABLE, str(exc)) from exc
        except EventLogUnreadable as exc:
            raise NotAttested(NotAttestedReason.EVENT_LOG_UNREADABLE, str(exc)) from exc

    def _exchange(self, client: TrustAuthorityClient, enrolment: Enrolment) -> AttestedHost:
        challenge = client.create_challenge(enrolment.host_id)
        sealing_key = self._sealing_key(challenge.kem)
        evidence = self._evidence(challenge, enrolment.host_id, sealing_key)
        asked_at = self._clock()
        granted = client.attest(evidence)
        return self._accept(granted, enrolment.host_id, sealing_key, asked_at)

    def _sealing_key(self, kem: HpkeKem) -> SealingKey:
        if kem not in self._sealing_keys:
            self._sealing_keys[kem] = SealingKey.generate(kem)
        return self._sealing_keys[kem]

    def _evidence(self, challenge: Challenge, host_id: HostId, sealing_key: SealingKey) -> Evidence:
        # Logs before the quote: what PCRs gain in between makes the evidence fail to replay; the other way round,
        # events that no quote covers would be handed in.
        logs = self._logs.read(challenge.logs)
        public_key = self._tls_key.public_key()
        binding = QuoteBinding(
            nonce=challenge.nonce,
            tls_thumbprint=tls_thumbprint(public_key),
            hpke_thumbprint=hpke_thumbprint(sealing_key.kem, sealing_key.public_bytes),
            log_hashes={kind: hashlib.sha256(content).digest() for kind, content in logs.items()},
            host_id=host_id,
            service_key=challenge.service_key,
            audience=challenge.audience,
        )
        quote = self._tpm.quote(binding, challenge.bank, challenge.pcrs)
        return Evidence(
            cookie=challenge.cookie,
            tls_public_key=public_key.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            hpke_public_key=sealing_key.public_bytes,
            quote=quote.attest,
            signature=quote.signature,
            pcr_values=quote.pcr_values,
            logs=logs,
            command_line=self._logs.command_line(),
        )

    def _accept(self, granted: Granted, host_id: HostId, sealing_key: SealingKey, asked_at: float) -> AttestedHost:
        token = read_own_token(granted.token)
        public_key = self._tls_key.public_key()
        expected = base64.urlsafe_b64encode(tls_thumbprint(public_key)).rstrip(b"=").decode()
        certificate = _certificate(granted.certificate_pem)
        if token.host_id != host_id.text or token.tls_thumbprint != expected or certificate.public_key() != public_key:
            raise NotAttested(
                NotAttestedReason.TOKEN_NOT_OURS, "the token or certificate received is for another host or key"
            )
        expires_at = min(token.expires_at, certificate.not_valid_after_utc)
        life = token_life(
            expires_at=expires_at, renew_at=granted.renew_at, server_time=granted.server_time, asked_at=asked_at
        )
        if life.ends_at <= self._clock():
            raise NotAttested(
                NotAttestedReason.TOKEN_EXPIRED, f"the token received ended at {expires_at:%FT%TZ} already"
            )
        self._count += 1
        return AttestedHost(
            number=self._count,
            host_id=host_id,
            token=granted.token,
            token_id=token.token_id,
            certificate_pem=granted.certificate_pem,
            tls_key=self._tls_key,
            sealing_key=sealing_key,
            attested_until=expires_at,
            renew_at=life.renew_at,
            ends_at=life.ends_at,
        )


def read_own_token(token: str) -> TokenHeader:
    """Read the claims that a host needs of its own token.

    Raises:
        NotAttested: TOKEN_NOT_OURS: it is malformed.
    """
    try:
        part = token.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        expires_at = datetime.datetime.fromtimestamp(claims["exp"], datetime.UTC)
        texts = [claims["jti"], claims["sub"], claims["cnf"]["jkt"]]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("expected texts")
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError, RecursionError) as exc:
        raise NotAttested(NotAttestedReason.TOKEN_NOT_OURS, "what was received is not a token") from exc
    token_id, host_id, thumbprint = texts
    return TokenHeader(token_id, host_id, expires_at, thumbprint)


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as exc:
        raise NotAttested(NotAttestedReason.TOKEN_NOT_OURS, "what was received is not a certificate") from exc
