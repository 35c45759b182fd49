"""Appraisal of the kernel's list of measured files."""

import datetime
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation.model import BootIdentity, PcrBank
from attestation.verifier.ima import (
    MAX_FAILURES,
    ImaAppraisal,
    ImaPrefix,
    ImaReason,
    ImaRejected,
    ImaState,
    appraise_ima,
    boot_aggregate,
    find_prefix,
)
from attestation.verifier.ima_policy import ImaPolicy, ImaRules, PathPattern, PcrExtension, load_signing_key
from attestation.wire.ima_log import ImaTemplate, iter_ima_log
from tests.ima_list import AGGREGATE, PCRS, List

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "ovmf"
BOOT = BootIdentity(7, 0)
KERNEL_HASHES = {"sha1": 2, "sha256": 4, "sha384": 5, "sha512": 6}


def sha(data: bytes, name: str = "sha256") -> str:
    """A digest as policies write it."""
    return f"{name}:{hashlib.new(name, data).hexdigest()}"


def rules(**fields: Any) -> ImaRules:
    """A policy as an administrator writes it."""
    return ImaRules(ImaPolicy.model_validate_json(json.dumps(fields)))


def appraise(
    measured: List, judged_by: ImaRules, *, boot_pcrs: Mapping[int, bytes] = PCRS, **changes: Any
) -> ImaAppraisal:
    """Judge a kernel's list against its own PCR 10, but for ``changes``."""
    arguments: dict[str, Any] = {
        "rules": judged_by,
        "bank": PcrBank.SHA256,
        "quoted_pcr10": measured.pcr10,
        "boot": BOOT,
        "boot_pcrs": boot_pcrs,
    }
    log = changes.pop("log", measured.data)
    return appraise_ima(log, **{**arguments, **changes})


def reasons(appraisal: ImaAppraisal) -> list[tuple[ImaReason, int | None, str]]:
    """What failed, where."""
    return [(failure.reason, failure.number, failure.path) for failure in appraisal.failures]


DASH = b"dash 0.5.12"
ALLOW_DASH = rules(allowed={"/usr/bin/dash": [sha(b"dash 0.5.11"), sha(DASH)]})


@cache
def signing_key(kind: str, number: int = 0) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """A vendor's key."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1() if kind == "p256" else ec.SECP384R1())


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """Its public half."""
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()


def key_id(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The kernel's identifier, computed another way than the product does: SHA-1 over the key bits."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        bits = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    else:
        bits = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return hashlib.sha1(bits, usedforsecurity=False).digest()[-4:]


def sign(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, content: bytes, hash_name: str = "sha256") -> bytes:
    """What evmctl puts beside a file."""
    algorithm = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[hash_name]  # noqa: S303 - to be refused
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(content, padding.PKCS1v15(), algorithm)
    else:
        signature = key.sign(content, ec.ECDSA(algorithm))
    return b"\3\2" + bytes([KERNEL_HASHES[hash_name]]) + key_id(key) + struct.pack(">H", len(signature)) + signature


def test_a_list_of_allowed_files_is_trusted() -> None:
    """Everything proven and allowed: trusted, with a state to continue from."""
    measured = List().file("/usr/bin/dash", DASH)
    appraisal = appraise(measured, ALLOW_DASH)
    assert appraisal.trusted
    assert appraisal.complete
    assert appraisal.prefix == ImaPrefix(2, measured.pcr10, 0)
    assert appraisal.state == ImaState(BOOT, PcrBank.SHA256, ALLOW_DASH.digest, 2, measured.pcr10)


def test_what_was_measured_after_the_quote_is_counted_and_not_believed() -> None:
    """The list grows between quote and reading: entries after the proven prefix neither help nor harm."""
    measured = List().file("/usr/bin/dash", DASH)
    quoted = measured.pcr10
    measured.file("/tmp/evil", b"evil").file("/usr/bin/dash", DASH)  # noqa: S108 - a name in a list
    appraisal = appraise(measured, ALLOW_DASH, quoted_pcr10=quoted)
    assert appraisal.trusted
    assert appraisal.prefix == ImaPrefix(2, quoted, 2)


def test_a_malformed_tail_is_refused() -> None:
    """What follows the proven prefix must at least be a list."""
    measured = List()
    appraisal = appraise(measured, ALLOW_DASH, log=measured.data + b"\xff" * 50)
    assert reasons(appraisal) == [(ImaReason.IMA_LIST_MALFORMED, None, "")]
    assert appraisal.state is None


def test_malformed_fields_of_a_proven_entry_are_refused() -> None:
    """Fields that are not their template's make the list malformed, even where they replay."""
    measured = List().add("/x", b"", template="ima-ng")
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_LIST_MALFORMED, None, "")]


