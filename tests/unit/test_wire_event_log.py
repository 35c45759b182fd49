"""The strict parser of firmware logs."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.simulator.software_host import (
    Measured,
    header,
    honest_events,
    make_legacy_log,
    make_log,
    record,
    spec_id,
)
from attestation.wire.event_log import MAX_EVENTS, MAX_LOG_SIZE, LogAlgorithm, parse_event_log
from attestation.wire.event_types import EventType as Type
from attestation.wire.event_types import event_type_name

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
EVENTS = honest_events()
LOG = make_log(EVENTS, ("sha256", "sha384"))
LEGACY = make_legacy_log(EVENTS)
ONE = Measured(0, Type.EV_S_CRTM_VERSION, b"1\0")


def locality(value: int) -> Measured:
    """A StartupLocality event."""
    return Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0" + bytes([value]))


def with_algorithms(entries: bytes, count: int, vendor: bytes = b"\0") -> bytes:
    """A header with these algorithms."""
    return header(spec_id(())[:24] + struct.pack("<I", count) + entries + vendor)


def test_a_crypto_agile_log_parses_to_its_events() -> None:
    """Each event comes out in order, with its digests in the header's order, after the header as event 0."""
    log = parse_event_log(LOG)
    assert log.algorithms == (LogAlgorithm(0x0B, 32), LogAlgorithm(0x0C, 48))
    assert [event.number for event in log.events] == list(range(len(EVENTS) + 1))
    for event, source in zip(log.events[1:], EVENTS, strict=True):
        assert (event.pcr, event.type, event.data) == (source.pcr, source.type, source.data)
        assert event.digests == (source.digest("sha256"), source.digest("sha384"))
    assert (log.bank_position("sha384"), log.bank_position("sha1")) == (1, None)
    assert log.startup_locality == 0


def test_a_sha1_log_parses_to_its_events() -> None:
    """The older format has no header; its bank is SHA-1."""
    log = parse_event_log(LEGACY)
    assert [algorithm.name for algorithm in log.algorithms] == ["sha1"]
    assert [event.digests for event in log.events] == [(source.digest("sha1"),) for source in EVENTS]


def test_a_sha1_log_may_name_its_format() -> None:
    """The older format's own header is an event like any other; a format from the future is refused."""
    old = Measured(0, Type.EV_NO_ACTION, b"Spec ID Event02\0" + bytes(9))
    assert len(parse_event_log(make_legacy_log([old, *EVENTS])).events) == len(EVENTS) + 1
    with pytest.raises(WireError, match="not supported"):
        parse_event_log(make_legacy_log([Measured(0, Type.EV_NO_ACTION, b"Spec ID Event04\0")]))


def test_digests_in_another_order_are_put_in_the_headers() -> None:
    """A firmware that lists digests in another order is understood."""
    swapped = header(spec_id(("sha256", "sha384"))) + record(ONE, ("sha384", "sha256"))
    assert parse_event_log(swapped).events[1].digests == (ONE.digest("sha256"), ONE.digest("sha384"))


def test_an_unknown_algorithm_is_carried_by_its_declared_size() -> None:
    """Banks that are not known here do not hide those that are."""
    entries = struct.pack("<HHHH", 0x0B, 32, 0x0999, 24)
    event = struct.pack("<III", 0, Type.EV_S_CRTM_VERSION, 2)
    event += struct.pack("<H", 0x0B) + ONE.digest("sha256") + struct.pack("<H", 0x0999) + bytes(24)
    log = parse_event_log(with_algorithms(entries, 2) + event + struct.pack("<I", 2) + b"1\0")
    assert [algorithm.name for algorithm in log.algorithms] == ["sha256", "0x0999"]
    assert log.events[1].digests == (ONE.digest("sha256"), bytes(24))
    assert LogAlgorithm(0x12, 32).name == "sm3_256"


MALFORMED = [
    (b"", "empty"),
    (bytes(MAX_LOG_SIZE + 1), f"at most {MAX_LOG_SIZE}"),
    (LOG + b"\0", "cut off"),
    (LOG + b"\xff" * 128, "digests"),
    (LEGACY + b"\0" * 7, "cut off"),
    (LOG + record(Measured(0, Type.EV_NO_ACTION, spec_id(("sha256",))), ("sha256", "sha384")), "second header"),
    (LEGACY + header(spec_id(("sha256",))), "second header"),
    (make_log([Measured(24, Type.EV_IPL, b"x")]), "PCR 24"),
    (make_log([Measured(0xFFFFFFFF, Type.EV_IPL, b"x")]), "PCR 4294967295"),
    (make_legacy_log([ONE, Measured(24, Type.EV_IPL, b"x")]), "PCR 24"),
    (header(spec_id(("sha256",))) + record(ONE, ("sha256", "sha384")), "has 2 digests"),
    (header(spec_id(("sha256",))) + record(ONE, ("sha384",)), "unannounced|cut off"),
    (header(spec_id(("sha256", "sha384"))) + record(ONE, ("sha256", "sha256")) + bytes(16), "twice"),
    (with_algorithms(b"", 0), "1 to 8"),
    (with_algorithms(b"\x0b\0\x20\0" * 9, 9), "1 to 8"),
    (with_algorithms(b"\x0b\0\x20\0" * 2, 2), "twice"),
    (with_algorithms(b"\x0b\0\x14\0", 1), "have not 20 bytes"),
    (with_algorithms(b"\x99\x09\x41\0", 1), "have not 65 bytes"),
    (with_algorithms(b"\x99\x09\0\0", 1), "have not 0 bytes"),
    (with_algorithms(b"\x0b\0\x20\0", 1, b"\0\0"), "too many"),
    (with_algorithms(b"\x0b\0\x20\0", 1, b"\x04"), "expected"),
    (b"\x01" + LOG[1:], "EV_NO_ACTION event of PCR 0"),
    (LOG[:4] + b"\x04" + LOG[5:], "EV_NO_ACTION event of PCR 0"),
    (make_log([ONE])[:-6] + struct.pack("<I", 1 << 30) + b"1\0", "announces 1073741824"),
    (make_legacy_log([ONE])[:-6] + struct.pack("<I", 1 << 30) + b"1\0", "announces 1073741824"),
]


