"""A host whose TPM is software: it enrols and attests like a real one, and lies by changing one field.

``HonestHost`` is honest as it stands. Its fields are the knobs: what it claims, what its TPM says, what it hands in.
An attack is ``dataclasses.replace`` of one of them (``attestation.simulator.attacks``).

The TPM does what a genuine one does: it opens a credential only for its own attestation key. That it is software shows
only in its certificate, which an anchor must admit.

Source: TPM 2.0 Part 1, 11.4.10 (KDFa, KDFe), 24 (credential protection), B.10.4, C.6.3; Part 3, 12.5
(TPM2_ActivateCredential); TCG EK Credential Profile 2.x, annex B. Written from these and not from the verifier's
code, to hold that against it. No I/O: ``attestation.simulator.client`` talks to the service.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.binding import QuoteBinding
from attestation.errors import TpmError
from attestation.model import EkTemplate, HostId
from attestation.simulator.software_host import Host as Boot
from attestation.simulator.software_host import Measured, QuoteFields, SoftwareKey, ecc_public, make_log
from attestation.wire.tpm_public import parse_tpm_public
from garant.attestation.v1 import attestation_pb2 as pb

EndorsementPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
EndorsementPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
Certify = Callable[[EndorsementPublicKey], bytes]
"""An authority for endorsement keys: signs a certificate, DER."""

_LOW_ATTRIBUTES = 0x000300B2
_HIGH_ATTRIBUTES = 0x000300F2
_LOW_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_HIGH_POLICY = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
_IDENTITY = b"IDENTITY\0"


@dataclass(frozen=True, slots=True)
class SoftwareTpm:
    """An endorsement key with its certificate, and an attestation key."""

    endorsement_key: EndorsementPrivateKey = field(repr=False)
    certificate: bytes
    """DER."""
    attestation_key: SoftwareKey

    @classmethod
    def make(cls, certify: Certify, template: EkTemplate = EkTemplate.ECC_P256_LOW) -> Self:
        """Make one with fresh keys.

        Args:
            certify: Signs the endorsement key's certificate.
            template: P-256 or RSA 2048 of the low range, or P-384.
        """
        endorsement_key: EndorsementPrivateKey
        if template is EkTemplate.RSA_2048_LOW:
            endorsement_key = rsa.generate_private_key(65537, 2048)
        else:
            endorsement_key = ec.generate_private_key(
                {EkTemplate.ECC_P256_LOW: ec.SECP256R1(), EkTemplate.ECC_P384_HIGH: ec.SECP384R1()}[template]
            )
        return cls(endorsement_key, certify(endorsement_key.public_key()), make_attestation_key())

    @property
    def template(self) -> EkTemplate:
        """Which template made the endorsement key."""
        if isinstance(self.endorsement_key, rsa.RSAPrivateKey):
            return EkTemplate.RSA_2048_LOW
        return EkTemplate.ECC_P256_LOW if self.endorsement_key.key_size == 256 else EkTemplate.ECC_P384_HIGH

    @property
    def host_id(self) -> HostId:
        """Identity of the host whose TPM this is."""
        public = self.endorsement_key.public_key()
        return HostId.of_spki(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def endorsement_public(self) -> bytes:
        """TPMT_PUBLIC of the endorsement key."""
        key = self.endorsement_key.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            head = struct.pack(">HHI", 0x0001, 0x000B, _LOW_ATTRIBUTES) + _tpm2b(_LOW_POLICY)
            modulus = key.public_numbers().n.to_bytes(256, "big")
            return head + struct.pack(">HHHHHI", 0x0006, 128, 0x0043, 0x0010, 2048, 0) + _tpm2b(modulus)
        low, size, numbers = key.key_size == 256, key.key_size // 8, key.public_numbers()
        name_algorithm, attributes, policy, aes_bits, curve = (
            (0x000B, _LOW_ATTRIBUTES, _LOW_POLICY, 128, 0x0003)
            if low
            else (0x000C, _HIGH_ATTRIBUTES, _HIGH_POLICY, 256, 0x0004)
        )
        head = struct.pack(">HHI", 0x0023, name_algorithm, attributes) + _tpm2b(policy)
        middle = struct.pack(">HHHHHH", 0x0006, aes_bits, 0x0043, 0x0010, curve, 0x0010)
        return head + middle + b"".join(_tpm2b(number.to_bytes(size, "big")) for number in (numbers.x, numbers.y))

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential for the attestation key.

        Raises:
            TpmError: It was not made for this endorsement key and this attestation key.
        """
        name = self.attestation_key.public.name
        strong = self.template is EkTemplate.ECC_P384_HIGH
        digest, aes_bytes = ("sha384", 32) if strong else ("sha256", 16)
        mac, encrypted = _split(credential_blob)
        try:
            seed = self._seed(encrypted_secret, digest)
        except ValueError as exc:
            raise TpmError("TPM2_ActivateCredential: the secret is not for this endorsement key") from exc
        mac_key = _kdfa(digest, seed, b"INTEGRITY", b"", len(seed))
        if not hmac.compare_digest(mac, hmac.digest(mac_key, encrypted + name, digest)):
            raise TpmError("TPM2_ActivateCredential: the credential is not for this attestation key")
        aes_key = _kdfa(digest, seed, b"STORAGE", name, aes_bytes)
        decryptor = Cipher(algorithms.AES(aes_key), CFB(bytes(16))).decryptor()
        return _split(decryptor.update(encrypted) + decryptor.finalize())[0]

    def _seed(self, encrypted_secret: bytes, digest: str) -> bytes:
        key = self.endorsement_key
        if isinstance(key, rsa.RSAPrivateKey):
            return key.decrypt(
                encrypted_secret, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), _IDENTITY)
            )
        x, rest = _split(encrypted_secret)
        y, _ = _split(rest)
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve)
        shared = key.exchange(ec.ECDH(), numbers.public_key())
        own_x = key.public_key().public_numbers().x.to_bytes(len(x), "big")
        return hashlib.new(digest, (1).to_bytes(4, "big") + shared + _IDENTITY + x + own_x).digest()


