"""The ``garant`` command and the daemons over a site that ``garant init`` made: each daemon a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.simulator.boot import Recording
from cli.errors import EXIT_REFUSED, EXIT_WRONG
from cli.site import SitePlan, make_site
from management.__main__ import start as start_management
from serving.errors import ServingError
from tests.management_site import now
from tests.running_site import SERVICES, Command, command, free_addresses, running

__all__ = ["command"]

pytestmark = pytest.mark.xdist_group("site")  # one set of daemons for all of these


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site whose three services run."""
    directory = tmp_path_factory.mktemp("cli") / "site"
    public, admin, keyprovider, management, join = free_addresses(5)
    plan = SitePlan("test.garant", public, admin, keyprovider, management, join, provider="trusted")
    make_site(directory, plan, now=now())
    with running(directory, SERVICES):
        yield directory


@pytest.fixture(autouse=True)
def named_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the site."""
    monkeypatch.setenv("GARANT_SITE", str(site))


def test_a_trust_administrator_decides_what_is_trusted(site: Path, tmp_path: Path, command: Command) -> None:
    """R-TA-1: anchors, policy and reference boots are put, listed, withdrawn and restored from the command line."""
    assert command.result("trust", "anchor", "list") == []
    certificate = str(site / "management" / "ca.pem")
    command.result("trust", "anchor", "add", "swtpm", certificate, "--allow-virtual")
    assert "swtpm" in command.text("trust", "anchor", "list")

    policy = tmp_path / "policy.json"
    policy.write_text('{"name": "test", "version": 1, "bank": "sha256", "pcrs": [0, 2, 4, 7]}')
    put = command.record("trust", "policy", "put", str(policy))
    assert put["version"] == 1
    shown = command.record("trust", "policy", "show")
    assert shown["hash"] == put["hash"]
    assert json.loads(command.text("trust", "policy", "show")) == shown["document"]

    log = tmp_path / "log"
    log.write_bytes(Recording.load("good").log)
    reference = command.record("trust", "reference", "put", "good", str(log))
    assert reference["active"]
    withdrawn = command.record("trust", "reference", "withdraw", "good")
    assert not withdrawn["active"]
    assert command.result("trust", "reference", "restore", "good") == reference
    assert command.result("trust", "reference", "list") == [reference]


def test_a_trust_administrator_sets_up_the_key_provider_service(site: Path, command: Command) -> None:
    """R-TA-2: the provider is made and the management server's grants are believed, without the management server."""
    made = command.result("trust", "provider", "create", "trusted")
    assert made == {"name": "trusted", "backend": "software", "primary_version": 1}
    assert command.result("trust", "provider", "list") == [made]
    public_key = site / "management" / "principal.pub.pem"
    assert command.result("trust", "principal", "register", "management", str(public_key)) == {"name": "management"}
    assert command.result("releases", "list") == []


def test_hosts_that_are_not_there_are_refused(command: Command) -> None:
    """An unknown host is named in one line; an empty list says so."""
    assert command.result("trust", "host", "list", "--state", "requested") == []
    for arguments in (["show", "nobody"], ["approve", "nobody"], ["ban", "nobody", "--reason", "x"]):
        assert "NOT_FOUND" in command.refusal("trust", "host", *arguments, code=EXIT_WRONG)


@pytest.mark.parametrize(
    "arguments",
    [
        ["anchor", "add", "x", "/absent.pem"],
        ["anchor", "add", "x", "/dev/null"],
        ["policy", "put", "/dev/null"],
        ["policy", "put", "/"],
        ["reference", "put", "x", "/dev/null"],
        ["reference", "put", "x", "/etc/passwd"],
        ["principal", "register", "x", "/dev/null"],
        ["provider", "create", "NOT A NAME"],
    ],
)
def test_bad_documents_are_told_in_one_line(arguments: list[str], command: Command) -> None:
    """A file that is absent, empty or something else never shows a traceback."""
    code, out, err = command.run("trust", *arguments)
    assert code in (EXIT_REFUSED, EXIT_WRONG)
    assert out == ""
    assert len(err.splitlines()) == 1, err


def test_the_management_daemon_serves_its_administrators(command: Command) -> None:
    """The daemon as ``garant init`` configured it: providers, hosts, refusals with their reasons."""
    assert "no hosts have joined" in command.run("host", "list")[2]
    assert "NO_KEY_PROVIDER" in command.refusal("vm", "create", "web", "--vtpm", code=1)
    assert "the default one" in command.text("provider", "register", "trusted")
    assert "NO_SUITABLE_HOST" in command.refusal("vm", "create", "web", "--vtpm", code=1)
    assert "provider.registered" in command.text("event", "list")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("site =", "colour = 1\nsite =", "colour: Extra inputs"),
        ("cluster =", "clusters =", "cluster: Field required"),
        ("cluster =", 'read_only = ["vm-admin"]\ncluster =', "two roles"),
        ('"principal-key.pem"', '"absent.pem"', "cannot read"),
        ('"principal-key.pem"', '"ca.pem"', "holds no private key"),
        ('"host-ca-key.pem"', '"principal-key.pem"', "is not the key of"),
        ('"admin-ca.pem"', '"principal-key.pem"', "holds no certificate"),
        ("sqlite:", "oracle:", "expected a sqlite or postgresql URL"),
        ("management.db", "absent/management.db", "unable to open database file"),
        ("[join]", "[join]", "in use"),
    ],
)
def test_a_bad_configuration_is_refused(site: Path, old: str, new: str, told: str) -> None:
    """A key, file, database or port that is wrong is named; nothing is served then."""
    good = (site / SERVICES["management"]).read_text()
    assert old in good
    path = site / "management" / "bad.toml"
    path.write_text(good.replace(old, new))
    with pytest.raises(ServingError, match=told):
        start_management(path)


def test_a_daemon_that_cannot_start_says_so_and_ends(tmp_path: Path) -> None:
    """Exit code 2 and one line, no traceback."""
    command = [sys.executable, "-m", "management", str(tmp_path / "absent.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "cannot read" in done.stderr
    assert len(done.stderr.splitlines()) == 1