@pytest.mark.parametrize(("log", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_refuses_malformed_logs(log: bytes, reason: str) -> None:
    """Garbage, two headers, PCRs of no PC, digests other than announced, sizes beyond bounds: each is refused."""
    with pytest.raises(WireError, match=reason):
        parse_event_log(log)


@pytest.mark.parametrize("make", [make_log, make_legacy_log])
def test_refuses_more_events_than_any_boot_makes(make) -> None:  # type: ignore[no-untyped-def]
    """A log bomb of small events ends at the bound."""
    small = Measured(8, Type.EV_IPL, b"")
    assert len(parse_event_log(make([small] * (MAX_EVENTS - 1))).events) >= MAX_EVENTS - 1
    with pytest.raises(WireError, match="at most 10000 events"):
        parse_event_log(make([small] * (MAX_EVENTS + 1)))


def test_events_of_no_pcr_take_no_action() -> None:
    """PCR index 0xFFFFFFFF is for EV_NO_ACTION only."""
    log = parse_event_log(make_log([Measured(0xFFFFFFFF, Type.EV_NO_ACTION, b"note")]))
    assert log.events[1].pcr == 0xFFFFFFFF


@pytest.mark.parametrize("value", [0, 3, 4])
def test_the_startup_locality_is_read(value: int) -> None:
    """A StartupLocality event says what PCR 0 started from."""
    assert parse_event_log(make_log([locality(value), *EVENTS])).startup_locality == value


def test_an_h_crtm_event_means_locality_4() -> None:
    """After an H-CRTM, PCR 0 starts at 4, stated or not."""
    h_crtm = Measured(0, Type.EV_EFI_HCRTM_EVENT, b"HCRTM")
    assert parse_event_log(make_log([h_crtm, ONE])).startup_locality == 4
    assert parse_event_log(make_log([locality(4), h_crtm, ONE])).startup_locality == 4


@pytest.mark.parametrize(
    "events",
    [
        [locality(3), locality(3)],
        [ONE, locality(3)],
        [locality(1)],
        [Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0")],
        [Measured(0, Type.EV_NO_ACTION, b"StartupLocality\0\3\3")],
        [locality(3), Measured(0, Type.EV_EFI_HCRTM_EVENT, b"HCRTM")],
    ],
    ids=["twice", "late", "unknown", "empty", "long", "not an H-CRTM's"],
)
def test_refuses_contradicting_startup_localities(events: list[Measured]) -> None:
    """Twice, too late, of no such locality, of another length, against an H-CRTM: each is refused."""
    with pytest.raises(WireError):
        parse_event_log(make_log(events))


@pytest.mark.parametrize(
    ("log", "first"), [(LOG, len(header(spec_id(("sha256", "sha384"))))), (LEGACY, 0)], ids=["agile", "legacy"]
)
def test_a_log_cut_anywhere_but_between_events_is_refused(log: bytes, first: int) -> None:
    """Truncation at every byte: a WireError, or whole events only."""
    whole = parse_event_log(log).events
    accepted = 0
    for end in range(len(log)):
        try:
            events = parse_event_log(log[:end]).events
        except WireError:
            continue
        assert end > 0
        assert end >= first
        assert events == whole[: len(events)]
        accepted += 1
    assert accepted <= len(whole)


@settings(deadline=None)
@given(st.sampled_from([LOG, LEGACY]), st.data())
def test_bit_flips_give_wire_error_or_a_log(log: bytes, data: st.DataObject) -> None:
    """Nothing but WireError escapes when one bit is flipped."""
    bit = data.draw(st.integers(min_value=0, max_value=len(log) * 8 - 1))
    flipped = bytearray(log)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        parse_event_log(bytes(flipped))


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", header(spec_id(("sha256",))), LOG[:32]]))
def test_any_bytes_give_wire_error_or_a_log(tail: bytes, head: bytes) -> None:
    """Nothing but WireError escapes."""
    with contextlib.suppress(WireError):
        parse_event_log(head + tail)


def test_event_types_have_their_names() -> None:
    """Types that the profile does not name are shown by number."""
    assert event_type_name(0x80000003) == "EV_EFI_BOOT_SERVICES_APPLICATION"
    assert event_type_name(0x12345678) == "0x12345678"


@pytest.mark.parametrize("name", ["malformed--event_size_too_large.bin", "tpm2-tools--specid-vendordata.bin"])
def test_refuses_the_malformed_logs_of_other_projects(name: str) -> None:
    """Logs that other parsers' tests call malformed are refused."""
    path = VECTORS / "eventlogs" / name
    if not path.is_file():
        pytest.skip("the collection of other projects' logs is not here")
    with pytest.raises(WireError):
        parse_event_log(path.read_bytes())
