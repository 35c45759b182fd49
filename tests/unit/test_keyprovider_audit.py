"""Offline audit of exported release logs: each attack is found, from the command line too."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from attestation.model import HostId
from cli.audit import app
from cli.errors import BadInput
from cli.session import reset_session
from keyprovider.errors import StoreError
from keyprovider.trusted.audit import FindingKind, WitnessHead, audit, decode_header, encode_export
from keyprovider.trusted.errors import ExportMalformed, ProofRejected
from keyprovider.trusted.log import decode_entry, encode_entry
from keyprovider.trusted.merkle import (
    Frontier,
    Node,
    leaf_hash,
    plan_consistency,
    plan_inclusion,
    prove,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)
from keyprovider.trusted.tree_head import HEAD_TYPE, MAX_SIZE, TreeHead, sign_tree_head, verify_tree_head
from serving.jws import key_id, sign
from tests.release_records import release_record

NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {key_id(KEY.public_key()): KEY.public_key()}
VECTORS = Path(__file__).parents[2] / "docs" / "vectors" / "release-log.json"


def _head(entries: list[bytes], key: ec.EllipticCurvePrivateKey = KEY) -> str:
    return sign_tree_head(TreeHead(len(entries), tree_hash(entries), NOW), key)


@dataclass
class Case:
    """An export and what two hosts saw of the log as it grew."""

    entries: list[bytes] = field(
        default_factory=lambda: [encode_entry(release_record(f"token-{number}")) for number in range(20)]
    )
    head: str = ""
    witnesses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Sign what was there, at several sizes."""
        self.head = _head(self.entries)
        self.witnesses = [_head(self.entries[:size]) for size in (3, 8, 13, 19)]

    def lines(self) -> list[bytes]:
        """The export."""
        return list(encode_export(self.head, self.entries))


def _edit(case: Case) -> None:
    record = decode_entry(case.entries[9])
    case.entries[9] = encode_entry(replace(record, host_id=HostId("cd" * 32)))


def _edit_out_of_form(case: Case) -> None:
    case.entries[9] = case.entries[9].replace(b'":', b'": ', 1)


def _drop(case: Case) -> None:
    del case.entries[9]


def _swap(case: Case) -> None:
    case.entries[9], case.entries[10] = case.entries[10], case.entries[9]


def _insert(case: Case) -> None:
    case.entries.insert(9, encode_entry(release_record("never happened")))


def _repeat(case: Case) -> None:
    case.entries.insert(9, case.entries[9])


def _truncate(case: Case) -> None:
    del case.entries[9:]


def _append(case: Case) -> None:
    case.entries.append(encode_entry(release_record("never happened")))


def _sign_anew(attack: Callable[[Case], None]) -> Callable[[Case], None]:
    """The attacker has the log key: the export alone is flawless, and only witnesses can tell."""

    def attack_and_sign(case: Case) -> None:
        attack(case)
        case.head = _head(case.entries)

    attack_and_sign.__name__ = f"{attack.__name__}_signed_anew"
    return attack_and_sign


def _forge_the_head(case: Case) -> None:
    case.head = _head(case.entries, OTHER_KEY)


def _forge_a_witness(case: Case) -> None:
    case.witnesses.append(_head(case.entries[:5], OTHER_KEY))


def _change_a_head(case: Case) -> None:
    header, _, signature = case.head.split(".")
    case.head = f"{header}.{case.witnesses[0].split('.')[1]}.{signature}"


def _show_two_histories(case: Case) -> None:
    other = [*case.entries[:12], *(encode_entry(release_record(f"fork-{number}")) for number in range(8))]
    case.witnesses += [_head(other[:15]), _head(other)]


K = FindingKind
ATTACKS: list[tuple[Callable[[Case], None], set[FindingKind], int]] = [
    (_edit, {K.HISTORY_DIFFERS}, 8),
    (_edit_out_of_form, {K.ENTRY_MALFORMED, K.HISTORY_DIFFERS}, 8),
    (_drop, {K.HISTORY_DIFFERS, K.LOG_SHORTENED}, 8),
    (_swap, {K.HISTORY_DIFFERS}, 8),
    (_insert, {K.HISTORY_DIFFERS}, 8),
    (_repeat, {K.HISTORY_DIFFERS}, 8),
    (_truncate, {K.LOG_SHORTENED}, 8),
    (_append, {K.LOG_EXTENDED}, 20),
    (_sign_anew(_edit), {K.HISTORY_DIFFERS}, 8),
    (_sign_anew(_drop), {K.HISTORY_DIFFERS, K.LOG_FORKED}, 8),
    (_sign_anew(_swap), {K.HISTORY_DIFFERS}, 8),
    (_sign_anew(_insert), {K.HISTORY_DIFFERS}, 8),
    (_sign_anew(_truncate), {K.LOG_SHORTENED}, 9),
    (_forge_the_head, {K.HEAD_FORGED}, 19),
    (_forge_a_witness, {K.HEAD_FORGED}, 20),
    (_change_a_head, {K.HEAD_FORGED}, 19),
    (_show_two_histories, {K.HISTORY_DIFFERS, K.LOG_FORKED}, 13),
]


