"""The host agent as its callers see it, with fakes at its ports."""

import pytest

from host_agent.agent import HostAgent
from host_agent.errors import (
    IllegalTransition,
    NotAttested,
    Peer,
    PeerRefused,
    PeerUnreachable,
    ProviderNotPinned,
    VmNotFound,
)
from host_agent.keycache import KeyCache
from host_agent.vm.model import VmSpec
from keyprovider.provider_list import ProviderList
from tests.host_agent_fakes import FakeRelease, FakeVms, Host, make_entry

VM_ID = "11111111-1111-4111-8111-111111111111"
SPEC = VmSpec(VM_ID, "a")
REFUSED = PeerRefused(Peer.TRUST_AUTHORITY, "APPRAISAL_REFUSED", "not believed")


class Site:
    """An agent and the fakes around it."""

    def __init__(self) -> None:
        self.host, self.vms, self.release, self.cache = Host(), FakeVms(), FakeRelease(), KeyCache()
        enroller = self.host.enroller()
        self.agent = HostAgent(
            "host-a",
            vms=self.vms,
            enroller=enroller,
            session=self.host.session(enroller),
            release=self.release,
            cache=self.cache,
        )

    def running_vm(self) -> None:
        """Make an encrypted VM and power it on."""
        self.agent.create_vm(SPEC, provider="trusted", grant="grant 1")
        self.agent.power_on_vm(VM_ID, grant="grant 2")


def test_status_before_and_after_attestation() -> None:
    """The status names the host once it is enrolled, and says why it is not attested until it is."""
    site = Site()
    before = site.agent.status()
    assert (before.host_id, before.attested_until, before.reason) == ("", None, "STARTING")
    assert site.agent.attest().attested is not None
    after = site.agent.status()
    assert after.host_id == site.host.tpm.host_id.text
    assert after.attested_until is not None
    assert (after.reason, after.provider_list_version) == ("", 1)


def test_attest_tells_the_reason() -> None:
    """Attesting on demand is answered with the reason of the refusal, not with an error."""
    site = Site()
    site.agent.attest()
    site.host.authority.failure = REFUSED
    assert (site.agent.attest().attested, site.agent.attest().reason) == (None, "APPRAISAL_REFUSED")
    assert site.agent.status().reason == "APPRAISAL_REFUSED"
    site.host.authority.failure = None
    assert site.agent.attest().attested is not None


def test_grant_reaches_the_key_provider() -> None:
    """Creation and each power-on show the grant that came with them (B-19)."""
    site = Site()
    site.running_vm()
    assert [request.grant for _, request in site.release.asked] == ["grant 1", "grant 2"]


def test_plain_vm_needs_no_attestation() -> None:
    """A VM without encryption runs on a host that is not attested, and asks for no key."""
    site = Site()
    site.host.authority.failure = REFUSED
    site.agent.create_vm(SPEC, provider="", grant="")
    site.agent.power_on_vm(VM_ID, grant="")
    assert site.release.asked == []


def test_every_power_on_asks_anew() -> None:
    """A power-on is never served from the cache."""
    site = Site()
    site.running_vm()
    site.agent.power_off_vm(VM_ID, grace_seconds=0)
    site.agent.power_on_vm(VM_ID, grant="grant 3")
    assert len(site.release.asked) == 3


def test_keys_are_kept_while_the_vm_runs() -> None:
    """KEKs of a running VM are held; power-off, a guest that ends by itself, and removal end that."""
    site = Site()
    site.running_vm()
    site.agent.forget_idle_keys()
    assert site.cache.vm_ids() == [VM_ID]
    site.agent.power_off_vm(VM_ID, grace_seconds=0)
    assert site.cache.vm_ids() == []
    site.agent.power_on_vm(VM_ID, grant="grant")
    site.vms.end_by_itself(VM_ID)
    site.agent.forget_idle_keys()
    assert site.cache.vm_ids() == []


def test_failed_power_on_leaves_no_key() -> None:
    """A power-on that QEMU refuses keeps nothing; one of a VM that runs already leaves that VM's keys alone."""
    site = Site()
    site.agent.create_vm(SPEC, provider="trusted", grant="grant")
    site.vms.failure = IllegalTransition("no")
    with pytest.raises(IllegalTransition):
        site.agent.power_on_vm(VM_ID, grant="grant")
    assert site.cache.vm_ids() == []
    site.vms.failure = None
    site.agent.power_on_vm(VM_ID, grant="grant")
    site.vms.failure = IllegalTransition("it runs")
    with pytest.raises(IllegalTransition):
        site.agent.power_on_vm(VM_ID, grant="grant")
    assert site.cache.vm_ids() == [VM_ID]


def test_unattested_host_creates_and_starts_nothing_encrypted() -> None:
    """A host that the trust authority refuses gets no key and makes no VM (R-TA-4)."""
    site = Site()
    site.agent.create_vm(SPEC, provider="trusted", grant="grant")
    site.host.authority.failure = REFUSED
    site.agent.attest()
    asked = len(site.release.asked)
    with pytest.raises(NotAttested):
        site.agent.power_on_vm(VM_ID, grant="grant")
    other = VmSpec("22222222-2222-4222-8222-222222222222", "b")
    with pytest.raises(NotAttested):
        site.agent.create_vm(other, provider="trusted", grant="grant")
    assert len(site.release.asked) == asked
    assert [vm.vm_id for vm in site.agent.list_vms()] == [VM_ID]


def test_provider_outside_the_pinned_list_is_not_asked() -> None:
    """A management server that names another key provider is refused, and nobody is called (R-TA-2)."""
    site = Site()
    with pytest.raises(ProviderNotPinned):
        site.agent.create_vm(SPEC, provider="rogue", grant="grant")
    assert site.release.asked == []
    assert site.agent.list_vms() == ()


def test_provider_published_later_is_found() -> None:
    """A provider that the trust authority published after enrolment needs no restart."""
    site = Site()
    site.agent.attest()
    site.host.authority.providers = ProviderList(2, (make_entry(), make_entry("second")))
    assert site.agent.create_vm(SPEC, provider="second", grant="grant").provider == "second"
    assert site.agent.status().provider_list_version == 2


@pytest.mark.parametrize("failure", [PeerUnreachable(Peer.TRUST_AUTHORITY, "away"), REFUSED])
def test_list_that_cannot_be_refreshed_is_not_the_callers_error(failure: Exception) -> None:
    """While the list cannot be fetched anew, an unknown provider is still told as unknown."""
    site = Site()
    site.agent.attest()
    site.host.authority.failure = failure
    with pytest.raises(ProviderNotPinned):
        site.agent.create_vm(SPEC, provider="rogue", grant="grant")


def test_unknown_vm_is_told() -> None:
    """Every operation on a VM that is not there says so."""
    agent = Site().agent
    for operation in (
        lambda: agent.power_on_vm(VM_ID, grant=""),
        lambda: agent.power_off_vm(VM_ID, grace_seconds=0),
        lambda: agent.get_vm(VM_ID),
        lambda: agent.read_console(VM_ID, offset=0),
    ):
        with pytest.raises(VmNotFound):
            operation()
