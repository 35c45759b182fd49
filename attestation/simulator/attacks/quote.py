"""Attacks on the quote: signed by the wrong key, over the wrong things, at the wrong time."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import ChallengeReason, EnrollmentReason, RejectReason
from attestation.model import HostId, LogKind, PcrBank
from attestation.simulator.attacks.attack import DENIED_FIRMWARE, PCRS, Attack
from attestation.simulator.lying_host import HonestHost, make_attestation_key
from attestation.simulator.software_host import selection, software_key
from attestation.wire.tpm_algorithms import digest
from garant.attestation.v1 import attestation_pb2 as pb

Lie = Callable[[HonestHost], HonestHost]
_TPM_RH_OWNER, _TPM_RH_NULL = 0x40000001, 0x40000007


def _hands_in(edit: Callable[[pb.AttestRequest], None]) -> Lie:
    """Change what is handed in after the TPM signed."""
    return lambda host: replace(host, edit_evidence=edit)


def _set(**fields: object) -> Lie:
    def edit(request: pb.AttestRequest) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return _hands_in(edit)


def _tpm_says(**fields: object) -> Lie:
    """Change a field of the quote before the TPM signs."""
    return lambda host: host.quoting(**fields)


def _selects(*selections: bytes) -> Lie:
    return _tpm_says(selections=struct.pack(">I", len(selections)) + b"".join(selections))


def _binds(**fields: object) -> Lie:
    """Bind the quote to other things than are handed in."""
    return lambda host: replace(host, edit_binding=lambda binding: replace(binding, **fields))  # type: ignore[arg-type]


def _extra_data(edit: Callable[[bytes], bytes]) -> Lie:
    return lambda host: replace(host, edit_extra_data=edit)


def _qualified_under(parent: int) -> Lie:
    """The attestation key as a primary of another hierarchy."""

    def lie(host: HonestHost) -> HonestHost:
        public = host.tpm.attestation_key.public
        name = public.name_algorithm.to_bytes(2, "big") + digest(
            public.name_algorithm, parent.to_bytes(4, "big") + public.name
        )
        return host.quoting(qualified_signer=name)

    return lie


def _claims_values(edit: Callable[[dict[int, bytes]], Mapping[int, bytes]]) -> Lie:
    """Hand in other PCR values than were signed."""

    def change(request: pb.AttestRequest) -> None:
        values = edit({value.index: value.digest for value in request.pcr_values})
        del request.pcr_values[:]
        request.pcr_values.extend(pb.PcrValue(index=index, digest=value) for index, value in sorted(values.items()))

    return _hands_in(change)


def _masquerade(values: dict[int, bytes]) -> dict[int, bytes]:
    values[10] = values.pop(11)
    return values


def _flip(field: str) -> Lie:
    def edit(request: pb.AttestRequest) -> None:
        value: bytes = getattr(request, field)
        setattr(request, field, value[:-1] + bytes([value[-1] ^ 1]))

    return _hands_in(edit)


def _grow(field: str) -> Lie:
    def edit(request: pb.AttestRequest) -> None:
        setattr(request, field, getattr(request, field) + b"\0")

    return _hands_in(edit)


def _cut(field: str) -> Lie:
    def edit(request: pb.AttestRequest) -> None:
        setattr(request, field, getattr(request, field)[:-1])

    return _hands_in(edit)


def _sign_as_sha384(host: HonestHost) -> HonestHost:
    key = replace(host.tpm.attestation_key, hash_name="sha384")
    return _hands_in(lambda request: setattr(request, "signature", key.sign(request.quote)))(host)


def _other_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _unsorted(request: pb.AttestRequest) -> None:
    values = [*request.pcr_values]
    del request.pcr_values[:]
    request.pcr_values.extend(reversed(values))


_MALFORMED, _REQUEST = RejectReason.MALFORMED_QUOTE, EnrollmentReason.MALFORMED_REQUEST
_NONCE, _SELECTION = RejectReason.NONCE_MISMATCH, RejectReason.WRONG_PCR_SELECTION
_SIGNER, _VALUES = RejectReason.WRONG_QUALIFIED_SIGNER, RejectReason.PCR_DIGEST_MISMATCH
_SIGNATURE, _SCHEME = RejectReason.BAD_SIGNATURE, RejectReason.WRONG_SIGNATURE_SCHEME

_CHALLENGES = (
    Attack(
        "replayed-evidence",
        "recorded evidence is good for ever (T8)",
        ChallengeReason.CHALLENGE_SPENT,
        lambda host: replace(host, submissions=2),
    ),
    Attack(
        "invented-cookie",
        "a host chooses its own challenge",
        ChallengeReason.COOKIE_INVALID,
        _set(cookie=b"\1" + bytes(100)),
    ),
    Attack("changed-cookie", "a host edits its own challenge", ChallengeReason.COOKIE_INVALID, _flip("cookie")),
    Attack(
        "challenge-of-another-host",
        "one host answers for another (T6)",
        _SIGNATURE,
        lambda host: replace(host, asks_as=host.surroundings.neighbour.host_id),
    ),
    Attack("constant-nonce", "one quote answers every challenge (CVE-2026-6420)", _NONCE, _binds(nonce=bytes(32))),
    Attack("no-nonce", "a quote that names no challenge answers all", _NONCE, _extra_data(lambda _: b"")),
    Attack("extra-data-cut-off", "a part of the binding is enough", _NONCE, _extra_data(lambda data: data[:31])),
    Attack(
        "extra-data-too-long", "what follows the binding is not looked at", _NONCE, _extra_data(lambda d: d + b"\0")
    ),
    Attack(
        "bound-to-another-tls-key",
        "a token for a key that no TPM vouched for",
        _NONCE,
        _binds(tls_thumbprint=bytes(32)),
    ),
    Attack("bound-to-another-hpke-key", "keys are sealed to somebody else", _NONCE, _binds(hpke_thumbprint=bytes(32))),
    Attack(
        "bound-to-another-log", "the log is swapped on the way", _NONCE, _binds(log_hashes={LogKind.TCG: bytes(32)})
    ),
    Attack("bound-to-no-log", "the log is swapped on the way", _NONCE, _binds(log_hashes={})),
    Attack("bound-to-another-host", "one host's quote is another's", _NONCE, _binds(host_id=HostId("a" * 64))),
    Attack("bound-to-another-service", "a rogue service forwards evidence (T2)", _NONCE, _binds(service_key=bytes(32))),
    Attack("bound-to-another-audience", "a rogue service forwards evidence (T2)", _NONCE, _binds(audience="elsewhere")),
    Attack("tls-key-on-another-curve", "a key that tokens cannot name", _REQUEST, _set(tls_public_key=_other_curve())),
    Attack("no-tls-key", "a token bound to nothing", _REQUEST, _set(tls_public_key=b"")),
    Attack("short-hpke-key", "a key that nothing can be sealed to", _REQUEST, _set(hpke_public_key=bytes(31))),
    Attack(
        "hpke-key-of-another-kem", "sealing by a mechanism not asked for", _REQUEST, _set(hpke_public_key=bytes(1216))
    ),
)

_SIGNATURES = (
    Attack("quote-with-trailing-byte", "two parsers read one quote differently", _MALFORMED, _grow("quote")),
    Attack("quote-cut-off", "a missing field is taken for zero", _MALFORMED, _cut("quote")),
    Attack("no-quote", "nothing is as good as a quote", _MALFORMED, _set(quote=b"")),
    Attack(
        "signature-with-trailing-byte", "two parsers read one signature differently", _MALFORMED, _grow("signature")
    ),
    Attack("no-signature", "nothing is as good as a signature", _MALFORMED, _set(signature=b"")),
    Attack("oversized-quote", "memory is spent on what no TPM makes (T15)", _REQUEST, _set(quote=bytes(1025))),
    Attack("signature-by-another-hash", "the signature chooses how it is checked", _SCHEME, _sign_as_sha384),
    Attack(
        "quote-by-a-key-of-another-curve",
        "the signature chooses how it is checked",
        _SCHEME,
        lambda host: host.with_key(software_key("p384")),
    ),
    Attack(
        "quote-by-an-rsa-key",
        "the signature chooses how it is checked",
        _SCHEME,
        lambda host: host.with_key(software_key("rsassa")),
    ),
    Attack("changed-quote", "the signature is not checked, or only logged (CVE-2023-3674)", _SIGNATURE, _flip("quote")),
    Attack("changed-signature", "the signature is not checked, or only logged", _SIGNATURE, _flip("signature")),
    Attack(
        "quote-by-another-key",
        "any TPM's quote will do",
        _SIGNATURE,
        lambda host: host.with_key(make_attestation_key()),
    ),
    Attack(
        "quote-by-the-neighbour",
        "somebody else's good TPM answers (T6)",
        _SIGNATURE,
        lambda host: host.with_key(host.surroundings.neighbour.attestation_key),
    ),
    Attack(
        "bad-magic",
        "a structure made outside of the TPM is believed (CVE-2024-29038)",
        RejectReason.BAD_MAGIC,
        _tpm_says(magic=0xFF544348),
    ),
    Attack(
        "not-a-quote",
        "the TPM signed something else",
        RejectReason.NOT_A_QUOTE,
        _tpm_says(type=0x8019, selections=bytes(8), pcr_digest=b""),
    ),
    Attack(
        "owner-hierarchy-key",
        "its boot counters are obfuscated: reboots go unseen",
        _SIGNER,
        _qualified_under(_TPM_RH_OWNER),
    ),
    Attack(
        "null-hierarchy-key",
        "a key of this boot only passes for the enrolled one",
        _SIGNER,
        _qualified_under(_TPM_RH_NULL),
    ),
    Attack("no-qualified-signer", "nothing is known of where the key lives", _SIGNER, _tpm_says(qualified_signer=b"")),
)

_REGISTERS = (
    Attack(
        "quote-over-no-pcrs",
        "the log is free to say anything (CVE-2022-0317)",
        _SELECTION,
        _selects(selection("sha256", ())),
    ),
    Attack("quote-without-a-selection", "the log is free to say anything", _SELECTION, _selects()),
    Attack(
        "one-pcr-left-out", "the PCR that tells is not quoted", _SELECTION, _selects(selection("sha256", PCRS[:-1]))
    ),
    Attack(
        "one-pcr-too-many",
        "a PCR that anyone can reset is quoted",
        _SELECTION,
        _selects(selection("sha256", (*PCRS, 16))),
    ),
    Attack(
        "quoted-under-another-index",
        "PCR 10 passes for PCR 11",
        _SELECTION,
        _selects(selection("sha256", (0, 2, 4, 7, 9, 10))),
    ),
    Attack(
        "sha1-quote", "a bank whose digests can be forged is believed", _SELECTION, _selects(selection("sha1", PCRS))
    ),
    Attack(
        "wrong-bank",
        "a bank that was not asked for is believed",
        _SELECTION,
        lambda host: replace(host, boot=replace(host.boot, bank=PcrBank.SHA384)),
    ),
    Attack(
        "two-banks",
        "one of them is read, the other was meant",
        _SELECTION,
        _selects(selection("sha1", PCRS), selection("sha256", PCRS)),
    ),
    Attack(
        "unallocated-bank-beside",
        "an empty bank is not noticed",
        _SELECTION,
        _selects(selection("sha1", ()), selection("sha256", PCRS)),
    ),
    Attack(
        "changed-pcr-value",
        "values are believed that no TPM signed",
        _VALUES,
        _claims_values(lambda values: values | {4: bytes(32)}),
    ),
    Attack(
        "missing-pcr-value",
        "a PCR that is not shown is not checked",
        _VALUES,
        _claims_values(lambda values: {i: v for i, v in values.items() if i != 7}),
    ),
    Attack(
        "extra-pcr-value",
        "a value outside of the signed selection is believed",
        _VALUES,
        _claims_values(lambda values: values | {8: bytes(32)}),
    ),
    Attack("value-under-another-index", "PCR 11 passes for PCR 10", _VALUES, _claims_values(_masquerade)),
    Attack(
        "short-pcr-value",
        "bytes move from one PCR to its neighbour",
        _VALUES,
        _claims_values(lambda values: values | {0: values[0][:31], 2: values[0][31:] + values[2]}),
    ),
    Attack("no-pcr-values", "no values are as good as any", _VALUES, _claims_values(lambda _: {})),
    Attack("signed-over-other-values", "the digest is not compared", _VALUES, _tpm_says(pcr_digest=bytes(32))),
    Attack("pcr-24", "a PCR that no PC has", _REQUEST, _claims_values(lambda values: values | {24: bytes(32)})),
    Attack("pcr-values-out-of-order", "values are hashed in the order of the wire", _REQUEST, _hands_in(_unsorted)),
)

_CLOCKS = (
    Attack(
        "unsafe-clock", "a clock that may have gone back is believed", RejectReason.CLOCK_NOT_SAFE, _tpm_says(safe=0)
    ),
    Attack(
        "stale-reset-count",
        "an older or copied TPM state passes for this boot (T7)",
        RejectReason.BOOT_COUNTER_DECREASED,
        _tpm_says(reset_count=2),
    ),
    Attack(
        "resumed-from-suspend",
        "nothing measured what happened meanwhile",
        RejectReason.RESUMED_WITHOUT_MEASUREMENT,
        _tpm_says(restart_count=1),
    ),
    Attack(
        "denied-firmware",
        "a TPM with a known hole is believed",
        RejectReason.FIRMWARE_VERSION_DENIED,
        _tpm_says(firmware_version=DENIED_FIRMWARE),
    ),
)

ATTACKS = _CHALLENGES + _SIGNATURES + _REGISTERS + _CLOCKS
"""Attacks on the challenge and the quote."""
