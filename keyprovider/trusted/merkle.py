"""Merkle trees over append-only logs: hashes, proofs and their verification (RFC 6962, 2.1; RFC 9162, 2.1).

A tree of ``size`` leaves is the list of the complete subtrees that cover it, largest first (its *frontier*); a complete
subtree, once there, never changes. So whoever keeps the hash of each complete subtree can prove anything about any
size from O(log size) hashes. What is needed for a proof is planned here as names of nodes (:class:`Node`), read by the
caller, and put together here.
Pure: no clock, randomness, I/O or logging.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from keyprovider.trusted.errors import ProofRejected

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""Hash of the tree with no leaf (RFC 6962, 2.1)."""


class Node(NamedTuple):
    """A complete subtree: the leaves from ``number`` · 2^``level`` on, 2^``level`` of them."""

    level: int
    """0 is a leaf."""
    number: int

    @property
    def last_leaf(self) -> int:
        """Index of the leaf that completes it."""
        return ((self.number + 1) << self.level) - 1


Plan = Sequence[Sequence[Node]]
"""A proof to be made: one hash for each element, which is that of adjacent subtrees, largest first."""


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry), 32 bytes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right), 32 bytes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Hash of the tree that adjacent complete subtrees make, largest first; that of the empty tree for none."""
    if not hashes:
        return EMPTY_ROOT
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded


def cover(start: int, stop: int) -> list[Node]:
    """The complete subtrees that cover the leaves from ``start`` up to ``stop``, largest first.

    ``start`` must be a multiple of the greatest power of two that is less than or equal to ``stop - start``, as it is
    for every subtree that RFC 6962 speaks of; for 0 this is the frontier of a tree of ``stop`` leaves.
    """
    nodes = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        nodes.append(Node(level, start >> level))
        start += 1 << level
    return nodes


class Frontier:
    """A tree that grows at its right edge: append in O(1) on average, root in O(log size)."""

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """Start with a tree of ``size`` leaves whose ``cover(0, size)`` has these hashes.

        Raises:
            ValueError: Another number of hashes than subtrees.
        """
        self._size = size
        self._hashes = list(hashes)
        if len(self._hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} subtrees, not {len(self._hashes)}")

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    def append(self, leaf: bytes) -> list[bytes]:
        """Append a leaf hash.

        Returns:
            Hashes of the subtrees above the leaf that it completes, smallest (level 1) first; often none.
        """
        completed, node, remaining = [], leaf, self._size
        while remaining & 1:
            node = node_hash(self._hashes.pop(), node)
            completed.append(node)
            remaining >>= 1
        self._hashes.append(node)
        self._size += 1
        return completed

    def root(self) -> bytes:
        """Hash of the tree, 32 bytes."""
        return fold(self._hashes)


def tree_hash(entries: Iterable[bytes]) -> bytes:
    """Hash of the tree over these entries, 32 bytes."""
    frontier = Frontier()
    for entry in entries:
        frontier.append(leaf_hash(entry))
    return frontier.root()


def plan_inclusion(index: int, size: int) -> Plan:
    """What proves that leaf ``index`` is in the tree of ``size`` leaves (RFC 6962, 2.1.1), leaf first.

    Raises:
        ValueError: No such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    return _path(index, index + 1, size)


def plan_consistency(old_size: int, new_size: int) -> Plan:
    """What proves that the tree of ``old_size`` leaves is the beginning of that of ``new_size`` (RFC 6962, 2.1.2).

    Nothing where one of them is empty or both are the same.

    Raises:
        ValueError: The old tree is the larger one.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {new_size} leaves does not begin with one of {old_size}")
    if old_size in (0, new_size):
        return []
    # The smallest subtree at the old right edge; the verifier has it already if it is the whole old tree.
    edge = cover(0, old_size)[-1]
    path = _path(edge.number << edge.level, old_size, new_size)
    return path if edge.number == 0 else [[edge], *path]


def _path(start: int, stop: int, size: int) -> list[list[Node]]:
    """Siblings on the way up from the complete subtree over ``start`` to ``stop``, lowest first."""
    siblings, low, high = [], 0, size
    while (low, high) != (start, stop):
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        if start < middle:
            siblings.append(cover(middle, high))
            high = middle
        else:
            siblings.append(cover(low, middle))
            low = middle
    return siblings[::-1]


def prove(plan: Plan, hashes: Mapping[Node, bytes]) -> list[bytes]:
    """Put a proof together from the hashes of the plan's nodes."""
    return [fold([hashes[node] for node in nodes]) for nodes in plan]


def verify_inclusion(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that leaf hash ``leaf`` is at ``index`` in the tree of ``size`` leaves with hash ``root``.

    Raises:
        ProofRejected: It is not, or the proof does not show it.

    Source: RFC 9162, 2.1.3.2.
    """
    if not 0 <= index < size:
        raise ProofRejected(f"a tree of {size} leaves has no leaf {index}")
    _check_hashes(proof)
    computed = leaf
    for sibling, is_left in zip(proof, _sides(index, size - 1, len(proof)), strict=True):
        computed = node_hash(sibling, computed) if is_left else node_hash(computed, sibling)
    if computed != root:
        raise ProofRejected(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of ``new_size`` leaves begins with that of ``old_size``: nothing was changed or removed.

    Raises:
        ProofRejected: It does not, or the proof does not show it.

    Source: RFC 9162, 2.1.4.2; there the old tree is not empty and not the new one. Here those need no proof.
    """
    if not 0 <= old_size <= new_size:
        raise ProofRejected(f"a tree of {new_size} leaves does not begin with one of {old_size}")
    _check_hashes(proof)
    if old_size == 0 or old_size == new_size:
        if proof:
            raise ProofRejected("a proof is too long")
        if old_root != (EMPTY_ROOT if old_size == 0 else new_root):
            raise ProofRejected(f"two trees of {old_size} leaves differ")
        return
    # What the proof leaves out: a complete old tree is its own edge.
    hashes = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not hashes:
        raise ProofRejected("a proof is too short")
    first, last = old_size - 1, new_size - 1
    trailing_ones = (~first & (first + 1)).bit_length() - 1
    old = new = hashes[0]
    sides = _sides(first >> trailing_ones, last >> trailing_ones, len(hashes) - 1)
    for sibling, is_left in zip(hashes[1:], sides, strict=True):
        if is_left:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    if old != old_root or new != new_root:
        raise ProofRejected(f"the tree of {new_size} leaves does not begin with the seen one of {old_size}")


def _sides(position: int, last: int, count: int) -> list[bool]:
    """Whether each of ``count`` siblings, lowest first, stands to the left of the path from ``position`` to the root.

    ``last`` is the last position of the same level. Subtrees of the right edge that have no sibling are passed over.
    """
    sides = []
    for _ in range(count):
        if last == 0:
            raise ProofRejected("a proof is too long")
        is_left = bool(position & 1) or position == last
        sides.append(is_left)
        if is_left and not position & 1:
            trailing_zeros = (position & -position).bit_length() - 1
            position, last = position >> trailing_zeros, last >> trailing_zeros
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofRejected("a proof is too short")
    return sides


def _check_hashes(proof: Sequence[bytes]) -> None:
    if any(len(each) != HASH_SIZE for each in proof):
        raise ProofRejected(f"a proof holds hashes of {HASH_SIZE} bytes")
