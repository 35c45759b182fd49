"""The demo's host machines: a software TPM each, with a recorded boot in it, and the log that firmware left."""

import contextlib
import datetime
import os
import secrets
import signal
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attester.tpm import Tpm
from attestation.simulator.boot import Recording, play
from cli.demo.processes import descendants
from swtpm.ek_certificate import issue_ek_certificate, make_ek_ca
from swtpm.manufacture import EndorsementPublic, manufacture
from swtpm.process import SoftwareTpm

_hands = futures.ThreadPoolExecutor(1, thread_name_prefix="machines")
"""All work on TPMs is done here, never on the main thread: there an interrupt could strike inside a callback of the TPM
library, which prints and swallows it. One thread for all, since a TPM ends with the thread that started it."""
_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class TpmVendor:
    """Who makes the demo's TPMs and certifies their endorsement keys."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    made_at: datetime.datetime

    @classmethod
    def found(cls) -> "TpmVendor":
        """Make a vendor."""
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = "Garant demo TPM vendor"
        certificate = make_ek_ca(key, name=name, serial=1, not_before=now, not_after=now + _LIFETIME)
        return cls(certificate, key, now)

    def certify(self, endorsement: EndorsementPublic) -> bytes:
        """Sign an endorsement key certificate, DER."""
        return issue_ek_certificate(
            self.key,
            self.certificate,
            endorsement.key,
            serial=secrets.randbits(64),
            not_before=self.made_at,
            not_after=self.made_at + _LIFETIME,
        )


@dataclass
class Machine:
    """A host machine: what is left of a real one is its TPM, the boot in it, and the boot's log."""

    name: str
    directory: Path
    tpm: SoftwareTpm | None = None

    @property
    def tcti(self) -> str:
        """Where the host agent finds the TPM."""
        return f"swtpm:path={self.directory / 'tpm.sock'}"

    @property
    def event_log(self) -> Path:
        """The log that firmware left."""
        return self.directory / "event-log"

    @property
    def command_line(self) -> Path:
        """What its kernel was booted with, as ``/proc/cmdline`` shows it."""
        return self.directory / "cmdline"

    def build(self, vendor: TpmVendor) -> None:
        """Manufacture the TPM and put it in."""
        _hands.submit(self._build, vendor).result()

    def boot(self, recording: Recording) -> None:
        """Power the machine on: the TPM starts with PCRs of zero, and the recorded boot is measured into it."""
        _hands.submit(self._boot, recording).result()

    def _build(self, vendor: TpmVendor) -> None:
        self.directory.mkdir(parents=True)
        manufacture(self.directory / "tpm", key=None, certify=vendor.certify)

    def _boot(self, recording: Recording) -> None:
        if self.tpm is None:
            log = self.directory / "tpm.log"
            self.tpm = SoftwareTpm.start(self.directory / "tpm", self.directory / "tpm.sock", log_path=log)
        else:
            self.tpm.reset()
        with Tpm.open(self.tcti) as tpm:
            play(recording, tpm.extend)
        self.event_log.write_bytes(recording.log)
        self.command_line.write_text(f"{recording.command_line}\n")


def end_processes_under(directory: Path) -> int:
    """End every process of ours that works below ``directory``, as a power cut would. Returns how many."""
    ended = 0
    needle = f"{directory}/".encode()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if needle in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                _wait_gone(pid)
                ended += 1
    return ended


def _wait_gone(pid: int) -> None:
    while True:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
