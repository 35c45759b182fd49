"""The backup of a native key provider: PKCS #12 (RFC 7292) with one secret bag for each version of its KDK.

The layout is that of keytool's secret keys, so ``openssl pkcs12`` and ``keytool`` read it:

- PFX, version 3, password integrity mode: HMAC-SHA-256, its key by RFC 7292 appendix B.2, 600,000 iterations.
- One ContentInfo *data* with a SafeContents of SecretBags. ``secretTypeId`` is pkcs8ShroudedKeyBag and the secret an
  EncryptedPrivateKeyInfo: PBES2 (RFC 8018), PBKDF2-HMAC-SHA-256, 600,000 iterations, AES-256-CBC. Inside is a
  PrivateKeyInfo with the algorithm AES (2.16.840.1.101.3.4.1) and the 32 bytes of the KDK.
- Attributes of each bag: ``friendlyName`` = PROVIDER/VERSION, ``localKeyId`` = the key id (16 bytes), ``signingTime``
  = when it was exported (the same in each).

Reading is strict: this layout and no other, bounded in size and iterations; ``BackupError`` is the only error that
bytes can raise. Pure: time and randomness are passed in. ``open_backup`` takes a third of a second and more: that is
what guessing a password costs, too.
"""

import datetime
import hashlib
import hmac
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from keyprovider.errors import BackupError
from keyprovider.keymaterial import SecretKey
from keyprovider.native import der
from keyprovider.native.der import DerError, DerReader, encode, encode_integer, encode_oid
from keyprovider.native.kdk import KDK_SIZE, MAX_VERSION, Kdk, KdkName

ITERATIONS: Final = 600_000
"""Of both derivations; OWASP's figure for PBKDF2-HMAC-SHA-256 (2023)."""
MAX_ITERATIONS: Final = 10_000_000
"""Reading a file must end."""
MAX_BACKUP_SIZE: Final = 64 * 1024
MAX_KEYS: Final = 64
MIN_PASSWORD_LENGTH: Final = 8
SALT_SIZE: Final = 32
_IV_SIZE: Final = 16
_MAC_ID: Final = 3  # RFC 7292, B.3: key material for a MAC
_BLOCK_SIZE: Final = 64  # of SHA-256

_DATA: Final = encode_oid("1.2.840.113549.1.7.1")
_SECRET_BAG: Final = encode_oid("1.2.840.113549.1.12.10.1.5")
_SHROUDED_KEY_BAG: Final = encode_oid("1.2.840.113549.1.12.10.1.2")
_FRIENDLY_NAME: Final = encode_oid("1.2.840.113549.1.9.20")
_LOCAL_KEY_ID: Final = encode_oid("1.2.840.113549.1.9.21")
_SIGNING_TIME: Final = encode_oid("1.2.840.113549.1.9.5")
_PBES2: Final = encode_oid("1.2.840.113549.1.5.13")
_PBKDF2: Final = encode_oid("1.2.840.113549.1.5.12")
_NULL: Final = encode(der.NULL)
_HMAC_SHA256: Final = encode(der.SEQUENCE, encode_oid("1.2.840.113549.2.9"), _NULL)
_AES256_CBC: Final = encode_oid("2.16.840.1.101.3.4.1.42")
_SHA256: Final = encode(der.SEQUENCE, encode_oid("2.16.840.1.101.3.4.2.1"), _NULL)
# PrivateKeyInfo up to the key itself: version 0, algorithm AES.
_KEY_INFO_HEAD: Final = encode_integer(0) + encode(der.SEQUENCE, encode_oid("2.16.840.1.101.3.4.1"))
_NAME: Final = re.compile(r"([a-z0-9-]{1,64})/([1-9][0-9]{0,9})")
_TIME: Final = "%y%m%d%H%M%SZ"  # UTCTime, until 2049 (RFC 2985, 5.3.3)

_TIME_ENDS: Final = 2050


