"""Fixtures: software TPMs with endorsement certificates, and the authority that signs them."""

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from swtpm.ek_certificate import issue_ek_certificate, make_ek_ca
from swtpm.manufacture import EndorsementPublic, Manufactured, manufacture
from swtpm.process import SoftwareTpm

NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class EkCa:
    """Authority for endorsement keys."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def certify(self, endorsement: EndorsementPublic) -> bytes:
        """Sign the certificate of an endorsement key; usable as ``manufacture(certify=…)``."""
        return issue_ek_certificate(
            self.key,
            self.certificate,
            endorsement.key,
            serial=x509.random_serial_number(),
            not_before=NOT_BEFORE,
            not_after=NOT_AFTER,
        )


def make_test_ek_ca(name: str = "EK test CA") -> EkCa:
    """Make an authority with a fresh key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return EkCa(key, make_ek_ca(key, name=name, serial=1, not_before=NOT_BEFORE, not_after=NOT_AFTER))


@pytest.fixture(scope="session")
def ek_ca() -> EkCa:
    """Authority that signs the endorsement keys of ``software_tpm``."""
    return make_test_ek_ca()


@pytest.fixture
def tpm_dir() -> Iterator[Path]:
    """Directory for state and sockets: short, because the path of a Unix socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="garant-tpm-"))
    yield path
    shutil.rmtree(path)


@dataclass(frozen=True)
class HostTpm:
    """A running software TPM of a host."""

    process: SoftwareTpm
    manufactured: Manufactured
    state_dir: Path
    key: bytes

    @property
    def tcti(self) -> str:
        """Where tpm2-tss finds it."""
        return self.process.tcti

    def reset(self) -> None:
        """Cycle its power."""
        self.process.reset()


MakeSoftwareTpm = Callable[[], HostTpm]


@pytest.fixture
def make_software_tpm(ek_ca: EkCa, tpm_dir: Path) -> Iterator[MakeSoftwareTpm]:
    """Make as many running software TPMs as a test wants; all are stopped at its end."""
    with ExitStack() as running:

        def make() -> HostTpm:
            state_dir = Path(tempfile.mkdtemp(dir=tpm_dir))
            key = bytes(range(32))
            manufactured = manufacture(state_dir, key=key, certify=ek_ca.certify)
            process = running.enter_context(SoftwareTpm.start(state_dir, state_dir / "tpm", key=key))
            return HostTpm(process, manufactured, state_dir, key)

        yield make


@pytest.fixture
def software_tpm(make_software_tpm: MakeSoftwareTpm) -> HostTpm:
    """Run a fresh TPM with RSA-2048 and ECC P-384 endorsement certificates, as a host's firmware leaves it."""
    return make_software_tpm()
