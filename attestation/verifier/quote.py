"""Decide whether a quote is believed: the first of the two security decisions of an attestation.

Checks, in this order; each has an incident or a tried attack behind it:

 1. Quote and signature parse strictly, within bounds, without trailing bytes (``MALFORMED_QUOTE``).
 2. The signature's scheme and hash are those of the attestation key (``WRONG_SIGNATURE_SCHEME``).
 3. The signature covers exactly the bytes of the quote (``BAD_SIGNATURE``).
 4. The magic says that a TPM generated the structure (``BAD_MAGIC``).
 5. The structure is a quote (``NOT_A_QUOTE``).
 6. extraData equals what this service computed, in constant time (``NONCE_MISMATCH``).
 7. The signer's qualified name puts the key directly under the endorsement hierarchy, where the clock's counters are
    not obfuscated (``WRONG_QUALIFIED_SIGNER``).
 8. One bank, and exactly the demanded PCRs, are selected (``WRONG_PCR_SELECTION``).
 9. The values given, and no others, hash to the signed digest (``PCR_DIGEST_MISMATCH``).
10. The clock is safe where that is demanded, the boot counters never decrease, and the platform did not resume
    without being measured (:func:`check_clock`).
11. The TPM's firmware is not on the denylist (:func:`check_firmware`).
12. Only PCRs of the signed selection leave this module: ``VerifiedQuote.pcr_values`` is all that policy ever sees.

Sources: TPM 2.0 Part 2, 10.12; Part 3, 18.4 (TPM2_Quote); Part 1, 16 (qualified names) and 36 (timing components).
Pure: no clock, randomness, I/O or logging.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.errors import EvidenceRejected, RejectReason, WireError
from attestation.model import BootIdentity, PcrBank
from attestation.wire.tpm_algorithms import HASH_NAMES, TpmAlgorithm
from attestation.wire.tpm_attest import TPM_GENERATED, PcrSelection, UnverifiedAttest, parse_tpm_attest
from attestation.wire.tpm_public import TpmPublic
from attestation.wire.tpm_signature import UnverifiedEcdsaSignature, UnverifiedRsaSignature, parse_tpm_signature

BANK_IDS: Final[Mapping[PcrBank, TpmAlgorithm]] = {
    PcrBank.SHA256: TpmAlgorithm.SHA256,
    PcrBank.SHA384: TpmAlgorithm.SHA384,
}
_DIGEST_SIZES: Final = {bank: bank.digest_size for bank in PcrBank}
_HASHES: Final[Mapping[TpmAlgorithm, hashes.HashAlgorithm]] = {
    TpmAlgorithm.SHA256: hashes.SHA256(),
    TpmAlgorithm.SHA384: hashes.SHA384(),
    TpmAlgorithm.SHA512: hashes.SHA512(),
}
_ECDSA: Final = {hash_id: ec.ECDSA(algorithm) for hash_id, algorithm in _HASHES.items()}
_PKCS1: Final = padding.PKCS1v15()


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """What a TPM vouched for. Only :func:`verify_quote` makes one."""

    bank: PcrBank
    pcr_values: Mapping[int, bytes]
    """Exactly the demanded PCRs."""
    boot: BootIdentity
    clock_ms: int
    clock_is_safe: bool
    firmware_version: int


def verify_quote(
    quote: bytes,
    signature: bytes,
    pcr_values: Mapping[int, bytes],
    *,
    ak: TpmPublic,
    expected_extra_data: bytes,
    bank: PcrBank,
    pcrs: Collection[int],
) -> VerifiedQuote:
    """Check a quote: steps 1 to 9 and 12 of this module's list.

    Args:
        quote: TPMS_ATTEST, marshalled, at most 1 KiB.
        signature: TPMT_SIGNATURE, marshalled, at most 1 KiB.
        pcr_values: What the host says that the PCRs hold.
        ak: Attestation key whose attributes and name enrolment proved.
        expected_extra_data: 32 bytes that this service computed over a nonce of its own.
        bank: The demanded bank.
        pcrs: The demanded PCRs, at least one.

    Returns:
        The quote's claims, in a type that says they were checked.

    Raises:
        EvidenceRejected: With the reason of the first step that failed.

    Source: TPM 2.0 Part 3, 18.4 (TPM2_Quote).
    """
    # 1: strict parsing.
    try:
        attest = parse_tpm_attest(quote)
        parsed_signature = parse_tpm_signature(signature)
    except WireError as exc:
        raise EvidenceRejected(RejectReason.MALFORMED_QUOTE, str(exc)) from exc
    # 2 and 3: by this key, by its own scheme, over exactly these bytes.
    hash_id = _check_scheme(parsed_signature, ak)
    _check_signature(quote, parsed_signature, ak)
    # 4 to 7: made by a TPM, a quote, fresh and for us, by a key of the endorsement hierarchy.
    _check_origin(attest, ak, expected_extra_data)
    # 8 and 9: exactly the demanded PCRs, with exactly the values given.
    _check_pcrs(attest, pcr_values, bank, pcrs, hash_id)
    # 12: nothing but the signed selection goes on.
    return VerifiedQuote(
        bank=bank,
        pcr_values=MappingProxyType({index: pcr_values[index] for index in sorted(pcrs)}),
        boot=BootIdentity(attest.reset_count, attest.restart_count),
        clock_ms=attest.clock_ms,
        clock_is_safe=attest.clock_is_safe,
        firmware_version=attest.firmware_version,
    )


def check_clock(
    previous_boot: BootIdentity | None, quote: VerifiedQuote, *, safe_required: bool, restart_count_allowed: bool
) -> None:
    """Step 10: the clock and the boot counters.

    Args:
        previous_boot: Counters of this key's last believed quote, if any.
        quote: The quote to judge.
        safe_required: Whether TPMS_CLOCK_INFO.safe must be set. It is clear for some seconds after a TPM lost power
            without an orderly shutdown.
        restart_count_allowed: Whether a platform that resumed (S3), keeping PCRs over a gap, is believed.

    Raises:
        EvidenceRejected: CLOCK_NOT_SAFE, BOOT_COUNTER_DECREASED or RESUMED_WITHOUT_MEASUREMENT, in that order.
    """
    if safe_required and not quote.clock_is_safe:
        raise EvidenceRejected(
            RejectReason.CLOCK_NOT_SAFE,
            "the TPM's clock is not safe yet",
            expected="a safe clock",
            seen="not safe; ask again in some seconds",
        )
    seen = quote.boot
    if previous_boot and (seen.reset_count, seen.restart_count) < (
        previous_boot.reset_count,
        previous_boot.restart_count,
    ):
        raise EvidenceRejected(
            RejectReason.BOOT_COUNTER_DECREASED,
            "the boot counters went back: an older or copied TPM state",
            expected=f"at least reset {previous_boot.reset_count}, restart {previous_boot.restart_count}",
            seen=f"reset {seen.reset_count}, restart {seen.restart_count}",
        )
    if seen.restart_count and not restart_count_allowed:
        raise EvidenceRejected(
            RejectReason.RESUMED_WITHOUT_MEASUREMENT,
            "the platform resumed from suspend, which nothing measures",
            expected="restart 0",
            seen=f"restart {seen.restart_count}",
        )


def check_firmware(quote: VerifiedQuote, denied: Collection[int]) -> None:
    """Step 11: the TPM's firmware version is not one of ``denied``.

    Raises:
        EvidenceRejected: FIRMWARE_VERSION_DENIED.
    """
    if quote.firmware_version in denied:
        raise EvidenceRejected(
            RejectReason.FIRMWARE_VERSION_DENIED,
            "the TPM's firmware is on the denylist",
            expected="another version",
            seen=f"{quote.firmware_version:016x}",
        )


def _check_scheme(signature: UnverifiedEcdsaSignature | UnverifiedRsaSignature, ak: TpmPublic) -> TpmAlgorithm:
    """Step 2; returns the key's own hash."""
    scheme = ak.scheme
    if (
        scheme is None
        or scheme.hash not in _HASHES
        or (signature.scheme, signature.hash)
        != (
            scheme.algorithm,
            scheme.hash,
        )
    ):
        raise EvidenceRejected(
            RejectReason.WRONG_SIGNATURE_SCHEME,
            "the signature is not by the key's own scheme",
            expected=f"{scheme.algorithm.name} with {scheme.hash.name}" if scheme else "a key with a scheme",
            seen=f"{signature.scheme.name} with {signature.hash.name}",
        )
    return scheme.hash


