"""What the command prints, and how it ends when something is wrong; no service is needed."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from attestation.simulator.boot import Recording
from cli.errors import EXIT_REFUSED, EXIT_WRONG, exit_code_of_status
from cli.main import build_app, main
from cli.output import Plain, plain, print_record, print_table, visible
from garant.attestation.v1 import admin_pb2, attestation_pb2
from garant.host.v1 import host_pb2
from garant.management.v1 import management_pb2

GROUPS = ["vm", "host", "provider", "event", "trust", "releases", "inspect"]


def only_line(text: str) -> str:
    """The one line that an error is told in."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("garant: ")
    return lines[0]


def test_a_message_becomes_plain_values() -> None:
    """Enums are short names, empty fields are there, numbers are numbers."""
    vm = management_pb2.Vm(name="web", power_state=host_pb2.POWER_STATE_ON, qemu_pid=7)
    record = plain(vm)
    assert (record["name"], record["power_state"], record["qemu_pid"]) == ("web", "on", 7)
    assert record["provider"] == ""
    assert record["vtpm"] is False


def test_nested_messages_times_and_bytes_become_plain_values() -> None:
    """Times are ISO 8601, absent messages are null, bytes are hexadecimal."""
    host = admin_pb2.Host(name="kvm1", state=attestation_pb2.ADMISSION_STATE_ACTIVE)
    host.enrolled_at.FromJsonString("2026-01-02T03:04:05Z")
    assert plain(host)["enrolled_at"] == "2026-01-02T03:04:05Z"
    assert plain(host)["state"] == "active"
    assert plain(host)["last_appraisal"] is None
    host.last_appraisal.checks.add(rule="secure-boot", passed=True)
    appraisal = plain(host)["last_appraisal"]
    assert isinstance(appraisal, dict)
    assert appraisal["checks"][0]["rule"] == "secure-boot"
    assert plain(admin_pb2.PutPolicyResponse(version=2, hash=b"\xab\xcd"))["hash"] == "abcd"


def test_an_enum_value_that_is_not_known_is_shown_as_such() -> None:
    """A newer server does not break the command."""
    assert plain(management_pb2.Vm(power_state=77))["power_state"] == "unknown (77)"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Büro 虚拟机 🦀", "Büro 虚拟机 🦀"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\r\nb", "a\\r\\nb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_texts_from_elsewhere_cannot_move_the_terminal(text: str, shown: str) -> None:
    """Control characters and direction marks are shown as escapes."""
    assert visible(text) == shown


def test_a_table_takes_nothing_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Names with brackets, emoji codes and escapes come out as they are, and nothing is cut off in a pipe."""
    row: dict[str, Plain] = {
        "name": "[red]:bomb:\x1b[2J",
        "id": "ab" * 300,
        "on": True,
        "none": None,
        "many": ["a", "b"],
    }
    print_table(("name", "id", "on", "none", "many"), [row], empty="nothing")
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "ID", "ON", "NONE", "MANY"]
    assert line.split() == ["[red]:bomb:\\x1b[2J", "ab" * 300, "yes", "-", "a,", "b"]


def test_an_empty_table_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads the table reads nothing."""
    print_table(("name",), [], empty="no VMs")
    assert capsys.readouterr() == ("", "no VMs\n")


def test_a_record_is_a_line_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    """Nested values are left out; they get tables of their own."""
    print_record({"name": "web", "qemu_pid": 0, "nested": {"a": 1}})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["name", "web"], ["qemu", "pid", "0"]]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("FAILED_PRECONDITION", EXIT_REFUSED),
        ("PERMISSION_DENIED", EXIT_REFUSED),
        ("ABORTED", EXIT_REFUSED),
        ("ALREADY_EXISTS", EXIT_REFUSED),
        ("INVALID_ARGUMENT", EXIT_WRONG),
        ("NOT_FOUND", EXIT_WRONG),
        ("UNAVAILABLE", EXIT_WRONG),
        ("INTERNAL", EXIT_WRONG),
    ],
)
def test_refusals_and_mistakes_end_differently(status: str, code: int) -> None:
    """1: a service said no; 2: the request or the environment is wrong."""
    assert exit_code_of_status(status) == code


