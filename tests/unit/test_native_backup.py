"""Backups of the native provider: PKCS #12 that other tools read, and that nothing changed opens."""

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from hypothesis import given, settings
from hypothesis import strategies as st

from keyprovider.errors import BackupError
from keyprovider.keymaterial import SecretKey
from keyprovider.native import der
from keyprovider.native.backup import (
    ITERATIONS,
    check_password,
    open_backup,
    parse_backup,
    write_backup,
)
from keyprovider.native.der import DerError, DerReader
from keyprovider.native.kdk import Kdk, KdkName

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "native-key.json").read_text())
PASSWORD = memoryview(b"correct horse battery")
PUBLISHED = bytes.fromhex(VECTORS["backup"]["pkcs12"])
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def make_kdks(*versions: int) -> list[Kdk]:
    """New KDKs of one provider."""
    return [Kdk(KdkName("native", uuid.uuid4(), version), SecretKey.random()) for version in versions]


def make_backup(kdks: Sequence[Kdk], password: memoryview = PASSWORD) -> bytes:
    """A backup of them."""
    return write_backup(kdks, password, exported_at=NOW, random=os.urandom)


@pytest.fixture(scope="module")
def kdks() -> list[Kdk]:
    """Two versions of a KDK."""
    return make_kdks(1, 7)


@pytest.fixture(scope="module")
def backup(kdks: list[Kdk]) -> bytes:
    """Their backup."""
    return make_backup(kdks)


def test_round_trip(kdks: list[Kdk], backup: bytes) -> None:
    """What is read back is what was written: keys, ids, versions, provider and time."""
    opened = open_backup(backup, PASSWORD)
    assert (opened.provider, opened.exported_at) == ("native", NOW)
    assert [kdk.name for kdk in opened.kdks] == [kdk.name for kdk in kdks]
    assert all(one.key.matches(other.key) for one, other in zip(opened.kdks, kdks, strict=True))
    opened.close()


def test_published_backup_opens() -> None:
    """The published backup gives the published keys."""
    opened = open_backup(PUBLISHED, memoryview(VECTORS["backup"]["password"].encode()))
    assert opened.exported_at.isoformat() == VECTORS["backup"]["exported_at"].replace("Z", "+00:00")
    for kdk, case in zip(opened.kdks, VECTORS["cases"], strict=True):
        assert kdk.name == KdkName(case["provider"], uuid.UUID(case["key_id"]), case["version"])
        with SecretKey.adopt(bytes.fromhex(case["kdk"])) as expected:
            assert kdk.key.matches(expected)


def test_key_is_not_in_the_file(kdks: list[Kdk], backup: bytes) -> None:
    """No KDK lies in the file in plain, and both derivations take 600,000 iterations."""
    assert not any(bytes(kdk.key.view()) in backup for kdk in kdks)
    parsed = parse_backup(backup)
    assert parsed.mac_iterations == ITERATIONS == 600_000
    assert {key.iterations for key in parsed.untrusted_keys} == {600_000}


@pytest.mark.parametrize("password", [b"", b"correct horse batterz", b"correct horse battery ", b"\xff"])
def test_wrong_password_opens_nothing(backup: bytes, password: bytes) -> None:
    """Another password, or none, opens nothing."""
    with pytest.raises(BackupError):
        open_backup(backup, memoryview(password))


@pytest.mark.parametrize("password", ["", "short", "passwörter", "tab\tinside"])
def test_password_that_protects_nothing_is_refused(password: str) -> None:
    """An empty, short or non-ASCII password is refused; what is merely weak can be forced."""
    encoded = memoryview(password.encode())
    with pytest.raises(BackupError):
        check_password(encoded, allow_weak=False)
    if password in ("", "short"):
        check_password(encoded, allow_weak=True)
    else:
        with pytest.raises(BackupError):
            check_password(encoded, allow_weak=True)


def test_forced_empty_password_opens() -> None:
    """A backup that was forced to have no password opens with none."""
    file = make_backup(make_kdks(1), memoryview(b""))
    assert open_backup(file, memoryview(b"")).provider == "native"


def test_changed_bytes_are_refused(backup: bytes) -> None:
    """A byte changed anywhere is refused: by the form, or by the MAC."""
    for at in range(0, len(backup), 41):
        changed = bytearray(backup)
        changed[at] ^= 1
        with pytest.raises(BackupError):
            open_backup(bytes(changed), PASSWORD)


def test_truncated_or_prolonged_files_are_refused(backup: bytes) -> None:
    """A file that was cut anywhere, or to which something was added, is refused by its form alone."""
    for size in range(len(backup)):
        with pytest.raises(BackupError):
            parse_backup(backup[:size])
    with pytest.raises(BackupError):
        parse_backup(backup + b"\0")
    with pytest.raises(BackupError, match="at most"):
        parse_backup(bytes(1 << 17))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first key", "second key", "MAC"])
@pytest.mark.parametrize("count", [32_768, 599_999])
def test_too_few_iterations_are_refused(which: int, count: int) -> None:
    """A file with fewer iterations than ours, of any derivation, is refused before anything is derived."""
    encoded, other = der.encode_integer(ITERATIONS), der.encode_integer(count)
    parts = PUBLISHED.split(encoded)
    assert len(parts) == 4
    changed = encoded.join(parts[: which + 1]) + other + encoded.join(parts[which + 1 :])
    with pytest.raises(BackupError, match="expected a number from 600,000"):
        parse_backup(changed)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_nothing_but_one_error_leaves_the_reader(data: st.DataObject) -> None:
    """Whatever bytes come, reading them gives a form or BackupError."""
    if data.draw(st.booleans()):
        file = bytearray(PUBLISHED)
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, len(file) - 1))
            file[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        content = bytes(file)
    else:
        content = data.draw(st.binary(max_size=200))
    with contextlib.suppress(BackupError):
        parse_backup(content)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=40))
