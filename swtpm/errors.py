"""Errors of the software TPM component.

    SwtpmError
    ├── SwtpmUnavailable    the swtpm program is not there, or too old
    ├── ProcessError        a process did not start, died, or does not answer
    ├── ControlError        the control channel refused a command (result: what swtpm answered)
    ├── StateError          a state file is not to be used (reason: StateReason)
    └── ManufactureError    a TPM could not be made

Messages name files and result codes, never keys or contents of the state.
"""

from enum import StrEnum


class SwtpmError(Exception):
    """Root of this component's errors."""


class SwtpmUnavailable(SwtpmError):
    """The swtpm program is missing or older than this component can drive."""


class ProcessError(SwtpmError):
    """A process did not start, died, or does not answer."""


class ControlError(SwtpmError):
    """The control channel refused a command, or broke."""

    def __init__(self, message: str, result: int | None = None) -> None:
        super().__init__(message)
        self.result = result
        """TPM result code of the refusal; None when the channel itself failed."""


class StateReason(StrEnum):
    """Why a state file is not used, in the order the rules are checked."""

    MISSING = "MISSING"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    TRUNCATED = "TRUNCATED"
    NOT_SWTPM_STATE = "NOT_SWTPM_STATE"
    UNSUPPORTED = "UNSUPPORTED"
    NOT_ENCRYPTED = "NOT_ENCRYPTED"
    ENCRYPTED = "ENCRYPTED"
    MALFORMED = "MALFORMED"
    WRONG_KEY = "WRONG_KEY"


class StateError(SwtpmError):
    """A state file is missing, damaged, or not this key's."""

    def __init__(self, reason: StateReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class ManufactureError(SwtpmError):
    """A TPM could not be made; nothing was left behind."""
