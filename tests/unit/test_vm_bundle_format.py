"""Documents of a VM bundle: one form, and ``BundleError`` for everything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.errors import BundleError, BundleReason
from host_agent.vm.bundle_format import ComponentKey, Disk, Home, Manifest, encode, parse_home, parse_manifest

VM = "6f1c2a52-0c6b-4d4e-9d6e-2b1f3c4d5e6f"
KEY = ComponentKey(provider="p", key_reference="r", wrapped_kek=b"\xff\xfe\xfd", wrapped_dek=bytes(61))
MANIFEST = Manifest(vm_id=VM, generation=7, home_key=KEY)
HOME = Home(
    vm_id=VM,
    generation=7,
    name="wéb",
    cpus=2,
    memory_mib=512,
    disks=(Disk(name="root", file="disk-root.qcow2", key=KEY), Disk(name="data", file="disk-data.qcow2", key=None)),
    vtpm_key=KEY,
    kernel_path="/k",
    initrd_path="",
    kernel_command_line="quiet",
)


def test_documents_come_back_as_they_were() -> None:
    """Manifest and home are read as they were written."""
    assert parse_manifest(encode(MANIFEST)) == MANIFEST
    assert parse_home(encode(HOME)) == HOME


def test_manifest_in_clear_says_nothing_of_the_home() -> None:
    """What lies in clear names the VM's id and key, not its name, disks or vTPM."""
    assert set(json.loads(encode(MANIFEST))) == {"format", "version", "vm_id", "generation", "home_key"}


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("version", 0), ("format", "other")])
def test_unknown_version_is_refused_by_name(field: str, value: object) -> None:
    """A bundle of a format that this agent does not know is refused, and the message names what it is."""
    blob = json.dumps({**json.loads(encode(MANIFEST)), field: value, "new-field": 1}).encode()
    with pytest.raises(BundleError, match=f"{value}.*this agent reads") as refusal:
        parse_manifest(blob)
    assert refusal.value.reason is BundleReason.UNKNOWN_VERSION


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"generation": 7', b'"generation": 0'),
        (b'"generation": 7', b'"generation": "7"'),
        (b'"generation": 7', b'"generation": 7, "generation": 7'),
        (b'"generation": 7', b'"generation": 7, "extra": 1'),
        (b'"generation": 7', b'"generation":  7'),
        (b'"generation": 7', b'"generation": 7.0'),
        (b'"generation": 7', b'"generation": 99999999999999999999'),
        (VM.encode(), VM.upper().encode()),
        (VM.encode(), b"../../../etc"),
        (VM.encode(), VM.encode() + b"\\n"),
        (b'"r"', b'""'),
        (b'"r"', b'"\\ud800"'),
        (b'"__79"', b'"__79!"'),
        (b'"__79"', b'"' + b"A" * 688 + b'"'),
        (b"}\n", b"}"),
        (b"}\n", b"}\n{}"),
    ],
)
def test_changed_manifest_is_refused(old: bytes, new: bytes) -> None:
    """A manifest in any form but the one that is written is refused."""
    blob = encode(MANIFEST)
    assert old in blob
    with pytest.raises(BundleError) as refusal:
        parse_manifest(blob.replace(old, new))
    assert refusal.value.reason is BundleReason.MALFORMED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"disk-root.qcow2"', b'"../other/disk-root.qcow2"'),
        (b'"disk-root.qcow2"', b'"disk-data.qcow2"'),
        (b'"disk-root.qcow2"', b'"/dev/sda"'),
        (b'"root"', b'"data"'),
        (b'"/k"', b'""'),
        (b'"/k"', b'"k"'),
        (b'"cpus": 2', b'"cpus": 256'),
        (b'"memory_mib": 512', b'"memory_mib": true'),
    ],
)
def test_changed_home_is_refused(old: bytes, new: bytes) -> None:
    """A home that names files outside the bundle, or contradicts itself, is refused."""
    blob = encode(HOME)
    assert old in blob
    with pytest.raises(BundleError) as refusal:
        parse_home(blob.replace(old, new))
    assert refusal.value.reason is BundleReason.MALFORMED


@pytest.mark.parametrize("blob", [b"", b"{", b"[" * 100_000, b"null", b"\xff\xfe", b'{"format": 1}', b"\0" * 100])
def test_noise_is_refused(blob: bytes) -> None:
    """Empty, torn, deeply nested and binary files are refused like any other malformed document."""
    for parse in (parse_manifest, parse_home):
        with pytest.raises(BundleError) as refusal:
            parse(blob)
        assert refusal.value.reason is BundleReason.MALFORMED


def test_refusal_does_not_repeat_the_content() -> None:
    """A malformed home's content is not in the error: it came out of an encrypted file."""
    with pytest.raises(BundleError) as refusal:
        parse_home(encode(HOME).replace(b'"cpus": 2', b'"cpus": "my secret"'))
    assert "my secret" not in str(refusal.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(encode(HOME))), st.integers(0, 40))
def test_parsers_let_out_one_error_only(noise: bytes, at: int, cut: int) -> None:
    """Documents with a piece replaced by anything are refused with ``BundleError``, or are what was written."""
    for parse, document in ((parse_manifest, MANIFEST), (parse_home, HOME)):
        whole = encode(document)
        blob = whole[:at] + noise + whole[at + cut :]
        try:
            parsed = parse(blob)
        except BundleError:
            continue
        assert encode(parsed) == blob
