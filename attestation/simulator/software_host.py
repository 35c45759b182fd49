"""A host made in software, honest as it stands: a firmware log, a quote over its PCRs, and the key that signs it.

It is made to lie by one edit: of the events, of a field of the quote, or of the bytes.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation.model import LogKind, PcrBank
from attestation.verifier.appraisal import Evidence
from attestation.wire.event_types import EventType as Type
from attestation.wire.tpm_public import TpmPublic, parse_tpm_public

AK_ATTRIBUTES = 0x00050072
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""
HASH_IDS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
ZERO_SEPARATOR = b"\0\0\0\0"
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
COMMAND_LINE = "console=ttyS0 root=/dev/vda2 roothash=5eed"


@dataclass(frozen=True)
class Measured:
    """One event before it is written to a log; without ``content`` the digest is that of the data."""

    pcr: int
    type: int
    data: bytes
    content: bytes | None = None

    def digest(self, bank: str) -> bytes:
        """What is extended."""
        if self.type == Type.EV_NO_ACTION:
            return bytes(hashlib.new(bank).digest_size)
        return hashlib.new(bank, self.data if self.content is None else self.content).digest()


def variable(name: str, data: bytes, guid: bytes = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return guid + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def image(path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT with a file path."""
    text = f"{path}\0".encode("utf-16-le")
    node = struct.pack("<BBH", 4, 4, 4 + len(text)) + text + struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<QQQQ", 0x1000, 4096, 0, len(node)) + node


def tagged(tag: int, text: bytes) -> bytes:
    """TCG_PCClientTaggedEvent."""
    return struct.pack("<II", tag, len(text)) + text


LOAD_OPTIONS = tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0")


