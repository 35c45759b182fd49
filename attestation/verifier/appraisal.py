"""Appraise evidence: the function that decides whether a host's boot is trusted. Read this file first.

The rules, one reject reason each, are the members of ``RejectReason`` in the order they are checked; ``TITLES`` says
what each is about. The first that fails ends the appraisal: nothing is trusted that was not wholly checked, and there
is no partial trust. Unknown means refused. The steps:

* the quote, against the attestation key, the demanded PCRs and what this service computed (``quote``: 1 to 12);
* the firmware's log, continued by systemd's where the policy says so, against the quoted PCRs (``replay``) and against
  the rules for events (``event_rules``, ``systemd_rules``);
* the boot, event by event, against the active references (``reference``);
* the files that the kernel measured since, where the policy names some (``ima``). Of these all that fail are listed.

The result explains itself: every check made, and for what failed the event, what was expected and what was seen.
Pure: no clock, randomness, I/O or logging.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from attestation.binding import LOG_ORDER
from attestation.errors import EvidenceRejected, RejectReason, WireError
from attestation.model import BootIdentity, LogKind
from attestation.verifier.event_rules import check_event_rules, check_secure_boot
from attestation.verifier.ima import AGGREGATED_PCRS, IMA_PCR, ImaFailure, appraise_ima
from attestation.verifier.ima_policy import ImaRules
from attestation.verifier.policy import AppraisalPolicy
from attestation.verifier.quote import VerifiedQuote, check_clock, check_firmware, verify_quote
from attestation.verifier.reference import Match, Mismatch, ReferenceBoot, best_match
from attestation.verifier.replay import check_replay, check_startup_locality, measured_boot, replay
from attestation.verifier.systemd_rules import check_systemd_records
from attestation.wire.event_log import EventLog, parse_event_log
from attestation.wire.systemd_log import SYSTEMD_PCRS, SystemdLog, parse_systemd_log
from attestation.wire.tpm_public import TpmPublic

TITLES: Final[Mapping[RejectReason, str]] = {
    RejectReason.MALFORMED_QUOTE: "The quote and its signature are well-formed",
    RejectReason.WRONG_SIGNATURE_SCHEME: "The signature is by the attestation key's own scheme",
    RejectReason.BAD_SIGNATURE: "The attestation key signed the quote",
    RejectReason.BAD_MAGIC: "A TPM generated the quote",
    RejectReason.NOT_A_QUOTE: "The signed structure is a quote",
    RejectReason.NONCE_MISMATCH: "The quote is bound to this challenge, these keys and logs, and this service",
    RejectReason.WRONG_QUALIFIED_SIGNER: "The attestation key is a primary key of the endorsement hierarchy",
    RejectReason.WRONG_PCR_SELECTION: "The quote covers exactly the demanded PCRs of the demanded bank",
    RejectReason.PCR_DIGEST_MISMATCH: "The PCR values are those that the TPM signed",
    RejectReason.CLOCK_NOT_SAFE: "The TPM's clock is safe, if the policy demands it",
    RejectReason.BOOT_COUNTER_DECREASED: "The boot counters did not go back",
    RejectReason.RESUMED_WITHOUT_MEASUREMENT: "The host did not resume unmeasured, unless the policy allows it",
    RejectReason.FIRMWARE_VERSION_DENIED: "The TPM's firmware is not on the policy's denylist",
    RejectReason.MISSING_LOG: "The firmware's log was sent",
    RejectReason.MALFORMED_LOG: "The logs of the boot are well-formed",
    RejectReason.LOG_DOES_NOT_REPLAY: "The logs explain the value of each quoted PCR",
    RejectReason.UNMEASURED_PCR: "The log has events for each quoted PCR",
    RejectReason.WRONG_STARTUP_LOCALITY: "The TPM was started from the locality that the policy demands, if any",
    RejectReason.EVENT_TYPE_NOT_ALLOWED: "Each event's type is allowed in its PCR",
    RejectReason.EVENT_DATA_MISMATCH: "Each event's digest is that of its data, where it must be",
    RejectReason.BAD_SEPARATOR: "Each firmware PCR has its one separator",
    RejectReason.SECURE_BOOT_REQUIRED: "Secure Boot is in force, if the policy demands it",
    RejectReason.NO_ACTIVE_REFERENCE: "A reference boot is in force",
    RejectReason.REFERENCE_MISMATCH: "The boot equals an active reference, event by event",
    RejectReason.IMA_LIST_MISSING: "The list of measured files was sent",
    RejectReason.IMA_LIST_MALFORMED: "The list of measured files is well-formed",
    RejectReason.IMA_OTHER_PCR: "The list of measured files is all about PCR 10",
    RejectReason.IMA_LIST_DOES_NOT_REPLAY: "The list of measured files explains the quoted PCR 10",
    RejectReason.IMA_BOOT_AGGREGATE: "The list of measured files begins with the hash of this very boot",
    RejectReason.IMA_KEXEC: "The firmware started the running kernel, unless the policy allows kexec",
    RejectReason.IMA_VIOLATION: "No file was written while it was measured, unless the policy allows it",
    RejectReason.IMA_TEMPLATE_HASH: "Each entry's shown hash is its own",
    RejectReason.IMA_BUFFER_DIGEST: "Each measured buffer's digest is its own",
    RejectReason.IMA_BUFFER_NOT_ALLOWED: "Each measured buffer is one that the policy allows",
    RejectReason.IMA_DIGEST_NOT_ALLOWED: "Each file that the policy names has a digest that it allows",
    RejectReason.IMA_BAD_SIGNATURE: "Each signature by a key of the policy verifies",
    RejectReason.IMA_FILE_NOT_ALLOWED: "Each measured file is one that the policy allows",
}
"""What each rule is about, for people, in the order of checking."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a host handed in. Nothing in it is believed before :func:`appraise` says so."""

    quote: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE."""
    pcr_values: Mapping[int, bytes]
    logs: Mapping[LogKind, bytes]
    untrusted_command_line: str = ""
    """What the host says that its kernel command line is: shown to people where its digest is the measured one."""
    log_hashes: Mapping[LogKind, bytes] = field(init=False)
    """SHA-256 of each log, for the quote's binding."""

    def __post_init__(self) -> None:
        """Hash the logs once."""
        object.__setattr__(self, "log_hashes", {k: hashlib.sha256(log).digest() for k, log in self.logs.items()})

    def digest(self) -> bytes:
        """SHA-256 over quote, signature and log hashes, each with a 4-byte big-endian length before it."""
        transcript = hashlib.sha256()
        hashes = (self.log_hashes.get(kind, b"") for kind in LOG_ORDER)
        for part in (self.quote, self.signature, *hashes):
            transcript.update(len(part).to_bytes(4, "big") + part)
        return transcript.digest()


