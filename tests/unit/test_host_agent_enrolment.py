"""Enrolment of a host, and the list of key providers that it pins."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from host_agent.enrolment import RECORD
from host_agent.errors import NotAttested, NotAttestedReason, Peer, PeerRefused, ProviderNotPinned
from host_agent.provider_pin import find_provider
from keyprovider.provider_list import ProviderEntry, ProviderList
from tests.host_agent_fakes import FakeTpm, Host, make_authority, make_entry


def _refused(host: Host) -> str:
    with pytest.raises(NotAttested) as caught:
        host.enroller().ensure()
    return caught.value.reason


def test_host_enrols_once() -> None:
    """A host enrols at its first start and finds itself enrolled at the next, with its token spent or gone."""
    host = Host()
    first = host.enroller().ensure()
    host.offered = False
    second = host.enroller().ensure()
    assert first == second
    assert first.host_id == host.tpm.host_id
    assert len(host.authority.enrolled) == 1


def test_claim_carries_the_tpms_keys() -> None:
    """What is sent is this host's name, its token, and the endorsement and attestation key of its TPM."""
    host = Host()
    host.enroller().ensure()
    (claim,) = host.authority.enrolled
    assert (claim.host_name, claim.join_token, claim.ak_public) == ("host-a", "join token", b"attestation key")
    assert claim.ek_public == host.tpm.endorsement_key().public


def test_host_without_a_way_to_enrol_says_so() -> None:
    """With neither token nor trust authority configured the host is not enrolled, and nothing is sent."""
    host = Host(offered=False)
    assert _refused(host) == NotAttestedReason.NOT_ENROLLED
    assert host.authority.enrolled == []


def test_answer_with_another_host_id_is_refused() -> None:
    """A trust authority that calls the host by an id other than its TPM's is not believed; nothing is kept."""
    host = Host()
    host.authority.host_id = "0" * 64
    assert _refused(host) == NotAttestedReason.HOST_ID_MISMATCH
    assert host.state.files == {}


def test_provider_list_of_a_stranger_is_refused() -> None:
    """A list that the trust authority's CA did not sign is not pinned (R-TA-2)."""
    host = Host()
    host.authority.list_key = ec.generate_private_key(ec.SECP256R1())
    assert _refused(host) == NotAttestedReason.PROVIDER_LIST_REFUSED
    assert host.state.files == {}


def test_refusal_passes_through() -> None:
    """A refusal of the trust authority keeps its reason."""
    host = Host()
    host.authority.failure = PeerRefused(Peer.TRUST_AUTHORITY, "EK_CERTIFICATE_UNTRUSTED", "unknown vendor")
    with pytest.raises(PeerRefused) as caught:
        host.enroller().ensure()
    assert caught.value.reason == "EK_CERTIFICATE_UNTRUSTED"


def test_membership_of_another_tpm_is_not_taken_over() -> None:
    """A state directory that came from another host is refused, with what to do."""
    host = Host()
    host.enroller().ensure()
    host.tpm = FakeTpm()
    assert _refused(host) == NotAttestedReason.HOST_IDENTITY_CHANGED
    assert len(host.authority.enrolled) == 1


def _edit(content: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(content) | fields).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:-20],
        lambda _: b"\xff\xfe",
        lambda _: b"[]",
        lambda content: _edit(content, format=2),
        lambda content: _edit(content, surprise="x"),
        lambda content: _edit(content, host_id="x"),
        lambda content: _edit(content, host_id=7),
        lambda content: _edit(content, provider_list="x.y.z"),
        lambda content: _edit(content, ca="no certificate"),
    ],
)
def test_damaged_record_is_an_error_and_stays(damage: object) -> None:
    """A record that the agent did not write is reported, not overwritten by a new enrolment."""
    host = Host()
    host.enroller().ensure()
    damaged = damage(host.state.files[RECORD])  # type: ignore[operator]
    host.state.files[RECORD] = damaged
    assert _refused(host) == NotAttestedReason.STATE_DAMAGED
    assert host.state.files[RECORD] == damaged
    assert len(host.authority.enrolled) == 1


def test_record_with_a_list_of_another_authority_is_refused() -> None:
    """Replacing the pinned CA alone does not make the pinned list another's."""
    host = Host()
    host.enroller().ensure()
    other = Host()
    other.authority.ca = make_authority("other")
    record = _edit(host.state.files[RECORD], ca=other.authority.authority.ca_pem.decode())
    host.state.files[RECORD] = record
    assert _refused(host) == NotAttestedReason.STATE_DAMAGED


def test_newer_provider_list_is_pinned() -> None:
    """A provider that was published after enrolment is found by asking anew, and stays pinned (R-TA-2)."""
    host = Host()
    enroller = host.enroller()
    enroller.ensure()
    host.authority.providers = ProviderList(2, (make_entry(), make_entry("second")))
    assert find_provider(enroller.refresh_providers().providers, "second").name == "second"
    assert host.enroller().ensure().providers.version == 2
    assert host.authority.enrolled[-1].join_token == ""


@pytest.mark.parametrize("version", [1, 2])
def test_pinned_list_never_goes_back(version: int) -> None:
    """An older list, or another one of the same version, does not take the pinned one's place (R-TA-2)."""
    host = Host()
    pinned = ProviderList(2, (make_entry(),))
    host.authority.providers = pinned
    enroller = host.enroller()
    enroller.ensure()
    host.authority.providers = ProviderList(version, (make_entry("rogue"),))
    with pytest.raises(NotAttested) as caught:
        enroller.refresh_providers()
    assert caught.value.reason == NotAttestedReason.PROVIDER_LIST_REFUSED
    assert enroller.ensure().providers == pinned
    assert host.enroller().ensure().providers == pinned


def test_provider_outside_the_list_is_not_found() -> None:
    """Only providers of the pinned list are asked for keys (R-TA-2)."""
    providers = ProviderList(1, (make_entry(), ProviderEntry("silent", (), "ca")))
    assert find_provider(providers, "trusted").name == "trusted"
    for name in ("rogue", "", "TRUSTED", "silent"):
        with pytest.raises(ProviderNotPinned):
            find_provider(providers, name)