@dataclass(frozen=True, slots=True)
class _Shrouded:
    """A KDK as it lies in the file."""

    name: KdkName
    exported_at: datetime.datetime
    salt: bytes
    iterations: int
    iv: bytes
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedBackup:
    """A file of the right form; neither its MAC was checked nor anything opened."""

    untrusted_keys: tuple[_Shrouded, ...]
    content: bytes
    """What the MAC covers."""
    mac: bytes
    mac_salt: bytes
    mac_iterations: int


@dataclass(frozen=True, slots=True, eq=False)
class Backup:
    """A backup that was opened. Whoever opens one closes it."""

    provider: str
    exported_at: datetime.datetime
    kdks: tuple[Kdk, ...]
    """By version; at least one."""

    def close(self) -> None:
        """Wipe the keys."""
        for kdk in self.kdks:
            kdk.close()


def check_password(password: memoryview, *, allow_weak: bool) -> None:
    """Check that a password protects a backup, and that other tools take it.

    Raises:
        BackupError: Not printable ASCII (keytool takes nothing else); shorter than 8 characters, unless ``allow_weak``.
    """
    text = _text(password)
    if not (text.isascii() and text.isprintable()):
        raise BackupError("expected a password of printable ASCII characters: other tools take no others")
    length = len(text)
    if length < MIN_PASSWORD_LENGTH and not allow_weak:
        kind = "an empty password protects nothing" if length == 0 else f"a password of {length} is too short"
        raise BackupError(f"{kind}; expected at least {MIN_PASSWORD_LENGTH} characters")


def write_backup(
    kdks: Sequence[Kdk], password: memoryview, *, exported_at: datetime.datetime, random: Callable[[int], bytes]
) -> bytes:
    """Write a backup.

    Args:
        kdks: All of one provider, each version once; 1 to 64.
        password: UTF-8; empty: the file is as good as plain (see :func:`check_password`).
        exported_at: Aware; kept to the second.
        random: Gives so many random bytes.

    Returns:
        PFX, DER.

    Raises:
        ValueError: No keys, too many, of several providers, or a version twice; or a time after 2049.
        BackupError: The password is not UTF-8.
    """
    providers = {kdk.name.provider for kdk in kdks}
    versions = {kdk.name.version for kdk in kdks}
    if len(providers) != 1 or len(versions) != len(kdks) or len(kdks) > MAX_KEYS:
        raise ValueError(f"a backup has 1 to {MAX_KEYS} keys of one provider, each version once")
    if exported_at.year >= _TIME_ENDS:
        raise ValueError("the time of export has no encoding")
    moment = exported_at.astimezone(datetime.UTC).strftime(_TIME).encode()
    ordered = sorted(kdks, key=lambda kdk: kdk.name.version)
    safe = encode(der.SEQUENCE, *(_secret_bag(kdk, password, moment, random) for kdk in ordered))
    content = encode(der.SEQUENCE, _data(safe))
    salt = random(SALT_SIZE)
    mac = encode(der.OCTET_STRING, hmac.digest(_mac_key(password, salt, ITERATIONS), content, "sha256"))
    mac_data = encode(
        der.SEQUENCE, encode(der.SEQUENCE, _SHA256, mac), encode(der.OCTET_STRING, salt), encode_integer(ITERATIONS)
    )
    return encode(der.SEQUENCE, encode_integer(3), _data(content), mac_data)


def parse_backup(file: bytes) -> UnverifiedBackup:
    """Read the form of a file; opens nothing.

    Raises:
        BackupError: Not a backup as :func:`write_backup` makes it.
    """
    if len(file) > MAX_BACKUP_SIZE:
        raise BackupError(f"a backup has at most {MAX_BACKUP_SIZE:,} bytes, not {len(file):,}")
    try:
        return _parse(file)
    except DerError as exc:
        raise BackupError(f"the file is not the backup of a native key provider: {exc}") from exc


