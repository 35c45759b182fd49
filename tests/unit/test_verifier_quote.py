"""The twelve checks of a quote: each has an honest twin that passes and a lie that only this check refuses."""

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import EvidenceRejected, RejectReason
from attestation.model import BootIdentity, PcrBank
from attestation.simulator.software_host import Host, ecc_public, rsa_key, rsa_public, selection, software_key
from attestation.verifier.appraisal import Evidence
from attestation.verifier.quote import VerifiedQuote, check_clock, check_firmware, verify_quote
from attestation.wire.tpm_public import TpmPublic, parse_tpm_public

NONCE = b"\x5a" * 32
PCRS = (0, 2, 4, 7, 9, 11)
HOST = Host()


def verify(
    host: Host,
    *,
    ak: TpmPublic | None = None,
    extra_data: bytes = NONCE,
    change: Callable[[Evidence], Evidence] | None = None,
) -> VerifiedQuote:
    """Verify what a host hands in, as a service would that demands the default PCRs."""
    evidence = host.evidence()
    if change:
        evidence = change(evidence)
    return verify_quote(
        evidence.quote,
        evidence.signature,
        evidence.pcr_values,
        ak=ak or host.key.public,
        expected_extra_data=extra_data,
        bank=host.bank,
        pcrs=PCRS,
    )


def refused(host: Host, **options: object) -> RejectReason:
    """Why a host's quote is refused."""
    with pytest.raises(EvidenceRejected) as caught:
        verify(host, **options)  # type: ignore[arg-type]
    return caught.value.reason


@pytest.mark.parametrize("kind", ["p256", "p384", "rsassa", "rsapss"])
@pytest.mark.parametrize("bank", list(PcrBank))
def test_an_honest_quote_is_believed(kind: str, bank: PcrBank) -> None:
    """R-TA-5: ECC and RSA keys vouch for PCRs of either bank, the digest made by the key's own hash."""
    host = replace(HOST, key=software_key(kind), bank=bank)
    quote = verify(host)
    assert dict(quote.pcr_values) == host.pcr_values()
    assert quote.boot == BootIdentity(3, 0)
    assert (quote.bank, quote.clock_is_safe, quote.firmware_version) == (bank, True, 0x2019102300163636)


def test_1_malformed_bytes_are_refused() -> None:
    """A byte too many, in the quote or in the signature, is refused before anything else."""
    assert refused(HOST, change=lambda e: replace(e, quote=e.quote + b"\0")) is RejectReason.MALFORMED_QUOTE
    assert refused(HOST, change=lambda e: replace(e, signature=e.signature + b"\0")) is RejectReason.MALFORMED_QUOTE


def test_2_the_signature_does_not_choose_its_scheme() -> None:
    """A good signature of the key by another scheme or hash is refused: the key's own scheme counts."""
    p256 = software_key("p256")
    as_sha384 = replace(p256, hash_name="sha384")
    evidence = HOST.evidence()
    signature = as_sha384.sign(evidence.quote)
    assert refused(HOST, change=lambda e: replace(e, signature=signature)) is RejectReason.WRONG_SIGNATURE_SCHEME
    rsassa = replace(HOST, key=software_key("rsassa"))
    pss = parse_tpm_public(rsa_public(rsa_key().public_key(), 0x0016))
    assert refused(rsassa, ak=pss) is RejectReason.WRONG_SIGNATURE_SCHEME


def test_2_a_key_without_a_scheme_is_refused() -> None:
    """A key that may sign by any scheme is no attestation key."""
    area = HOST.key.public.encoded
    free = parse_tpm_public(area[:12] + b"\x00\x10" + area[16:])
    assert refused(HOST, ak=free) is RejectReason.WRONG_SIGNATURE_SCHEME


def test_2_sha1_signatures_are_refused() -> None:
    """A key whose scheme hashes with SHA-1 is not believed, even if the signature says the same."""
    area = HOST.key.public.encoded
    sha1 = parse_tpm_public(area[:14] + b"\x00\x04" + area[16:])
    change = lambda e: replace(e, signature=e.signature[:2] + b"\x00\x04" + e.signature[4:])  # noqa: E731
    assert refused(HOST, ak=sha1, change=change) is RejectReason.WRONG_SIGNATURE_SCHEME


@pytest.mark.parametrize("kind", ["p256", "p384", "rsassa", "rsapss"])
def test_3_a_changed_quote_is_refused(kind: str) -> None:
    """A changed byte under the signature is refused for each kind of key."""
    host = replace(HOST, key=software_key(kind))
    change = lambda e: replace(e, quote=e.quote[:-1] + bytes([e.quote[-1] ^ 1]))  # noqa: E731
    assert refused(host, change=change) is RejectReason.BAD_SIGNATURE