@pytest.mark.parametrize(
    "lie",
    [
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        lambda _: List().data,
        lambda _: b"",
        lambda data: data[len(List().data) :],
        lambda data: data.replace(b"/usr/bin/dash", b"/usr/bin/bash"),
        lambda _: List().file("/usr/bin/dash", DASH, b"sig").data,
    ],
    ids=["bit", "cut", "empty", "first missing", "renamed", "signature added"],
)
def test_a_list_that_does_not_replay_is_refused(lie: Any) -> None:
    """Changed, cut, renamed: PCR 10 tells."""
    measured = List().file("/usr/bin/dash", DASH)
    appraisal = appraise(measured, ALLOW_DASH, log=lie(measured.data))
    assert reasons(appraisal) == [(ImaReason.IMA_LIST_DOES_NOT_REPLAY, None, "")]
    assert appraisal.failures[0].expected == measured.pcr10.hex()
    assert (appraisal.prefix, appraisal.state, appraisal.complete) == (None, None, False)


def test_an_entry_of_another_pcr_is_refused() -> None:
    """A policy of the kernel that measures into another PCR hides from this appraisal: refused."""
    measured = List().add("/usr/bin/dash", hashlib.sha256(DASH).digest(), pcr=11)
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_OTHER_PCR, 1, "entry of another PCR")]


def test_no_list_is_refused() -> None:
    """Silence is not innocence."""
    assert reasons(appraise(List(), ALLOW_DASH, log=None)) == [(ImaReason.IMA_LIST_MISSING, None, "")]


def test_a_kernel_that_measures_nothing_is_refused() -> None:
    """An empty list explains an untouched PCR 10, and proves nothing."""
    appraisal = appraise(List(), ALLOW_DASH, log=b"", quoted_pcr10=bytes(32))
    assert reasons(appraisal) == [(ImaReason.IMA_BOOT_AGGREGATE, None, "")]
    assert appraisal.state is None


def test_the_boot_aggregate_must_be_that_of_the_quoted_pcrs() -> None:
    """A list taken in another boot names other PCRs 0 to 9."""
    other = {**PCRS, 4: b"\x99" * 32}
    appraisal = appraise(List(), ALLOW_DASH, boot_pcrs=other)
    assert reasons(appraisal) == [(ImaReason.IMA_BOOT_AGGREGATE, 0, "boot_aggregate")]
    assert appraisal.failures[0].expected == f"sha256:{hashlib.sha256(b''.join(other.values())).hexdigest()}"
    assert appraisal.failures[0].seen == f"sha256:{AGGREGATE.hex()}"


def test_without_all_ten_pcrs_there_is_no_boot_aggregate_to_believe() -> None:
    """A missing PCR fails closed, and says so."""
    nine = {pcr: PCRS[pcr] for pcr in range(9)}
    assert boot_aggregate(nine, PcrBank.SHA256) is None
    appraisal = appraise(List(), ALLOW_DASH, boot_pcrs=nine)
    assert reasons(appraisal) == [(ImaReason.IMA_BOOT_AGGREGATE, 0, "boot_aggregate")]
    assert "PCRs 0 to 9" in appraisal.failures[0].expected


def test_the_list_begins_with_the_boot_aggregate() -> None:
    """A list whose first entry is something else is refused, allowed file or not."""
    measured = List()
    measured.data, measured.pcr10 = b"", bytes(32)
    measured.file("/usr/bin/dash", DASH)
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_BOOT_AGGREGATE, 0, "/usr/bin/dash")]


def test_what_is_remembered_as_allowed_is_still_held_against_every_rule() -> None:
    """A file that was allowed before is refused as a first entry, as a violation, and with another SHA-1 beside it."""
    judged_by = rules(allowed={"/usr/bin/dash": [sha(DASH)]})
    assert appraise(List().file("/usr/bin/dash", DASH), judged_by).trusted
    assert len(judged_by.known[ImaTemplate.IMA_SIG]) == 1
    first = List()
    first.data, first.pcr10 = b"", bytes(32)
    first.file("/usr/bin/dash", DASH)
    assert reasons(appraise(first, judged_by)) == [(ImaReason.IMA_BOOT_AGGREGATE, 0, "/usr/bin/dash")]
    digest = hashlib.sha256(DASH).digest()
    changed = List().add("/usr/bin/dash", digest, violation=True)
    assert reasons(appraise(changed, judged_by)) == [(ImaReason.IMA_VIOLATION, 1, "/usr/bin/dash")]
    shown = List().add("/usr/bin/dash", digest, shown=b"\1" * 20)
    assert reasons(appraise(shown, judged_by)) == [(ImaReason.IMA_TEMPLATE_HASH, 1, "/usr/bin/dash")]
    buffer = List().add("/usr/bin/dash", digest, b"", template="ima-buf")
    assert reasons(appraise(buffer, judged_by)) == [(ImaReason.IMA_BUFFER_DIGEST, 1, "/usr/bin/dash")]
    assert appraise(List().file("/usr/bin/dash", DASH), judged_by).trusted