def honest_events(command_line: str = COMMAND_LINE, *, secure_boot: bool = True) -> list[Measured]:
    """A boot of a unified kernel image under OVMF, as its log has it."""
    filled = b"certificates" if secure_boot else b""
    authority = [Measured(7, Type.EV_EFI_VARIABLE_AUTHORITY, variable("db", b"certificate", SECURITY_DATABASE))]
    section = ".cmdline\0".encode("utf-16-le")
    return [
        Measured(0, Type.EV_S_CRTM_VERSION, b"1\0"),
        Measured(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, struct.pack("<QQ", 0x820000, 0xE0000), b"firmware"),
        Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", bytes([secure_boot]))),
        Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("PK", filled)),
        Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("KEK", filled)),
        Measured(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("db", filled, SECURITY_DATABASE)),
        Measured(7, Type.EV_SEPARATOR, ZERO_SEPARATOR),
        Measured(4, Type.EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *(Measured(pcr, Type.EV_SEPARATOR, ZERO_SEPARATOR) for pcr in range(7)),
        *(authority if secure_boot else []),
        Measured(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, image("\\EFI\\BOOT\\BOOTX64.EFI"), b"unified kernel"),
        Measured(11, Type.EV_IPL, section, b".cmdline\0"),
        Measured(11, Type.EV_IPL, section, command_line.encode()),
        Measured(9, Type.EV_EVENT_TAG, LOAD_OPTIONS, f"{command_line}\0".encode("utf-16-le")),
        Measured(9, Type.EV_EVENT_TAG, tagged(0x8F3B22EC, b"Linux initrd\0"), b"initrd"),
        Measured(5, Type.EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        Measured(5, Type.EV_EFI_ACTION, b"Exit Boot Services Returned with Success"),
    ]


def spec_id(banks: Sequence[str]) -> bytes:
    """TCG_EfiSpecIdEvent."""
    sizes = b"".join(struct.pack("<HH", HASH_IDS[bank], hashlib.new(bank).digest_size) for bank in banks)
    return b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"


def header(data: bytes) -> bytes:
    """First record of a crypto-agile log."""
    return struct.pack("<II20sI", 0, Type.EV_NO_ACTION, bytes(20), len(data)) + data


def record(event: Measured, banks: Sequence[str]) -> bytes:
    """TCG_PCR_EVENT2."""
    digests = b"".join(struct.pack("<H", HASH_IDS[bank]) + event.digest(bank) for bank in banks)
    return (
        struct.pack("<III", event.pcr, event.type, len(banks))
        + digests
        + struct.pack("<I", len(event.data))
        + event.data
    )


def make_log(events: Sequence[Measured], banks: Sequence[str] = ("sha256",)) -> bytes:
    """A crypto-agile log."""
    return header(spec_id(banks)) + b"".join(record(event, banks) for event in events)


def make_legacy_log(events: Sequence[Measured]) -> bytes:
    """A log of SHA-1 only."""
    return b"".join(
        struct.pack("<II20sI", event.pcr, event.type, event.digest("sha1"), len(event.data)) + event.data
        for event in events
    )


def extended(events: Sequence[Measured], bank: str = "sha256", startup_locality: int = 0) -> dict[int, bytes]:
    """What a TPM's PCRs 0 to 23 hold after these events: an implementation of its own, to hold ours against."""
    size = hashlib.new(bank).digest_size
    values = {pcr: bytes(size) for pcr in range(24)}
    values[0] = bytes(size - 1) + bytes([startup_locality])
    for event in events:
        if event.type != Type.EV_NO_ACTION:
            values[event.pcr] = hashlib.new(bank, values[event.pcr] + event.digest(bank)).digest()
    return values


@dataclass(frozen=True)
class SoftwareKey:
    """An attestation key whose private half is at hand."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    public: TpmPublic
    scheme: int
    hash_name: str

    def sign(self, data: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[self.hash_name]
        head = struct.pack(">HH", self.scheme, HASH_IDS[self.hash_name])
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(algorithm, deterministic_signing=True)))
            size = self.private.key_size // 8
            return head + b"".join(struct.pack(">H", size) + number.to_bytes(size, "big") for number in (r, s))
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
        value = self.private.sign(data, pss if self.scheme == 0x0016 else padding.PKCS1v15(), algorithm)
        return head + struct.pack(">H", len(value)) + value


def ecc_public(key: ec.EllipticCurvePublicKey, hash_name: str = "sha256", attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of an ECDSA key."""
    numbers, size = key.public_numbers(), key.key_size // 8
    curve = 0x0003 if key.key_size == 256 else 0x0004
    return (
        struct.pack(">HHIH", 0x0023, HASH_IDS[hash_name], attributes, 0)
        + struct.pack(">HHHHH", 0x0010, 0x0018, HASH_IDS[hash_name], curve, 0x0010)
        + b"".join(struct.pack(">H", size) + number.to_bytes(size, "big") for number in (numbers.x, numbers.y))
    )


def rsa_public(key: rsa.RSAPublicKey, scheme: int = 0x0014, attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of an RSA signing key."""
    modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
    return (
        struct.pack(">HHIH", 0x0001, HASH_IDS["sha256"], attributes, 0)
        + struct.pack(">HHHHI", 0x0010, scheme, HASH_IDS["sha256"], key.key_size, 0)
        + struct.pack(">H", len(modulus))
        + modulus
    )


_P = int(
    "bcbacba0430dd3aa599ba411f29673fb3840a7475fa4171532d820560333b1073b4fed81d28a08871c37ffb85ad9d0486745"
    "32166554700bdf4f53c4870ee6bc29ab4763add6c865b5b5f03139bdd15cc293338b1b5487de059f74eddb1d36bfd9b5721d"
    "fe7c839b2622b361ef18784978463e6f2eb013a7f2b54581a32903b3",
    16,
)
_Q = int(
    "bb93156db59b9c7796579691551cab6e8ebde04aef06417167ab6359921c25069652cb4964d88a54eccc0d04e10888b8f603"
    "1564a29d77f3c6568aa2663a05a09689505ec04cddbf0cca88c20ebf173b8c85a3ef654ee540a9fd098f4fa50e0c4634d2e8"
    "5a41123b6154cb9673e71ef55d2bc1b7551c3e5ab6edd34dd877271f",
    16,
)


def rsa_key() -> rsa.RSAPrivateKey:
    """An RSA 2048 key, the same in every run."""
    d = pow(65537, -1, (_P - 1) * (_Q - 1))
    public = rsa.RSAPublicNumbers(65537, _P * _Q)
    return rsa.RSAPrivateNumbers(_P, _Q, d, d % (_P - 1), d % (_Q - 1), pow(_Q, -1, _P), public).private_key()


@lru_cache
def software_key(kind: str = "p256") -> SoftwareKey:
    """The same key for each kind in every run: p256, other-p256, p384, rsassa or rsapss."""
    if kind in ("p256", "other-p256"):
        p256 = ec.derive_private_key(0x1001 if kind == "p256" else 0x1002, ec.SECP256R1())
        return SoftwareKey(p256, parse_tpm_public(ecc_public(p256.public_key())), 0x0018, "sha256")
    if kind == "p384":
        p384 = ec.derive_private_key(0x1003, ec.SECP384R1())
        return SoftwareKey(p384, parse_tpm_public(ecc_public(p384.public_key(), "sha384")), 0x0018, "sha384")
    scheme = {"rsassa": 0x0014, "rsapss": 0x0016}[kind]
    key = rsa_key()
    return SoftwareKey(key, parse_tpm_public(rsa_public(key.public_key(), scheme)), scheme, "sha256")


def selection(bank: str, pcrs: Sequence[int]) -> bytes:
    """TPMS_PCR_SELECTION."""
    return struct.pack(">HB", HASH_IDS[bank], 3) + sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")


@dataclass(frozen=True)
class QuoteFields:
    """TPMS_ATTEST before it is marshalled; ``None`` means what an honest TPM would write."""

    magic: int = 0xFF544347
    type: int = 0x8018
    qualified_signer: bytes | None = None
    extra_data: bytes = b"\x5a" * 32
    clock_ms: int = 123456
    reset_count: int = 3
    restart_count: int = 0
    safe: int = 1
    firmware_version: int = 0x2019102300163636
    selections: bytes | None = None
    pcr_digest: bytes | None = None


@dataclass(frozen=True)
class Host:
    """A host whose evidence is honest as it stands; ``replace`` one field to make it lie."""

    events: Sequence[Measured] = field(default_factory=honest_events)
    pcrs: tuple[int, ...] = (0, 2, 4, 7, 9, 11)
    bank: PcrBank = PcrBank.SHA256
    fields: QuoteFields = QuoteFields()
    key: SoftwareKey = field(default_factory=software_key)
    log: bytes | None = None
    startup_locality: int = 0
    log_banks: tuple[str, ...] = ("sha256", "sha384")
    claimed: Mapping[int, bytes] | None = None
    command_line: str = ""

    def lying(self, **changes: object) -> "Host":
        """The same host with fields of its quote changed before they are signed."""
        return replace(self, fields=replace(self.fields, **changes))  # type: ignore[arg-type]

    def pcr_values(self) -> dict[int, bytes]:
        """The quoted PCRs."""
        values = extended(self.events, self.bank.value, self.startup_locality)
        return {pcr: values[pcr] for pcr in self.pcrs}

    def quote(self) -> bytes:
        """TPMS_ATTEST."""
        fields = self.fields
        signer = (
            self.key.public.endorsement_qualified_name if fields.qualified_signer is None else fields.qualified_signer
        )
        attest = struct.pack(">IH", fields.magic, fields.type)
        attest += struct.pack(">H", len(signer)) + signer
        attest += struct.pack(">H", len(fields.extra_data)) + fields.extra_data
        attest += struct.pack(">QIIB", fields.clock_ms, fields.reset_count, fields.restart_count, fields.safe)
        attest += struct.pack(">Q", fields.firmware_version)
        selections = fields.selections
        if selections is None:
            selections = struct.pack(">I", 1) + selection(self.bank.value, self.pcrs)
        values = b"".join(value for _, value in sorted(self.pcr_values().items()))
        digest = hashlib.new(self.key.hash_name, values).digest() if fields.pcr_digest is None else fields.pcr_digest
        return attest + selections + struct.pack(">H", len(digest)) + digest

    def evidence(self) -> Evidence:
        """All of it."""
        quote = self.quote()
        log = make_log(self.events, self.log_banks) if self.log is None else self.log
        return Evidence(
            quote=quote,
            signature=self.key.sign(quote),
            pcr_values=self.pcr_values() if self.claimed is None else self.claimed,
            logs={LogKind.TCG: log},
            untrusted_command_line=self.command_line,
        )
