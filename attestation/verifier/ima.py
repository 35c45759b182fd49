"""Appraise the kernel's list of measured files (IMA) against the quoted PCR 10 and a policy.

The steps, in order:

1. the list was sent, and begins at the host's first entry or where the last trusted one of this boot ended;
2. it is well-formed;
3. a prefix of it replays to the quoted PCR 10: that prefix is proven, what follows is counted and not believed;
4. no less is proven than before in this boot;
5. its first entry is the boot aggregate, and equals the hash of PCRs 0 to 9;
6. each proven entry is one that the policy allows: files, buffers, violations.

The first of 1 to 4 that fails ends the appraisal; 5 and 6 list what fails, up to ``MAX_FAILURES``. A state to continue
from exists only where nothing failed: a file that was refused once is refused again.

An entry's own SHA-1 is shown by the list and covered by nothing, so the extended digest is always computed anew. What a
violation says, its path included, is covered by nothing either: only that there was one, for FF..FF was extended.
Pure: no clock, randomness, I/O or logging.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Final

from attestation.errors import AttestationError, WireError
from attestation.model import BootIdentity, PcrBank
from attestation.verifier.ima_policy import ImaRules, PcrExtension, digests_text
from attestation.verifier.replay import HASHES
from attestation.wire.ima_log import (
    BOOT_AGGREGATE,
    VIOLATION,
    ImaEntry,
    ImaMeasurement,
    ImaSignature,
    ImaTemplate,
    iter_ima_log,
    measurement,
    parse_ima_signature,
)

IMA_PCR: Final = 10
AGGREGATED_PCRS: Final = range(10)
"""Whose values the boot aggregate hashes (ima_calc_boot_aggregate_tfm; in banks other than SHA-1)."""
MAX_FAILURES: Final = 100
"""Of one appraisal. Judging ends there: it would only make a long list of bad signatures expensive."""
_MAX_SHOWN_PATH: Final = 1024
_MAX_SHOWN_DIGESTS: Final = 4


class ImaReason(StrEnum):
    """Why a list, or an entry of it, was not believed. One value per rule, in the order of checking."""

    IMA_LIST_MISSING = "IMA_LIST_MISSING"
    IMA_LIST_NOT_CONTINUED = "IMA_LIST_NOT_CONTINUED"
    IMA_LIST_MALFORMED = "IMA_LIST_MALFORMED"
    IMA_OTHER_PCR = "IMA_OTHER_PCR"
    IMA_LIST_DOES_NOT_REPLAY = "IMA_LIST_DOES_NOT_REPLAY"
    IMA_LIST_WENT_BACK = "IMA_LIST_WENT_BACK"
    IMA_BOOT_AGGREGATE = "IMA_BOOT_AGGREGATE"
    IMA_KEXEC = "IMA_KEXEC"
    IMA_VIOLATION = "IMA_VIOLATION"
    IMA_TEMPLATE_HASH = "IMA_TEMPLATE_HASH"
    IMA_BUFFER_DIGEST = "IMA_BUFFER_DIGEST"
    IMA_BUFFER_NOT_ALLOWED = "IMA_BUFFER_NOT_ALLOWED"
    IMA_DIGEST_NOT_ALLOWED = "IMA_DIGEST_NOT_ALLOWED"
    IMA_BAD_SIGNATURE = "IMA_BAD_SIGNATURE"
    IMA_FILE_NOT_ALLOWED = "IMA_FILE_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class ImaFailure:
    """One rule that was broken."""

    reason: ImaReason
    expected: str
    seen: str
    number: int | None = None
    """Place of the entry in the host's whole list, from 0; None where the list as a whole failed."""
    path: str = ""
    """What the entry is about, printable."""