def test_only_what_is_allowed_for_itself_is_remembered() -> None:
    """Refused files and excluded paths take no room: a host cannot fill the memory with names."""
    judged_by = rules(excluded=["/home/**"])
    appraise(List().file("/home/x").file("/root/x").buffer(".ima", b""), judged_by)
    assert not any(judged_by.known.values())


def test_a_violation_is_no_boot_aggregate() -> None:
    """A first entry that says boot_aggregate and is a violation proves no PCR."""
    measured = List()
    measured.data, measured.pcr10 = b"", bytes(32)
    measured.add("boot_aggregate", AGGREGATE, violation=True)
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_BOOT_AGGREGATE, 0, "boot_aggregate")]


def test_a_kernel_started_by_kexec_is_refused_unless_allowed() -> None:
    """A second boot aggregate means a kernel that the firmware's log does not describe."""
    measured = List().add("boot_aggregate", AGGREGATE)
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_KEXEC, 1, "boot_aggregate")]
    assert appraise(measured, rules(kexec_allowed=True)).trusted
    wrong = List().add("boot_aggregate", bytes(32))
    assert reasons(appraise(wrong, rules(kexec_allowed=True))) == [(ImaReason.IMA_BOOT_AGGREGATE, 1, "boot_aggregate")]


def test_each_file_that_is_not_allowed_is_named() -> None:
    """Path, number, what was expected and what was seen, for each."""
    measured = List().file("/usr/bin/dash", b"patched").file("/usr/bin/dash", DASH).file("/root/x", b"x")
    appraisal = appraise(measured, ALLOW_DASH)
    assert reasons(appraisal) == [
        (ImaReason.IMA_DIGEST_NOT_ALLOWED, 1, "/usr/bin/dash"),
        (ImaReason.IMA_FILE_NOT_ALLOWED, 3, "/root/x"),
    ]
    assert appraisal.failures[0].expected == ", ".join(sorted((sha(DASH), sha(b"dash 0.5.11"))))
    assert appraisal.failures[0].seen == sha(b"patched")
    assert appraisal.complete
    assert appraisal.state is None


def test_failures_are_capped() -> None:
    """A host with ten thousand foreign files gets a hundred answers, and the expectation stays short."""
    measured = List()
    for number in range(MAX_FAILURES + 10):
        measured.file(f"/x/{number}")
    appraisal = appraise(measured, ALLOW_DASH)
    assert len(appraisal.failures) == MAX_FAILURES
    assert not appraisal.complete
    many = rules(allowed={"/x": [sha(bytes([number])) for number in range(20)]})
    assert appraise(List().file("/x"), many).failures[0].expected.endswith(" and 16 more")


def test_names_are_shown_without_control_characters() -> None:
    """What a host calls its files cannot write to an administrator's terminal."""
    measured = List().file("/x\x1b[2J\n\xff" + "y" * 2000)
    path = appraise(measured, ALLOW_DASH).failures[0].path
    assert path.startswith("/x\\u001b[2J\\u000a\\xff")
    assert path.isprintable()
    assert len(path) < 1100


def test_an_entry_whose_shown_hash_is_not_its_own_is_refused() -> None:
    """The list's SHA-1 column must be right too: a list that lies anywhere is not believed."""
    measured = List().add("/usr/bin/dash", hashlib.sha256(DASH).digest(), shown=b"\1" * 20)
    assert reasons(appraise(measured, ALLOW_DASH)) == [(ImaReason.IMA_TEMPLATE_HASH, 1, "/usr/bin/dash")]


def test_a_violation_is_refused_unless_its_path_is_allowed() -> None:
    """A file that was written while it was measured is refused, even with an allowed digest or an excluded path."""
    measured = List().add("/var/log/journal", b"", violation=True)
    strict = rules(excluded=["/var/**"], allowed={"/var/log/journal": [sha(b"")]})
    assert reasons(appraise(measured, strict)) == [(ImaReason.IMA_VIOLATION, 1, "/var/log/journal")]
    assert appraise(measured, rules(violations_allowed=["/var/log/*"])).trusted


