"""The ``garant`` command against a management server over its real ports."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import structlog
import structlog.testing
from cryptography.hazmat.primitives.asymmetric import ec

from cli.errors import EXIT_REFUSED, EXIT_WRONG
from cli.main import main
from management.privileges import Role
from serving.authority import certificate_pem, private_key_pem
from serving.identity import Identity
from serving.identity import Role as IdentityRole
from serving.status import Refusal
from tests.management_site import Agent, WorkloadSide, now


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """The server runs in this process; what it logs must not mix with what the command prints."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def side(tmp_path: Path) -> Iterator[WorkloadSide]:
    """A management server."""
    roles = {"alice": Role.ADMINISTRATOR, "bob": Role.READ_ONLY}
    made = WorkloadSide(f"sqlite:///{tmp_path / 'management.db'}", roles=roles)
    yield made
    made.close()


@pytest.fixture
def site(side: WorkloadSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its site's directory as alice has it, named by the environment."""
    directory = tmp_path / "site"
    write_site(side, directory, "alice")
    monkeypatch.setenv("GARANT_SITE", str(directory))
    return directory


def write_site(side: WorkloadSide, directory: Path, admin: str) -> None:
    """The parts of a site's directory that a VM administrator needs."""
    certificate, key = side.admin_identity(admin)
    (directory / "vm-admin").mkdir(parents=True)
    (directory / "vm-admin" / "certificate.pem").write_bytes(certificate_pem(certificate))
    (directory / "vm-admin" / "private-key.pem").write_bytes(private_key_pem(key))
    (directory / "ca.pem").write_bytes(certificate_pem(side.management.certificate))
    summary = {
        "site": "test",
        "attestation": {"public": "127.0.0.1:1", "admin": "127.0.0.1:1"},
        "keyprovider": "127.0.0.1:1",
        "management": side.address,
        "join": side.join_address,
        "cas": {"trust_authority": "ca.pem", "management": "ca.pem"},
    }
    (directory / "site.json").write_text(json.dumps(summary))


@pytest.fixture
def agent(side: WorkloadSide) -> Agent:
    """An attested host."""
    return side.add_host("host-a")


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    """What a command that succeeds prints as JSON."""
    code = main([*arguments, "--output", "json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """The one line that a command that fails prints."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err


def test_a_vms_life_on_the_command_line(site: Path, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """R-OP-1, R-OP-4: register a provider, make an encrypted VM with a vTPM, run it, look at it, remove it."""
    assert result(capsys, "provider", "register", "gold") == {"name": "gold", "kind": "trusted", "default": True}
    disks = ("--disk", "root=/images/a.qcow2", "--empty-disk", "data=2G")
    made = result(capsys, "vm", "create", "Büro 7", "--memory", "256", "--vtpm", *disks)
    assert isinstance(made, dict)
    assert (made["name"], made["provider"], made["power_state"]) == ("Büro 7", "gold", "off")
    spec = agent.specs[made["vm_id"]]
    assert [(disk.name, disk.source_path, disk.size_bytes) for disk in spec.disks] == [
        ("root", "/images/a.qcow2", 0),
        ("data", "", 2 << 30),
    ]
    on = result(capsys, "vm", "power-on", "Büro 7")
    assert isinstance(on, dict)
    assert on["power_state"] == "on"
    assert result(capsys, "vm", "show", made["vm_id"]) == on
    assert result(capsys, "vm", "list") == [on]
    assert result(capsys, "vm", "console", "Büro 7") == {"vm": "Büro 7", "output": "login: ", "next_offset": 7}
    assert "VM_IS_ON" in refusal(capsys, "vm", "delete", "Büro 7", code=EXIT_REFUSED)
    result(capsys, "vm", "power-off", "Büro 7", "--grace", "1")
    result(capsys, "vm", "delete", "Büro 7")
    assert result(capsys, "vm", "list") == []
    events = result(capsys, "event", "list")
    assert isinstance(events, list)
    assert [event["type"] for event in events][-3:] == ["vm.delete-failed", "vm.powered-off", "vm.deleted"]


def test_tables_are_for_people(site: Path, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an option each list is a table with a heading, and the console is as the guest wrote it."""
    for arguments in (["provider", "register", "gold"], ["vm", "create", "web", "--vtpm"], ["vm", "power-on", "web"]):
        assert main(arguments) == 0
    capsys.readouterr()
    for arguments, words in (
        (["vm", "list"], ["NAME", "web", "on", "host-a", "encrypted", "gold"]),
        (["host", "list"], ["CONNECTED", "host-a", "yes", agent.host_id]),
        (["provider", "list"], ["KIND", "gold", "trusted"]),
        (["event", "list"], ["CURSOR", "vm.powered-on", "alice"]),
        (["vm", "show", "web"], ["qemu pid", "4711"]),
    ):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words), shown
    assert main(["vm", "console", "web"]) == 0
    assert capsys.readouterr().out == "login: "


def test_options_may_stand_before_the_command(
    site: Path, agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``garant --site DIR --output json host list`` is the same as the options at its end."""
    monkeypatch.delenv("GARANT_SITE")
    assert main(["--site", str(site), "--output", "json", "host", "list"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "host-a"


def test_refusals_are_one_line_with_the_reason(site: Path, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """R-OP-8: a refusal ends with 1, a mistake with 2, each with the stable reason."""
    assert "NO_KEY_PROVIDER" in refusal(capsys, "vm", "create", "web", "--vtpm", code=EXIT_REFUSED)
    assert "NOT_FOUND" in refusal(capsys, "vm", "show", "web", code=EXIT_WRONG)
    assert "INVALID_ARGUMENT" in refusal(capsys, "vm", "create", "a\nb", code=EXIT_WRONG)
    agent.refuse = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "DISK_FULL", "two\nlines \x1b[31m")
    assert "DISK_FULL: two lines \\x1b[31m" in refusal(capsys, "vm", "create", "web", code=EXIT_REFUSED)


def test_somebody_with_fewer_privileges_is_refused(
    side: WorkloadSide, tmp_path: Path, agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-OP-7: the line names the privilege that is missing."""
    write_site(side, tmp_path / "bob", "bob")
    told = refusal(capsys, "vm", "create", "web", "--site", str(tmp_path / "bob"), code=EXIT_REFUSED)
    assert "bob lacks the privilege VirtualMachine.Create" in told


def test_a_service_that_does_not_answer_is_named(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name and address, exit code 2, no traceback."""
    summary = json.loads((site / "site.json").read_text())
    summary["management"] = "127.0.0.1:1"
    (site / "site.json").write_text(json.dumps(summary))
    told = refusal(capsys, "vm", "list", code=EXIT_WRONG)
    assert "management server at 127.0.0.1:1 does not answer" in told


def test_an_absent_identity_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A VM administrator has no trust administrator's certificate: the line names the file."""
    assert "trust-admin/certificate.pem" in refusal(capsys, "trust", "host", "list", code=EXIT_WRONG)


def test_an_expired_identity_is_named(side: WorkloadSide, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GRPC would show a closed socket only, so the command looks first."""
    key = ec.generate_private_key(ec.SECP256R1())
    then = now() - timedelta(days=2)
    identity = Identity("test", IdentityRole.VM_ADMIN, "alice")
    expired = side.vm_admins.issue(identity, key.public_key(), now=then, lifetime=timedelta(days=1))
    (site / "vm-admin" / "certificate.pem").write_bytes(certificate_pem(expired))
    assert "the client certificate expired at" in refusal(capsys, "vm", "list", code=EXIT_WRONG)
    (site / "vm-admin" / "certificate.pem").write_text("nonsense")
    assert "holds no certificate" in refusal(capsys, "vm", "list", code=EXIT_WRONG)