def open_backup(file: bytes, password: memoryview) -> Backup:
    """Open a backup.

    Raises:
        BackupError: Not a backup, changed, or the password is wrong.
    """
    backup = parse_backup(file)
    mac = hmac.digest(_mac_key(password, backup.mac_salt, backup.mac_iterations), backup.content, "sha256")
    if not hmac.compare_digest(mac, backup.mac):
        raise BackupError("the password is wrong, or the backup was changed")
    kdks: list[Kdk] = []
    try:
        for shrouded in backup.untrusted_keys:
            kdks.append(_unshroud(shrouded, password))  # noqa: PERF401 - those before it are closed if one fails
    except BaseException:
        for kdk in kdks:
            kdk.close()
        raise
    return Backup(kdks[0].name.provider, backup.untrusted_keys[0].exported_at, tuple(kdks))


def _data(content: bytes) -> bytes:
    return encode(der.SEQUENCE, _DATA, encode(der.EXPLICIT_0, encode(der.OCTET_STRING, content)))


def _secret_bag(kdk: Kdk, password: memoryview, moment: bytes, random: Callable[[int], bytes]) -> bytes:
    salt, iv = random(SALT_SIZE), random(_IV_SIZE)
    scheme = encode(
        der.SEQUENCE,
        encode(
            der.SEQUENCE,
            _PBKDF2,
            encode(der.SEQUENCE, encode(der.OCTET_STRING, salt), encode_integer(ITERATIONS), _HMAC_SHA256),
        ),
        encode(der.SEQUENCE, _AES256_CBC, encode(der.OCTET_STRING, iv)),
    )
    with _encryption_key(password, salt, ITERATIONS) as key:
        encryptor = Cipher(AES256(key.view()), CBC(iv)).encryptor()
        # PrivateKeyInfo written straight into a secret page, padded as PKCS #7 says.
        with SecretKey.written_by(_PADDED_SIZE, lambda page: _write_key_info(page, kdk.key)) as plain:
            ciphertext = encryptor.update(plain.view()) + encryptor.finalize()
    shrouded = encode(der.SEQUENCE, encode(der.SEQUENCE, _PBES2, scheme), encode(der.OCTET_STRING, ciphertext))
    secret = encode(der.SEQUENCE, _SHROUDED_KEY_BAG, encode(der.EXPLICIT_0, encode(der.OCTET_STRING, shrouded)))
    name = f"{kdk.name.provider}/{kdk.name.version}".encode("utf-16-be")
    attributes = encode(
        der.SET,
        *(
            encode(der.SEQUENCE, kind, encode(der.SET, value))
            for kind, value in (
                (_SIGNING_TIME, encode(der.UTC_TIME, moment)),
                (_FRIENDLY_NAME, encode(der.BMP_STRING, name)),
                (_LOCAL_KEY_ID, encode(der.OCTET_STRING, kdk.name.key_id.bytes)),
            )
        ),
    )
    return encode(der.SEQUENCE, _SECRET_BAG, encode(der.EXPLICIT_0, secret), attributes)


_KEY_INFO_PREFIX: Final = encode(der.SEQUENCE, _KEY_INFO_HEAD, encode(der.OCTET_STRING, bytes(KDK_SIZE)))[:-KDK_SIZE]
_KEY_INFO_SIZE: Final = len(_KEY_INFO_PREFIX) + KDK_SIZE
_PADDING: Final = _IV_SIZE - _KEY_INFO_SIZE % _IV_SIZE
_PADDED_SIZE: Final = _KEY_INFO_SIZE + _PADDING


def _write_key_info(page: memoryview, key: SecretKey) -> None:
    page[: len(_KEY_INFO_PREFIX)] = _KEY_INFO_PREFIX
    page[len(_KEY_INFO_PREFIX) : _KEY_INFO_SIZE] = key.view()
    page[_KEY_INFO_SIZE:] = bytes((_PADDING,)) * _PADDING


