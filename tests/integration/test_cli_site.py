"""The ``garant`` command and the daemons over a site that ``garant init`` made: each daemon a process of its own."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.simulator.boot import Recording
from cli.errors import EXIT_WRONG
from cli.main import main
from cli.site import SitePlan, make_site
from management.__main__ import start as start_management
from serving.errors import ServingError
from tests.management_site import now

pytestmark = pytest.mark.xdist_group("site")  # one set of daemons for all of these

CONFIGURATIONS = {
    "attestation": "trust-authority/attestation/attestation.toml",
    "keyprovider": "trust-authority/keyprovider/keyprovider.toml",
    "management": "management/management.toml",
}
START_SECONDS = 60.0


def free_addresses(count: int) -> list[str]:
    """Addresses on this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [f"127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    finally:
        for listening in sockets:
            listening.close()


def start(module: str, configuration: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon and wait until it says that it is ready."""
    with log.open("wb") as opened:
        process = subprocess.Popen([sys.executable, "-m", module, str(configuration)], stderr=opened)
    deadline = time.monotonic() + START_SECONDS
    while b'"event": "ready"' not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"{module} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site whose three services run."""
    directory = tmp_path_factory.mktemp("cli") / "site"
    public, admin, keyprovider, management, join = free_addresses(5)
    plan = SitePlan("test.garant", public, admin, keyprovider, management, join, provider="trusted")
    make_site(directory, plan, now=now())
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for module, configuration in CONFIGURATIONS.items():
            processes.append(start(module, directory / configuration, directory / f"{module}.log"))
        yield directory
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(timeout=30) for process in processes]
    assert codes == [0, 0, 0]


@pytest.fixture(autouse=True)
def named_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the site."""
    monkeypatch.setenv("GARANT_SITE", str(site))


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    """What a command that succeeds prints as JSON."""
    code = main([*arguments, "--output", "json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that succeeds prints for people."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_a_trust_administrator_decides_what_is_trusted(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-TA-1: anchors, policy and reference boots are put, listed, withdrawn and restored from the command line."""
    assert result(capsys, "trust", "anchor", "list") == []
    certificate = str(site / "management" / "ca.pem")
    result(capsys, "trust", "anchor", "add", "swtpm", certificate, "--allow-virtual")
    assert "swtpm" in table(capsys, "trust", "anchor", "list")

    policy = tmp_path / "policy.json"
    policy.write_text('{"name": "test", "version": 1, "bank": "sha256", "pcrs": [0, 2, 4, 7]}')
    put = result(capsys, "trust", "policy", "put", str(policy))
    assert isinstance(put, dict)
    assert put["version"] == 1
    shown = result(capsys, "trust", "policy", "show")
    assert isinstance(shown, dict)
    assert shown["hash"] == put["hash"]
    assert json.loads(table(capsys, "trust", "policy", "show")) == shown["document"]

    log = tmp_path / "log"
    log.write_bytes(Recording.load("good").log)
    reference = result(capsys, "trust", "reference", "put", "good", str(log))
    assert isinstance(reference, dict)
    assert reference["active"]
    withdrawn = result(capsys, "trust", "reference", "withdraw", "good")
    assert isinstance(withdrawn, dict)
    assert not withdrawn["active"]
    assert result(capsys, "trust", "reference", "restore", "good") == reference
    assert result(capsys, "trust", "reference", "list") == [reference]


def test_a_trust_administrator_sets_up_the_key_provider_service(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R-TA-2: the provider is made and the management server's grants are believed, without the management server."""
    made = result(capsys, "trust", "provider", "create", "trusted")
    assert made == {"name": "trusted", "backend": "software", "primary_version": 1}
    assert result(capsys, "trust", "provider", "list") == [made]
    public_key = site / "management" / "principal.pub.pem"
    assert result(capsys, "trust", "principal", "register", "management", str(public_key)) == {"name": "management"}
    assert result(capsys, "releases", "list") == []


def test_hosts_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown host is named in one line; an empty list says so."""
    assert result(capsys, "trust", "host", "list", "--state", "requested") == []
    for arguments in (["show", "nobody"], ["approve", "nobody"], ["ban", "nobody", "--reason", "x"]):
        assert main(["trust", "host", *arguments]) == EXIT_WRONG
        assert "NOT_FOUND" in capsys.readouterr().err


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
def test_bad_documents_are_told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is absent, empty or something else never shows a traceback."""
    assert main(["trust", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err


def test_the_management_daemon_serves_its_administrators(capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon as ``garant init`` configured it: providers, hosts, refusals with their reasons."""
    assert "no hosts have joined" in refused(capsys, "host", "list", code=0)
    assert "NO_KEY_PROVIDER" in refused(capsys, "vm", "create", "web", "--vtpm", code=1)
    assert "the default one" in table(capsys, "provider", "register", "trusted")
    assert "NO_SUITABLE_HOST" in refused(capsys, "vm", "create", "web", "--vtpm", code=1)
    assert "provider.registered" in table(capsys, "event", "list")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """What a command says on standard error."""
    assert main(list(arguments)) == code
    return capsys.readouterr().err


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
    good = (site / CONFIGURATIONS["management"]).read_text()
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
