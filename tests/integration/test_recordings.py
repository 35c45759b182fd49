"""Recorded boots in a real software TPM."""

import pytest

from attestation.attester.tpm import Tpm
from attestation.model import PcrBank
from attestation.simulator.boot import Recording, play
from tests.software_tpm import HostTpm


@pytest.mark.parametrize("name", Recording.names())
def test_a_played_boot_gives_a_software_tpm_the_recorded_pcrs(software_tpm: HostTpm, name: str) -> None:
    """A fresh software TPM holds the PCRs of the recorded boot after it was played, and quotes over them."""
    recording = Recording.load(name)
    with Tpm.open(software_tpm.tcti) as tpm:
        play(recording, tpm.extend)

        held = dict(tpm.read_pcrs(PcrBank.SHA256, tuple(recording.pcrs)))

    assert held == recording.pcrs


def test_a_reset_forgets_the_played_boot(software_tpm: HostTpm) -> None:
    """A power cycle clears the PCRs, so another boot can be played."""
    good, changed = Recording.load("good"), Recording.load("changed-command-line")
    with Tpm.open(software_tpm.tcti) as tpm:
        play(good, tpm.extend)
    software_tpm.reset()
    with Tpm.open(software_tpm.tcti) as tpm:
        before = dict(tpm.read_pcrs(PcrBank.SHA256, (0, 4)))
        play(changed, tpm.extend)
        after = dict(tpm.read_pcrs(PcrBank.SHA256, (0, 4)))

    assert before == {0: bytes(32), 4: bytes(32)}
    assert after == {index: changed.pcrs[index] for index in (0, 4)}