def _name(attack: object) -> str | None:
    name = getattr(attack, "__name__", None)
    return name.strip("_") if isinstance(name, str) else None


@pytest.mark.parametrize(("attack", "kinds", "intact"), ATTACKS, ids=_name)
def test_each_attack_is_found(attack: Callable[[Case], None], kinds: set[FindingKind], intact: int) -> None:
    """What was done is told, and how far the log is as it was signed (B-4)."""
    case = Case()
    attack(case)
    report = audit(case.lines(), [WitnessHead("kvm1", text) for text in case.witnesses], keys=KEYS)
    assert {finding.kind for finding in report.findings} == kinds
    assert report.intact_entries == intact


@pytest.mark.parametrize("size", [0, 1, 2, 20])
def test_a_log_as_it_was_is_intact(size: int) -> None:
    """Whatever its length, a log that all witnesses saw has no findings (B-4)."""
    entries = Case().entries[:size]
    heads = [WitnessHead("kvm1", _head(entries[:seen])) for seen in range(size + 1)]
    report = audit(encode_export(_head(entries), entries), heads, keys=KEYS)
    assert (report.findings, report.entries, report.intact_entries, report.heads) == ((), size, size, size + 2)


@given(st.data())
def test_any_other_list_of_entries_is_found(data: st.DataObject) -> None:
    """Whatever entries are left, in whatever order: only the very log passes, though it was signed anew (B-4)."""
    case = Case()
    kept = data.draw(st.lists(st.sampled_from(range(20)), max_size=24) | st.permutations(range(20)))
    forged = [case.entries[index] for index in kept]
    report = audit(encode_export(_head(forged), forged), [WitnessHead("kvm1", _head(case.entries))], keys=KEYS)
    assert bool(report.findings) == (kept[:20] != list(range(20)))


@given(st.binary(max_size=200) | st.sampled_from([b'{"reference":"\\ud800"}', b"[1]", b"null", b"1" * 5000]))
def test_random_entries_are_refused_with_the_one_error(content: bytes) -> None:
    """Whatever bytes stand for an entry, nothing but a refusal comes out of reading it (B-4)."""
    with pytest.raises(StoreError):
        decode_entry(content)


def test_an_entry_of_a_lone_surrogate_is_refused() -> None:
    """JSON can name characters that UTF-8 cannot write."""
    entry = encode_entry(release_record()).replace(b"token-0", b"t").replace(b'"one"', b'"\\ud800"')
    with pytest.raises(StoreError, match="malformed"):
        decode_entry(entry)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b'{"format":"garant/release-log/v2","tree_head":"x"}\n',
        b'{"format":"garant/release-log/v1","tree_head":1}\n',
        b'{"format":"garant/release-log/v1","tree_head":"x","more":1}\n',
        b"[" * 100_000,
    ],
)
def test_what_is_no_export_is_refused(line: bytes) -> None:
    """A file that does not begin as an export is not audited."""
    with pytest.raises(ExportMalformed):
        decode_header(line)


@pytest.mark.parametrize(
    "payload",
    [
        {"size": -1},
        {"size": True},
        {"size": 1.0},
        {"size": MAX_SIZE + 1},
        {"size": None},
        {"root": "AB" * 32},
        {"root": "ab" * 31},
        {"root": 7},
        {"timestamp": "now"},
        {"more": 1},
    ],
)
def test_a_head_that_says_something_else_is_refused(payload: dict[str, Any]) -> None:
    """A signature on a head of another form proves nothing (B-4)."""
    text = sign({"size": 1, "root": "ab" * 32, "timestamp": NOW, **payload}, key=KEY, typ=HEAD_TYPE)
    with pytest.raises(ProofRejected):
        verify_tree_head(text, keys=KEYS)


def test_a_document_of_another_type_is_no_head() -> None:
    """What the log key might sign for another purpose is not taken for a head (B-4)."""
    text = sign({"size": 1, "root": "ab" * 32, "timestamp": NOW}, key=KEY, typ="garant-grant+jws")
    with pytest.raises(ProofRejected, match="expected a signed document"):
        verify_tree_head(text, keys=KEYS)


@dataclass
class Files:
    """A case as files, and the command."""

    directory: Path

    def write(self, case: Case) -> None:
        """Write export, witnesses and public key."""
        (self.directory / "releases.log").write_bytes(b"".join(case.lines()))
        half = len(case.witnesses) // 2
        (self.directory / "kvm1.heads").write_text("\n".join(case.witnesses[:half]) + "\n")
        (self.directory / "kvm2.heads").write_text("\n".join(case.witnesses[half:]) + "\n")
        pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.directory / "log-key.pub.pem").write_bytes(pem)

    def verify(self, *options: str, log: str = "releases.log") -> int:
        """Run ``garant audit verify``; gives its exit code."""
        reset_session()
        arguments = ["verify", "--log-key", str(self.directory / "log-key.pub.pem")]
        for name in ("kvm1", "kvm2"):
            arguments += ["--witness", str(self.directory / f"{name}.heads")]
        return app([*arguments, *options, str(self.directory / log)], standalone_mode=False) or 0


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Files of a good case."""
    found = Files(tmp_path)
    found.write(Case())
    return found


def test_the_command_passes_a_good_log(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and how many heads said so (B-4)."""
    assert files.verify() == 0
    assert capsys.readouterr().out == "the log is intact: 20 entries, as 5 signed heads say\n"
    assert files.verify("--output", "json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "intact": True,
        "entries": 20,
        "heads": 5,
        "intact_entries": 20,
        "findings": [],
    }