def make_attestation_key() -> SoftwareKey:
    """A fresh ECC P-256 attestation key."""
    private = ec.generate_private_key(ec.SECP256R1())
    return SoftwareKey(private, parse_tpm_public(ecc_public(private.public_key())), 0x0018, "sha256")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What liars of a site can lay their hands on."""

    neighbour: SoftwareTpm
    """TPM of another host, which is a member."""
    neighbour_name: str
    banned: SoftwareTpm
    """TPM of a host that was banned."""
    banned_name: str
    spent_join_token: str
    """That the neighbour joined with."""
    join_token_for_another: str
    """For a name that is nobody's yet."""
    certify_by_nobody: Certify
    """An authority that no anchor knows."""
    certify_as_hardware: Certify
    """An authority whose anchor admits no software TPMs."""


def _unchanged(message: object) -> None:
    """An honest host changes nothing on the way."""


def _same(value: bytes) -> bytes:
    return value


def _same_binding(binding: QuoteBinding) -> QuoteBinding:
    return binding


@dataclass(frozen=True, slots=True)
class HonestHost:
    """A host that is honest as it stands; ``replace`` one field to make it lie."""

    name: str
    join_token: str
    """Empty: it waits for an administrator."""
    tpm: SoftwareTpm
    surroundings: Surroundings
    boot: Boot
    """What it measured, and what the TPM says of it; its key is the TPM's attestation key."""
    tls_key: ec.EllipticCurvePublicKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()).public_key()
    )
    hpke_key: bytes = field(default_factory=lambda: X25519PrivateKey.generate().public_key().public_bytes_raw())
    enrolls: bool = True
    """Whether it enrols before it attests."""
    opens_credential: bool = True
    """Whether it asks its TPM to open the credential; otherwise it guesses."""
    asks_as: HostId | None = None
    """As whom it asks for a challenge; None: as itself."""
    submissions: int = 1
    """How often it hands in the same evidence."""
    edit_claim: Callable[[pb.BeginEnrollmentRequest], None] = _unchanged
    """Changes what it says of itself when it enrols."""
    edit_proof: Callable[[bytes], bytes] = _same
    """Changes the proof that the credential was opened."""
    edit_binding: Callable[[QuoteBinding], QuoteBinding] = _same_binding
    """Changes what the quote is bound to."""
    edit_extra_data: Callable[[bytes], bytes] = _same
    """Changes the quote's extraData before the TPM signs it."""
    edit_evidence: Callable[[pb.AttestRequest], None] = _unchanged
    """Changes what it hands in, after the TPM signed."""

    @property
    def host_id(self) -> HostId:
        """Who it is."""
        return self.tpm.host_id

    def quoting(self, **fields: object) -> Self:
        """The same host whose TPM writes other fields into quotes (``software_host.QuoteFields``)."""
        return replace(self, boot=replace(self.boot, fields=replace(self.boot.fields, **fields)))  # type: ignore[arg-type]

    def booting(self, edit: Callable[[list[Measured]], list[Measured]]) -> Self:
        """The same host after another boot: events and PCRs both change."""
        return replace(self, boot=replace(self.boot, events=edit(list(self.boot.events))))

    def logging(self, edit: Callable[[list[Measured]], list[Measured]]) -> Self:
        """The same boot and PCRs, with a log that tells another story."""
        return replace(self, boot=replace(self.boot, log=make_log(edit(list(self.boot.events)), self.boot.log_banks)))

    def log_bytes(self, edit: Callable[[bytes], bytes]) -> Self:
        """The same boot and PCRs, with the log's bytes changed."""
        return replace(self, boot=replace(self.boot, log=edit(make_log(self.boot.events, self.boot.log_banks))))

    def with_key(self, key: SoftwareKey) -> Self:
        """The same host, whose quotes another key signs."""
        return replace(self, boot=replace(self.boot, key=key))

    def with_fields(self, fields: QuoteFields) -> Self:
        """The same host with all of the quote's fields given."""
        return replace(self, boot=replace(self.boot, fields=fields))


def _kdfa(digest: str, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    output, counter = b"", 1
    while len(output) < size:
        fixed = label + b"\0" + context + (size * 8).to_bytes(4, "big")
        output += hmac.digest(key, counter.to_bytes(4, "big") + fixed, digest)
        counter += 1
    return output[:size]


def _tpm2b(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _split(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]
