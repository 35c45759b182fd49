"""Merkle trees: known answers of Certificate Transparency, and every tree and proof against a second reading."""

import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyprovider.trusted.errors import ProofRejected
from keyprovider.trusted.merkle import (
    EMPTY_ROOT,
    Frontier,
    Node,
    cover,
    leaf_hash,
    plan_consistency,
    plan_inclusion,
    prove,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)

CT_LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
"""Leaves that the reference implementation of Certificate Transparency is tested with (merkle_tree_test)."""
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Its roots of the first 0 to 8 of them."""
CT_INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
"""Its audit paths, by (leaf, size)."""
CT_CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
"""Its consistency proofs, by (old size, new size)."""
SIZES = [*range(18), 31, 32, 33, 64, 100, 127]


def _entries(count: int) -> list[bytes]:
    return [f"entry {number}".encode() for number in range(count)]


def _mth(entries: Sequence[bytes]) -> bytes:
    """MTH as RFC 6962, 2.1 writes it."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = _split(len(entries))
    return hashlib.sha256(b"\x01" + _mth(entries[:k]) + _mth(entries[k:])).digest()


def _path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH as RFC 6962, 2.1.1 writes it."""
    if len(entries) == 1:
        return []
    k = _split(len(entries))
    if m < k:
        return [*_path(m, entries[:k]), _mth(entries[k:])]
    return [*_path(m - k, entries[k:]), _mth(entries[:k])]


def _subproof(m: int, entries: Sequence[bytes], is_known: bool) -> list[bytes]:
    """SUBPROOF as RFC 6962, 2.1.2 writes it."""
    if m == len(entries):
        return [] if is_known else [_mth(entries)]
    k = _split(len(entries))
    if m <= k:
        return [*_subproof(m, entries[:k], is_known), _mth(entries[k:])]
    return [*_subproof(m - k, entries[k:], False), _mth(entries[:k])]


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


class _Nodes(dict[Node, bytes]):
    """Every complete subtree of a log, as appending reports it."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        super().__init__()
        frontier = Frontier()
        for index, entry in enumerate(entries):
            hashes = [leaf_hash(entry), *frontier.append(leaf_hash(entry))]
            for level, node in enumerate(hashes):
                self[Node(level, index >> level)] = node

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Prove a leaf."""
        return prove(plan_inclusion(index, size), self)

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """Prove a prefix."""
        return prove(plan_consistency(old_size, new_size), self)


def test_trees_of_certificate_transparency() -> None:
    """The published roots of the first 0 to 8 leaves come out, the empty tree's among them (B-4)."""
    assert [tree_hash(CT_LEAVES[:size]).hex() for size in range(9)] == CT_ROOTS
    assert Frontier().root() == EMPTY_ROOT == bytes.fromhex(CT_ROOTS[0])


def test_proofs_of_certificate_transparency() -> None:
    """The published audit paths and consistency proofs come out, and are believed (B-4)."""
    nodes = _Nodes(CT_LEAVES)
    roots = [bytes.fromhex(root) for root in CT_ROOTS]
    for (index, size), expected in CT_INCLUSION.items():
        proof = nodes.inclusion(index, size)
        assert [each.hex() for each in proof] == expected
        verify_inclusion(leaf=leaf_hash(CT_LEAVES[index]), index=index, size=size, proof=proof, root=roots[size])
    for (old, new), expected in CT_CONSISTENCY.items():
        proof = nodes.consistency(old, new)
        assert [each.hex() for each in proof] == expected
        verify_consistency(old_size=old, old_root=roots[old], new_size=new, new_root=roots[new], proof=proof)


