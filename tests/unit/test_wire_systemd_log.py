"""The strict parser of systemd's measurement log, and the PCRs it continues."""

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.wire.systemd_log import (
    MAX_LOG_SIZE,
    MAX_RECORD_SIZE,
    MAX_RECORDS,
    ContinuedBoot,
    continue_boot,
    parse_systemd_log,
)

BOOT = "0123456789abcdef0123456789abcdef"
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
FIRMWARE = {11: bytes(range(32)), 12: bytes(32)}


def record(pcr: int, measured: str, event_type: str = "phase", banks: tuple[str, ...] = ("sha1", "sha256")) -> Any:
    """A record as systemd writes it."""
    return {
        "pcr": pcr,
        "digests": [{"hashAlg": bank, "digest": hashlib.new(bank, measured.encode()).hexdigest()} for bank in banks],
        "content_type": "systemd",
        "content": {"string": measured, "bootId": BOOT, "timestamp": 1234567, "eventType": event_type},
    }


def with_content(**changes: object) -> Any:
    """A phase's record whose content is changed; None takes a field away."""
    changed = record(11, "ready")
    content = {**changed["content"], **changes}
    return {**changed, "content": {key: value for key, value in content.items() if value is not None}}


def with_digests(digests: object) -> Any:
    """A phase's record with these digests."""
    return {**record(11, "ready"), "digests": digests}


def sequence(*records: object) -> bytes:
    """A JSON text sequence (RFC 7464)."""
    return b"".join(b"\x1e" + json.dumps(item, separators=(",", ":")).encode() + b"\n" for item in records)


VOLUME_KEY = {
    **record(15, "x"),
    "content": {"string": "cryptsetup:root:uuid", "bootId": BOOT, "timestamp": 2, "eventType": "volume-key"},
}
NV = {
    **{key: value for key, value in record(0, "product-id:1", "product-id").items() if key != "pcr"},
    "nv_index": 0x01D10200,
    "content": {"nvIndexName": "hardware", "string": "product-id:1", "bootId": BOOT, "eventType": "product-id"},
}
RECORDS = (
    NV,
    *(record(11, phase) for phase in PHASES[:3]),
    record(15, "machine-id:" + "a" * 32, "machine-id"),
    VOLUME_KEY,
    record(15, "file-system:/:ext4:::::", "filesystem"),
    record(11, PHASES[3]),
)
LOG = sequence(*RECORDS)


def extended(value: bytes, *measured: str, bank: str = "sha256") -> bytes:
    """A PCR after these."""
    for text in measured:
        value = hashlib.new(bank, value + hashlib.new(bank, text.encode()).digest()).digest()
    return value


PCR15 = extended(bytes(32), "machine-id:" + "a" * 32, "x", "file-system:/:ext4:::::")
QUOTED = {11: extended(FIRMWARE[11], *PHASES), 12: bytes(32), 15: PCR15, 4: b"\4" * 32}


def test_a_log_parses_to_its_records() -> None:
    """PCRs, digests, types and texts come out, in order; registers in NV memory belong to no PCR."""
    log = parse_systemd_log(LOG)
    assert log.boot_id == BOOT
    assert [found.pcr for found in log.records] == [None, 11, 11, 11, 15, 15, 15, 11]
    assert [found.event_type for found in log.records[:2]] == ["product-id", "phase"]
    assert log.records[1].digests["sha256"] == hashlib.sha256(b"enter-initrd").digest()
    assert [found.number for found in log.records] == list(range(8))


def test_an_empty_log_has_no_records() -> None:
    """A host whose systemd measured nothing has an empty log."""
    assert parse_systemd_log(b"").records == ()


def test_fields_and_banks_that_are_not_known_may_be_there() -> None:
    """What this service does not use does not hide the rest."""
    strange = with_content(other=1)
    strange["digests"].append({"hashAlg": "sm3_256", "digest": "00" * 32})
    assert parse_systemd_log(sequence(strange)).records[0].digests["sm3_256"] == bytes(32)


def test_quoted_pcrs_prove_the_phases() -> None:
    """From the firmware's values, the log leads to the quoted ones: every phase is proven."""
    boot = continue_boot(parse_systemd_log(LOG), bank_name="sha256", start=FIRMWARE, quoted=QUOTED)
    assert boot is not None
    assert (boot.phases, boot.count, boot.tail) == (PHASES, 8, 0)