def test_help_loads_no_command() -> None:
    """``garant --help`` is quick because neither gRPC nor the commands are imported."""
    script = (
        "import sys\n"
        "from cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'grpc', 'google.protobuf', 'cryptography', 'rich', 'cli.vm', 'cli.site'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in [*GROUPS, "init", "demo"]:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_and_command_has_help_with_an_example(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command says what it does and shows an example."""
    commands = list(leaves(group, capsys))
    assert commands
    for path in commands:
        assert main([*path, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"Example: garant {' '.join(path)}" in " ".join(text.split()), path
        assert "--output" in text


def leaves(group: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, ...]]:
    """Paths of all commands below a group, read from its help."""
    found: list[tuple[str, ...]] = []
    waiting: list[tuple[str, ...]] = [(group,)]
    while waiting:
        path = waiting.pop()
        assert main([*path, "--help"]) == 0
        text = capsys.readouterr().out
        if "\nCommands:\n" not in text:
            found.append(path)
            continue
        listed = text.partition("\nCommands:\n")[2].splitlines()
        waiting += [(*path, line.split()[0]) for line in listed if line.startswith("  ") and line[2] != " "]
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["vm", "nonsense"],
        ["vm", "show"],
        ["vm", "create", "a", "--cpus", "0"],
        ["vm", "list", "--output", "yaml"],
        ["trust", "host", "list", "--state", "odd"],
        ["--nonsense"],
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line on standard error, nothing on standard output."""
    assert main(arguments) == EXIT_WRONG
    captured = capsys.readouterr()
    assert captured.out == ""
    only_line(captured.err)


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """It is an error, so it goes to standard error."""
    assert main(["trust", "host"]) == EXIT_WRONG
    assert "approve" in capsys.readouterr().err


def test_without_a_site_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing or broken site.json is named, with exit code 2."""
    monkeypatch.setenv("GARANT_SITE", str(tmp_path))
    assert main(["vm", "list"]) == EXIT_WRONG
    line = only_line(capsys.readouterr().err)
    assert str(tmp_path) in line
    assert "garant init" in line
    for content in ("", "[]", "{}", '{"attestation": 1}', "\0"):
        (tmp_path / "site.json").write_text(content)
        assert main(["vm", "list"]) == EXIT_WRONG
        assert "does not describe a site" in only_line(capsys.readouterr().err)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """With --debug the error is raised as it is."""
    with pytest.raises(Exception, match=r"site\.json"):
        main(["vm", "list", "--site", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--disk", "root"], "expected NAME=PATH"),
        (["--disk", "root="], "expected NAME=PATH"),
        (["--disk", "root=image.qcow2"], "expected an absolute path"),
        (["--kernel", "vmlinuz"], "expected an absolute path"),
        (["--empty-disk", "data"], "expected NAME=SIZE"),
        (["--empty-disk", "data=0"], "is not a size"),
        (["--empty-disk", "data=many"], "is not a size"),
        (["--empty-disk", "data=9999999999T"], "too large"),
    ],
)
def test_malformed_disks_are_refused_before_anything_is_asked(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No site is needed to learn of them."""
    assert main(["vm", "create", "web", *arguments]) == EXIT_WRONG
    assert told in only_line(capsys.readouterr().err)


def test_a_name_that_is_not_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are not UTF-8 arrive as surrogates, which no message could carry."""
    assert main(["vm", "create", "\udcff"]) == EXIT_WRONG
    assert "UTF-8" in only_line(capsys.readouterr().err)


def test_a_command_that_is_not_named_is_not_loaded() -> None:
    """A VM of the name of a command does not load that command."""
    build_app(["vm", "show", "demo"])
    assert main(["vm", "show", "--help"]) == 0


def token_file(directory: Path, text: str) -> str:
    """A file with this text."""
    path = directory / "token"
    path.write_text(text)
    return str(path)


def test_a_token_is_shown_but_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Header, payload and readable times; the signature is said to be unchecked."""
    header, payload = ({"typ": "x"}, {"exp": 0, "jti": "a"})
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, payload)]
    path = token_file(tmp_path, ".".join([*parts, "sig"]) + "\n")
    assert main(["inspect", "token", path]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "header": header,
        "payload": payload,
        "times": {"exp": "1970-01-01T00:00:00+00:00"},
        "signature_checked": False,
    }
    assert main(["inspect", "token", path, "--output", "table"]) == 0
    assert "jti" in capsys.readouterr().out


@pytest.mark.parametrize("name", Recording.names())
def test_an_event_log_is_described(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded boot's log: banks, events with what they say, and the PCR values that it explains."""
    recording = Recording.load(name)
    path = tmp_path / "log"
    path.write_bytes(recording.log)
    assert main(["inspect", "event-log", str(path)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described) == {"banks", "startup_locality", "events", "pcrs"}
    assert {"index", "pcr", "type", "digests", "description", "digest_matches_data"} == set(described["events"][1])
    explained = described["pcrs"]["sha256"]
    assert {int(pcr): bytes.fromhex(value) for pcr, value in explained.items()}.items() <= recording.pcrs.items()
    assert main(["inspect", "event-log", str(path), "--output", "table"]) == 0
    assert "EV_SEPARATOR" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "e30.W10.x", "e30.e30.x.y", "ü.e30.x", "e30.!!!!.x"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    assert main(["inspect", "token", token_file(tmp_path, text)]) == EXIT_WRONG
    assert "is not a token" in only_line(capsys.readouterr().err)


def test_what_is_no_event_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there, is a directory, is empty or is something else: one line, exit code 2."""
    for path in (str(tmp_path / "absent"), str(tmp_path), "/dev/null", token_file(tmp_path, "not a log")):
        assert main(["inspect", "event-log", path]) == EXIT_WRONG
        only_line(capsys.readouterr().err)
