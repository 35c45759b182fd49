"""The catalogue of attacks, each over gRPC against the real service: refused, and for exactly the reason given."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from attestation.errors import EnrollmentReason, RejectReason
from attestation.model import EkTemplate, LogKind
from attestation.simulator.attacks.attack import Attack, Stage
from attestation.simulator.attacks.catalogue import CATALOGUE
from attestation.simulator.lying_host import SoftwareTpm
from attestation.simulator.software_host import make_log
from tests.attack_site import AttackSite, attack_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackSite]:
    """Run one service for all attacks of a worker: none of them changes anything."""
    with attack_site(tmp_path_factory.mktemp("attacks")) as running:
        yield running


@pytest.mark.parametrize("attack", CATALOGUE, ids=lambda attack: attack.name)
def test_attack_is_refused(site: AttackSite, attack: Attack) -> None:
    """The honest host gets its token, the liar its exact refusal, the honest host its token again (R-TA-4, R-RUN-3)."""
    host = site.host()
    if attack.stage is Stage.ATTESTATION:
        before = site.client.run(host)
        assert before.token, before.message
        host = replace(host, enrolls=False)
    refused = site.client.run(attack.lie(host))
    assert (refused.reason, refused.token) == (attack.expected.value, ""), refused.message
    # After a reboot: the service remembers the highest boot counters that a TPM vouched for.
    after = site.client.run(site.host() if attack.stage is Stage.ENROLLMENT else host.quoting(reset_count=4))
    assert after.token, after.message


def test_attacks_have_names_of_their_own() -> None:
    """Each name means one attack, and each says what goes wrong where it is believed."""
    names = [attack.name for attack in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(attack.description for attack in CATALOGUE)


_NEEDS_AN_ADMINISTRATOR = {RejectReason.NO_ACTIVE_REFERENCE, EnrollmentReason.HOST_REPLACED}


def test_every_reason_has_an_attack() -> None:
    """No rule about the boot, the quote or admission is without a liar whom it alone refuses."""
    covered = {attack.expected for attack in CATALOGUE}
    files = {reason for reason in RejectReason if reason.name.startswith("IMA_")}
    assert set(RejectReason) - covered - files - _NEEDS_AN_ADMINISTRATOR == set()
    assert set(EnrollmentReason) - covered - _NEEDS_AN_ADMINISTRATOR == set()


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256_LOW, EkTemplate.ECC_P384_HIGH, EkTemplate.RSA_2048_LOW])
def test_software_tpms_of_each_kind_enroll(site: AttackSite, template: EkTemplate) -> None:
    """An honest host is trusted whatever the kind of its endorsement key."""
    assert site.client.run(site.host(SoftwareTpm.make(site.certify, template))).token


def test_a_log_is_refused_wherever_it_is_cut(site: AttackSite) -> None:
    """No prefix of the honest log explains the boot, cut between events or within them (T4)."""
    host = site.host()
    assert site.client.run(host).token
    host = replace(host, enrolls=False)
    log, events = host.boot.evidence().logs[LogKind.TCG], host.boot.events
    ends = [len(make_log(events[:count], host.boot.log_banks)) for count in range(len(events))]
    # The last two events are of PCR 5, which the policy does not ask about.
    reasons = set()
    for size in sorted({*ends, *range(0, len(log), 37)} - {*ends[-2:]}):
        cut = site.client.run(host.log_bytes(lambda whole, size=size: whole[:size]))  # type: ignore[misc]
        assert cut.token == ""
        reasons.add(cut.reason)
    assert reasons == {"MISSING_LOG", "MALFORMED_LOG", "LOG_DOES_NOT_REPLAY", "UNMEASURED_PCR"}