def test_what_came_after_the_quote_is_counted_and_not_believed() -> None:
    """A quote taken before "ready" proves the phases before it; the rest is a tail."""
    quoted = {**QUOTED, 11: extended(FIRMWARE[11], *PHASES[:3])}
    boot = continue_boot(parse_systemd_log(LOG), bank_name="sha256", start=FIRMWARE, quoted=quoted)
    assert boot is not None
    assert (boot.phases, boot.count, boot.tail) == (PHASES[:3], 7, 1)


def test_records_of_pcrs_that_are_not_quoted_prove_nothing() -> None:
    """Only what a quoted PCR covers is among the proven records."""
    quoted = {11: QUOTED[11]}
    boot = continue_boot(parse_systemd_log(LOG), bank_name="sha256", start=FIRMWARE, quoted=quoted)
    assert boot is not None
    assert {found.pcr for found in boot.records} == {11}


def test_without_systemd_the_firmwares_values_stand() -> None:
    """An empty log continues nothing: quoted values that are the firmware's are explained by it."""
    empty = parse_systemd_log(b"")
    assert continue_boot(empty, bank_name="sha256", start=FIRMWARE, quoted=FIRMWARE) == ContinuedBoot(0, 0, ())
    assert continue_boot(empty, bank_name="sha256", start=FIRMWARE, quoted=QUOTED) is None


@pytest.mark.parametrize(
    "records",
    [
        RECORDS[:-1],
        RECORDS[1:1] + RECORDS[2:],
        (RECORDS[0], RECORDS[2], RECORDS[1], *RECORDS[3:]),
        (*RECORDS[:2], *RECORDS[1:]),
        (*RECORDS[:-1], record(11, "other")),
        (*RECORDS[:-1], record(11, "ready", banks=("sha1",))),
        (*RECORDS[:-1], record(12, "extra"), RECORDS[-1]),
    ],
    ids=["cut", "first missing", "swapped", "doubled", "another phase", "bank missing", "one too many"],
)
def test_a_log_that_does_not_lead_to_the_quote_explains_nothing(records: tuple[Any, ...]) -> None:
    """Cut, reordered, doubled, changed or without the bank: no prefix is proven."""
    log = parse_systemd_log(sequence(*records))
    assert continue_boot(log, bank_name="sha256", start=FIRMWARE, quoted=QUOTED) is None


def test_the_log_says_nothing_of_firmwares_pcrs() -> None:
    """A record of PCR 4 explains no value of PCR 4: after the firmware nothing may be added there."""
    log = parse_systemd_log(sequence(record(4, "boot loader")))
    boot = continue_boot(log, bank_name="sha256", start={}, quoted={4: extended(bytes(32), "boot loader")})
    assert boot == ContinuedBoot(0, 1, ())


@pytest.mark.parametrize("event_type", ["phase", "machine-id", "filesystem", "nvpcr-init", "nvpcr-separator"])
def test_a_digest_that_is_not_its_contents_is_refused(event_type: str) -> None:
    """A host that measured one phase and tells of another is caught, in whichever bank it lies."""
    lie = record(11, "ready", event_type)
    lie["content"]["string"] = "enter-initrd"
    with pytest.raises(WireError, match="its content has"):
        parse_systemd_log(sequence(lie))
    half = record(11, "ready", event_type)
    half["digests"][0]["digest"] = "00" * 20
    with pytest.raises(WireError, match="sha1 digest"):
        parse_systemd_log(sequence(half))