@dataclass(frozen=True, slots=True)
class Check:
    """One rule and how it came out."""

    rule: str
    """A ``RejectReason``: stable, part of the interface."""
    title: str
    passed: bool
    expected: str = ""
    seen: str = ""
    event: str = ""


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The decision about one host's evidence, with its reasons."""

    trusted: bool
    reason: RejectReason | None
    """None if and only if trusted."""
    checks: tuple[Check, ...]
    """Those made, in order; a refusal's last ones are what failed."""
    reference: str
    """Name of the reference that the boot equals; empty where refused."""
    nearest_reference: str
    """Name of the reference that the boot was held against; empty where it came to none."""
    boot: BootIdentity | None
    """Counters of a verified quote; None where the quote was refused."""
    evidence_digest: bytes
    """32 bytes."""


_PASSED: Final = tuple(Check(reason.value, TITLES[reason], passed=True) for reason in RejectReason)
_POSITION: Final = {reason: position for position, reason in enumerate(RejectReason)}
_PASSED_WITHOUT_FILES: Final = _PASSED[: _POSITION[RejectReason.REFERENCE_MISMATCH] + 1]


def appraise(
    evidence: Evidence,
    *,
    ak: TpmPublic,
    expected_extra_data: bytes,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceBoot],
    previous_boot: BootIdentity | None,
    ima_rules: ImaRules | None = None,
) -> Appraisal:
    """Decide whether a host's evidence is trusted under a policy.

    Args:
        evidence: What the host handed in; any bytes.
        ak: The host's attestation key, as enrolled.
        expected_extra_data: 32 bytes: ``QuoteBinding.extra_data`` over this service's own nonce and
            ``evidence.log_hashes``.
        policy: The policy in force.
        references: The active reference boots.
        previous_boot: Counters of the key's last verified quote, if any.
        ima_rules: ``policy.ima``, made ready; made anew where it is not given.

    Returns:
        The decision. This function raises nothing for anything that a host can send.
    """
    boot: BootIdentity | None = None
    match: Match | None = None
    try:
        quote = verify_quote(
            evidence.quote,
            evidence.signature,
            evidence.pcr_values,
            ak=ak,
            expected_extra_data=expected_extra_data,
            bank=policy.bank,
            pcrs=policy.pcrs,
        )
        boot = quote.boot
        check_clock(
            previous_boot,
            quote,
            safe_required=policy.safe_clock_required,
            restart_count_allowed=policy.restart_count_allowed,
        )
        check_firmware(quote, policy.denied_firmware_versions)
        log = _read_log(evidence)
        match = _match_boot(log, evidence, quote, policy, references)
        _check_equal(match)
    except EvidenceRejected as rejection:
        return _refusal(evidence, rejection, match, boot)
    checks = _PASSED_WITHOUT_FILES
    if policy.ima is not None and (policy.ima.required or LogKind.IMA in evidence.logs):
        failures = _judge_files(log, evidence, quote, ima_rules or ImaRules(policy.ima))
        if failures:
            return _refusal_of_files(evidence, failures, match, boot)
        checks = _PASSED
    name = match.reference.name
    return Appraisal(
        trusted=True,
        reason=None,
        checks=checks,
        reference=name,
        nearest_reference=name,
        boot=boot,
        evidence_digest=evidence.digest(),
    )