def test_a_violation_that_is_shown_and_was_not_extended_does_not_replay() -> None:
    """Zeroing an entry's hash to pass it off as an allowed violation breaks the replay."""
    measured = List().file("/var/log/journal", b"evil")
    quoted = measured.pcr10
    forged = List().add("/var/log/journal", hashlib.sha256(b"evil").digest(), violation=True)
    appraisal = appraise(forged, rules(violations_allowed=["/**"]), quoted_pcr10=quoted)
    assert reasons(appraisal) == [(ImaReason.IMA_LIST_DOES_NOT_REPLAY, None, "")]


def test_excluded_paths_are_not_judged() -> None:
    """Whatever lies under an excluded path passes; a path that the allow-list names never does so."""
    measured = List().file("/home/a/x").file("/usr/bin/dash", b"patched")
    judged_by = rules(excluded=["/home/**", "/usr/**"], allowed={"/usr/bin/dash": [sha(DASH)]})
    assert reasons(appraise(measured, judged_by)) == [(ImaReason.IMA_DIGEST_NOT_ALLOWED, 2, "/usr/bin/dash")]


def test_an_exclusion_matches_no_relative_name() -> None:
    """A file without a path that the kernel could name, such as one in memory, is under no pattern."""
    measured = List().file("memfd:x").file("boot_aggregat")
    appraisal = appraise(measured, rules(excluded=["/**"]))
    assert [failure.reason for failure in appraisal.failures] == [ImaReason.IMA_FILE_NOT_ALLOWED] * 2


@pytest.mark.parametrize("kind", ["rsa", "p256", "p384"])
def test_a_signed_file_is_allowed(kind: str) -> None:
    """A signature of the file's digest by a key of the policy allows the file at any path that is not named."""
    key = signing_key(kind)
    measured = List().file("/opt/a", b"a", sign(key, b"a")).file("/opt/b", b"b", sign(key, b"b"))
    assert appraise(measured, rules(signing_keys=[pem(key)])).trusted
    assert load_signing_key(pem(key))[0] == key_id(key)


def test_a_signature_does_not_make_up_for_a_named_digest() -> None:
    """An older signed version is still not one of the digests that the policy names."""
    key = signing_key("p256")
    measured = List().file("/usr/bin/dash", b"old", sign(key, b"old"))
    judged_by = rules(signing_keys=[pem(key)], allowed={"/usr/bin/dash": [sha(DASH)]})
    assert reasons(appraise(measured, judged_by)) == [(ImaReason.IMA_DIGEST_NOT_ALLOWED, 1, "/usr/bin/dash")]


BAD_SIGNATURES = {
    "of another file": lambda: sign(signing_key("p256"), b"b"),
    "with another hash": lambda: sign(signing_key("p256"), b"a", "sha384"),
    "SHA-1": lambda: sign(signing_key("rsa"), b"a", "sha1"),
    "garbage": lambda: b"\3\2\4" + key_id(signing_key("p256")) + b"\0\4SIGN",
    "other key, this id": lambda: b"\3\2\4" + key_id(signing_key("rsa")) + sign(signing_key("rsa", 1), b"a")[7:],
}


@pytest.mark.parametrize("name", BAD_SIGNATURES)
def test_a_signature_that_does_not_verify_is_refused(name: str) -> None:
    """A known key's identifier is not its signature."""
    keys = [pem(signing_key("p256")), pem(signing_key("rsa"))]
    appraisal = appraise(List().file("/opt/a", b"a", BAD_SIGNATURES[name]()), rules(signing_keys=keys))
    assert reasons(appraisal) == [(ImaReason.IMA_BAD_SIGNATURE, 1, "/opt/a")]


@pytest.mark.parametrize("signature", [b"", b"\1" + bytes(20), b"\5\2\4aaaa\0\1x", b"x"])
def test_what_is_no_signature_allows_nothing(signature: bytes) -> None:
    """Attributes of other kinds are as good as none."""
    appraisal = appraise(List().file("/opt/a", b"a", signature), rules(signing_keys=[pem(signing_key("p256"))]))
    assert reasons(appraisal) == [(ImaReason.IMA_FILE_NOT_ALLOWED, 1, "/opt/a")]


def test_a_foreign_signature_allows_nothing() -> None:
    """A key that the policy does not have is named, and not believed."""
    foreign = signing_key("p384")
    appraisal = appraise(List().file("/opt/a", b"a", sign(foreign, b"a")), ALLOW_DASH)
    assert reasons(appraisal) == [(ImaReason.IMA_FILE_NOT_ALLOWED, 1, "/opt/a")]
    assert key_id(foreign).hex() in appraisal.failures[0].seen


