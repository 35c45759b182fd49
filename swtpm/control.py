"""The control channel of swtpm (``include/swtpm/tpm_ioctl.h`` and ``swtpm_ioctls(3)`` of swtpm 0.7).

Every request is a u32 command and its body, every answer a u32 result and its body, big-endian. Results are always
checked. The one that matters most: after a *refused* SET_STATEBLOB, INIT succeeds by manufacturing a new, empty TPM;
``ControlChannel`` therefore refuses INIT from then on.
"""

import array
import socket
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Self

from swtpm.errors import ControlError
from swtpm.state import MAX_STATE_SIZE

DEFAULT_TIMEOUT_SECONDS = 10.0


class Command(IntEnum):
    """Commands used here (CMD_… of tpm_ioctl.h)."""

    GET_CAPABILITY = 1
    INIT = 2
    SHUTDOWN = 3
    GET_TPMESTABLISHED = 4
    GET_STATEBLOB = 12
    SET_STATEBLOB = 13
    STOP = 14
    SET_DATAFD = 16


class Capability(IntFlag):
    """What a swtpm can do (PTM_CAP_…); bits that are not named here are kept."""

    INIT = 1
    SHUTDOWN = 1 << 1
    GET_TPMESTABLISHED = 1 << 2
    GET_STATEBLOB = 1 << 8
    SET_STATEBLOB = 1 << 9
    STOP = 1 << 10
    SET_DATAFD = 1 << 12


class BlobKind(IntEnum):
    """Part of a TPM's state (PTM_BLOB_TYPE_…)."""

    PERMANENT = 1
    VOLATILE = 2
    SAVED = 3


@dataclass(frozen=True, slots=True)
class StateBlob:
    """State as it left a TPM."""

    data: bytes
    encrypted: bool
    """Under the state key or the migration key; False means that ``data`` holds the TPM's secrets in clear."""


_FLAG_DECRYPTED = 1
_FLAG_ENCRYPTED = 2
_INIT_DELETE_VOLATILE = 1


class ControlChannel:
    """Client of one swtpm's control channel; not for several threads at once.

    A timeout or a broken answer closes the channel: what would be read next is no longer known.
    """

    def __init__(self, connected: socket.socket, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Take over a connected socket."""
        connected.settimeout(timeout_seconds)
        self._socket = connected
        self._state_refused = False

    @classmethod
    def connect(cls, path: Path, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Self:
        """Connect to a control socket.

        Raises:
            ControlError: Nothing listens there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(path))
        except OSError as exc:
            connection.close()
            raise ControlError(f"cannot reach the control channel at {path}: {exc}") from exc
        return cls(connection, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; swtpm goes on, unless it was started with ``--terminate``."""
        self._socket.close()

    def detach(self) -> socket.socket:
        """Give the socket up, between two commands, to whoever speaks next on it."""
        self._socket.settimeout(None)
        return self._socket

    def capabilities(self) -> Capability:
        """Ask what this swtpm can do."""
        self._send(Command.GET_CAPABILITY)
        # The one answer without a result: an 8-byte mask.
        return Capability(int.from_bytes(self._receive(8), "big"))

    def init(self, *, delete_volatile: bool = False) -> None:
        """Power the TPM on (again): it loads its permanent state and waits for TPM2_Startup.

        Raises:
            ControlError: The TPM refused its state (result 0x101: wrong key or damaged), or an earlier
                ``set_state_blob`` was refused.
        """
        if self._state_refused:
            raise ControlError("the state was refused before: INIT would make a new TPM")
        self._command(Command.INIT, (_INIT_DELETE_VOLATILE if delete_volatile else 0).to_bytes(4, "big"))

    def stop(self) -> None:
        """Power the TPM off; the process stays."""
        self._command(Command.STOP)

    def shutdown(self) -> None:
        """End the process."""
        self._command(Command.SHUTDOWN)

    def established(self) -> bool:
        """Read TPM_ESTABLISHMENT: whether a locality 4 measurement was made."""
        self._command(Command.GET_TPMESTABLISHED)
        return self._receive(4)[0] != 0

    def set_data_fd(self, descriptor: int) -> None:
        """Give swtpm the socket on which TPM commands will come; the caller keeps and closes its own copy."""
        request = Command.SET_DATAFD.to_bytes(4, "big")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._socket.sendmsg([request], ancillary)
        except OSError as exc:
            self._socket.close()
            raise ControlError(f"SET_DATAFD: {exc}") from exc
        self._check(Command.SET_DATAFD)

    def get_state_blob(self, kind: BlobKind, *, decrypted: bool = False) -> StateBlob:
        """Read a part of the state, after ``init``.

        Args:
            kind: Which part.
            decrypted: Ask for it in clear. Ignored by a swtpm that has a migration key.

        Raises:
            ControlError: Refused, or larger than ``MAX_STATE_SIZE``. The channel is closed then: whether swtpm sends
                the rest of its answer after a refusal depends on where it was refused.
        """
        request = (_FLAG_DECRYPTED if decrypted else 0, kind, 0)
        try:
            self._command(Command.GET_STATEBLOB, b"".join(value.to_bytes(4, "big") for value in request))
            flags, total, length = (int.from_bytes(self._receive(4), "big") for _ in range(3))
            if total > MAX_STATE_SIZE or length != total:
                raise ControlError(f"GET_STATEBLOB: {length} bytes of {total} make no sense")
        except ControlError:
            self._socket.close()
            raise
        return StateBlob(self._receive(length), encrypted=bool(flags & _FLAG_ENCRYPTED))

    def set_state_blob(self, kind: BlobKind, blob: StateBlob) -> None:
        """Give the TPM a part of its state, before ``init``.

        Raises:
            ControlError: Refused, for instance 0x21 for a state under another key; ``init`` is refused from then on.
        """
        self._state_refused = True
        header = (_FLAG_ENCRYPTED if blob.encrypted else 0, kind, len(blob.data))
        self._command(Command.SET_STATEBLOB, b"".join(value.to_bytes(4, "big") for value in header) + blob.data)
        self._state_refused = False

    def _command(self, command: Command, body: bytes = b"") -> None:
        self._send(command, body)
        self._check(command)

    def _check(self, command: Command) -> None:
        result = int.from_bytes(self._receive(4), "big")
        if result:
            raise ControlError(f"{command.name}: swtpm answered {result:#x}", result)

    def _send(self, command: Command, body: bytes = b"") -> None:
        try:
            self._socket.sendall(command.to_bytes(4, "big") + body)
        except OSError as exc:
            self._socket.close()
            raise ControlError(f"{command.name}: {exc}") from exc

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            try:
                part = self._socket.recv(length - len(received))
            except OSError as exc:
                self._socket.close()
                raise ControlError(f"no answer from swtpm: {exc}") from exc
            if not part:
                self._socket.close()
                raise ControlError("swtpm closed the control channel")
            received += part
        return bytes(received)