@pytest.mark.parametrize(("attack", "kinds", "intact"), ATTACKS, ids=_name)
def test_the_command_finds_each_attack(
    files: Files,
    attack: Callable[[Case], None],
    kinds: set[FindingKind],
    intact: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1, each finding in a line with whose head shows it (B-4)."""
    case = Case()
    attack(case)
    files.write(case)
    assert files.verify() == 1
    told = capsys.readouterr().out
    assert all(kind.value in told for kind in kinds)
    assert f"the first {intact} are as signed" in told


@pytest.mark.parametrize("cut", [1, 2, 100, 800])
def test_a_file_that_was_cut_anywhere_is_noticed(files: Files, cut: int) -> None:
    """Losing the end of the file, a newline even, is a finding (B-4)."""
    path = files.directory / "releases.log"
    path.write_bytes(path.read_bytes()[:-cut])
    assert files.verify() == 1


def test_a_line_without_end_is_noticed(files: Files) -> None:
    """An entry larger than any is a finding, and is not read into memory as a whole (B-4)."""
    path = files.directory / "releases.log"
    path.write_bytes(path.read_bytes() + b"x" * 200_000)
    assert files.verify() == 1


def test_without_witnesses_the_command_says_what_that_is_worth(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """A history that was written anew passes where nobody saw the first; the command says so (B-4)."""
    case = Case()
    _sign_anew(_edit)(case)
    files.write(case)
    key, log = files.directory / "log-key.pub.pem", files.directory / "releases.log"
    assert app(["verify", "--log-key", str(key), str(log)], standalone_mode=False) in (0, None)
    assert "no witness was named" in capsys.readouterr().err
    assert files.verify() == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("releases.log", None, "cannot read"),
        ("releases.log", b"", "the first line"),
        ("releases.log", b"something else\n", "the first line"),
        ("kvm1.heads", None, "cannot read"),
        ("kvm1.heads", b"", "not a list of tree heads"),
        ("kvm1.heads", b"\xff\xfe", "not a list of tree heads"),
        ("kvm1.heads", b"no head\n", "not a list of tree heads"),
        ("log-key.pub.pem", None, "cannot read"),
        ("log-key.pub.pem", b"no key", "holds no public key"),
    ],
)
def test_what_cannot_be_checked_is_told_apart(files: Files, name: str, content: bytes | None, told: str) -> None:
    """A file that is missing or something else is no finding: the command could not check (exit code 2)."""
    path = files.directory / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BadInput, match=told):
        files.verify()


def test_published_vectors() -> None:
    """Entries, tree, proofs and heads of the published log come out again, and its audit passes (B-4, B-22)."""
    vectors = json.loads(VECTORS.read_text())
    entries = [text.encode() for text in vectors["entries"]]
    assert [encode_entry(decode_entry(entry)) for entry in entries] == entries
    assert [leaf_hash(entry).hex() for entry in entries] == vectors["leaf_hashes"]
    roots = [tree_hash(entries[:size]) for size in range(len(entries) + 1)]
    assert [root.hex() for root in roots] == vectors["roots"]
    frontier, nodes = Frontier(), dict[Node, bytes]()
    for index, entry in enumerate(entries):
        for level, each in enumerate((leaf_hash(entry), *frontier.append(leaf_hash(entry)))):
            nodes[Node(level, index >> level)] = each
    for case in vectors["inclusion_proofs"]:
        index, size, proof = case["index"], case["size"], [bytes.fromhex(each) for each in case["proof"]]
        assert prove(plan_inclusion(index, size), nodes) == proof
        verify_inclusion(leaf=leaf_hash(entries[index]), index=index, size=size, proof=proof, root=roots[size])
    for case in vectors["consistency_proofs"]:
        old, new, proof = case["old_size"], case["new_size"], [bytes.fromhex(each) for each in case["proof"]]
        assert prove(plan_consistency(old, new), nodes) == proof
        verify_consistency(old_size=old, old_root=roots[old], new_size=new, new_root=roots[new], proof=proof)
    key = load_pem_public_key(vectors["log_key"].encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    heads = [WitnessHead("vectors", text) for text in vectors["tree_heads"]]
    export = [line.encode() + b"\n" for line in vectors["export"]]
    report = audit(export, heads, keys={key_id(key): key})
    assert (report.findings, report.entries, report.heads) == ((), len(entries), len(heads) + 1)
    assert list(itertools.islice(export, 1, None)) == [entry + b"\n" for entry in entries]