EVMCTL_KEY = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1lbydSLnDWwz81YD3iroSVP8bAmy
BF5ppIsV0hsNYMxQVVX4vaXW39cSlLMkuGpBYojEsyInfw8Um+u6vZYtog==
-----END PUBLIC KEY-----
"""
EVMCTL_SIGNATURE = bytes.fromhex(
    "0302046aeeec47004630440220224c536af2ea70eb79a3c73dc5e134549ea0ad5b8160b70f510c42055d276d6b"
    "02202f1b8e4b009afcf594ab95a2a119f462e4dc71ca92b075b53be1009e6a4e2932"
)


def test_a_signature_by_evmctl_is_believed() -> None:
    """What ima-evm-utils 1.4 put beside a file holding "hello" verifies, under the key identifier it computed."""
    measured = List().file("/opt/a", b"hello\n", EVMCTL_SIGNATURE)
    assert appraise(measured, rules(signing_keys=[EVMCTL_KEY])).trusted
    other = List().file("/opt/a", b"hello", EVMCTL_SIGNATURE)
    assert reasons(appraise(other, rules(signing_keys=[EVMCTL_KEY]))) == [(ImaReason.IMA_BAD_SIGNATURE, 1, "/opt/a")]


def test_a_certificates_own_identifier_counts() -> None:
    """The kernel finds keys of certificates by their subject key identifier."""
    key = signing_key("p256")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(days=1))
    identified = builder.add_extension(x509.SubjectKeyIdentifier(b"identifier"), critical=False)
    text = identified.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    assert load_signing_key(text)[0] == b"fier"
    bare = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    assert load_signing_key(bare)[0] == key_id(key)
    signature = sign(key, b"a")
    renamed = signature[:3] + b"fier" + signature[7:]
    assert appraise(List().file("/opt/a", b"a", renamed), rules(signing_keys=[text])).trusted


def test_buffers_are_allowed_by_name_and_digest() -> None:
    """A kexec's command line or a key in a keyring passes only as the policy says."""
    measured = List().buffer("kexec-cmdline", b"quiet").buffer(".ima", b"key")
    judged_by = rules(buffers={"kexec-cmdline": [sha(b"quiet")]}, any_buffer=[".ima"])
    assert appraise(measured, judged_by).trusted
    assert reasons(appraise(measured, rules(excluded=["/**"], allowed={".ima": [sha(b"key")]}))) == [
        (ImaReason.IMA_BUFFER_NOT_ALLOWED, 1, "kexec-cmdline"),
        (ImaReason.IMA_BUFFER_NOT_ALLOWED, 2, ".ima"),
    ]
    other = List().buffer("kexec-cmdline", b"init=/bin/sh")
    assert appraise(other, judged_by).failures[0].expected == sha(b"quiet")


@pytest.mark.parametrize("algorithm", ["sha256", "sm3"])
def test_a_buffers_digest_must_be_its_own(algorithm: str) -> None:
    """A buffer that is shown beside another's digest is refused, any content allowed or not."""
    allowed = hashlib.sha256(b"quiet").digest()
    measured = List().add("kexec-cmdline", allowed, b"init=/bin/sh", template="ima-buf", algorithm=algorithm)
    judged_by = rules(buffers={"kexec-cmdline": [sha(b"quiet")]}, any_buffer=["kexec-cmdline"])
    assert reasons(appraise(measured, judged_by)) == [(ImaReason.IMA_BUFFER_DIGEST, 1, "kexec-cmdline")]


def test_a_verity_digest_is_not_a_files_digest() -> None:
    """The two kinds of digest of templates of version 2 are told apart."""
    measured = List().add("/x", hashlib.sha256(b"x").digest(), template="ima-ngv2", algorithm="verity:sha256")
    assert appraise(measured, rules(allowed={"/x": ["verity:" + sha(b"x")]})).trusted
    appraisal = appraise(measured, rules(allowed={"/x": [sha(b"x")]}))
    assert reasons(appraisal) == [(ImaReason.IMA_DIGEST_NOT_ALLOWED, 1, "/x")]


def test_a_later_list_continues_where_the_last_ended() -> None:
    """The host sends only what is new; the proven value of PCR 10 carries over."""
    measured = List().file("/usr/bin/dash", DASH)
    first = appraise(measured, ALLOW_DASH)
    before = len(measured.data)
    measured.file("/usr/bin/dash", b"patched")
    later = appraise(measured, ALLOW_DASH, log=measured.data[before:], first_entry=2, previous=first.state)
    assert reasons(later) == [(ImaReason.IMA_DIGEST_NOT_ALLOWED, 2, "/usr/bin/dash")]
    assert later.state is None
    good = List().file("/usr/bin/dash", DASH).file("/usr/bin/dash", b"dash 0.5.11")
    continued = appraise(good, ALLOW_DASH, log=good.data[before:], first_entry=2, previous=first.state)
    assert continued.trusted
    assert continued.state is not None
    assert continued.state.count == 3