@pytest.mark.parametrize("size", SIZES)
def test_a_frontier_has_the_root_of_its_leaves(size: int) -> None:
    """Growing leaf by leaf, or going on from a stored frontier, gives the tree that RFC 6962 defines (B-4)."""
    entries, nodes = _entries(size), _Nodes(_entries(size))
    assert tree_hash(entries) == _mth(entries)
    resumed = Frontier(size, [nodes[node] for node in cover(0, size)])
    assert (resumed.size, resumed.root()) == (size, _mth(entries))
    resumed.append(leaf_hash(b"next"))
    assert resumed.root() == _mth([*entries, b"next"])


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_leaf_is_proven(size: int) -> None:
    """Each leaf's proof is the one of RFC 6962, and believed for that leaf, place, size and root only (B-4)."""
    entries, nodes = _entries(size), _Nodes(_entries(size))
    root = _mth(entries)
    for index in range(size):
        proof = nodes.inclusion(index, size)
        assert proof == _path(index, entries)
        good = {"leaf": leaf_hash(entries[index]), "index": index, "size": size, "proof": proof, "root": root}
        verify_inclusion(**good)  # type: ignore[arg-type]
        for change in (
            {"leaf": leaf_hash(b"other")},
            {"index": index ^ 1},
            {"index": size},
            {"root": bytes(32)},
            {"proof": [*proof, bytes(32)]},
            {"proof": proof[:-1] if proof else [b""]},
        ):
            with pytest.raises(ProofRejected):
                verify_inclusion(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("new", SIZES)
def test_every_prefix_is_proven(new: int) -> None:
    """Each older tree's proof is the one of RFC 6962, and believed for these two trees only (B-4)."""
    entries, nodes = _entries(new), _Nodes(_entries(new))
    for old in range(new + 1):
        proof = nodes.consistency(old, new)
        assert proof == (_subproof(old, entries, True) if old else [])
        good = {
            "old_size": old,
            "old_root": _mth(entries[:old]),
            "new_size": new,
            "new_root": _mth(entries),
            "proof": proof,
        }
        verify_consistency(**good)  # type: ignore[arg-type]
        changes: list[dict[str, object]] = [{"old_root": bytes(32)}, {"proof": [*proof, bytes(32)]}]
        if old:
            changes += [{"new_root": bytes(32)}, {"new_size": old - 1}]
        if proof:
            changes += [{"proof": proof[:-1]}, {"proof": []}, {"proof": [proof[0][:-1], *proof[1:]]}]
        for change in changes:
            with pytest.raises(ProofRejected):
                verify_consistency(**{**good, **change})  # type: ignore[arg-type]


def test_a_tree_of_a_million_leaves_is_proven_with_few_hashes() -> None:
    """Plans name O(log size) nodes, whatever the size (B-4)."""
    size = 1_000_003
    for index in (0, 1, 524_288, size - 1):
        plan = plan_inclusion(index, size)
        assert len(plan) <= 20
        assert sum(len(nodes) for nodes in plan) <= 40
    assert sum(len(nodes) for nodes in plan_consistency(999_999, size)) <= 40


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_what_is_not_there_is_not_proven(index: int, size: int) -> None:
    """Asking to prove a leaf past the end is a mistake of the caller."""
    with pytest.raises(ValueError, match="has no leaf"):
        plan_inclusion(index, size)
    with pytest.raises(ValueError, match="does not begin with"):
        plan_consistency(size + 1, size)
    with pytest.raises(ValueError, match="subtrees"):
        Frontier(3, [bytes(32)])


@given(st.data())
def test_no_other_history_is_believed(data: st.DataObject) -> None:
    """A tree in which any earlier entry was changed, removed or moved is consistent with none that was seen (B-4)."""
    old = data.draw(st.integers(1, 40))
    new = data.draw(st.integers(old, 48))
    seen, changed = _entries(new), _entries(new)
    at = data.draw(st.integers(0, old - 1))
    match data.draw(st.sampled_from(["edit", "remove", "swap"])):
        case "edit":
            changed[at] = b"forged"
        case "remove":
            changed = [*changed[:at], *changed[at + 1 :], b"one more"]
        case _:
            other = random.Random(at).randrange(new - 1) if new > 1 else 0  # noqa: S311 - test data
            other += other >= at
            if new > 1:
                changed[at], changed[other] = changed[other], changed[at]
            else:
                changed[at] = b"forged"
    for proof in (_Nodes(changed).consistency(old, new), _Nodes(seen).consistency(old, new)):
        with pytest.raises(ProofRejected):
            verify_consistency(
                old_size=old, old_root=_mth(seen[:old]), new_size=new, new_root=_mth(changed), proof=proof
            )


@given(
    sizes=st.tuples(st.integers(-1, 70), st.integers(-1, 70)),
    proof=st.lists(st.binary(min_size=31, max_size=33) | st.just(bytes(32)), max_size=9),
)
def test_random_proofs_are_refused_with_the_one_error(sizes: tuple[int, int], proof: list[bytes]) -> None:
    """Whatever is given as a proof, nothing but a refusal comes out of it (B-4)."""
    first, second = sizes
    with pytest.raises(ProofRejected):
        verify_inclusion(leaf=b"l" * 32, index=first, size=second, proof=proof, root=b"r" * 32)
    with pytest.raises(ProofRejected):
        verify_consistency(old_size=first, old_root=b"o" * 32, new_size=second, new_root=b"n" * 32, proof=proof)
