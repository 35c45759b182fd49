"""How long a vTPM takes to make, beside ``swtpm_setup`` doing the same: both keys and certificates, encrypted state."""

import datetime
import os
import subprocess
import tempfile
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bench.figures import Figure, median_seconds
from swtpm.ek_certificate import issue_ek_certificate, make_ek_ca
from swtpm.manufacture import EndorsementPublic, manufacture

_OURS, _THEIRS = 15, 5
_REACH = 10.0
_KEY = ec.generate_private_key(ec.SECP256R1())
_NOW = datetime.datetime.now(datetime.UTC)
_UNTIL = _NOW + datetime.timedelta(days=3650)
_CA = make_ek_ca(_KEY, name="bench", serial=1, not_before=_NOW, not_after=_UNTIL)
_SERIALS = count(2)


def measure() -> list[Figure]:
    """Manufacture some, both ways."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        numbers = count()
        ours = median_seconds(lambda: _manufacture(directory / f"ours-{next(numbers)}"), times=_OURS)
        configuration = _swtpm_setup_configuration(directory)
        theirs = median_seconds(
            lambda: _swtpm_setup(directory / f"theirs-{next(numbers)}", configuration), times=_THEIRS
        )
    return [
        Figure(
            name="vTPM manufactured, two EKs with certificates, state encrypted, median",
            value=ours * 1000,
            unit="ms",
            floor="swtpm_setup --create-ek-cert",
            floor_value=theirs * 1000,
            reach=f"at least {_REACH:.0f} times faster",
            reached=theirs / ours >= _REACH,
        )
    ]


def _certify(endorsement: EndorsementPublic) -> bytes:
    return issue_ek_certificate(_KEY, _CA, endorsement.key, serial=next(_SERIALS), not_before=_NOW, not_after=_UNTIL)


def _manufacture(directory: Path) -> None:
    manufacture(directory, key=memoryview(os.urandom(32)), certify=_certify)


def _swtpm_setup_configuration(directory: Path) -> Path:
    """An authority of its own for swtpm_setup, as its documentation describes it."""
    state = directory / "localca"
    state.mkdir()
    (directory / "localca.conf").write_text(
        f"statedir = {state}\nsigningkey = {state}/signkey.pem\nissuercert = {state}/issuercert.pem\n"
        f"certserial = {state}/certserial\n"
    )
    (directory / "localca.options").write_text(
        "--platform-manufacturer Garant\n--platform-version 1\n--platform-model bench\n"
    )
    configuration = directory / "setup.conf"
    configuration.write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {directory}/localca.conf\n"
        f"create_certs_tool_options = {directory}/localca.options\nactive_pcr_banks = sha256\n"
    )
    _swtpm_setup(directory / "warm-up", configuration)
    return configuration


def _swtpm_setup(directory: Path, configuration: Path) -> None:
    directory.mkdir()
    reader, writer = os.pipe()
    os.write(writer, os.urandom(32).hex().encode())
    os.close(writer)
    argv = ["swtpm_setup", "--tpm2", "--tpmstate", str(directory), "--config", str(configuration), "--cipher"]
    argv += ["aes-256-cbc", "--keyfile-fd", str(reader), "--create-ek-cert"]
    done = subprocess.run(argv, pass_fds=[reader], capture_output=True, text=True, check=False)
    os.close(reader)
    if done.returncode != 0:
        raise RuntimeError(f"swtpm_setup failed: {done.stdout[-300:]}")