def _read_log(evidence: Evidence) -> EventLog:
    content = evidence.logs.get(LogKind.TCG)
    if not content:
        raise EvidenceRejected(
            RejectReason.MISSING_LOG, "no firmware log was sent", expected="a TCG event log", seen="none"
        )
    try:
        return parse_event_log(content)
    except WireError as exc:
        raise EvidenceRejected(RejectReason.MALFORMED_LOG, str(exc), expected="a TCG event log") from exc


def _read_systemd_log(evidence: Evidence) -> SystemdLog:
    """Systemd's log; a host without one has measured nothing by systemd."""
    try:
        return parse_systemd_log(evidence.logs.get(LogKind.SYSTEMD, b""))
    except WireError as exc:
        raise EvidenceRejected(
            RejectReason.MALFORMED_LOG, str(exc), expected="a log of systemd's", event="systemd's log"
        ) from exc


def _match_boot(
    log: EventLog,
    evidence: Evidence,
    quote: VerifiedQuote,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceBoot],
) -> Match:
    """Find the reference for a boot whose log is believed."""
    systemd = _read_systemd_log(evidence) if policy.systemd_log else None
    measured = measured_boot(log, quote.bank, policy.boot_pcrs)
    quoted = {pcr: quote.pcr_values[pcr] for pcr in policy.boot_pcrs}
    continued = check_replay(measured, quoted, policy.quirks, systemd=systemd)
    check_startup_locality(measured, policy.required_startup_locality)
    if continued is not None:
        check_systemd_records(continued)
    check_event_rules(measured, policy.quirks)
    if policy.secure_boot.required:
        check_secure_boot(measured)
    return best_match(references, measured, evidence.untrusted_command_line)


def _judge_files(log: EventLog, evidence: Evidence, quote: VerifiedQuote, rules: ImaRules) -> tuple[ImaFailure, ...]:
    """What failed of a host's list of measured files."""
    # The boot aggregate is older than anything that systemd extended.
    aggregated = measured_boot(log, quote.bank, AGGREGATED_PCRS)
    boot_pcrs = replay(aggregated.events, aggregated.position, quote.bank.value, aggregated.startup_locality)
    boot_pcrs |= {
        pcr: value for pcr, value in quote.pcr_values.items() if pcr in AGGREGATED_PCRS and pcr not in SYSTEMD_PCRS
    }
    return appraise_ima(
        evidence.logs.get(LogKind.IMA),
        rules=rules,
        bank=quote.bank,
        quoted_pcr10=quote.pcr_values[IMA_PCR],
        boot=quote.boot,
        boot_pcrs=boot_pcrs,
    ).failures


def _check_equal(match: Match) -> None:
    for first in match.mismatches:
        raise EvidenceRejected(
            RejectReason.REFERENCE_MISMATCH,
            f"the boot differs from reference {match.reference.name}",
            expected=first.expected,
            seen=first.seen,
            event=first.place,
        )


def _refusal(
    evidence: Evidence, rejection: EvidenceRejected, match: Match | None, boot: BootIdentity | None
) -> Appraisal:
    reason = rejection.reason
    failed = _failed(reason, rejection.expected, rejection.seen or rejection.detail, rejection.event)
    further = match.mismatches[1:] if match else ()
    return Appraisal(
        trusted=False,
        reason=reason,
        checks=(*_PASSED[: _POSITION[reason]], failed, *map(_failed_reference, further)),
        reference="",
        nearest_reference=match.reference.name if match else "",
        boot=boot,
        evidence_digest=evidence.digest(),
    )


def _failed(reason: RejectReason, expected: str, seen: str, event: str) -> Check:
    return Check(reason.value, TITLES[reason], passed=False, expected=expected, seen=seen, event=event)


def _failed_reference(mismatch: Mismatch) -> Check:
    return _failed(RejectReason.REFERENCE_MISMATCH, mismatch.expected, mismatch.seen, mismatch.place)


def _refusal_of_files(
    evidence: Evidence, failures: Sequence[ImaFailure], match: Match, boot: BootIdentity | None
) -> Appraisal:
    """All that failed, in the order of the rules and then of the list."""
    failed = sorted(map(_failed_file, failures), key=lambda check: _POSITION[RejectReason(check.rule)])
    reason = RejectReason(failed[0].rule)
    return Appraisal(
        trusted=False,
        reason=reason,
        checks=(*_PASSED[: _POSITION[reason]], *failed),
        reference="",
        nearest_reference=match.reference.name,
        boot=boot,
        evidence_digest=evidence.digest(),
    )


def _failed_file(failure: ImaFailure) -> Check:
    place = f"PCR {IMA_PCR}" if failure.number is None else f"IMA entry {failure.number}: {failure.path}"
    return _failed(RejectReason(failure.reason.value), failure.expected, failure.seen, place)