def _check_signature(quote: bytes, signature: UnverifiedEcdsaSignature | UnverifiedRsaSignature, ak: TpmPublic) -> None:
    """Step 3; scheme and hash are known to be the key's own."""
    key = ak.to_public_key()
    try:
        if isinstance(signature, UnverifiedEcdsaSignature) and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(encode_dss_signature(signature.r, signature.s), quote, _ECDSA[signature.hash])
        elif isinstance(signature, UnverifiedRsaSignature) and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.value, quote, _rsa_padding(signature), _HASHES[signature.hash])
        else:
            raise EvidenceRejected(RejectReason.BAD_SIGNATURE, "the signature is of another kind of key")
    except InvalidSignature as exc:
        raise EvidenceRejected(RejectReason.BAD_SIGNATURE, "the key did not sign these bytes") from exc


def _rsa_padding(signature: UnverifiedRsaSignature) -> padding.PSS | padding.PKCS1v15:
    if signature.scheme is TpmAlgorithm.RSASSA:
        return _PKCS1
    # TPMs salt with the digest's length (FIPS 186-5) or with as much as fits (TPM 2.0 Part 1, B.7): either is sound.
    return padding.PSS(padding.MGF1(_HASHES[signature.hash]), padding.PSS.AUTO)


def _check_origin(attest: UnverifiedAttest, ak: TpmPublic, expected_extra_data: bytes) -> None:
    """Steps 4 to 7."""
    if attest.magic != TPM_GENERATED:
        raise EvidenceRejected(
            RejectReason.BAD_MAGIC,
            "no TPM generated the structure",
            expected=f"{TPM_GENERATED:08x}",
            seen=f"{attest.magic:08x}",
        )
    if attest.quote is None:
        raise EvidenceRejected(
            RejectReason.NOT_A_QUOTE, "the structure is no quote", expected="8018", seen=f"{attest.type:04x}"
        )
    if not hmac.compare_digest(attest.extra_data, expected_extra_data):
        # What would have been right is not said: an answer must not help to guess it.
        raise EvidenceRejected(
            RejectReason.NONCE_MISMATCH,
            "the quote is not bound to this challenge, these keys, these logs and this service",
            seen=attest.extra_data.hex(),
        )
    if attest.qualified_signer != ak.endorsement_qualified_name:
        raise EvidenceRejected(
            RejectReason.WRONG_QUALIFIED_SIGNER,
            "the signing key is not the attestation key as a primary of the endorsement hierarchy",
            expected=ak.endorsement_qualified_name.hex(),
            seen=attest.qualified_signer.hex(),
        )


