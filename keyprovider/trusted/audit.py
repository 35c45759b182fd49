"""Auditing an exported release log, offline: whether it is what every witness saw (B-4).

An export is lines: first ``{"format":"garant/release-log/v1","tree_head":"JWS"}``, then every entry's canonical bytes
(``trusted.log``) in order, each ended by a newline, which canonical JSON never holds. A witness is a list of signed
tree heads (``trusted.tree_head``), one in a line, as a host keeps them.

The tree is computed anew from the entries, and must have, at the size of each head, the root that this head was signed
over. So one head is enough to find any entry before it that was changed, removed, added or moved; the last head of
the export covers all entries, and the heads of others show whether it is of the same history that they saw. What no
witness saw, the holder of the log key can still write anew: the more witnesses, and the newer, the better.
Pure: no clock, randomness, I/O or logging.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from keyprovider.errors import StoreError
from keyprovider.trusted.errors import ExportMalformed, ProofRejected
from keyprovider.trusted.log import decode_entry
from keyprovider.trusted.merkle import Frontier, leaf_hash
from keyprovider.trusted.tree_head import VerifiedTreeHead, verify_tree_head

FORMAT: Final = "garant/release-log/v1"
OWN_HEAD: Final = "the log's own head"
"""Source of the head that came with the entries."""


class FindingKind(StrEnum):
    """What is wrong with a log."""

    HEAD_FORGED = "HEAD_FORGED"
    """A head that no log key signed."""
    ENTRY_MALFORMED = "ENTRY_MALFORMED"
    """An entry that the service never wrote so."""
    LOG_SHORTENED = "LOG_SHORTENED"
    """Fewer entries than a head was signed over."""
    LOG_EXTENDED = "LOG_EXTENDED"
    """Entries behind those that the log's own head was signed over."""
    HISTORY_DIFFERS = "HISTORY_DIFFERS"
    """Other entries, or another order, than a head was signed over."""
    LOG_FORKED = "LOG_FORKED"
    """Two heads of one size, both signed by a log key, over different entries."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: FindingKind
    source: str
    """Whose head shows it; the log itself where it needs none."""
    message: str


@dataclass(frozen=True, slots=True)
class WitnessHead:
    """A head that somebody kept, not believed yet."""

    source: str
    """Who kept it."""
    text: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found."""

    entries: int
    """How many there are."""
    heads: int
    """Heads that were compared, the log's own among them."""
    intact_entries: int
    """So many, from the first on, are what was signed: size of the greatest head that fits, below any that does not."""
    findings: tuple[Finding, ...]
    """Empty where all is well."""


def encode_export(tree_head: str, entries: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of an export, newlines and all."""
    header = {"format": FORMAT, "tree_head": tree_head}
    yield json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    for entry in entries:
        yield entry + b"\n"


def decode_header(line: bytes) -> WitnessHead:
    """Read an export's first line.

    Returns:
        The log's own head.

    Raises:
        ExportMalformed: Not the first line of an export.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ExportMalformed(f"the first line is not that of a {FORMAT} export") from exc
    if not isinstance(header, dict) or set(header) != {"format", "tree_head"} or header["format"] != FORMAT:
        raise ExportMalformed(f"the first line is not that of a {FORMAT} export")
    if not isinstance(header["tree_head"], str):
        raise ExportMalformed("the export has no tree head")
    return WitnessHead(OWN_HEAD, header["tree_head"])


def audit(
    lines: Iterable[bytes], witnesses: Sequence[WitnessHead], *, keys: Mapping[str, ec.EllipticCurvePublicKey]
) -> AuditReport:
    """Compare an export with what its witnesses saw.

    Args:
        lines: The export, with newlines; read once, one at a time.
        witnesses: Heads that others kept.
        keys: Log keys that are believed, by key id; from elsewhere than the export.

    Raises:
        ExportMalformed: The first line is not that of an export.
    """
    remaining = iter(lines)
    own = decode_header(next(remaining, b""))
    heads, findings = _verify_heads([own, *witnesses], keys)
    findings += _find_forks(heads)
    wanted = {head.size for _, head in heads}
    frontier = Frontier()
    roots = {0: frontier.root()}
    for index, line in enumerate(remaining):
        entry = line.removesuffix(b"\n")
        problem = _problem(entry) if line.endswith(b"\n") else "it has no end"
        if problem is not None:
            message = f"entry {index} was changed: {problem}"
            findings.append(Finding(FindingKind.ENTRY_MALFORMED, "the log", message))
        frontier.append(leaf_hash(entry))
        if frontier.size in wanted:
            roots[frontier.size] = frontier.root()
    for source, head in heads:
        finding = _compare(source, head, frontier.size, roots)
        if finding is not None:
            findings.append(finding)
    return AuditReport(frontier.size, len(heads), _intact(heads, roots), tuple(findings))


def _verify_heads(
    heads: Sequence[WitnessHead], keys: Mapping[str, ec.EllipticCurvePublicKey]
) -> tuple[list[tuple[str, VerifiedTreeHead]], list[Finding]]:
    verified, findings = [], []
    for head in heads:
        try:
            verified.append((head.source, verify_tree_head(head.text, keys=keys)))
        except ProofRejected as exc:
            findings.append(Finding(FindingKind.HEAD_FORGED, head.source, str(exc)))
    return verified, findings


def _find_forks(heads: Sequence[tuple[str, VerifiedTreeHead]]) -> list[Finding]:
    """Two signed heads of one size with different roots prove a fork, whatever log was exported."""
    by_size = sorted(heads, key=lambda each: each[1].size)
    findings = []
    for size, same in itertools.groupby(by_size, key=lambda each: each[1].size):
        (first, head), *others = same
        for source, other in others:
            if other.root != head.root:
                message = f"it was shown another log of {size} entries than {first}, with a good signature on both"
                findings.append(Finding(FindingKind.LOG_FORKED, source, message))
    return findings


def _problem(entry: bytes) -> str | None:
    try:
        decode_entry(entry)
    except StoreError as exc:
        return str(exc)
    return None


def _compare(source: str, head: VerifiedTreeHead, size: int, roots: Mapping[int, bytes]) -> Finding | None:
    if head.size > size:
        message = f"a head of {head.size} entries was signed; the log has {size}"
        return Finding(FindingKind.LOG_SHORTENED, source, message)
    if roots[head.size] != head.root:
        message = f"the first {head.size} entries are not those that the head of this size was signed over"
        return Finding(FindingKind.HISTORY_DIFFERS, source, message)
    if source == OWN_HEAD and head.size < size:
        message = f"the head was signed over {head.size} entries; the log has {size}"
        return Finding(FindingKind.LOG_EXTENDED, source, message)
    return None


def _intact(heads: Sequence[tuple[str, VerifiedTreeHead]], roots: Mapping[int, bytes]) -> int:
    compared = [(head.size, roots[head.size] == head.root) for _, head in heads if head.size in roots]
    misfit = min((size for size, fits in compared if not fits), default=None)
    return max((size for size, fits in compared if fits and (misfit is None or size < misfit)), default=0)