def _parse(file: bytes) -> UnverifiedBackup:
    outer = DerReader(file)
    pfx = outer.inner(der.SEQUENCE)
    outer.finish()
    pfx.expect(encode_integer(3), "version 3")
    content = _parse_data(pfx)
    mac_data = pfx.inner(der.SEQUENCE)
    pfx.finish()
    digest_info = mac_data.inner(der.SEQUENCE)
    digest_info.expect(_SHA256, "a MAC with SHA-256")
    mac = digest_info.octets(least=32, most=32)
    digest_info.finish()
    mac_salt = mac_data.octets(least=16, most=64)
    mac_iterations = mac_data.integer(least=ITERATIONS, most=MAX_ITERATIONS)
    mac_data.finish()
    return UnverifiedBackup(_parse_keys(content), content, mac, mac_salt, mac_iterations)


def _parse_data(reader: DerReader) -> bytes:
    info = reader.inner(der.SEQUENCE)
    info.expect(_DATA, "data")
    explicit = info.inner(der.EXPLICIT_0)
    info.finish()
    content = explicit.value(der.OCTET_STRING)
    explicit.finish()
    return content


def _parse_keys(content: bytes) -> tuple[_Shrouded, ...]:
    outer = DerReader(content)
    safes = outer.inner(der.SEQUENCE)
    outer.finish()
    bags_outer = DerReader(_parse_data(safes))
    safes.finish()
    bags = bags_outer.inner(der.SEQUENCE)
    bags_outer.finish()
    keys: list[_Shrouded] = []
    while not bags.at_end:
        keys.append(_parse_bag(bags.inner(der.SEQUENCE)))
    versions = [key.name.version for key in keys]
    if not 1 <= len(keys) <= MAX_KEYS or versions != sorted(set(versions)):
        raise DerError(f"expected 1 to {MAX_KEYS} keys, each version once and in order")
    if len({(key.name.provider, key.exported_at) for key in keys}) != 1:
        raise DerError("expected keys of one provider, exported at one time")
    return tuple(keys)


def _parse_bag(bag: DerReader) -> _Shrouded:
    bag.expect(_SECRET_BAG, "a secret bag")
    explicit = bag.inner(der.EXPLICIT_0)
    secret = explicit.inner(der.SEQUENCE)
    explicit.finish()
    secret.expect(_SHROUDED_KEY_BAG, "a shrouded key")
    value = secret.inner(der.EXPLICIT_0)
    secret.finish()
    shrouded_outer = DerReader(value.value(der.OCTET_STRING))
    value.finish()
    shrouded = shrouded_outer.inner(der.SEQUENCE)
    shrouded_outer.finish()
    salt, iterations, iv = _parse_scheme(shrouded.inner(der.SEQUENCE))
    ciphertext = shrouded.octets(least=_PADDED_SIZE, most=_PADDED_SIZE)
    shrouded.finish()
    exported_at, name = _parse_attributes(bag.inner(der.SET))
    bag.finish()
    return _Shrouded(name, exported_at, salt, iterations, iv, ciphertext)


def _parse_scheme(algorithm: DerReader) -> tuple[bytes, int, bytes]:
    algorithm.expect(_PBES2, "PBES2")
    scheme = algorithm.inner(der.SEQUENCE)
    algorithm.finish()
    derivation = scheme.inner(der.SEQUENCE)
    derivation.expect(_PBKDF2, "PBKDF2")
    parameters = derivation.inner(der.SEQUENCE)
    derivation.finish()
    salt = parameters.octets(least=16, most=64)
    iterations = parameters.integer(least=ITERATIONS, most=MAX_ITERATIONS)
    parameters.expect(_HMAC_SHA256, "HMAC-SHA-256")
    parameters.finish()
    cipher = scheme.inner(der.SEQUENCE)
    scheme.finish()
    cipher.expect(_AES256_CBC, "AES-256-CBC")
    iv = cipher.octets(least=_IV_SIZE, most=_IV_SIZE)
    cipher.finish()
    return salt, iterations, iv