def _check_pcrs(
    attest: UnverifiedAttest,
    pcr_values: Mapping[int, bytes],
    bank: PcrBank,
    pcrs: Collection[int],
    hash_id: TpmAlgorithm,
) -> None:
    """Steps 8 and 9."""
    demanded = tuple(sorted(pcrs))
    quote = attest.quote
    if quote is None or not demanded or quote.selections != (PcrSelection(BANK_IDS[bank], demanded),):
        raise EvidenceRejected(
            RejectReason.WRONG_PCR_SELECTION,
            "the quote does not cover exactly the demanded PCRs",
            expected=f"{bank}: {_indices(demanded)}",
            seen=_selections(quote.selections if quote else ()),
        )
    size = _DIGEST_SIZES[bank]
    if len(pcr_values) != len(demanded) or any(len(pcr_values.get(index, b"")) != size for index in demanded):
        raise EvidenceRejected(
            RejectReason.PCR_DIGEST_MISMATCH,
            "the values given are not those of exactly the demanded PCRs",
            expected=f"{size} bytes for each of {_indices(demanded)}",
            seen=", ".join(f"{index}: {len(value)} bytes" for index, value in sorted(pcr_values.items())[:24]),
        )
    # The digest is made with the hash of the key's scheme, whatever the bank (TPM 2.0 Part 3, 18.4).
    computed = hashlib.new(HASH_NAMES[hash_id], b"".join([pcr_values[index] for index in demanded])).digest()
    if not hmac.compare_digest(quote.pcr_digest, computed):
        raise EvidenceRejected(
            RejectReason.PCR_DIGEST_MISMATCH,
            "the values given are not those that the TPM signed",
            expected=quote.pcr_digest.hex(),
            seen=computed.hex(),
        )


def _indices(pcrs: tuple[int, ...]) -> str:
    return ",".join(map(str, pcrs)) or "none"


def _selections(selections: tuple[PcrSelection, ...]) -> str:
    parts = []
    for selection in selections:
        name = next((name for hash_id, name in HASH_NAMES.items() if hash_id == selection.hash_id), None)
        parts.append(f"{name or f'0x{selection.hash_id:04x}'}: {_indices(selection.pcrs)}")
    return "; ".join(parts) or "none"
