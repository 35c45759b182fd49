"""Errors of the ``garant`` command, and what exit code they end with.

    CliError
    ├── BadInput       an argument, or a file that it names, is not what it should be
    └── Unreachable    a service does not answer

Exit codes: 0 done; 1 a service understood and refused; 2 the request or the environment is wrong (bad arguments, no
site, no such VM, a service that does not answer); 130 interrupted.
"""

EXIT_REFUSED = 1
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130

_REFUSALS = frozenset(
    {
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ALREADY_EXISTS",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "OUT_OF_RANGE",
    }
)
"""Statuses of a service that understood the request and said no."""


class CliError(Exception):
    """Root of this package's errors."""


class BadInput(CliError):
    """An argument, or a file that it names, is not what it should be."""


class Unreachable(CliError):
    """A service does not answer."""


def exit_code_of_status(status: str) -> int:
    """Exit code for the gRPC status of that name."""
    return EXIT_REFUSED if status in _REFUSALS else EXIT_WRONG
