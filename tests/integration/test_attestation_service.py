"""The attestation service, end to end, with real software TPMs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestation.attester.tpm import Tpm
from attestation.simulator.boot import Recording, play
from attestation.token import verify_token
from serving.jws import key_id
from tests.attestation_site import AUDIENCE, SITE, Host, Service, Site, now, running
from tests.software_tpm import EkCa, MakeSoftwareTpm

MakeHost = Callable[..., Host]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Make a site on SQLite."""
    return Site.create(tmp_path, f"sqlite:///{tmp_path / 'attestation.db'}")


@pytest.fixture
def service(site: Site) -> Iterator[Service]:
    """Run its attestation service, with nothing in it."""
    with running(site) as service:
        yield service


@pytest.fixture
def make_host(service: Service, make_software_tpm: MakeSoftwareTpm) -> Iterator[MakeHost]:
    """Make hosts, each with a software TPM that booted a recording."""
    with ExitStack() as stack:

        def make(name: str, recording: str = "good", **options: object) -> Host:
            boot = Recording.load(recording)
            tpm = stack.enter_context(Tpm.open(make_software_tpm().tcti))
            play(boot, tpm.extend)
            return Host(service, tpm, name, boot.log)

        yield make


def test_admitted_host_attests(service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A host that enrolled with a join token and booted a reference gets a token for its keys (R-TA-5)."""
    service.trust(ek_ca, "good")
    host = make_host("host-a")
    host.enroll(service.site.join_token("host-a"))
    answer = host.attest()
    public = service.site.token_key.public_key()
    token = verify_token(
        answer.token,
        keys={key_id(public): public},
        issuer=f"spiffe://{SITE}/attestation-service",
        audience=AUDIENCE,
        now=int(now().timestamp()),
    )
    assert token.host_id.text == host.host_id
