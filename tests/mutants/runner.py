"""Runs tests in a copy of the tree, each time in a child of a process that has loaded everything but that tree.

Started in the copy as ``python -m tests.mutants.runner``: reads lines of test names, answers each with one line: the
first test that failed, or nothing.
"""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
from pathlib import Path

LIMIT_SECONDS = 60
_LOADED = (
    "alembic",
    "cryptography.hazmat.decrepit.ciphers.modes",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    "cryptography.hazmat.primitives.kdf.concatkdf",
    "cryptography.x509.verification",
    "garant.attestation.v1.admin_pb2_grpc",
    "garant.attestation.v1.attestation_pb2_grpc",
    "google.rpc.error_details_pb2",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_status.rpc_status",
    "hypothesis.stateful",
    "jwt",
    "prometheus_client",
    "psycopg",
    "pydantic",
    "pytest",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "structlog",
    "tpm2_pytss",
)
"""What the tests import from outside of the tree: it is the same for all mutants, and dear to load."""
_MUTATED = ("attestation", "keyprovider")


def run(tests: list[str]) -> str:
    """Run tests; the first that failed, or nothing."""
    import pytest

    output = io.StringIO()
    options = [
        "-x",
        "-q",
        "-rfE",
        "--no-header",
        "--tb=no",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        status = pytest.main([*options, "--hypothesis-seed=0", *tests])
    if status == pytest.ExitCode.OK:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/\w+/)?(.*?)(?: - .*)?$", output.getvalue(), re.MULTILINE)
    return failed[1] if failed else f"pytest: {pytest.ExitCode(status).name}"


def _run_in_child(tests: list[str]) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reader)
        signal.alarm(LIMIT_SECONDS)
        with contextlib.suppress(BaseException):
            os.write(writer, (run(tests) or "passed").encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return {"passed": "", "": "no answer in time"}.get(said, said)


def main() -> None:
    """Serve until the input ends."""
    for name in _LOADED:
        importlib.import_module(name)
    strays = [name for name in sys.modules if name.partition(".")[0] in _MUTATED]
    if strays:
        raise SystemExit(f"loaded before it was changed: {strays}")
    tree = Path.cwd()
    if not str(importlib.import_module("serving").__file__).startswith(str(tree)):
        raise SystemExit("this is not the copy")
    for line in sys.stdin:
        sys.stdout.write(_run_in_child(line.split()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
