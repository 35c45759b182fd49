"""The part of a policy that says which files a host may run: measured by the kernel (IMA) into PCR 10.

A file is allowed by its digest at its path, by a signature of its digest, or because the policy does not care about its
path. A path that ``allowed`` names must have one of the digests given there: a signature does not make up for another.
:class:`ImaPolicy` is the document, :class:`ImaRules` what judging an entry needs, looked up in constant time.

Pure: no clock, randomness, I/O or logging.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from attestation.wire.ima_log import MAX_FILE_NAME, ImaEntry, ImaMeasurement, ImaSignature, ImaTemplate

MAX_ALLOWED: Final = 200_000
MAX_PATTERNS: Final = 1000
MAX_SIGNING_KEYS: Final = 32
MAX_DIGESTS: Final = 64
"""Of one path: as many versions of a file may be around at once."""
MAX_KNOWN: Final = 65_536
"""Entries remembered as allowed, some 20 MB: the same packages run on every host."""
_MIN_RSA_BITS: Final = 2048
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_SIGNED_HASHES: Final = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}

SigningKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
FileName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_FILE_NAME, pattern=r"^[^\x00]+$")]
FileDigest = Annotated[
    str,
    StringConstraints(
        pattern=r"^((verity:)?(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})|sha1:[0-9a-f]{40})$"
    ),
]
FilePattern = Annotated[str, StringConstraints(min_length=2, max_length=MAX_FILE_NAME, pattern=r"^/[^\x00]+$")]
Pem = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
Digests = Annotated[tuple[FileDigest, ...], Field(min_length=1, max_length=MAX_DIGESTS)]


class PcrExtension(StrEnum):
    """What a kernel extends into a bank of PCR 10 for an entry."""

    BANK_HASH = "bank-hash"
    """The bank's hash of the entry's template data; FF..FF for a violation (Linux 5.8 and later)."""
    PADDED_SHA1 = "padded-sha1"
    """Its SHA-1, padded with zeros; for a violation 20 times FF, padded with zeros (before Linux 5.8).

    PCR 10 is then only as hard to fool as SHA-1.
    """
    PADDED_SHA1_VIOLATION_FULL = "padded-sha1-violation-full"
    """Its SHA-1, padded with zeros; FF..FF for a violation (later kernels that lack the bank's hash)."""


class ImaPolicy(BaseModel):
    """Which files a host may have run since it booted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    required: bool = Field(
        default=True,
        description="Whether to refuse a host that sends no list of measured files; a list that is sent always counts",
    )
    extension: PcrExtension = Field(
        default=PcrExtension.BANK_HASH, description="What the hosts' kernels extend into PCR 10 for an entry"
    )
    allowed: dict[FileName, Digests] = Field(
        default={},
        max_length=MAX_ALLOWED,
        description="Digests of files by path, such as sha256:... or, of fs-verity, verity:sha256:...",
    )
    signing_keys: tuple[Pem, ...] = Field(
        default=(),
        max_length=MAX_SIGNING_KEYS,
        description="Keys or certificates (PEM) whose signature of a file allows it at any path not in allowed",
    )
    excluded: tuple[FilePattern, ...] = Field(
        default=(),
        max_length=MAX_PATTERNS,
        description="Paths to take no notice of; * stands for any part of one name, a last ** for anything below",
    )
    violations_allowed: tuple[FilePattern, ...] = Field(
        default=(),
        max_length=MAX_PATTERNS,
        description=(
            "Paths of files that may be written while they are measured, such as logs; patterns as above. PCR 10 does"
            " not cover a violation's path: a host that lies can pass any violation off as one of these"
        ),
    )
    buffers: dict[FileName, Digests] = Field(
        default={},
        max_length=MAX_PATTERNS,
        description="Digests by name of what is measured and is no file, such as kexec-cmdline or .ima",
    )
    any_buffer: tuple[FileName, ...] = Field(
        default=(), max_length=MAX_PATTERNS, description="Names of buffers whose content does not matter"
    )
    sha1_allowed: bool = Field(
        default=False, description="Whether SHA-1 digests, for which two files can be made, may allow a file"
    )
    kexec_allowed: bool = Field(
        default=False,
        description="Whether the running kernel may have been started by kexec, which only IMA measures",
    )

    @field_validator("signing_keys")
    @classmethod
    def _keys_load(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pem in value:
            load_signing_key(pem)
        return tuple(sorted(set(value)))

    @field_validator("excluded", "violations_allowed")
    @classmethod
    def _patterns_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            PathPattern(pattern)
        return tuple(sorted(set(value)))

    @field_validator("any_buffer")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _sha1_is_asked_for(self) -> "ImaPolicy":
        for name, digests in (*self.allowed.items(), *self.buffers.items()):
            if not self.sha1_allowed and any(digest.startswith("sha1:") for digest in digests):
                raise ValueError(f"a SHA-1 digest of {name!r} needs sha1_allowed")
        return self


class PathPattern:
    """A pattern that a whole path matches: ``*`` within a name, ``**`` as the last name for anything below.

    No more than that, so that matching takes time proportional to pattern and path, whatever a host calls its files.
    """

    __slots__ = ("_below", "_names")

    def __init__(self, pattern: str) -> None:
        """Parse an absolute pattern.

        Raises:
            ValueError: It is relative, has an empty name, "." or "..", or ``**`` anywhere but as its last name.
        """
        names = pattern.encode().split(b"/")
        if names[0] or len(names) < 2:
            raise ValueError(f"pattern {pattern!r} does not begin with /")
        self._below = names[-1] == b"**"
        self._names = tuple(names[1:-1] if self._below else names[1:])
        if any(name in (b"", b".", b"..") or b"**" in name for name in self._names):
            raise ValueError(f"pattern {pattern!r} has an empty name, . or .., or ** that is not its last name")

    def matches(self, path: bytes) -> bool:
        """Whether the whole of ``path`` is meant."""
        names = path.split(b"/", len(self._names) + 1)
        if names[0] or len(names) < 2:
            return False
        below = names[len(self._names) + 1 :]
        if bool(below) != self._below or below == [b""] or len(names) <= len(self._names):
            return False
        return all(map(_name_matches, self._names, names[1:]))


def _name_matches(pattern: bytes, name: bytes) -> bool:
    """Match one name: what stands between the stars occurs in order, the first at the start, the last at the end."""
    first, *rest = pattern.split(b"*")
    if not rest:
        return name == pattern
    last = rest.pop()
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    position, end = len(first), len(name) - len(last)
    for part in rest:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def load_signing_key(pem: str) -> tuple[bytes, SigningKey]:
    """Load a key that signs files.

    Args:
        pem: SubjectPublicKeyInfo, or a certificate, of which only key and key identifier count: the kernel, too, takes
            what is in its keyring without a path or a date.

    Returns:
        The key's 4-byte identifier, as signatures name it, and the key. The identifier is the end of the certificate's
        subject key identifier or, without one, of SHA-1 over the SubjectPublicKeyInfo's key bits (RFC 5280, 4.2.1.2).

    Raises:
        ValueError: Not PEM of a key, or not RSA of 2048 bits or more or ECDSA over P-256, P-384 or P-521.
    """
    identifier: bytes | None = None
    key: object
    try:
        if "BEGIN CERTIFICATE" in pem:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            key = certificate.public_key()
            identifier = _subject_key_identifier(certificate)
        else:
            key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as exc:
        raise ValueError("a signing key is not PEM of a public key or certificate") from exc
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            raise ValueError(f"an RSA signing key has at least {_MIN_RSA_BITS} bits, not {key.key_size}")
    elif not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ValueError("a signing key is RSA, or ECDSA over P-256, P-384 or P-521")
    return (identifier or x509.SubjectKeyIdentifier.from_public_key(key).digest)[-4:], key


def _subject_key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        digest = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None
    if len(digest) < 4:
        raise ValueError("a subject key identifier has at least 4 bytes")
    return digest


class ImaRules:
    """A policy made ready for judging many entries."""

    def __init__(self, policy: ImaPolicy) -> None:
        """Index ``policy``."""
        self.policy = policy
        self.digest: bytes = hashlib.sha256(
            json.dumps(policy.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
        ).digest()
        """32 bytes: tells equal policies from others."""
        self.allowed: dict[bytes, frozenset[tuple[str, bytes]]] = _index(policy.allowed)
        self.buffers: dict[bytes, frozenset[tuple[str, bytes]]] = _index(policy.buffers)
        self.any_buffer: frozenset[bytes] = frozenset(name.encode() for name in policy.any_buffer)
        self._excluded = tuple(map(PathPattern, policy.excluded))
        self._violations = tuple(map(PathPattern, policy.violations_allowed))
        self._keys: dict[bytes, tuple[SigningKey, ...]] = {}
        for key_id, key in map(load_signing_key, policy.signing_keys):
            self._keys[key_id] = (*self._keys.get(key_id, ()), key)
        self.known: Mapping[ImaTemplate, dict[bytes, bytes]] = {template: {} for template in ImaTemplate}
        """Template data of files that were allowed for themselves (not for their path), and its SHA-1.

        That a file is allowed depends on nothing else, so another host's entry, or a later one, needs no second look.
        """

    def excludes(self, path: bytes) -> bool:
        """Whether the policy takes no notice of ``path``."""
        return any(pattern.matches(path) for pattern in self._excluded)

    def allows_violation(self, path: bytes) -> bool:
        """Whether the file at ``path`` may change while it is measured."""
        return any(pattern.matches(path) for pattern in self._violations)

    def knows_signer(self, signature: ImaSignature) -> bool:
        """Whether a key of the policy has the identifier that the signature names."""
        return signature.key_id in self._keys

    def remember(self, entry: ImaEntry) -> None:
        """Keep that the file of ``entry`` is allowed, up to ``MAX_KNOWN`` for each template."""
        known = self.known[entry.template]
        if len(known) < MAX_KNOWN:
            known[entry.data] = entry.template_hash

    def verifies(self, signature: ImaSignature, measured: ImaMeasurement) -> bool:
        """Whether a key of the policy signed the file's digest."""
        if measured.algorithm != signature.hash_name or signature.hash_name not in _SIGNED_HASHES:
            return False
        return any(_verifies(key, signature, measured.digest) for key in self._keys.get(signature.key_id, ()))


def _verifies(key: SigningKey, signature: ImaSignature, digest: bytes) -> bool:
    prehashed = Prehashed(_SIGNED_HASHES[signature.hash_name])
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.signature, digest, padding.PKCS1v15(), prehashed)
        else:
            key.verify(signature.signature, digest, ec.ECDSA(prehashed))
    except InvalidSignature:
        return False
    return True


def _index(document: dict[str, tuple[str, ...]]) -> dict[bytes, frozenset[tuple[str, bytes]]]:
    return {name.encode(): frozenset(map(_split, digests)) for name, digests in document.items()}


def _split(digest: str) -> tuple[str, bytes]:
    algorithm, _, text = digest.rpartition(":")
    return algorithm, bytes.fromhex(text)


def digests_text(digests: Iterable[tuple[str, bytes]]) -> str:
    """Digests as policies write them, for people."""
    return ", ".join(sorted(f"{algorithm}:{digest.hex()}" for algorithm, digest in digests))
