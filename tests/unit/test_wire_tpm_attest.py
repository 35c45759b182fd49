"""Quotes and signatures, before anything is believed of them."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import WireError
from attestation.simulator.software_host import Host, selection, software_key
from attestation.wire.tpm_algorithms import TpmAlgorithm
from attestation.wire.tpm_attest import MAX_ATTEST_SIZE, PcrSelection, parse_tpm_attest
from attestation.wire.tpm_signature import (
    MAX_SIGNATURE_SIZE,
    UnverifiedEcdsaSignature,
    UnverifiedRsaSignature,
    parse_tpm_signature,
)

QUOTE = Host().quote()
SIGNATURES = {kind: software_key(kind).sign(b"message") for kind in ("p256", "p384", "rsassa", "rsapss")}


def test_a_quote_parses_to_its_fields() -> None:
    """Every field of TPMS_ATTEST comes out."""
    attest = parse_tpm_attest(QUOTE)
    assert (attest.magic, attest.type) == (0xFF544347, 0x8018)
    assert attest.extra_data == b"\x5a" * 32
    assert (attest.reset_count, attest.restart_count, attest.clock_ms) == (3, 0, 123456)
    assert attest.clock_is_safe
    assert attest.firmware_version == 0x2019102300163636
    assert attest.quote is not None
    assert attest.quote.selections == (PcrSelection(0x000B, (0, 2, 4, 7, 9, 11)),)
    assert len(attest.quote.pcr_digest) == 32


def test_another_type_is_read_without_its_body() -> None:
    """A structure that is no quote keeps its type for the verifier to refuse; its body is not guessed at."""
    attest = parse_tpm_attest(Host().lying(type=0x8017).quote())
    assert attest.type == 0x8017
    assert attest.quote is None


BAD_QUOTES = [
    (QUOTE + b"\0", "too many"),
    (bytes(MAX_ATTEST_SIZE + 1), "at most"),
    (Host().lying(safe=2).quote(), "TPMI_YES_NO"),
    (Host().lying(extra_data=bytes(67)).quote(), "at most 66"),
    (Host().lying(qualified_signer=bytes(67)).quote(), "at most 66"),
    (Host().lying(pcr_digest=bytes(65)).quote(), "at most 64"),
    (Host().lying(selections=struct.pack(">I", 17) + selection("sha256", [0]) * 17).quote(), "at most 16"),
    (Host().lying(selections=struct.pack(">IHB", 1, 11, 0)).quote(), "1 to 4"),
    (Host().lying(selections=struct.pack(">IHB", 1, 11, 5) + bytes(5)).quote(), "1 to 4"),
]


@pytest.mark.parametrize(("quote", "reason"), BAD_QUOTES, ids=range(len(BAD_QUOTES)))
def test_refuses_quotes_beyond_their_bounds(quote: bytes, reason: str) -> None:
    """Trailing bytes, sizes, counts and values that no TPM writes are refused."""
    with pytest.raises(WireError, match=reason):
        parse_tpm_attest(quote)


def test_an_empty_selection_parses() -> None:
    """A bank without PCRs, as TPMs write for unallocated banks, is kept for the verifier to refuse."""
    attest = parse_tpm_attest(Host().lying(selections=struct.pack(">I", 1) + selection("sha1", [])).quote())
    assert attest.quote is not None
    assert attest.quote.selections == (PcrSelection(0x0004, ()),)


def test_signatures_parse_to_their_fields() -> None:
    """ECDSA, RSASSA and RSAPSS signatures keep the scheme and hash that they claim."""
    ecdsa = parse_tpm_signature(SIGNATURES["p384"])
    assert isinstance(ecdsa, UnverifiedEcdsaSignature)
    assert (ecdsa.scheme, ecdsa.hash) == (TpmAlgorithm.ECDSA, TpmAlgorithm.SHA384)
    rsapss = parse_tpm_signature(SIGNATURES["rsapss"])
    assert isinstance(rsapss, UnverifiedRsaSignature)
    assert (rsapss.scheme, rsapss.hash, len(rsapss.value)) == (TpmAlgorithm.RSAPSS, TpmAlgorithm.SHA256, 256)


BAD_SIGNATURES = [
    (SIGNATURES["p256"] + b"\0", "too many"),
    (SIGNATURES["rsassa"] + b"\0", "too many"),
    (bytes(MAX_SIGNATURE_SIZE + 1), "at most"),
    (b"\x00\x05" + SIGNATURES["p256"][2:], "HMAC"),
    (b"\x00\x18\x00\x12" + SIGNATURES["p256"][4:], "no hash"),
    (struct.pack(">HHH", 0x18, 0x0B, 49) + bytes(49), "at most 48"),
    (struct.pack(">HHH", 0x14, 0x0B, 513) + bytes(513), "at most 512"),
]


@pytest.mark.parametrize(("signature", "reason"), BAD_SIGNATURES, ids=range(len(BAD_SIGNATURES)))
def test_refuses_signatures_beyond_their_bounds(signature: bytes, reason: str) -> None:
    """Trailing bytes, sizes, schemes and hashes that are not supported are refused."""
    with pytest.raises(WireError, match=reason):
        parse_tpm_signature(signature)


def test_every_truncation_is_refused() -> None:
    """A quote or signature cut at any byte is a WireError."""
    for end in range(len(QUOTE)):
        with pytest.raises(WireError):
            parse_tpm_attest(QUOTE[:end])
    for signature in SIGNATURES.values():
        for end in range(len(signature)):
            with pytest.raises(WireError):
                parse_tpm_signature(signature[:end])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_wire_error_or_values(data: bytes) -> None:
    """Nothing but WireError escapes."""
    for parse in (parse_tpm_attest, parse_tpm_signature):
        with contextlib.suppress(WireError):
            parse(data)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(QUOTE) * 8 - 1))
def test_bit_flips_of_a_quote_give_wire_error_or_values(bit: int) -> None:
    """Nothing but WireError escapes when one bit of an honest quote is flipped."""
    flipped = bytearray(QUOTE)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        assert parse_tpm_attest(bytes(flipped)) != parse_tpm_attest(QUOTE)
