"""A trust authority for liars to try: the real service under the catalogue's policy, a member, and a banned host."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from attestation.simulator.attacks.attack import LOCALITY, golden_events, strict_policy
from attestation.simulator.client import HostClient
from attestation.simulator.lying_host import Certify, EndorsementPublicKey, HonestHost, SoftwareTpm, Surroundings
from attestation.simulator.software_host import Host as Boot
from attestation.simulator.software_host import make_log
from garant.attestation.v1 import admin_pb2
from serving.authority import certificate_pem
from serving.client import call
from swtpm.ek_certificate import issue_ek_certificate
from tests.attestation_site import Service, Site, running
from tests.software_tpm import NOT_AFTER, NOT_BEFORE, EkCa, make_test_ek_ca

CLUSTER = "cluster-a"


def certify_with(ca: EkCa) -> Certify:
    """An authority as software TPMs want it."""

    def certify(key: EndorsementPublicKey) -> bytes:
        return issue_ek_certificate(
            ca.key,
            ca.certificate,
            key,
            serial=x509.random_serial_number(),
            not_before=NOT_BEFORE,
            not_after=NOT_AFTER,
        )

    return certify


def golden_boot(tpm: SoftwareTpm) -> Boot:
    """The boot that is trusted, measured by ``tpm``."""
    return Boot(events=golden_events(), key=tpm.attestation_key, startup_locality=LOCALITY)


@dataclass(frozen=True)
class AttackSite:
    """A running service and what attacks need around it."""

    service: Service
    client: HostClient
    certify: Certify
    surroundings: Surroundings
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def host(self, tpm: SoftwareTpm | None = None) -> HonestHost:
        """A new host with an invitation, honest as it stands."""
        name = f"host-{next(self._numbers)}"
        tpm = tpm or SoftwareTpm.make(self.certify)
        token = self.service.site.join_token(name)
        return HonestHost(name, token, tpm, self.surroundings, golden_boot(tpm))


@contextlib.contextmanager
def attack_site(directory: Path) -> Iterator[AttackSite]:
    """Run the service with everything that the catalogue of attacks expects."""
    site = Site.create(directory, f"sqlite:///{directory / 'attestation.db'}")
    with running(site) as service:
        authorities = {name: make_test_ek_ca(name) for name in ("software", "hardware", "nobody")}
        admin = service.admin()
        for name, allow_virtual in (("software", True), ("hardware", False)):
            pem = certificate_pem(authorities[name].certificate).decode()
            anchor = admin_pb2.Anchor(name=name, certificate_pem=pem, allow_virtual=allow_virtual)
            call(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
        call(admin.PutPolicy, admin_pb2.PutPolicyRequest(document=strict_policy(1)))
        log = make_log(golden_events(), ("sha256", "sha384"))
        call(admin.PutReference, admin_pb2.PutReferenceRequest(name="golden", event_log=log))
        client = HostClient(service.channel(service.public_port, None))
        certify = certify_with(authorities["software"])
        neighbour, banned = SoftwareTpm.make(certify), SoftwareTpm.make(certify)
        surroundings = Surroundings(
            neighbour=neighbour,
            neighbour_name="neighbour",
            banned=banned,
            banned_name="banned",
            spent_join_token=site.join_token("neighbour"),
            join_token_for_another=site.join_token("nobody"),
            certify_by_nobody=certify_with(authorities["nobody"]),
            certify_as_hardware=certify_with(authorities["hardware"]),
        )
        for name, tpm, token in (
            ("neighbour", neighbour, surroundings.spent_join_token),
            ("banned", banned, site.join_token("banned")),
        ):
            client.enroll(HonestHost(name, token, tpm, surroundings, golden_boot(tpm)))
        call(admin.BanHost, admin_pb2.BanHostRequest(host_id=banned.host_id.text, reason="stolen"))
        yield AttackSite(service, client, certify, surroundings)
