"""The attestation session: what is held, how it is replaced, and what ends it."""

import hashlib
import threading

import pytest
from cryptography import x509

from attestation.binding import QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.errors import TpmError
from attestation.model import HostId, LogKind
from host_agent.attestation_session import read_own_token
from host_agent.errors import NotAttested, NotAttestedReason, Peer, PeerRefused, PeerUnreachable
from tests.host_agent_fakes import KEM, TOKEN_SECONDS, Host

REFUSED = PeerRefused(Peer.TRUST_AUTHORITY, "APPRAISAL_REFUSED", "not believed")
AWAY = PeerUnreachable(Peer.TRUST_AUTHORITY, "away")


def test_nothing_is_held_before_the_first_attestation() -> None:
    """A fresh agent says that it is starting, and gives out nothing."""
    session = Host().session()
    assert session.view().reason == NotAttestedReason.STARTING
    with pytest.raises(NotAttested):
        session.current()


def test_quote_binds_this_agents_keys() -> None:
    """The quote's extraData covers both in-memory keys, the log, the host and the challenge (R-TA-5)."""
    host = Host()
    held = host.session().require()
    (evidence,) = host.authority.evidence
    binding = QuoteBinding(
        nonce=bytes(32),
        tls_thumbprint=tls_thumbprint(held.tls_key.public_key()),
        hpke_thumbprint=hpke_thumbprint(KEM, held.sealing_key.public_bytes),
        log_hashes={LogKind.TCG: hashlib.sha256(b"log").digest()},
        host_id=host.tpm.host_id,
        service_key=bytes(32),
        audience="kp",
    )
    assert evidence.quote == binding.extra_data()
    assert evidence.hpke_public_key == held.sealing_key.public_bytes


def test_renewal_replaces_the_whole_value_and_keeps_the_keys() -> None:
    """Keys last for the agent's life; token and certificate are new, and who holds the old value goes on with it."""
    host = Host()
    session = host.session()
    first = session.require()
    second = session.renew(first)
    assert second.number == first.number + 1
    assert second.tls_key is first.tls_key
    assert second.sealing_key is first.sealing_key
    assert second.token != first.token
    assert first.token_id == "token-1"
    assert session.current() is second


def test_another_agent_start_has_other_keys() -> None:
    """No key that attested keys are sealed to outlives the agent."""
    host = Host()
    first, second = host.session().require(), host.session().require()
    assert first.sealing_key.public_bytes != second.sealing_key.public_bytes
    assert first.tls_key.public_key() != second.tls_key.public_key()


def test_renewal_of_a_former_value_is_shared() -> None:
    """Of two calls that found the same token void, one attests and both get its outcome."""
    host = Host()
    session = host.session()
    stale = session.require()
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(session.renew(stale))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(host.authority.evidence) == 2
    assert len({id(outcome) for outcome in outcomes}) == 1


def test_expired_token_is_not_given_out() -> None:
    """A token is given out until its end and not a moment longer."""
    host = Host()
    session = host.session()
    session.require()
    host.authority.clock.seconds += TOKEN_SECONDS - 1
    session.current()
    host.authority.clock.seconds += 1
    assert session.view().reason == NotAttestedReason.TOKEN_EXPIRED
    with pytest.raises(NotAttested) as caught:
        session.current()
    assert caught.value.reason == NotAttestedReason.TOKEN_EXPIRED


def test_refused_renewal_ends_trust_at_once() -> None:
    """A host that the trust authority no longer believes drops the token it holds, and says why."""
    host = Host()
    session = host.session()
    held = session.require()
    host.authority.failure = REFUSED
    with pytest.raises(NotAttested):
        session.renew(held)
    assert (session.view().attested, session.view().reason) == (None, "APPRAISAL_REFUSED")


@pytest.mark.parametrize(
    "failure", [AWAY, PeerRefused(Peer.TRUST_AUTHORITY, "STORE_UNAVAILABLE", "wait", passing=True)]
)
def test_outage_leaves_the_token_until_its_end(failure: Exception) -> None:
    """A renewal that fails by an outage costs nothing before the token's own end; then its reason is told."""
    host = Host()
    session = host.session()
    held = session.require()
    host.authority.failure = failure
    with pytest.raises(NotAttested):
        session.renew(held)
    assert session.current() is held
    assert session.view().reason == ""
    host.authority.clock.seconds += TOKEN_SECONDS
    assert session.view().reason in {NotAttestedReason.TRUST_AUTHORITY_UNREACHABLE, "STORE_UNAVAILABLE"}


def test_require_attests_when_nothing_is_held() -> None:
    """A power-on after an outage does not wait for the background renewal."""
    host = Host()
    session = host.session()
    host.authority.failure = AWAY
    with pytest.raises(NotAttested) as caught:
        session.require()
    assert caught.value.reason == NotAttestedReason.TRUST_AUTHORITY_UNREACHABLE
    host.authority.failure = None
    assert session.require() is session.current()


def test_tpm_failure_is_told_as_such() -> None:
    """A TPM that does not answer is told apart from a refusal."""
    host = Host()
    host.tpm.failure = TpmError("no such device")
    with pytest.raises(NotAttested) as caught:
        host.session().require()
    assert caught.value.reason == NotAttestedReason.TPM_UNAVAILABLE


@pytest.mark.parametrize(
    "claims", [{"host_id": HostId("0" * 64)}, {"tls_thumbprint": bytes(32)}], ids=["host", "TLS key"]
)
def test_token_for_another_host_or_key_is_refused(claims: dict[str, object]) -> None:
    """A token that is not this host's and this agent start's is not held."""
    host = Host()
    host.authority.claims = claims
    with pytest.raises(NotAttested) as caught:
        host.session().require()
    assert caught.value.reason == NotAttestedReason.TOKEN_NOT_OURS


def test_certificate_for_another_key_is_refused() -> None:
    """A certificate that is not for this agent start's key is not held."""
    host = Host()
    host.authority.certificate_pem = host.authority.authority.ca_pem
    with pytest.raises(NotAttested) as caught:
        host.session().require()
    assert caught.value.reason == NotAttestedReason.TOKEN_NOT_OURS


def test_token_that_ended_already_is_refused() -> None:
    """A token whose life was over before it came is not held: nothing would ever be due but another one."""
    host = Host()
    host.authority.claims = {"expires_at": 1}
    with pytest.raises(NotAttested) as caught:
        host.session().require()
    assert caught.value.reason == NotAttestedReason.TOKEN_EXPIRED


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "a.e30.c", "a.W10.c", "a." + "x" * 9 + ".c", "a.bnVsbA.c"])
def test_what_is_not_a_token_is_refused(text: str) -> None:
    """Malformed tokens are one error, whatever is wrong with them."""
    with pytest.raises(NotAttested) as caught:
        read_own_token(text)
    assert caught.value.reason == NotAttestedReason.TOKEN_NOT_OURS


def test_neither_token_nor_key_shows_in_a_repr() -> None:
    """Printing what is held prints no token and no key."""
    held = Host().session().require()
    text = repr(held)
    assert held.token not in text
    assert "PrivateKey" not in text
    assert x509.load_pem_x509_certificate(held.certificate_pem).public_key() == held.tls_key.public_key()
