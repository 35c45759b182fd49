"""Keys of one VM from a trusted key provider, and the cache of those of running VMs."""

import pytest

from host_agent.errors import NotAttested, Peer, PeerRefused, PeerUnreachable, ReleaseRejected
from host_agent.keycache import CachedKey, KeyCache
from host_agent.model import ReleaseRequest
from host_agent.trusted_keys import CURED_BY_ATTESTING, TrustedKeySource
from keyprovider.keymaterial import SecretKey
from tests.host_agent_fakes import FakeRelease, Host, make_entry

VM_ID = "11111111-1111-4111-8111-111111111111"
REQUEST = ReleaseRequest("grant", VM_ID, "home", "reference", b"wrapped")


def _source(host: Host, release: FakeRelease) -> TrustedKeySource:
    return TrustedKeySource(make_entry(), vm_id=VM_ID, grant="grant", session=host.session(), release=release)


def _refused(reason: str) -> PeerRefused:
    return PeerRefused(Peer.KEY_PROVIDER, reason, "no")


def test_new_key_opens_with_the_attested_key() -> None:
    """A key that the provider makes comes sealed to this agent start's key (B-1)."""
    host, release = Host(), FakeRelease()
    new = _source(host, release).create("home")
    assert bytes(new.kek.view()) == b"k" * 32
    assert new.wrapped_key == b"wrapped"
    ((_, request),) = release.asked
    assert (request.grant, request.vm_id, request.component) == ("grant", VM_ID, "home")


def test_unwrapped_key_is_copied_for_the_cache() -> None:
    """The engine closes the key it got; the copy lives on until it is taken or closed."""
    source = _source(Host(), FakeRelease())
    source.unwrap("home", "reference", b"wrapped").close()
    (copy,) = source.take_unwrapped()
    assert (copy.component, copy.key_reference, bytes(copy.kek.view())) == ("home", "reference", b"k" * 32)
    assert source.take_unwrapped() == []


def test_closing_a_source_wipes_what_nobody_took() -> None:
    """A power-on that fails leaves no key behind."""
    source = _source(Host(), FakeRelease())
    with source:
        source.unwrap("home", "reference", b"wrapped").close()
        (kept,) = source._unwrapped
    with pytest.raises(ValueError, match="closed"):
        kept.kek.view()


@pytest.mark.parametrize("reason", sorted(CURED_BY_ATTESTING))
def test_void_token_is_renewed_once(reason: str) -> None:
    """A provider that calls the token void is asked again after one new attestation."""
    host, release = Host(), FakeRelease(refusals=[_refused(reason)])
    _source(host, release).unwrap("home", "reference", b"wrapped").close()
    first, second = (asked for asked, _ in release.asked)
    assert second.number == first.number + 1
    assert len(host.authority.evidence) == 2


def test_void_token_is_not_renewed_for_ever() -> None:
    """A provider that calls the new token void as well is believed."""
    host, release = Host(), FakeRelease(refusals=[_refused("TOKEN_OF_OLDER_EPOCH")] * 2)
    with pytest.raises(PeerRefused):
        _source(host, release).create("home")
    assert len(host.authority.evidence) == 2


@pytest.mark.parametrize("reason", ["GRANT_FOR_OTHER_VM", "GRANT_MISSING", "HOST_REVOKED", "PERMISSION_DENIED"])
def test_other_refusals_are_final(reason: str) -> None:
    """A refusal that attesting cannot cure is passed on with its reason, at once (B-19)."""
    host, release = Host(), FakeRelease(refusals=[_refused(reason)])
    with pytest.raises(PeerRefused) as caught:
        _source(host, release).create("home")
    assert caught.value.reason == reason
    assert len(release.asked) == 1


def test_host_that_lost_trust_asks_nobody() -> None:
    """A void token that cannot be renewed ends in the trust authority's reason, not in another try (R-TA-4)."""
    host, release = Host(), FakeRelease(refusals=[_refused("TOKEN_OF_OLDER_EPOCH")])
    source = _source(host, release)
    source._session.require()
    host.authority.failure = PeerRefused(Peer.TRUST_AUTHORITY, "APPRAISAL_REFUSED", "not believed")
    with pytest.raises(NotAttested) as caught:
        source.unwrap("home", "reference", b"wrapped")
    assert caught.value.reason == "APPRAISAL_REFUSED"
    assert len(release.asked) == 1


def test_unreachable_provider_is_told_apart() -> None:
    """A provider that does not answer is not a refusal (R-ERR-3)."""
    host = Host()
    release = FakeRelease(refusals=[])
    release.refusals.append(PeerUnreachable(Peer.KEY_PROVIDER, "away"))
    with pytest.raises(PeerUnreachable):
        _source(host, release).create("home")


def test_key_sealed_for_another_request_is_rejected() -> None:
    """A key that was sealed for another component does not open, even on the right host."""
    source = _source(Host(), FakeRelease(tamper="vtpm"))
    with pytest.raises(ReleaseRejected):
        source.create("home")
    with pytest.raises(ReleaseRejected):
        source.unwrap("home", "reference", b"wrapped")


def test_key_sealed_to_another_agent_start_is_rejected() -> None:
    """A recorded release does not open after the agent's restart: its key is gone (B-1)."""
    host, release = Host(), FakeRelease()
    recorded = release.unwrap_key(host.session().require(), make_entry(), REQUEST)
    replay = FakeRelease()
    replay.unwrap_key = lambda *_: recorded  # type: ignore[method-assign]
    with pytest.raises(ReleaseRejected):
        _source(host, replay).unwrap("home", "reference", b"wrapped")


@pytest.mark.parametrize("size", [16, 31, 33, 64])
def test_key_of_another_size_is_rejected(size: int) -> None:
    """A KEK has 32 bytes."""
    with pytest.raises(ReleaseRejected):
        _source(Host(), FakeRelease(size=size)).create("home")


def _cached(component: str, content: bytes = b"k" * 32) -> CachedKey:
    return CachedKey(component, f"reference of {component}", SecretKey.adopt(content))


def test_cache_gives_copies() -> None:
    """What the cache gives may be closed without harm to what it holds."""
    cache = KeyCache()
    cache.hold(VM_ID, [_cached("home"), _cached("vtpm", b"v" * 32)])
    for _ in range(2):
        found = cache.find(VM_ID, "vtpm", "reference of vtpm")
        assert found is not None
        assert bytes(found.view()) == b"v" * 32
        found.close()


@pytest.mark.parametrize(
    ("vm_id", "component", "reference"),
    [("other", "home", "reference of home"), (VM_ID, "vtpm", "reference of home"), (VM_ID, "home", "old reference")],
)
def test_cache_finds_that_very_key_only(vm_id: str, component: str, reference: str) -> None:
    """Another VM's, another component's or a former key is not found."""
    cache = KeyCache()
    cache.hold(VM_ID, [_cached("home")])
    assert cache.find(vm_id, component, reference) is None


def test_dropped_keys_are_wiped() -> None:
    """Keys that are dropped or replaced are closed, not only forgotten."""
    cache, kept = KeyCache(), [_cached("home") for _ in range(4)]
    for vm_id, key in zip(("a", "a", "b", "c"), kept, strict=True):
        cache.hold(vm_id, [key])
    cache.drop("b")
    assert cache.vm_ids() == ["a", "c"]
    for key in (kept[0], kept[2]):
        with pytest.raises(ValueError, match="closed"):
            key.kek.view()
    cache.close()
    assert cache.vm_ids() == []
