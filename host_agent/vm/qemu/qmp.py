"""A client of QEMU's monitor (QMP), synchronous, one connection at a time.

The monitor takes one client: whoever comes second waits in the backlog, so every step has a time limit and a
connection is kept only for as long as an operation needs it.

Source: QEMU ``docs/interop/qmp-spec.rst``.
Must not: log what is sent or received.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from host_agent.errors import QemuError

_MOST_LINE: Final = 4 << 20
"""No answer that is asked for here is longer."""
_CHUNK: Final = 1 << 16


class QmpClient:
    """A connection to a monitor, ready for commands. Not for several threads at once."""

    def __init__(self, socket_path: Path, *, timeout_seconds: float) -> None:
        """Connect and negotiate.

        Args:
            socket_path: The monitor's socket.
            timeout_seconds: For connecting and greeting together, and for each command.

        Raises:
            QemuError: Nobody listens, the time is over (another client may be connected), or it is no monitor.
        """
        self._timeout_seconds = timeout_seconds
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._deadline = time.monotonic() + timeout_seconds
        try:
            self._socket.settimeout(timeout_seconds)
            _connect(self._socket, socket_path)
            if "QMP" not in self._receive():
                raise QemuError("what answers on the monitor's socket is not QEMU")
            self.execute("qmp_capabilities")
        except OSError as exc:
            self.close()
            raise QemuError(f"QEMU's monitor cannot be reached: {exc}") from exc
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command; events that come before its answer are passed over.

        Returns:
            The answer's ``return`` value.

        Raises:
            QemuError: QEMU refused the command (the message is QEMU's), died, or did not answer in time.
        """
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        self._deadline = time.monotonic() + self._timeout_seconds
        try:
            self._socket.settimeout(self._timeout_seconds)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as exc:
            raise QemuError(f"QEMU's monitor broke off before {command}: {exc}") from exc
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                error = answer["error"]
                words = error.get("desc") if isinstance(error, dict) else None
                raise QemuError(f"QEMU refused {command}: {words or 'no reason given'}")

    def close(self) -> None:
        """Let the monitor go. May be repeated."""
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _MOST_LINE:
                raise QemuError("QEMU's monitor sends a line without end")
            self._received += self._receive_some()
        line, self._received = bytes(self._received[:end]), self._received[end + 1 :]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise QemuError("QEMU's monitor sent something that is not JSON") from exc
        if not isinstance(message, dict):
            raise QemuError("QEMU's monitor sent something that is not a message")
        return message

    def _receive_some(self) -> bytes:
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            some = self._socket.recv(_CHUNK)
        except TimeoutError as exc:
            raise QemuError(f"QEMU's monitor gave no answer in {self._timeout_seconds:g} s") from exc
        except OSError as exc:
            raise QemuError(f"QEMU's monitor broke off: {exc}") from exc
        if not some:
            raise QemuError("QEMU closed its monitor")
        return some


def _connect(client: socket.socket, path: Path) -> None:
    # Through the directory's descriptor: a socket's path is limited to 107 bytes, a directory's is not.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