def test_nothing_new_is_a_list_too() -> None:
    """A host on which nothing ran since sends no entries, and stays trusted."""
    measured = List().file("/usr/bin/dash", DASH)
    state = appraise(measured, ALLOW_DASH).state
    again = appraise(measured, ALLOW_DASH, log=b"", first_entry=2, previous=state)
    assert (again.trusted, again.state) == (True, state)


OTHER_STATES: dict[str, dict[str, Any]] = {
    "reset": {"boot": BootIdentity(8, 0)},
    "restart": {"boot": BootIdentity(7, 1)},
    "bank": {"bank": PcrBank.SHA384},
    "policy": {"rules_digest": rules().digest},
    "skipped": {"count": 1},
    "unknown": {},
}


@pytest.mark.parametrize("name", OTHER_STATES)
def test_a_list_continues_only_the_same_boot_bank_and_policy(name: str) -> None:
    """After a reset, under a new policy, or where entries would be skipped, the whole list is asked for."""
    measured = List().file("/usr/bin/dash", DASH)
    state = appraise(measured, ALLOW_DASH).state
    assert state is not None
    before = len(measured.data)
    measured.file("/usr/bin/dash", DASH)
    previous = replace(state, **OTHER_STATES[name]) if OTHER_STATES[name] else None
    later = appraise(measured, ALLOW_DASH, log=measured.data[before:], first_entry=2, previous=previous)
    assert reasons(later) == [(ImaReason.IMA_LIST_NOT_CONTINUED, None, "")]
    assert "whole list" in later.failures[0].expected


def test_the_whole_list_is_always_welcome() -> None:
    """A host whose state is not known any more, or which rebooted, starts anew."""
    measured = List().file("/usr/bin/dash", DASH)
    state = appraise(measured, ALLOW_DASH).state
    assert appraise(measured, ALLOW_DASH, previous=state).trusted
    assert appraise(List(), ALLOW_DASH, previous=state, boot=BootIdentity(8, 0)).trusted


def test_a_list_never_gets_shorter_within_a_boot() -> None:
    """PCR 10 cannot go back without a reset: another machine answers."""
    state = appraise(List().file("/usr/bin/dash", DASH), ALLOW_DASH).state
    appraisal = appraise(List(), ALLOW_DASH, previous=state)
    assert reasons(appraisal) == [(ImaReason.IMA_LIST_WENT_BACK, None, "")]
    assert appraisal.prefix is not None
    assert appraisal.state is None


@pytest.mark.parametrize("extension", PcrExtension)
@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_each_way_of_extending_replays(extension: PcrExtension, bank: str) -> None:
    """The bank's own hash, or padded SHA-1 with either kind of violation, as the policy says and no other way."""
    measured = List(bank, extension).file("/x").add("/y", b"", violation=True).file("/z")
    for assumed in PcrExtension:
        if assumed is extension:
            found = find_prefix(iter_ima_log(measured.data), measured.pcr10, bank=PcrBank(bank), extension=assumed)
            assert found == ImaPrefix(4, measured.pcr10, 0)
        else:
            with pytest.raises(ImaRejected, match="IMA_LIST_DOES_NOT_REPLAY"):
                find_prefix(iter_ima_log(measured.data), measured.pcr10, bank=PcrBank(bank), extension=assumed)


def test_each_prefix_is_found() -> None:
    """Whichever entry the quote was taken after, exactly the entries up to it are proven."""
    measured = List()
    values = [measured.pcr10, *(measured.file(f"/{number}").pcr10 for number in range(20))]
    for length, value in zip(count(1), values, strict=False):
        prefix = find_prefix(iter_ima_log(measured.data), value, bank=PcrBank.SHA256)
        assert prefix == ImaPrefix(length, value, 21 - length)


HONEST = List().file("/usr/bin/dash", DASH).buffer(".ima", b"key")
LENIENT = rules(excluded=["/**"], any_buffer=[".ima"], violations_allowed=["/**"])


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(HONEST.data) * 8 - 1))
def test_no_bit_of_a_proven_list_may_change(bit: int) -> None:
    """Whichever bit a host flips, an answer comes, and under the most lenient policy it is no."""
    flipped = bytearray(HONEST.data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert appraise(HONEST, LENIENT).trusted
    assert not appraise(HONEST, LENIENT, log=bytes(flipped)).trusted


def test_a_violations_path_is_the_hosts_word() -> None:
    """A limit, told in the policy's description: the kernel extends FF..FF, whichever file it was."""
    measured = List().add("/usr/bin/sudo", b"", violation=True)
    judged_by = rules(violations_allowed=["/var/log/*"])
    assert not appraise(measured, judged_by).trusted
    renamed = List().add("/var/log/sudo", b"", violation=True)
    assert renamed.pcr10 == measured.pcr10
    assert "not cover a violation's path" in str(ImaPolicy.model_fields["violations_allowed"].description)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(min_value=0, max_value=2**64))