def test_nothing_but_one_error_leaves_der(content: bytes) -> None:
    """Whatever bytes come, a DER value is read, or DerError raised; a number that is read is written the same."""
    try:
        number = DerReader(content).integer(least=0, most=1 << 64)
    except DerError:
        return
    assert content.startswith(der.encode_integer(number))


@pytest.mark.parametrize(
    "content", ["0200", "02020001", "0281017f", "028001", "0201ff", "0209" + "01" * 9, "30", "02050"[:4]]
)
def test_other_forms_of_a_number_are_refused(content: str) -> None:
    """Only the shortest form of a number is read, never a negative or endless one."""
    with pytest.raises(DerError):
        DerReader(bytes.fromhex(content)).integer(least=0, most=1 << 63)


def test_versions_and_providers_of_a_backup() -> None:
    """A backup holds each version once, of one provider, at least one."""
    one, other = make_kdks(1, 1)
    stranger = Kdk(KdkName("bronze", uuid.uuid4(), 2), SecretKey.random())
    for wrong in ([], [one, other], [one, stranger]):
        with pytest.raises(ValueError, match="one provider"):
            make_backup(wrong)
    with pytest.raises(ValueError, match="no encoding"):
        write_backup([one], PASSWORD, exported_at=NOW.replace(year=2050), random=os.urandom)


def test_openssl_reads_the_backup(backup: bytes, tmp_path: Path) -> None:
    """``openssl pkcs12`` checks the MAC and lists each key by its name and id; a wrong password it refuses."""
    file = tmp_path / "backup.p12"
    file.write_bytes(backup)

    def openssl(password: str) -> subprocess.CompletedProcess[str]:
        command = ["openssl", "pkcs12", "-info", "-nokeys", "-noout", "-in", str(file), "-passin", "stdin"]
        return subprocess.run(command, input=password, capture_output=True, text=True, check=False)

    good = openssl(bytes(PASSWORD).decode())
    assert good.returncode == 0, good.stderr
    assert "Iteration 600000" in good.stderr
    assert "friendlyName: native/1" in good.stdout
    assert "friendlyName: native/7" in good.stdout
    assert openssl("another password").returncode != 0


@pytest.mark.skipif(shutil.which("keytool") is None, reason="keytool is not installed")
def test_keytool_reads_the_same_keys(kdks: list[Kdk], backup: bytes, tmp_path: Path) -> None:
    """``keytool`` opens the backup and copies its keys into a file of its own, in which they are the same."""
    for name, content in (("backup.p12", backup), ("old", bytes(PASSWORD)), ("new", b"another password")):
        (tmp_path / name).write_bytes(content)
    command = ["keytool", "-importkeystore", "-noprompt", "-srckeystore", "backup.p12", "-srcstoretype", "PKCS12"]
    command += ["-srcstorepass:file", "old", "-destkeystore", "copy.p12", "-deststoretype", "PKCS12"]
    command += ["-deststorepass:file", "new"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 entries successfully imported" in done.stderr
    found = keys_of_keytool((tmp_path / "copy.p12").read_bytes(), b"another password")
    assert found == [bytes(kdk.key.view()) for kdk in kdks]


def keys_of_keytool(file: bytes, password: bytes) -> list[bytes]:
    """The secret keys in a file that keytool wrote: a reading of its own, which checks nothing."""
    pfx = DerReader(file).inner(der.SEQUENCE)
    pfx.value(der.INTEGER)

    def content_of(info: DerReader) -> DerReader:
        info.value(der.OBJECT_IDENTIFIER)
        return DerReader(info.inner(der.EXPLICIT_0).value(der.OCTET_STRING)).inner(der.SEQUENCE)

    bags = content_of(content_of(pfx.inner(der.SEQUENCE)).inner(der.SEQUENCE))
    keys = []
    while not bags.at_end:
        bag = bags.inner(der.SEQUENCE)
        bag.value(der.OBJECT_IDENTIFIER)
        secret = bag.inner(der.EXPLICIT_0).inner(der.SEQUENCE)
        secret.value(der.OBJECT_IDENTIFIER)
        shrouded = DerReader(secret.inner(der.EXPLICIT_0).value(der.OCTET_STRING)).inner(der.SEQUENCE)
        algorithm = shrouded.inner(der.SEQUENCE)
        algorithm.value(der.OBJECT_IDENTIFIER)
        scheme = algorithm.inner(der.SEQUENCE)
        derivation = scheme.inner(der.SEQUENCE)
        derivation.value(der.OBJECT_IDENTIFIER)
        parameters = derivation.inner(der.SEQUENCE)
        salt, count = parameters.value(der.OCTET_STRING), int.from_bytes(parameters.value(der.INTEGER), "big")
        cipher = scheme.inner(der.SEQUENCE)
        cipher.value(der.OBJECT_IDENTIFIER)
        key = PBKDF2HMAC(SHA256(), 32, salt, count).derive(password)
        decryptor = Cipher(AES256(key), CBC(cipher.value(der.OCTET_STRING))).decryptor()
        info = DerReader(decryptor.update(shrouded.value(der.OCTET_STRING))).inner(der.SEQUENCE)
        info.value(der.INTEGER)
        info.value(der.SEQUENCE)
        keys.append(info.value(der.OCTET_STRING))
    return keys