def test_3_another_keys_signature_is_refused() -> None:
    """A genuine quote of another key is refused."""
    assert refused(HOST, ak=software_key("other-p256").public) is RejectReason.BAD_SIGNATURE


def test_3_an_rsa_signature_says_nothing_about_an_ecc_key() -> None:
    """A key area whose scheme is that of another kind of key never verifies."""
    area = HOST.key.public.encoded
    odd = parse_tpm_public(area[:12] + b"\x00\x14" + area[14:])
    assert refused(replace(HOST, key=software_key("rsassa")), ak=odd) is RejectReason.BAD_SIGNATURE


def test_4_a_structure_that_no_tpm_generated_is_refused() -> None:
    """A signed structure without TPM_GENERATED_VALUE is refused, as CVE-2024-29038 teaches."""
    assert refused(HOST.lying(magic=0xFF544348)) is RejectReason.BAD_MAGIC


def test_5_another_attestation_is_no_quote() -> None:
    """A signed attestation of another type is refused."""
    assert refused(HOST.lying(type=0x8017)) is RejectReason.NOT_A_QUOTE


@pytest.mark.parametrize("extra_data", [b"\x5b" * 32, b"", b"\x5a" * 31, b"\x5a" * 33])
def test_6_a_quote_for_another_challenge_is_refused(extra_data: bytes) -> None:
    """An extraData of another value or length, an empty one too, is refused; what would be right is not told."""
    with pytest.raises(EvidenceRejected) as caught:
        verify(HOST.lying(extra_data=extra_data))
    assert caught.value.reason is RejectReason.NONCE_MISMATCH
    assert NONCE.hex() not in f"{caught.value}{caught.value.expected}"


def test_7_a_key_outside_the_endorsement_hierarchy_is_refused() -> None:
    """An owner-hierarchy key, or the key under another parent, is refused: its boot counters are obfuscated."""
    name = HOST.key.public.name
    assert refused(HOST.lying(qualified_signer=name)) is RejectReason.WRONG_QUALIFIED_SIGNER
    assert refused(HOST.lying(qualified_signer=b"")) is RejectReason.WRONG_QUALIFIED_SIGNER


@pytest.mark.parametrize(
    "selections",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 1) + selection("sha256", []),
        struct.pack(">I", 1) + selection("sha256", PCRS[:-1]),
        struct.pack(">I", 1) + selection("sha256", (*PCRS, 16)),
        struct.pack(">I", 1) + selection("sha256", (0, 2, 4, 7, 9, 10)),
        struct.pack(">I", 1) + selection("sha1", PCRS),
        struct.pack(">I", 2) + selection("sha1", []) + selection("sha256", PCRS),
        struct.pack(">I", 2) + selection("sha256", PCRS) + selection("sha256", PCRS),
    ],
    ids=["none", "empty", "fewer", "more", "masquerade", "SHA-1", "unallocated bank", "twice"],
)
def test_8_a_quote_over_other_pcrs_is_refused(selections: bytes) -> None:
    """Anything but exactly the demanded PCRs of one bank is refused, as CVE-2022-0317 teaches."""
    assert refused(HOST.lying(selections=selections)) is RejectReason.WRONG_PCR_SELECTION


def test_8_nothing_is_believed_when_nothing_is_demanded() -> None:
    """A quote over no PCRs is refused even by a caller that demands none."""
    host = HOST.lying(selections=struct.pack(">I", 1) + selection("sha256", []))
    evidence = host.evidence()
    with pytest.raises(EvidenceRejected) as caught:
        verify_quote(
            evidence.quote,
            evidence.signature,
            {},
            ak=host.key.public,
            expected_extra_data=NONCE,
            bank=PcrBank.SHA256,
            pcrs=(),
        )
    assert caught.value.reason is RejectReason.WRONG_PCR_SELECTION


def claims(**changes: bytes | None) -> Host:
    """A host that claims other values for some PCRs (``pcr_4=…``); None leaves one out."""
    values = HOST.pcr_values()
    for name, value in changes.items():
        index = int(name.removeprefix("pcr_"))
        values.pop(index, None)
        if value is not None:
            values[index] = value
    return replace(HOST, claimed=values)


@pytest.mark.parametrize(
    "host",
    [
        claims(pcr_4=bytes(32)),
        claims(pcr_4=None),
        claims(pcr_8=bytes(32)),
        claims(pcr_11=None, pcr_10=HOST.pcr_values()[11]),
        claims(pcr_0=HOST.pcr_values()[0][:31], pcr_2=HOST.pcr_values()[0][31:] + HOST.pcr_values()[2]),
        replace(HOST, claimed={}),
    ],
    ids=["flipped", "missing", "extra", "masquerade", "shifted", "none"],
)
def test_9_values_other_than_the_signed_ones_are_refused(host: Host) -> None:
    """Flipped, missing, extra, renamed or re-cut PCR values are refused."""
    assert refused(host) is RejectReason.PCR_DIGEST_MISMATCH


