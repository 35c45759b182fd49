"""The monitor's client against a server that misbehaves in each way it can."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host_agent.errors import QemuError
from host_agent.vm.qemu.qmp import QmpClient

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@contextlib.contextmanager
def _monitor(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)
        assert not thread.is_alive()


def _answering(*answers: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for answer in (b'{"return": {}}\n', *answers):
            connection.recv(65536)
            connection.sendall(answer)

    return talk


def test_answer_is_found_among_events(tmp_path: Path) -> None:
    """Events that come before an answer, and an answer in pieces, do not confuse the client."""
    events = b'{"event": "RESUME", "timestamp": {}}\n{"event": "STOP"}\n'
    with (
        _monitor(tmp_path / "q", _answering(events + b'{"return": {"status": "running"}}\n')),
        QmpClient(tmp_path / "q", timeout_seconds=5) as client,
    ):
        assert client.execute("query-status") == {"status": "running"}


def test_command_and_arguments_are_sent(tmp_path: Path) -> None:
    """A command goes out as one JSON line with its arguments."""
    seen: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for _ in range(2):
            seen.append(connection.recv(65536))
            connection.sendall(b'{"return": {}}\n')

    with _monitor(tmp_path / "q", talk), QmpClient(tmp_path / "q", timeout_seconds=5) as client:
        client.execute("object-del", {"id": "s"})
    assert [json.loads(line) for line in seen] == [
        {"execute": "qmp_capabilities"},
        {"execute": "object-del", "arguments": {"id": "s"}},
    ]


def test_refusal_is_an_error_with_qemus_words(tmp_path: Path) -> None:
    """What QEMU gives as reason is in the error."""
    refusal = b'{"error": {"class": "GenericError", "desc": "no such object"}}\n'
    with (
        _monitor(tmp_path / "q", _answering(refusal)),
        QmpClient(tmp_path / "q", timeout_seconds=5) as client,
        pytest.raises(QemuError, match="refused object-del: no such object"),
    ):
        client.execute("object-del", {"id": "x"})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed"),
        (b'{"retu', "closed"),
        (b"not json\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[]\n", "not a message"),
        (b"\xff\xfe\n", "not JSON"),
    ],
)
def test_broken_answer_is_an_error(tmp_path: Path, answer: bytes, message: str) -> None:
    """A monitor that dies or talks nonsense in the middle of an answer is an error, not a hang."""
    with (
        _monitor(tmp_path / "q", _answering(answer)),
        QmpClient(tmp_path / "q", timeout_seconds=5) as client,
        pytest.raises(QemuError, match=message),
    ):
        client.execute("query-status")


def test_silent_monitor_times_out(tmp_path: Path) -> None:
    """A monitor that is taken by another client says nothing: the time limit ends the wait."""
    done = threading.Event()

    def talk(connection: socket.socket) -> None:
        done.wait(10)

    with _monitor(tmp_path / "q", talk):
        with pytest.raises(QemuError, match=r"no answer in 0\.2 s"):
            QmpClient(tmp_path / "q", timeout_seconds=0.2)
        done.set()


def test_monitor_that_only_sends_events_times_out(tmp_path: Path) -> None:
    """A stream of events does not keep a command waiting for ever."""
    stop = threading.Event()

    def talk(connection: socket.socket) -> None:
        _answering()(connection)
        while not stop.wait(0.02):
            connection.sendall(b'{"event": "X"}\n')

    with _monitor(tmp_path / "q", talk):
        client = QmpClient(tmp_path / "q", timeout_seconds=0.3)
        with client, pytest.raises(QemuError, match="no answer"):
            client.execute("query-status")
        stop.set()


def test_line_without_end_is_refused(tmp_path: Path) -> None:
    """A line that never ends does not fill the memory."""

    def talk(connection: socket.socket) -> None:
        _answering()(connection)
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * (16 << 20))

    with (
        _monitor(tmp_path / "q", talk),
        QmpClient(tmp_path / "q", timeout_seconds=5) as client,
        pytest.raises(QemuError, match="without end"),
    ):
        client.execute("query-status")


def test_something_else_on_the_socket_is_refused(tmp_path: Path) -> None:
    """A server that does not greet as QEMU is not spoken to."""
    with (
        _monitor(tmp_path / "q", lambda connection: connection.sendall(b'{"hello": 1}\n')),
        pytest.raises(QemuError, match="not QEMU"),
    ):
        QmpClient(tmp_path / "q", timeout_seconds=5)


def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    """A dead QEMU's socket, or none, is an error at once."""
    with pytest.raises(QemuError, match="cannot be reached"):
        QmpClient(tmp_path / "q", timeout_seconds=5)


def test_long_directory_is_no_obstacle(tmp_path: Path) -> None:
    """A run directory may lie deeper than a socket's path can be long."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(QemuError, match="No such file"):
        QmpClient(deep / "q", timeout_seconds=5)