def _parse_attributes(attributes: DerReader) -> tuple[datetime.datetime, KdkName]:
    moment = _parse_attribute(attributes, _SIGNING_TIME, "the time of export").value(der.UTC_TIME)
    friendly = _parse_attribute(attributes, _FRIENDLY_NAME, "a friendly name").value(der.BMP_STRING)
    key_id = _parse_attribute(attributes, _LOCAL_KEY_ID, "a key id").octets(least=16, most=16)
    attributes.finish()
    try:
        text = moment.decode("ascii")
        exported_at = datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)
        match = _NAME.fullmatch(friendly.decode("utf-16-be"))
    except ValueError as exc:
        raise DerError("a time or name is malformed") from exc
    if match is None or exported_at.year >= _TIME_ENDS or exported_at.strftime(_TIME) != text:
        raise DerError("a name is not PROVIDER/VERSION, or a time is malformed")
    if int(match[2]) > MAX_VERSION:
        raise DerError(f"expected a version up to {MAX_VERSION}")
    return exported_at, KdkName(match[1], uuid.UUID(bytes=key_id), int(match[2]))


def _parse_attribute(attributes: DerReader, kind: bytes, what: str) -> DerReader:
    attribute = attributes.inner(der.SEQUENCE)
    attribute.expect(kind, what)
    values = attribute.inner(der.SET)
    attribute.finish()
    return values


def _unshroud(shrouded: _Shrouded, password: memoryview) -> Kdk:
    with _encryption_key(password, shrouded.salt, shrouded.iterations) as key:
        decryptor = Cipher(AES256(key.view()), CBC(shrouded.iv)).decryptor()
        # update_into wants room for another block, whether or not it needs it.
        with SecretKey.written_by(
            _PADDED_SIZE + _IV_SIZE, lambda page: decryptor.update_into(shrouded.ciphertext, page)
        ) as plain:
            view = plain.view()[:_PADDED_SIZE]
            head = bytes(view[: len(_KEY_INFO_PREFIX)])
            if head != _KEY_INFO_PREFIX or bytes(view[_KEY_INFO_SIZE:]) != bytes((_PADDING,)) * _PADDING:
                raise BackupError(f"version {shrouded.name.version} in the backup does not hold an AES-256 key")

            def write(page: memoryview) -> None:
                page[:] = view[len(_KEY_INFO_PREFIX) : _KEY_INFO_SIZE]

            return Kdk(shrouded.name, SecretKey.written_by(KDK_SIZE, write))


def _encryption_key(password: memoryview, salt: bytes, iterations: int) -> SecretKey:
    kdf = PBKDF2HMAC(SHA256(), 32, salt, iterations)
    return SecretKey.written_by(32, lambda page: kdf.derive_into(password, page))


def _mac_key(password: memoryview, salt: bytes, iterations: int) -> bytes:
    """RFC 7292, B.2, for one block of SHA-256: the whole key of an HMAC-SHA-256."""
    encoded = _text(password).encode("utf-16-be") + b"\0\0"
    block = hashlib.sha256(bytes((_MAC_ID,)) * _BLOCK_SIZE + _filled(salt) + _filled(encoded)).digest()
    for _ in range(iterations - 1):
        block = hashlib.sha256(block).digest()
    return block


def _filled(text: bytes) -> bytes:
    size = -(-len(text) // _BLOCK_SIZE) * _BLOCK_SIZE
    return (text * (size // len(text) + 1))[:size]


def _text(password: memoryview) -> str:
    try:
        return bytes(password).decode()
    except UnicodeDecodeError as exc:
        raise BackupError("a password is text in UTF-8") from exc
