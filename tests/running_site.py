"""Daemons of a site that ``garant init`` made, each a process of its own, and the command against them."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.main import main

SERVICES: Mapping[str, str] = {
    "attestation": "trust-authority/attestation/attestation.toml",
    "keyprovider": "trust-authority/keyprovider/keyprovider.toml",
    "management": "management/management.toml",
}
START_SECONDS = 60.0
_READY = b'"event": "ready"'


def free_addresses(count: int) -> list[str]:
    """Addresses on this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [f"127.0.0.1:{listening.getsockname()[1]}" for listening in sockets]
    finally:
        for listening in sockets:
            listening.close()


@contextmanager
def running(directory: Path, configurations: Mapping[str, str]) -> Iterator[None]:
    """Run daemons (module to configuration below ``directory``); each must end with 0 when it is told to."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for module, configuration in configurations.items():
            with (directory / f"{module}.log").open("wb") as log:
                command = [sys.executable, "-m", module, str(directory / configuration)]
                processes[module] = subprocess.Popen(command, stderr=log)
        for module, process in processes.items():
            _await_ready(module, process, directory / f"{module}.log")
        yield
    finally:
        for process in processes.values():
            process.terminate()
        codes = {module: process.wait(timeout=30) for module, process in processes.items()}
    assert set(codes.values()) == {0}, codes


def _await_ready(module: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _READY not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{module} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)


class Command:
    """The ``garant`` command, run in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Read what it prints through ``capsys``."""
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        code = main(list(arguments))
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def result(self, *arguments: str) -> object:
        """What a command that succeeds prints as JSON."""
        code, out, err = self.run(*arguments, "--output", "json")
        assert code == 0, err
        return json.loads(out)

    def record(self, *arguments: str) -> dict[str, object]:
        """The one thing that a command that succeeds prints."""
        value = self.result(*arguments)
        assert isinstance(value, dict)
        return value

    def text(self, *arguments: str) -> str:
        """What a command that succeeds prints for people."""
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def refusal(self, *arguments: str, code: int) -> str:
        """The one line that a command that fails prints."""
        seen, out, err = self.run(*arguments)
        assert (seen, out) == (code, ""), (seen, out, err)
        assert len(err.splitlines()) == 1, err
        return err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The ``garant`` command."""
    return Command(capsys)