def test_any_list_gives_an_answer(data: bytes, first_entry: int) -> None:
    """Whatever a host sends, an appraisal comes back."""
    state = appraise(HONEST, LENIENT).state
    appraisal = appraise(HONEST, rules(), log=data, first_entry=first_entry, previous=state)
    assert not appraisal.trusted


def real(boot: str, bank: str = "sha256") -> tuple[bytes, dict[int, bytes]]:
    """A recorded boot: its list, and its PCRs."""
    directory = VECTORS / boot
    if not directory.is_dir():
        pytest.skip("the recorded boots are not here")
    lines = (directory / f"pcrs-{bank}.txt").read_text().split()
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in zip(lines[::2], lines[1::2], strict=True)}
    return (directory / "binary_runtime_measurements").read_bytes(), pcrs


@pytest.mark.parametrize("boot", sorted(path.parent.name for path in VECTORS.glob("*/binary_runtime_measurements")))
def test_real_lists_replay_and_name_their_boot(boot: str) -> None:
    """Each recorded boot's list explains its PCR 10, and its boot aggregate is that of its PCRs."""
    log, pcrs = real(boot)
    allowed = {"allowed": {}, "excluded": ["/**"]}
    appraisal = appraise_ima(
        log, rules=rules(**allowed), bank=PcrBank.SHA256, quoted_pcr10=pcrs[10], boot=BOOT, boot_pcrs=pcrs
    )
    assert appraisal.trusted, appraisal.failures
    assert appraisal.prefix is not None
    assert appraisal.prefix.tail == 0


def test_a_real_kernel_without_the_banks_hash_pads_sha1() -> None:
    """A kernel that could not load SHA-384 extended that bank with padded SHA-1; the policy has to say so."""
    log, pcrs = real("ovmf-nosb-direct-kernel-4banks", "sha384")
    padded = find_prefix(
        iter_ima_log(log), pcrs[10], bank=PcrBank.SHA384, extension=PcrExtension.PADDED_SHA1_VIOLATION_FULL
    )
    assert padded.count == 1
    with pytest.raises(ImaRejected):
        find_prefix(iter_ima_log(log), pcrs[10], bank=PcrBank.SHA384)


def test_another_real_boots_list_is_refused() -> None:
    """The list of one recorded boot under the quote of another."""
    log, _ = real("ovmf-nosb-uki-python")
    _, pcrs = real("ovmf-secureboot-uki-python")
    appraisal = appraise_ima(
        log, rules=rules(excluded=["/**"]), bank=PcrBank.SHA256, quoted_pcr10=pcrs[10], boot=BOOT, boot_pcrs=pcrs
    )
    assert reasons(appraisal) == [(ImaReason.IMA_LIST_DOES_NOT_REPLAY, None, "")]


PATTERNS = [
    ("/a", b"/a", True),
    ("/a", b"/a/b", False),
    ("/a", b"/b", False),
    ("/a", b"a", False),
    ("/a/*", b"/a/b", True),
    ("/a/*", b"/a/b/c", False),
    ("/a/*", b"/a", False),
    ("/a/**", b"/a/b", True),
    ("/a/**", b"/a/b/c/d", True),
    ("/a/**", b"/a", False),
    ("/a/**", b"/a/", False),
    ("/a/**", b"/ab/c", False),
    ("/a/**", b"x/a/b", False),
    ("/**", b"/x", True),
    ("/**", b"x", False),
    ("/**", b"", False),
    ("/**", b"/", False),
    ("/a/*.log", b"/a/x.log", True),
    ("/a/*.log", b"/a/.log", True),
    ("/a/*.log", b"/a/x.log.1", False),
    ("/a/*-*.so*", b"/a/lib-1.so.2", True),
    ("/a/*-*.so*", b"/a/lib1.so.2", False),
    ("/a/x*x", b"/a/x", False),
    ("/a/x*x", b"/a/xx", True),
    ("/*/b", b"/anything/b", True),
    ("/*/b/**", b"/a/b/c", True),
    ("/ä/*", "/ä/ö".encode(), True),
    ("/a.c", b"/abc", False),
    ("/a[bc]", b"/ab", False),
    ("/a?", b"/ab", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), PATTERNS)
