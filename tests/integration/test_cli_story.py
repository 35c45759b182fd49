"""One attested host and its encrypted VM, from the command line alone: all daemons, a software TPM, QEMU."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from attestation.attester.tpm import Tpm
from attestation.simulator.boot import Recording, play
from cli.errors import EXIT_REFUSED
from cli.site import HostPlan, SitePlan, make_site
from tests.management_site import now
from tests.running_site import SERVICES, Command, command, free_addresses, running
from tests.software_tpm import EkCa, HostTpm

__all__ = ["command"]

pytestmark = [pytest.mark.boot, pytest.mark.xdist_group("site")]

EFFECT_SECONDS = 15.0
"""A withdrawal has its effect within 10 s; the rest is for a busy machine."""


@pytest.fixture
def site(software_tpm: HostTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site whose services run, with a host that booted as recorded and whose agent is not started yet."""
    recording = Recording.load("good")
    with Tpm.open(software_tpm.tcti) as tpm:
        play(recording, tpm.extend)
    (tmp_path / "log").write_bytes(recording.log)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "disk.raw").write_bytes(os.urandom(1 << 20))
    public, admin, keyprovider, management, join, agent = free_addresses(6)
    host = HostPlan("kvm1", agent, software_tpm.tcti, tmp_path / "log", image_directories=(tmp_path / "images",))
    plan = SitePlan("test.garant", public, admin, keyprovider, management, join, provider="trusted", hosts=(host,))
    directory = tmp_path / "site"
    make_site(directory, plan, now=now())
    monkeypatch.setenv("GARANT_SITE", str(directory))
    with running(directory, SERVICES):
        yield directory


def set_up(command: Command, site: Path, ek_ca: EkCa) -> None:
    """What both administrators decide before the first host comes."""
    anchor, policy = site.parent / "ek.pem", site.parent / "policy.json"
    anchor.write_bytes(ek_ca.certificate.public_bytes(serialization.Encoding.PEM))
    policy.write_text('{"name": "test", "version": 1, "bank": "sha256", "pcrs": [0, 2, 4, 7, 9, 11]}')
    command.text("trust", "anchor", "add", "ek", str(anchor), "--allow-virtual")
    command.text("trust", "policy", "put", str(policy))
    command.text("trust", "reference", "put", "good", str(site.parent / "log"))
    command.text("trust", "provider", "create", "trusted")
    command.text("trust", "principal", "register", "management", str(site / "management" / "principal.pub.pem"))
    command.text("provider", "register", "trusted")


def await_line(command: Command, pattern: str, *arguments: str) -> None:
    """Wait until a command's output matches."""
    deadline = time.monotonic() + EFFECT_SECONDS
    while not re.search(pattern, "".join(command.run(*arguments)[1:])):
        assert time.monotonic() < deadline, command.run(*arguments)
        time.sleep(0.2)


def await_refused_power_on(command: Command) -> None:
    """Wait until the VM "probe" is refused its keys."""
    deadline = time.monotonic() + EFFECT_SECONDS
    while command.run("vm", "power-on", "probe")[0] != EXIT_REFUSED:
        assert time.monotonic() < deadline, "keys are still released"
        command.text("vm", "power-off", "probe")
        time.sleep(0.2)


def test_an_encrypted_vm_lives_as_long_as_its_host_is_trusted(site: Path, ek_ca: EkCa, command: Command) -> None:
    """R-OP-1, R-OP-4, R-TA-4, R-TA-6, B-19: made, run, kept running without trust, refused a new start, restored."""
    set_up(command, site, ek_ca)
    with running(site, {"host_agent": "hosts/kvm1/agent.toml"}):
        try:
            await_line(command, r"kvm1 +yes +yes", "host", "list")
            shown = command.text("trust", "host", "show", "kvm1")
            assert re.search(r"REFERENCE_MISMATCH +yes", shown)
            disk = site.parent / "images" / "disk.raw"
            for name in ("web", "probe"):
                command.text("vm", "create", name, "--memory", "128", "--vtpm", "--disk", f"root={disk}")
            releases = command.result("releases", "list")
            assert isinstance(releases, list)
            assert (
                sorted(release["component"] for release in releases) == ["disk/root"] * 2 + ["home"] * 2 + ["vtpm"] * 2
            )
            pid = command.record("vm", "power-on", "web")["qemu_pid"]

            command.text("trust", "reference", "withdraw", "good")
            await_refused_power_on(command)
            still = command.record("vm", "show", "web")
            assert (still["power_state"], still["qemu_pid"]) == ("on", pid)
            command.text("vm", "power-off", "web")
            command.refusal("vm", "power-on", "web", code=EXIT_REFUSED)

            command.text("trust", "reference", "restore", "good")
            await_line(command, "VM web is on", "vm", "power-on", "web")
        finally:
            for name in ("web", "probe"):
                command.run("vm", "power-off", name)
        command.text("vm", "delete", "web")