class ImaRejected(AttestationError):
    """A list as a whole is not believed."""

    def __init__(self, failure: ImaFailure) -> None:
        super().__init__(f"{failure.reason}: expected {failure.expected}, seen {failure.seen}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ImaState:
    """Up to where a host's list is proven and allowed: where its next list may begin."""

    boot: BootIdentity
    bank: PcrBank
    rules_digest: bytes
    """Of the policy that allowed the entries; under another, they are judged again."""
    count: int
    """Entries so far."""
    pcr10: bytes
    """Value of PCR 10 after them."""


@dataclass(frozen=True, slots=True)
class ImaPrefix:
    """The part of a list that a quote proves."""

    count: int
    """Entries of the host's whole list up to its end."""
    pcr10: bytes
    tail: int
    """Entries after it: measured after the quote, if the host is honest. Nothing is believed of them."""


@dataclass(frozen=True, slots=True)
class ImaAppraisal:
    """What came of a list."""

    failures: tuple[ImaFailure, ...]
    """In order of the list, at most ``MAX_FAILURES``; none if and only if the list is trusted."""
    complete: bool
    """Whether every proven entry was judged; False where judging ended at the first or the most failures."""
    prefix: ImaPrefix | None
    """None where nothing is proven."""
    state: ImaState | None
    """Where the next list may begin; None where refused."""

    @property
    def trusted(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def find_prefix(
    entries: Iterable[ImaEntry],
    quoted_pcr10: bytes,
    *,
    bank: PcrBank,
    extension: PcrExtension = PcrExtension.BANK_HASH,
    count: int = 0,
    pcr10: bytes = b"",
) -> ImaPrefix:
    """Find how much of a list a quote proves: the shortest prefix that replays to the quoted PCR 10.

    Args:
        entries: The list; read to its end.
        quoted_pcr10: As a TPM signed it.
        bank: The quoted bank.
        extension: What the kernel extends for an entry.
        count: Number of the first entry.
        pcr10: Value before the first entry; empty for that after a reset.

    Raises:
        WireError: From ``entries``, also of what follows the prefix.
        ImaRejected: IMA_OTHER_PCR, IMA_LIST_DOES_NOT_REPLAY.

    Source: Linux, security/integrity/ima: ima_queue.c (ima_add_template_entry, ima_init_digests), ima_crypto.c.
    """
    extend, size, violation = HASHES[bank.value], bank.digest_size, _violation_digest(extension, bank.digest_size)
    padded = extension is not PcrExtension.BANK_HASH
    template_hash_of = HASHES["sha1"] if padded else extend
    value = pcr10 or bytes(size)
    remaining = iter(entries)
    if value != quoted_pcr10:
        for number, pcr, template_hash, _, data in remaining:
            if pcr != IMA_PCR:
                raise ImaRejected(
                    ImaFailure(ImaReason.IMA_OTHER_PCR, f"PCR {IMA_PCR}", f"PCR {pcr}", number, "entry of another PCR")
                )
            if template_hash == VIOLATION:
                digest = violation
            else:
                digest = template_hash_of(data).digest()
                if padded:
                    digest = digest.ljust(size, b"\0")
            value = extend(value + digest).digest()
            if value == quoted_pcr10:
                count = number + 1
                break
        else:
            raise ImaRejected(
                ImaFailure(ImaReason.IMA_LIST_DOES_NOT_REPLAY, quoted_pcr10.hex(), f"{value.hex()} after all entries")
            )
    return ImaPrefix(count, value, sum(1 for _ in remaining))


def _violation_digest(extension: PcrExtension, size: int) -> bytes:
    if extension is PcrExtension.PADDED_SHA1:
        return b"\xff" * len(VIOLATION) + bytes(size - len(VIOLATION))
    return b"\xff" * size


def boot_aggregate(pcr_values: Mapping[int, bytes], bank: PcrBank) -> bytes | None:
    """What the kernel computes when it starts measuring: the hash of PCRs 0 to 9; None where one is not known.

    Args:
        pcr_values: As they were then. Where something was extended later (PCR 9, by systemd), the value before.
        bank: Whose values they are.
    """
    if not all(pcr in pcr_values for pcr in AGGREGATED_PCRS):
        return None
    return HASHES[bank.value](b"".join(pcr_values[pcr] for pcr in AGGREGATED_PCRS)).digest()


def appraise_ima(
    log: bytes | None,
    *,
    rules: ImaRules,
    bank: PcrBank,
    quoted_pcr10: bytes,
    boot: BootIdentity,
    boot_pcrs: Mapping[int, bytes],
    first_entry: int = 0,
    previous: ImaState | None = None,
) -> ImaAppraisal:
    """Judge a host's list of measured files.

    Args:
        log: Binary list, SHA-1 form; None where none was sent. Empty is a list without (new) entries.
        rules: The policy in force.
        bank: The quoted bank.
        quoted_pcr10: As the TPM signed it.
        boot: As the TPM signed it.
        boot_pcrs: PCRs 0 to 9 as they were when the kernel started: the quoted values, and for those that are not
            quoted what the firmware's log replays to. A log that lies about them does not give the boot aggregate.
        first_entry: Number of the list's first entry, as the host says.
        previous: Where the host's last trusted list ended, if known.

    Returns:
        The result. This function raises nothing for anything that a host can send.
    """
    prefix: ImaPrefix | None = None
    try:
        start = _start(log, first_entry, previous, ImaState(boot, bank, rules.digest, 0, bytes(bank.digest_size)))
        content = log or b""
        prefix = find_prefix(
            iter_ima_log(content, first=first_entry),
            quoted_pcr10,
            bank=bank,
            extension=rules.policy.extension,
            count=start.count,
            pcr10=start.pcr10,
        )
        _check_not_back(prefix, boot, previous)
        aggregate = boot_aggregate(boot_pcrs, bank)
        proven = islice(iter_ima_log(content, first=first_entry), prefix.count - first_entry)
        failures = _judge_all(proven, rules, bank, aggregate, prefix)
    except ImaRejected as rejection:
        return ImaAppraisal((rejection.failure,), complete=False, prefix=prefix, state=None)
    except WireError as exc:
        failure = ImaFailure(ImaReason.IMA_LIST_MALFORMED, "a list as the kernel gives it", str(exc))
        return ImaAppraisal((failure,), complete=False, prefix=prefix, state=None)
    state = None if failures else ImaState(boot, bank, rules.digest, prefix.count, prefix.pcr10)
    return ImaAppraisal(tuple(failures), len(failures) < MAX_FAILURES, prefix, state)


def _start(log: bytes | None, first_entry: int, previous: ImaState | None, fresh: ImaState) -> ImaState:
    """Where the list begins."""
    if log is None:
        raise ImaRejected(ImaFailure(ImaReason.IMA_LIST_MISSING, "a list of measured files", "none"))
    if first_entry == 0:
        return fresh
    if (
        previous is not None
        and (previous.boot, previous.bank, previous.rules_digest) == (fresh.boot, fresh.bank, fresh.rules_digest)
        and previous.count == first_entry
    ):
        return previous
    expected = "the whole list: nothing of it is known for this boot, bank and policy"
    if previous is not None and (previous.boot, previous.bank) == (fresh.boot, fresh.bank):
        expected = f"the whole list, or under the same policy the list from entry {previous.count}"
    raise ImaRejected(
        ImaFailure(ImaReason.IMA_LIST_NOT_CONTINUED, expected, f"a list that begins at entry {first_entry}")
    )


def _check_not_back(prefix: ImaPrefix, boot: BootIdentity, previous: ImaState | None) -> None:
    if previous is not None and previous.boot == boot and prefix.count < previous.count:
        raise ImaRejected(
            ImaFailure(
                ImaReason.IMA_LIST_WENT_BACK,
                f"at least the {previous.count} entries proven before in this boot",
                f"{prefix.count} entries: the TPM may have been cloned",
            )
        )


def _judge_all(
    entries: Iterable[ImaEntry], rules: ImaRules, bank: PcrBank, aggregate: bytes | None, prefix: ImaPrefix
) -> list[ImaFailure]:
    expected = f"{bank}:{aggregate.hex()}" if aggregate else "values of PCRs 0 to 9, to compute it from"
    if not prefix.count:
        return [ImaFailure(ImaReason.IMA_BOOT_AGGREGATE, expected, "no entry: the kernel measures nothing")]
    failures: list[ImaFailure] = []
    template: ImaTemplate | None = None
    known: Mapping[bytes, bytes] = {}
    for entry in entries:
        if entry.template is not template:
            template, known = entry.template, rules.known[entry.template]
        if known.get(entry.data) == entry.template_hash and entry.number:
            continue
        measured = measurement(entry)
        if entry.number == 0 or measured.name == BOOT_AGGREGATE:
            found = _judge_boot_aggregate(entry, measured, rules, bank, aggregate)
        else:
            found = _judge(entry, measured, rules)
        if found is not None:
            reason, wanted, seen = found
            failures.append(ImaFailure(reason, wanted or expected, seen, entry.number, _printable(measured.name)))
            if len(failures) >= MAX_FAILURES:
                break
    return failures


_Found = tuple[ImaReason, str, str]
"""Reason, expected, seen."""


def _judge_boot_aggregate(
    entry: ImaEntry, measured: ImaMeasurement, rules: ImaRules, bank: PcrBank, aggregate: bytes | None
) -> _Found | None:
    if measured.name != BOOT_AGGREGATE or measured.buffer is not None:
        return ImaReason.IMA_BOOT_AGGREGATE, "", "a list that does not begin with it"
    if entry.template_hash == VIOLATION or (measured.algorithm, measured.digest) != (bank.value, aggregate):
        return ImaReason.IMA_BOOT_AGGREGATE, "", f"{measured.algorithm}:{measured.digest.hex()}"
    if entry.number and not rules.policy.kexec_allowed:
        return ImaReason.IMA_KEXEC, "one boot aggregate", "another: this kernel was started by kexec"
    return _judge_template_hash(entry)


def _judge_template_hash(entry: ImaEntry) -> _Found | None:
    shown = HASHES["sha1"](entry.data).digest()
    return (
        None if shown == entry.template_hash else (ImaReason.IMA_TEMPLATE_HASH, shown.hex(), entry.template_hash.hex())
    )


def _judge(entry: ImaEntry, measured: ImaMeasurement, rules: ImaRules) -> _Found | None:
    if entry.template_hash == VIOLATION:
        if rules.allows_violation(measured.name):
            return None
        return ImaReason.IMA_VIOLATION, "a file that nobody writes while it is measured", "a violation"
    lie = _judge_template_hash(entry)
    if lie is not None:
        return lie
    if measured.buffer is not None:
        return _judge_buffer(measured, measured.buffer, rules)
    return _judge_file(entry, measured, rules)


def _judge_buffer(measured: ImaMeasurement, buffer: bytes, rules: ImaRules) -> _Found | None:
    digest = (measured.algorithm, measured.digest)
    hash_function = HASHES.get(measured.algorithm)
    if hash_function is None or hash_function(buffer).digest() != measured.digest:
        return ImaReason.IMA_BUFFER_DIGEST, "the digest of what was measured", digests_text([digest])
    if measured.name in rules.any_buffer:
        return None
    allowed = rules.buffers.get(measured.name, frozenset())
    if digest in allowed:
        return None
    return ImaReason.IMA_BUFFER_NOT_ALLOWED, _shown(allowed) or "a buffer of the policy", digests_text([digest])


def _judge_file(entry: ImaEntry, measured: ImaMeasurement, rules: ImaRules) -> _Found | None:
    digest = (measured.algorithm, measured.digest)
    allowed = rules.allowed.get(measured.name)
    if allowed is not None:
        if digest not in allowed:
            return ImaReason.IMA_DIGEST_NOT_ALLOWED, _shown(allowed), digests_text([digest])
        rules.remember(entry)
        return None
    if rules.excludes(measured.name):
        return None
    signature = _signature(measured)
    if signature is None or not rules.knows_signer(signature):
        seen = digests_text([digest]) + (f", signed by key {signature.key_id.hex()}" if signature else "")
        return ImaReason.IMA_FILE_NOT_ALLOWED, "an allowed digest, or a signature by a key of the policy", seen
    if not rules.verifies(signature, measured):
        expected = f"a signature of key {signature.key_id.hex()} over this digest"
        return ImaReason.IMA_BAD_SIGNATURE, expected, f"{digests_text([digest])}, signed otherwise"
    rules.remember(entry)
    return None


def _signature(measured: ImaMeasurement) -> ImaSignature | None:
    """A file's signature; None for whatever else its attribute may hold, which allows nothing."""
    try:
        return parse_ima_signature(measured.signature) if measured.signature else None
    except WireError:
        return None


def _shown(digests: Iterable[tuple[str, bytes]]) -> str:
    ordered = sorted(digests)
    more = f" and {len(ordered) - _MAX_SHOWN_DIGESTS} more" if len(ordered) > _MAX_SHOWN_DIGESTS else ""
    return digests_text(ordered[:_MAX_SHOWN_DIGESTS]) + more


def _printable(name: bytes) -> str:
    """A name that a host chose, for people: no control characters, not without end."""
    text = name.decode("utf-8", "backslashreplace")[:_MAX_SHOWN_PATH]
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)
