"""The recorded boots, and how they are played."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import pytest

from attestation.errors import NotFound, WireError
from attestation.model import PcrBank
from attestation.simulator.boot import IMA_PCR, Recording, play
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType

GOOD_COMMAND_LINE = b"console=ttyS0 ro quiet lockdown=integrity module.sig_enforce=1"
COMMAND_LINES = {"good": GOOD_COMMAND_LINE, "changed-command-line": GOOD_COMMAND_LINE + b" init=/bin/sh"}


class FakePcrs:
    """A SHA-256 bank in memory, as TPM2_Startup(CLEAR) leaves it."""

    def __init__(self) -> None:
        self.values = {index: (b"\xff" if 17 <= index <= 22 else b"\0") * 32 for index in range(24)}
        self.extended = 0

    def extend(self, pcr: int, digests: Mapping[PcrBank, bytes]) -> None:
        """Extend as TPM2_PCR_Extend does."""
        self.values[pcr] = hashlib.sha256(self.values[pcr] + digests[PcrBank.SHA256]).digest()
        self.extended += 1


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_play_gives_the_recorded_pcrs(name: str) -> None:
    """Every event but EV_NO_ACTION is extended, and the PCRs are those that the booted system read."""
    recording = Recording.load(name)
    pcrs = FakePcrs()

    play(recording, pcrs.extend)

    events = parse_event_log(recording.log).events
    assert pcrs.extended == sum(event.type != EventType.EV_NO_ACTION for event in events) > 30
    assert {index: value for index, value in pcrs.values.items() if index != IMA_PCR} == recording.pcrs
    assert pcrs.values[IMA_PCR] == bytes(32)


def test_recordings_differ_in_the_command_line_only() -> None:
    """Firmware, its settings, partition table and Secure Boot are the same: PCRs 0 to 3 and 5 to 8."""
    good, changed = (Recording.load(name).pcrs for name in COMMAND_LINES)

    assert {index for index in good if good[index] != changed[index]} == {4, 9, 11}


@pytest.mark.parametrize(("name", "command_line"), COMMAND_LINES.items())
def test_log_has_the_digest_of_the_command_line(name: str, command_line: bytes) -> None:
    """The stub measured the command line itself into PCR 11, so that a verifier can name what changed."""
    events = parse_event_log(Recording.load(name).log).events
    measured = [event.digests[0] for event in events if event.pcr == 11 and b".\0c\0m\0d\0" in event.data]

    assert measured[1] == hashlib.sha256(command_line).digest()


def test_load_refuses_an_unknown_name() -> None:
    """A name is one of the recordings, and no path."""
    for name in ("absent", "", "../recordings/good", "good/../good"):
        with pytest.raises(NotFound, match="good"):
            Recording.load(name)


def test_play_refuses_a_malformed_log_before_it_extends() -> None:
    """A log that is cut off changes no PCR."""
    recording = Recording.load("good")
    pcrs = FakePcrs()

    with pytest.raises(WireError):
        play(replace(recording, log=recording.log[:-1]), pcrs.extend)

    assert pcrs.extended == 0


def test_play_refuses_a_bank_that_it_cannot_extend() -> None:
    """A log whose only bank has an unknown algorithm is refused and extends nothing."""
    recording = Recording.load("good")
    sha256, sm3 = b"\x0b\x00", b"\x12\x00"
    pcrs = FakePcrs()
    header_end = recording.log.index(b"Spec ID Event03\0") + 40
    head = recording.log[:header_end].replace(sha256 + b"\x20\x00", sm3 + b"\x20\x00")
    body = recording.log[header_end:].replace(b"\x01\0\0\0" + sha256, b"\x01\0\0\0" + sm3)

    with pytest.raises(WireError, match="bank"):
        play(replace(recording, log=head + body), pcrs.extend)

    assert pcrs.extended == 0
