"""The repository tests itself: what a daemon must not even import."""

import subprocess
import sys

import pytest

FORBIDDEN = {
    "attestation": ("attestation.attester", "tpm2_pytss", "keyprovider.trusted", "host_agent", "management"),
    "keyprovider": ("attestation.attester", "attestation.verifier", "tpm2_pytss", "host_agent", "management"),
    "management": ("attestation.attester", "attestation.verifier", "keyprovider.trusted", "tpm2_pytss", "host_agent"),
    "host_agent": ("attestation.verifier", "attestation.simulator", "keyprovider.trusted", "management"),
}


@pytest.mark.parametrize("daemon", FORBIDDEN)
def test_daemon_does_not_import_another_trust_domain(daemon: str) -> None:
    """Importing a daemon loads no module of a trust domain that is not its own."""
    program = f"import {daemon}.__main__, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    strays = [name for name in loaded for bad in FORBIDDEN[daemon] if name == bad or name.startswith(bad + ".")]
    assert strays == []
    assert f"{daemon}.__main__" in loaded


@pytest.mark.parametrize("daemon", FORBIDDEN)
def test_daemon_does_not_import_tests_or_bench(daemon: str) -> None:
    """Product code runs without the tests, the bench and the command line."""
    program = f"import {daemon}.__main__, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"tests", "bench", "cli"}.isdisjoint(done.stdout.split())