MALFORMED = [
    (LOG[1:], "begins with"),
    (b"\x1e", "line feed"),
    (LOG[:-1], "line feed"),
    (LOG + b"\x1e", "line feed"),
    (LOG + b"{}\n", "not JSON"),
    (LOG + b"\x1e[]\n", "not an object"),
    (LOG + b"\x1e" + b"[" * 1000 + b"\n", "objects and arrays"),
    (LOG + b'\x1e{"pcr":NaN}\n', "not JSON"),
    (LOG + b'\x1e{"pcr":11,"pcr":12}\n', "twice"),
    (LOG + b"\x1e\xff\n", "not JSON"),
    (LOG + b'\x1e{"pcr":' + b"1" * 5000 + b"}\n", "not JSON"),
    (LOG + b"\x1e" + b" " * MAX_RECORD_SIZE + b"\n", "longer than"),
    (bytes(MAX_LOG_SIZE + 1), "at most 1048576"),
    (b"\x1e{}\n" * (MAX_RECORDS + 1), "at most 4096|neither"),
    (sequence({**record(11, "ready"), "nv_index": 1}), "or both"),
    (sequence({**record(11, "ready"), "pcr": None}), "neither"),
    (sequence({**record(11, "ready"), "pcr": 24}), "no TPM has"),
    (sequence({**record(11, "ready"), "pcr": -1}), "no TPM has"),
    (sequence({**record(11, "ready"), "pcr": True}), "no TPM has"),
    (sequence({**record(11, "ready"), "pcr": "11"}), "no TPM has"),
    (sequence({**record(11, "ready"), "pcr": 11.0}), "no TPM has"),
    (sequence({**record(11, "ready"), "content_type": "pcclient_std"}), "another type"),
    (sequence({**record(11, "ready"), "content": "ready"}), "no content"),
    (sequence(with_content(eventType="surprise")), "not known"),
    (sequence(with_content(eventType=1)), "no text"),
    (sequence(with_content(string=["ready"])), "no text"),
    (sequence(with_content(string="\ud800")), "not Unicode"),
    (sequence(with_content(string="x" * 20_000)), "no text"),
    (sequence(with_content(bootId=None)), "no boot id"),
    (sequence(with_content(bootId=BOOT[:-1])), "no boot id"),
    (sequence(record(11, "ready"), with_content(bootId="f" * 32)), "is of boot"),
    (sequence(with_digests([])), "1 to 8 digests"),
    (sequence(with_digests({})), "1 to 8 digests"),
    (sequence(with_digests([{"hashAlg": f"h{n}", "digest": "00"} for n in range(9)])), "1 to 8 digests"),
    (sequence(with_digests(["sha256"])), "without an algorithm"),
    (sequence(with_digests([{"hashAlg": "../sha256", "digest": "00"}])), "without an algorithm"),
    (sequence(with_digests([{"hashAlg": "x", "digest": "00"}] * 2)), "two of one"),
    (sequence(with_digests([{"hashAlg": "sha256", "digest": "0" * 63}])), "not hexadecimal"),
    (sequence(with_digests([{"hashAlg": "sha256", "digest": "00" * 31}])), "31 bytes"),
    (sequence(with_digests([{"hashAlg": "x", "digest": "00" * 65}])), "not hexadecimal"),
    (sequence(with_digests([{"hashAlg": "x", "digest": ""}])), "not hexadecimal"),
]


@pytest.mark.parametrize(("data", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_refuses_malformed_logs(data: bytes, reason: str) -> None:
    """Text that is no sequence, no JSON or too much of it, and fields of other shapes: each is refused."""
    with pytest.raises(WireError, match=reason):
        parse_systemd_log(data)


def test_a_log_cut_anywhere_but_between_records_is_refused() -> None:
    """Truncation at every byte: a WireError, or whole records only."""
    whole = parse_systemd_log(LOG).records
    for end in range(len(LOG)):
        try:
            found = parse_systemd_log(LOG[:end]).records
        except WireError:
            continue
        assert LOG[:end] == sequence(*RECORDS[: len(found)])
        assert found == whole[: len(found)]


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(LOG) * 8 - 1))
def test_bit_flips_give_wire_error_or_a_log(bit: int) -> None:
    """Nothing but WireError escapes when one bit is flipped."""
    flipped = bytearray(LOG)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        parse_systemd_log(bytes(flipped))


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1e", b"\x1e{", LOG[:120]]))
def test_any_bytes_give_wire_error_or_a_log(tail: bytes, head: bytes) -> None:
    """Nothing but WireError escapes."""
    with contextlib.suppress(WireError):
        parse_systemd_log(head + tail)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["pcr", "nv_index", "digests", "content_type", "content", "hashAlg", "digest", "string"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["hashAlg", "digest", "eventType", "bootId"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_object_gives_wire_error_or_a_log(document: dict[str, object]) -> None:
    """Nothing but WireError escapes from JSON of any shape."""
    with contextlib.suppress(WireError):
        parse_systemd_log(sequence({**record(11, "ready"), **document}))