def test_patterns_match_whole_paths(pattern: str, path: bytes, expected: bool) -> None:
    """A star stands for part of one name, a last double star for anything below; all else for itself."""
    assert PathPattern(pattern).matches(path) is expected


@pytest.mark.parametrize("pattern", ["a", "", "/", "//a", "/a//b", "/a/", "/a/../b", "/./a", "/**/a", "/a**", "a/**"])
def test_refuses_patterns_that_could_mean_something_else(pattern: str) -> None:
    """Relative ones, empty names, dots and double stars elsewhere are no patterns."""
    with pytest.raises(ValueError, match="pattern"):
        PathPattern(pattern)


def test_no_pattern_takes_long() -> None:
    """A name made to defeat a backtracking matcher costs nothing."""
    hostile = PathPattern("/" + "*a" * 100 + "*b")
    assert not any(hostile.matches(b"/" + b"a" * 4000) for _ in range(100))


@given(st.text(alphabet="ab*/", max_size=12), st.text(alphabet="ab/", max_size=16))
def test_patterns_agree_with_a_regular_expression(pattern: str, path: str) -> None:
    """On short input, where backtracking is harmless, a regular expression says the same."""
    try:
        compiled = PathPattern("/" + pattern)
    except ValueError:
        return
    text = "/" + pattern
    below = text.endswith("/**")
    expression = re.escape(text[:-2] if below else text).replace(r"\*", "[^/]*") + (".+" if below else "")
    assert compiled.matches(("/" + path).encode()) == bool(re.fullmatch(expression, "/" + path))


REFUSED_POLICIES: dict[str, dict[str, Any]] = {
    "unknown field": {"allow": {}},
    "unknown extension": {"extension": "sha1"},
    "short digest": {"allowed": {"/x": ["sha256:00"]}},
    "upper case": {"allowed": {"/x": ["sha256:" + "AA" * 32]}},
    "no digest": {"allowed": {"/x": []}},
    "MD5": {"allowed": {"/x": ["md5:" + "00" * 16]}},
    "SHA-1": {"allowed": {"/x": ["sha1:" + "00" * 20]}},
    "SHA-1 buffer": {"buffers": {"x": ["sha1:" + "00" * 20]}},
    "empty path": {"allowed": {"": [sha(b"")]}},
    "NUL": {"allowed": {"/x\0": [sha(b"")]}},
    "relative pattern": {"excluded": ["tmp/*"]},
    "pattern with a double star within": {"violations_allowed": ["/**/x"]},
    "no key": {"signing_keys": ["-----BEGIN PUBLIC KEY-----\n"]},
    "text for a flag": {"required": "yes"},
    "number for a flag": {"kexec_allowed": 1},
}


@pytest.mark.parametrize("name", REFUSED_POLICIES)
def test_refuses_policies_that_say_something_else(name: str) -> None:
    """Unknown fields, weak or malformed digests, loose patterns: a policy never means less than it says."""
    with pytest.raises(ValidationError):
        rules(**REFUSED_POLICIES[name])


def test_refuses_weak_signing_keys() -> None:
    """Short RSA keys and other kinds of keys sign nothing here."""
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    with pytest.raises(ValueError, match="2048 bits"):
        load_signing_key(pem(short))
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    with pytest.raises(ValueError, match="RSA, or ECDSA"):
        load_signing_key(other.public_bytes(serialization.Encoding.PEM, spki).decode())
    koblitz = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(ValueError, match="RSA, or ECDSA"):
        load_signing_key(pem(koblitz))


def test_sha1_digests_count_where_the_policy_says_so() -> None:
    """The oldest template has no other digests."""
    measured = List()
    digest, name = hashlib.sha1(b"x", usedforsecurity=False).digest(), b"/init"
    data = digest + name.ljust(256, b"\0")
    measured.data += struct.pack("<I20sI", 10, hashlib.sha1(data, usedforsecurity=False).digest(), 3) + b"ima"
    measured.data += digest + struct.pack("<I", len(name)) + name
    measured.pcr10 = hashlib.sha256(measured.pcr10 + hashlib.sha256(data).digest()).digest()
    assert appraise(measured, rules(sha1_allowed=True, allowed={"/init": [sha(b"x", "sha1")]})).trusted


def test_equal_policies_have_one_digest() -> None:
    """The order in which an administrator writes makes no difference; what is written does."""
    one = rules(excluded=["/a/*", "/b/*"], allowed={"/x": [sha(b"x")], "/y": [sha(b"y")]})
    other = rules(allowed={"/y": [sha(b"y")], "/x": [sha(b"x")]}, excluded=["/b/*", "/a/*"])
    assert one.digest == other.digest
    assert one.digest != rules(excluded=["/a/*", "/b/*"]).digest