def test_9_another_digest_is_refused() -> None:
    """A signed digest that the values do not give is refused."""
    assert refused(HOST.lying(pcr_digest=bytes(32))) is RejectReason.PCR_DIGEST_MISMATCH


def clock(host: Host, previous: BootIdentity | None = None, *, safe: bool = False, restart: bool = False) -> None:
    """Judge a host's clock."""
    check_clock(previous, verify(host), safe_required=safe, restart_count_allowed=restart)


def test_10_an_unsafe_clock_is_refused_where_safety_is_demanded() -> None:
    """A TPM that just lost power is asked to come back later, if the policy says so."""
    clock(HOST.lying(safe=0))
    clock(HOST, safe=True)
    with pytest.raises(EvidenceRejected) as caught:
        clock(HOST.lying(safe=0), safe=True)
    assert caught.value.reason is RejectReason.CLOCK_NOT_SAFE


@pytest.mark.parametrize("previous", [BootIdentity(4, 0), BootIdentity(3, 1)])
def test_10_boot_counters_never_decrease(previous: BootIdentity) -> None:
    """T7: an older or copied TPM state shows in its counters."""
    clock(HOST, BootIdentity(3, 0))
    clock(HOST, BootIdentity(2, 9))
    with pytest.raises(EvidenceRejected) as caught:
        clock(HOST, previous, restart=True)
    assert caught.value.reason is RejectReason.BOOT_COUNTER_DECREASED


def test_10_a_resumed_host_is_refused_unless_allowed() -> None:
    """A resume keeps PCRs over a time that nothing measured."""
    clock(HOST.lying(restart_count=1), restart=True)
    with pytest.raises(EvidenceRejected) as caught:
        clock(HOST.lying(restart_count=1))
    assert caught.value.reason is RejectReason.RESUMED_WITHOUT_MEASUREMENT


def test_11_denied_firmware_is_refused() -> None:
    """A TPM firmware on the denylist is refused."""
    quote = verify(HOST)
    check_firmware(quote, frozenset({1}))
    with pytest.raises(EvidenceRejected) as caught:
        check_firmware(quote, frozenset({1, 0x2019102300163636}))
    assert caught.value.reason is RejectReason.FIRMWARE_VERSION_DENIED
    assert caught.value.seen == "2019102300163636"


def test_12_only_signed_pcrs_come_out() -> None:
    """What leaves the check are exactly the signed PCRs, and nobody can add one."""
    quote = verify(HOST)
    assert tuple(quote.pcr_values) == PCRS
    with pytest.raises(TypeError):
        quote.pcr_values[8] = bytes(32)  # type: ignore[index]


def test_the_first_failing_check_names_the_reason() -> None:
    """Where several things are wrong, the reason is that of the earliest check."""
    host = HOST.lying(magic=0, type=1, extra_data=b"")
    assert refused(host) is RejectReason.BAD_MAGIC
    assert refused(HOST.lying(extra_data=b"", qualified_signer=b"")) is RejectReason.NONCE_MISMATCH
    assert refused(host, ak=software_key("other-p256").public) is RejectReason.BAD_SIGNATURE


def test_a_key_that_looks_the_same_is_another_key() -> None:
    """Other attributes make another name, so a quote of the key by its old name is refused."""
    decrypting = parse_tpm_public(ecc_public(HOST.key.private.public_key(), attributes=0x00040072))  # type: ignore[arg-type]
    assert refused(HOST, ak=decrypting) is RejectReason.WRONG_QUALIFIED_SIGNER


@settings(deadline=None)
@given(st.integers(min_value=0), st.booleans())
def test_any_flipped_bit_is_refused(bit: int, in_quote: bool) -> None:
    """No single bit of quote or signature can be changed unnoticed, and nothing but a reason escapes."""
    evidence = HOST.evidence()
    target = bytearray(evidence.quote if in_quote else evidence.signature)
    target[bit // 8 % len(target)] ^= 1 << bit % 8
    change = replace(evidence, **{"quote" if in_quote else "signature": bytes(target)})  # type: ignore[arg-type]
    refused(HOST, change=lambda _: change)


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=120), st.dictionaries(st.integers(), st.binary(max_size=40)))
def test_any_bytes_are_refused_with_a_reason(quote: bytes, signature: bytes, values: dict[int, bytes]) -> None:
    """Nothing but a reason escapes, whatever a host sends."""
    with pytest.raises(EvidenceRejected):
        verify_quote(
            quote,
            signature,
            values,
            ak=HOST.key.public,
            expected_extra_data=NONCE,
            bank=PcrBank.SHA256,
            pcrs=PCRS,
        )
