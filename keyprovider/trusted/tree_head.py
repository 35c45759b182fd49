"""Signed heads of the release log: how many entries there are, and the hash of the tree over them.

A head is a JWS (``serving.jws``) of type ``garant-tree-head+jws`` with ``size``, ``root`` (64 lower-case hexadecimal
digits) and ``timestamp`` (seconds since the epoch), signed by the log key of the service. Whoever keeps one is a
witness: no log that lacks or changed one of the first ``size`` entries has this root.
Pure: time and keys are passed in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

from cryptography.hazmat.primitives.asymmetric import ec

from keyprovider.trusted.errors import ProofRejected
from keyprovider.trusted.merkle import HASH_SIZE, verify_consistency, verify_inclusion
from serving.errors import JwsError
from serving.jws import sign, verify

HEAD_TYPE: Final = "garant-tree-head+jws"
MAX_SIZE: Final = (1 << 63) - 1
"""Entries that a log can have."""
_ROOT: Final = re.compile(rf"[0-9a-f]{{{2 * HASH_SIZE}}}")


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a head says."""

    size: int
    """Number of entries."""
    root: bytes
    """Hash of the tree over them, 32 bytes."""
    timestamp: int
    """When it was signed, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class VerifiedTreeHead(TreeHead):
    """A head whose signature was checked; made by :func:`verify_tree_head` alone."""

    text: str
    """The signed document: what a witness keeps."""


def sign_tree_head(head: TreeHead, key: ec.EllipticCurvePrivateKey) -> str:
    """Sign a head; a compact JWS of at most 400 characters."""
    payload = {"size": head.size, "root": head.root.hex(), "timestamp": head.timestamp}
    return sign(payload, key=key, typ=HEAD_TYPE)


def verify_tree_head(text: str, *, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> VerifiedTreeHead:
    """Check that one of ``keys`` (by key id) signed a head.

    Raises:
        ProofRejected: Malformed, of another type, signed by another key, or changed.
    """
    try:
        payload = verify(text, keys=keys, typ=HEAD_TYPE)
    except JwsError as exc:
        raise ProofRejected(f"a tree head is not believed: {exc}") from exc
    size, root, timestamp = (payload.get(name) for name in ("size", "root", "timestamp"))
    if set(payload) != {"size", "root", "timestamp"} or not _is_count(size) or not _is_count(timestamp):
        raise ProofRejected("a tree head is not believed: it has a size, a root and a timestamp")
    if not isinstance(root, str) or not _ROOT.fullmatch(root):
        raise ProofRejected(f"a tree head is not believed: its root has {2 * HASH_SIZE} hexadecimal digits")
    return VerifiedTreeHead(size, bytes.fromhex(root), timestamp, text)


@dataclass(frozen=True, slots=True)
class UnverifiedReceipt:
    """What a release answer says about the release log; nothing in it is believed yet."""

    tree_head: str
    index: int
    """Place of the release."""
    leaf_hash: bytes
    """``merkle.leaf_hash`` of the entry that came along."""
    inclusion_proof: tuple[bytes, ...]
    consistency_proof: tuple[bytes, ...]
    """From the head that the asker said it held."""


def verify_receipt(
    receipt: UnverifiedReceipt, *, seen: TreeHead | None, keys: Mapping[str, ec.EllipticCurvePublicKey]
) -> VerifiedTreeHead:
    """Check as a witness that the release is in the log, and that the log still begins as it was seen.

    Args:
        receipt: As it came.
        seen: The head whose size was sent with the request; none if the witness holds none.
        keys: Log keys that are believed, by key id.

    Returns:
        The head to keep from now on; ``seen`` is not needed any more for what is asked later.

    Raises:
        ProofRejected: The head is not signed by one of ``keys``; the release is not in its tree; or the tree does not
            begin with the one that was seen. In this order. The last is proof of a changed or forked log: keep both.
    """
    head = verify_tree_head(receipt.tree_head, keys=keys)
    verify_inclusion(
        leaf=receipt.leaf_hash,
        index=receipt.index,
        size=head.size,
        proof=receipt.inclusion_proof,
        root=head.root,
    )
    if seen is not None:
        verify_consistency(
            old_size=seen.size,
            old_root=seen.root,
            new_size=head.size,
            new_root=head.root,
            proof=receipt.consistency_proof,
        )
        if receipt.index < seen.size:
            raise ProofRejected(f"the release stands at {receipt.index}, among the {seen.size} that were seen before")
    return head


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SIZE
