"""The deciding function: one lie for each reject reason, and results that explain themselves."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import RejectReason
from attestation.model import BootIdentity, LogKind, PcrBank
from attestation.simulator.boot import Recording
from attestation.simulator.software_host import (
    COMMAND_LINE,
    Host,
    Measured,
    extended,
    honest_events,
    make_legacy_log,
    make_log,
    software_key,
    variable,
)
from attestation.verifier.appraisal import TITLES, Appraisal, Evidence, appraise
from attestation.verifier.ima import ImaReason
from attestation.verifier.ima_policy import ImaPolicy, ImaRules
from attestation.verifier.policy import AppraisalPolicy, SecureBootPolicy
from attestation.verifier.reference import ReferenceBoot
from attestation.verifier.replay import replay
from attestation.wire.event_log import parse_event_log
from attestation.wire.event_types import EventType as Type
from tests.ima_list import List
from tests.unit.test_wire_systemd_log import record, sequence

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
NONCE = b"\x5a" * 32
HOST = Host()
POLICY = AppraisalPolicy(name="fleet", version=1, secure_boot=SecureBootPolicy(required=True))
EVENTS = honest_events()
REFERENCE = ReferenceBoot.from_log("golden", make_log(EVENTS), PcrBank.SHA256, POLICY.pcrs, command_line=COMMAND_LINE)


def judge(
    evidence: Evidence,
    *,
    policy: AppraisalPolicy = POLICY,
    references: Sequence[ReferenceBoot] = (REFERENCE,),
    previous: BootIdentity | None = None,
    ima_rules: ImaRules | None = None,
) -> Appraisal:
    """Appraise as a service would."""
    return appraise(
        evidence,
        ak=HOST.key.public,
        expected_extra_data=NONCE,
        policy=policy,
        references=references,
        previous_boot=previous,
        ima_rules=ima_rules,
    )


def booted(events: list[Measured]) -> Evidence:
    """Evidence of a host whose TPM really measured these events."""
    return replace(HOST, events=events).evidence()


def edited(at: int, *events: Measured) -> list[Measured]:
    """The honest events with one replaced."""
    return [*EVENTS[:at], *events, *EVENTS[at + 1 :]]


AGGREGATE = hashlib.sha256(b"".join(extended(EVENTS, "sha256", 0)[pcr] for pcr in range(10))).digest()
DASH = b"dash 0.5.12"
SIGNER_KEY = ec.derive_private_key(0x2001, ec.SECP256R1())
SIGNER = SIGNER_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SIGNER_ID = x509.SubjectKeyIdentifier.from_public_key(SIGNER_KEY.public_key()).digest[-4:]
OTHER_SIGNATURE = SIGNER_KEY.sign(b"another tool", ec.ECDSA(hashes.SHA256()))
BAD_SIGNATURE = b"\3\2\4" + SIGNER_ID + len(OTHER_SIGNATURE).to_bytes(2, "big") + OTHER_SIGNATURE
"""By the vendor, of another file."""
FILES = ImaPolicy(
    allowed={"/usr/bin/dash": (f"sha256:{hashlib.sha256(DASH).hexdigest()}",)},
    buffers={"kexec-cmdline": (f"sha256:{hashlib.sha256(b'quiet').hexdigest()}",)},
    signing_keys=(SIGNER,),
)
FILES_POLICY = POLICY.model_copy(update={"pcrs": (*POLICY.pcrs, 10), "ima": FILES})


def files() -> List:
    """A kernel that has measured what it must, and one allowed file."""
    return List(aggregate=AGGREGATE).file("/usr/bin/dash", DASH)


@dataclass(frozen=True)
class MeasuringHost(Host):
    """A host whose kernel measures files."""

    pcrs: tuple[int, ...] = FILES_POLICY.pcrs
    files: List = field(default_factory=files)
    sent: bytes | None = None
    """List to send; None for the kernel's own."""

    def pcr_values(self) -> dict[int, bytes]:
        """The quoted PCRs, with what the kernel extended."""
        return {**super().pcr_values(), 10: self.files.pcr10}

    def evidence(self) -> Evidence:
        """All of it, with the list."""
        honest = super().evidence()
        return replace(honest, logs={**honest.logs, LogKind.IMA: self.files.data if self.sent is None else self.sent})


def measuring(kernel: List, sent: bytes | None = None) -> tuple[Evidence, dict[str, Any]]:
    """Evidence of a host whose kernel measured these files, and the policy to judge it by."""
    return MeasuringHost(files=kernel, sent=sent).evidence(), {"policy": FILES_POLICY}


def without_list() -> Evidence:
    """Evidence that lacks the list of files."""
    evidence = MeasuringHost().evidence()
    return replace(evidence, logs={LogKind.TCG: evidence.logs[LogKind.TCG]})


SEPARATOR = next(i for i, event in enumerate(EVENTS) if event.pcr == 7 and event.type == Type.EV_SEPARATOR)
OFF = honest_events(secure_boot=False)
ACTION_AS_OTHER_DATA = replace(EVENTS[7], data=b"Another action", content=EVENTS[7].data)

LIES: dict[RejectReason, tuple[Evidence, dict[str, Any]]] = {
    RejectReason.MALFORMED_QUOTE: (replace(HOST.evidence(), quote=b""), {}),
    RejectReason.WRONG_SIGNATURE_SCHEME: (replace(HOST, key=software_key("rsassa")).evidence(), {}),
    RejectReason.BAD_SIGNATURE: (replace(HOST, key=software_key("other-p256")).evidence(), {}),
    RejectReason.BAD_MAGIC: (HOST.lying(magic=0).evidence(), {}),
    RejectReason.NOT_A_QUOTE: (HOST.lying(type=0x8014).evidence(), {}),
    RejectReason.NONCE_MISMATCH: (HOST.lying(extra_data=bytes(32)).evidence(), {}),
    RejectReason.WRONG_QUALIFIED_SIGNER: (HOST.lying(qualified_signer=bytes(34)).evidence(), {}),
    RejectReason.WRONG_PCR_SELECTION: (replace(HOST, pcrs=(0, 2, 4, 7, 9)).evidence(), {}),
    RejectReason.PCR_DIGEST_MISMATCH: (replace(HOST, claimed={}).evidence(), {}),
    RejectReason.CLOCK_NOT_SAFE: (
        HOST.lying(safe=0).evidence(),
        {"policy": POLICY.model_copy(update={"safe_clock_required": True})},
    ),
    RejectReason.BOOT_COUNTER_DECREASED: (HOST.evidence(), {"previous": BootIdentity(4, 0)}),
    RejectReason.RESUMED_WITHOUT_MEASUREMENT: (HOST.lying(restart_count=1).evidence(), {}),
    RejectReason.FIRMWARE_VERSION_DENIED: (
        HOST.evidence(),
        {"policy": POLICY.model_copy(update={"denied_firmware": ("2019102300163636",)})},
    ),
    RejectReason.MISSING_LOG: (replace(HOST.evidence(), logs={}), {}),
    RejectReason.MALFORMED_LOG: (replace(HOST.evidence(), logs={LogKind.TCG: b"log"}), {}),
    RejectReason.LOG_DOES_NOT_REPLAY: (replace(HOST, log=make_log(OFF)).evidence(), {}),
    RejectReason.UNMEASURED_PCR: (booted([event for event in EVENTS if event.pcr != 11]), {}),
    RejectReason.WRONG_STARTUP_LOCALITY: (
        HOST.evidence(),
        {"policy": POLICY.model_copy(update={"required_startup_locality": 3})},
    ),
    RejectReason.EVENT_TYPE_NOT_ALLOWED: (booted(edited(0, replace(EVENTS[0], type=Type.EV_IPL))), {}),
    RejectReason.EVENT_DATA_MISMATCH: (booted(edited(7, ACTION_AS_OTHER_DATA)), {}),
    RejectReason.BAD_SEPARATOR: (booted(edited(SEPARATOR, EVENTS[SEPARATOR], EVENTS[SEPARATOR])), {}),
    RejectReason.SECURE_BOOT_REQUIRED: (booted(OFF), {}),
    RejectReason.NO_ACTIVE_REFERENCE: (HOST.evidence(), {"references": ()}),
    RejectReason.REFERENCE_MISMATCH: (booted(honest_events("quiet")), {}),
    RejectReason.IMA_LIST_MISSING: (without_list(), {"policy": FILES_POLICY}),
    RejectReason.IMA_LIST_MALFORMED: measuring(files(), files().data[:-1]),
    RejectReason.IMA_OTHER_PCR: measuring(files().add("/x", bytes(32), pcr=11)),
    RejectReason.IMA_LIST_DOES_NOT_REPLAY: measuring(files().file("/root/evil"), files().data),
    RejectReason.IMA_BOOT_AGGREGATE: measuring(List().file("/usr/bin/dash", DASH)),
    RejectReason.IMA_KEXEC: measuring(files().add("boot_aggregate", AGGREGATE)),
    RejectReason.IMA_VIOLATION: measuring(files().add("/usr/bin/dash", bytes(32), violation=True)),
    RejectReason.IMA_TEMPLATE_HASH: measuring(
        files().add("/usr/bin/dash", hashlib.sha256(DASH).digest(), shown=bytes(19) + b"\1")
    ),
    RejectReason.IMA_BUFFER_DIGEST: measuring(files().add("kexec-cmdline", bytes(32), b"quiet", template="ima-buf")),
    RejectReason.IMA_BUFFER_NOT_ALLOWED: measuring(files().buffer("kexec-cmdline", b"init=/bin/sh")),
    RejectReason.IMA_DIGEST_NOT_ALLOWED: measuring(files().file("/usr/bin/dash", b"another dash")),
    RejectReason.IMA_BAD_SIGNATURE: measuring(files().file("/opt/tool", b"tool", BAD_SIGNATURE)),
    RejectReason.IMA_FILE_NOT_ALLOWED: measuring(files().file("/opt/tool", b"tool")),
}
"""For each rule, evidence that only it refuses, and what to judge it by."""


def test_an_honest_host_is_trusted() -> None:
    """R-TA-4, R-TA-5: a host with the right boot is trusted, every rule having been checked."""
    appraisal = judge(HOST.evidence(), previous=BootIdentity(3, 0))
    assert appraisal.trusted
    assert appraisal.reason is None
    assert appraisal.reference == appraisal.nearest_reference == "golden"
    assert appraisal.boot == BootIdentity(3, 0)
    boot_rules = list(RejectReason)[: list(RejectReason).index(RejectReason.REFERENCE_MISMATCH) + 1]
    assert [check.rule for check in appraisal.checks] == [reason.value for reason in boot_rules]
    assert all(check.passed and not check.seen for check in appraisal.checks)


def test_an_honest_host_with_the_right_files_is_trusted() -> None:
    """R-TA-4: where the policy names files, the right boot with the right files passes every rule there is."""
    for rules in (None, ImaRules(FILES)):
        appraisal = judge(MeasuringHost().evidence(), policy=FILES_POLICY, ima_rules=rules)
        assert (appraisal.trusted, appraisal.reference) == (True, "golden")
        assert [check.rule for check in appraisal.checks] == [reason.value for reason in RejectReason]


def test_the_right_files_do_not_make_up_for_another_boot() -> None:
    """The boot is judged first: files that a changed kernel says it measured prove nothing."""
    host = MeasuringHost(events=honest_events("quiet"))
    assert judge(host.evidence(), policy=FILES_POLICY).reason is RejectReason.REFERENCE_MISMATCH
    quiet = ReferenceBoot.from_log("quiet", make_log(honest_events("quiet")), PcrBank.SHA256, POLICY.pcrs)
    appraisal = judge(host.evidence(), policy=FILES_POLICY, references=(quiet,))
    assert appraisal.reason is RejectReason.IMA_BOOT_AGGREGATE


def test_every_file_that_is_not_allowed_is_listed() -> None:
    """B-3: one refusal names all that an administrator must look at, by rule and place in the list."""
    kernel = files().file("/opt/a").file("/usr/bin/dash", b"old").file("/opt/b")
    evidence, options = measuring(kernel)
    appraisal = judge(evidence, **options)
    assert appraisal.reason is RejectReason.IMA_DIGEST_NOT_ALLOWED
    assert appraisal.nearest_reference == "golden"
    failed = [(check.rule, check.event) for check in appraisal.checks if not check.passed]
    assert failed == [
        ("IMA_DIGEST_NOT_ALLOWED", "IMA entry 3: /usr/bin/dash"),
        ("IMA_FILE_NOT_ALLOWED", "IMA entry 2: /opt/a"),
        ("IMA_FILE_NOT_ALLOWED", "IMA entry 4: /opt/b"),
    ]


def test_a_list_that_is_not_required_counts_where_it_is_sent() -> None:
    """A policy may be rolled out before all hosts measure files; a host that does is held to it."""
    optional = FILES_POLICY.model_copy(update={"ima": ImaPolicy(required=False)})
    assert judge(without_list(), policy=optional).trusted
    assert judge(MeasuringHost().evidence(), policy=optional).reason is RejectReason.IMA_FILE_NOT_ALLOWED


def test_the_boot_aggregate_may_rest_on_pcrs_that_are_not_quoted() -> None:
    """PCRs that vary between machines are not demanded; the aggregate still ties the list to this boot's log."""
    events = [*EVENTS, Measured(1, Type.EV_EFI_ACTION, b"the machine's own")]
    values = extended(events, "sha256", 0)
    aggregate = hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()
    kernel = List(aggregate=aggregate).file("/usr/bin/dash", DASH)
    honest = MeasuringHost(events=events, files=kernel)
    assert judge(honest.evidence(), policy=FILES_POLICY).trusted
    lying = replace(honest, log=make_log(EVENTS))
    assert judge(lying.evidence(), policy=FILES_POLICY).reason is RejectReason.IMA_BOOT_AGGREGATE


def test_each_reason_of_a_list_is_a_reject_reason() -> None:
    """Two are left out: they concern lists in parts, which hosts do not send."""
    names = [reason.value for reason in ImaReason if reason.value in RejectReason.__members__]
    assert set(ImaReason.__members__) - set(names) == {"IMA_LIST_NOT_CONTINUED", "IMA_LIST_WENT_BACK"}
    assert names == list(RejectReason.__members__)[-len(names) :]


def systemd_host(*records: tuple[int, str, str], events: Sequence[Measured] = EVENTS) -> Host:
    """A host on which systemd went on to measure: PCR, event type, text."""
    later = [Measured(pcr, Type.EV_IPL, text.encode()) for pcr, _, text in records]
    return replace(HOST, events=[*events, *later], log=make_log(events))


def with_systemd_log(evidence: Evidence, *records: tuple[int, str, str]) -> Evidence:
    """The same evidence with a log of systemd's."""
    log = sequence(*(record(pcr, text, event_type) for pcr, event_type, text in records))
    return replace(evidence, logs={**evidence.logs, LogKind.SYSTEMD: log})


PHASES = tuple((11, "phase", phase) for phase in ("enter-initrd", "leave-initrd", "sysinit", "ready"))
SYSTEMD_POLICY = POLICY.model_copy(update={"systemd_log": True})


@pytest.mark.parametrize("passed", range(len(PHASES) + 1))
def test_systemds_log_explains_what_came_after_the_firmwares(passed: int) -> None:
    """T4: boot phases may be passed at any time; without the log, or a policy that asks for it, they are a lie."""
    evidence = systemd_host(*PHASES[:passed]).evidence()
    assert judge(with_systemd_log(evidence, *PHASES), policy=SYSTEMD_POLICY).trusted
    if passed:
        for logless, policy in ((evidence, SYSTEMD_POLICY), (with_systemd_log(evidence, *PHASES), POLICY)):
            assert judge(logless, policy=policy).reason is RejectReason.LOG_DOES_NOT_REPLAY


def test_a_malformed_log_of_systemds_is_refused() -> None:
    """Both logs are read strictly."""
    evidence = replace(HOST.evidence(), logs={**HOST.evidence().logs, LogKind.SYSTEMD: b"log"})
    appraisal = judge(evidence, policy=SYSTEMD_POLICY)
    assert (appraisal.reason, appraisal.checks[-1].event) == (RejectReason.MALFORMED_LOG, "systemd's log")


@pytest.mark.parametrize(
    "later",
    [
        (9, "os-separator", "a further initial RAM disk"),
        (9, "", "a further initial RAM disk"),
        (9, "phase", "a further initial RAM disk"),
        (9, "nvpcr-init", "nvpcr-\0archive"),
        (9, "nvpcr-init", "070701"),
        (11, "phase", "another section"),
        (11, "filesystem", "ready"),
        (11, "os-separator", "ready"),
    ],
)
def test_nothing_of_the_boot_passes_for_a_record_of_systemds(later: tuple[int, str, str]) -> None:
    """T4: what was loaded last cannot be moved out of the firmware's log, although all PCRs replay."""
    evidence = with_systemd_log(systemd_host(later).evidence(), later)
    appraisal = judge(evidence, policy=SYSTEMD_POLICY)
    assert appraisal.reason is RejectReason.EVENT_TYPE_NOT_ALLOWED
    assert appraisal.checks[-1].event == f"systemd record 0, PCR {later[0]}"


def test_a_register_that_systemd_sets_up_may_be_measured() -> None:
    """PCR 9 goes on after the boot aggregate was made: the list of files still fits."""
    later = (9, "nvpcr-init", "nvpcr-init:hardware:0x1d10200:sha256:00")
    policy = FILES_POLICY.model_copy(update={"systemd_log": True})
    host = systemd_host(later)
    measuring_host = MeasuringHost(events=host.events, log=host.log)
    assert judge(with_systemd_log(measuring_host.evidence(), later), policy=policy).trusted


@pytest.mark.parametrize("reason", list(RejectReason))
def test_each_lie_is_refused_for_its_own_reason(reason: RejectReason) -> None:
    """B-3: for each rule, the evidence that only it refuses; the result ends with the failed check and says why."""
    evidence, options = LIES[reason]
    appraisal = judge(evidence, **options)
    assert (appraisal.trusted, appraisal.reason, appraisal.reference) == (False, reason, "")
    failed = [check for check in appraisal.checks if not check.passed]
    passed = [check.rule for check in appraisal.checks if check.passed]
    assert passed == [earlier.value for earlier in RejectReason][: len(passed)]
    assert failed[0].rule == reason.value
    assert failed[0].title == TITLES[reason]
    assert failed[0].seen
    assert appraisal.checks[len(passed) :] == tuple(failed)


@pytest.mark.parametrize("later", list(RejectReason))
def test_counters_of_a_refused_quote_are_not_reported(later: RejectReason) -> None:
    """Boot counters are reported from a verified quote only."""
    evidence, options = LIES[later]
    verified = list(RejectReason).index(later) >= list(RejectReason).index(RejectReason.CLOCK_NOT_SAFE)
    assert (judge(evidence, **options).boot is not None) is verified


def test_every_rule_has_a_title_and_a_lie() -> None:
    """A new reject reason comes with its title, and with a test."""
    assert list(TITLES) == list(LIES) == list(RejectReason)


def test_a_changed_command_line_is_named_with_both_texts() -> None:
    """T4: the result names the event, the command line expected and the one seen, in each PCR that shows it."""
    evil = f"{COMMAND_LINE} init=/bin/sh"
    appraisal = judge(replace(HOST, events=honest_events(evil), command_line=evil).evidence())
    assert (appraisal.reason, appraisal.nearest_reference) == (RejectReason.REFERENCE_MISMATCH, "golden")
    failed = [check for check in appraisal.checks if not check.passed]
    assert [check.event.split(", ")[1] for check in failed] == ["PCR 11", "PCR 9"]
    for check in failed:
        assert f'"{COMMAND_LINE}"' in check.expected
        assert f'"{evil}"' in check.seen


def test_secure_boot_may_be_off_where_the_policy_does_not_demand_it() -> None:
    """Without the demand, Secure Boot's state is what the reference says."""
    reference = ReferenceBoot.from_log("off", make_log(OFF), PcrBank.SHA256, POLICY.pcrs)
    lax = AppraisalPolicy(name="lax", version=1)
    assert judge(booted(OFF), policy=lax, references=(REFERENCE, reference)).reference == "off"
    assert judge(booted(OFF), references=(REFERENCE, reference)).reason is RejectReason.SECURE_BOOT_REQUIRED


def test_what_the_quote_does_not_cover_decides_nothing() -> None:
    """Only PCRs of the signed selection reach the policy: events of other PCRs may say anything."""
    events = [*EVENTS, Measured(1, Type.EV_IPL, b"lie"), Measured(14, 0x77777777, b"lie")]
    assert judge(booted(events)).trusted


def test_a_log_for_no_quoted_bank_is_refused() -> None:
    """A SHA-1 log explains nothing, honest or not."""
    assert judge(replace(HOST, log=make_legacy_log(EVENTS)).evidence()).reason is RejectReason.LOG_DOES_NOT_REPLAY
    assert judge(replace(HOST, log=make_log(EVENTS, ("sha1",))).evidence()).reason is RejectReason.LOG_DOES_NOT_REPLAY


def test_a_sha384_bank_is_appraised_like_any() -> None:
    """Policy, quote, log and reference agree on the bank."""
    policy = POLICY.model_copy(update={"bank": PcrBank.SHA384})
    reference = ReferenceBoot.from_log("golden", make_log(EVENTS, ("sha384",)), PcrBank.SHA384, policy.pcrs)
    evidence = replace(HOST, bank=PcrBank.SHA384).evidence()
    assert judge(evidence, policy=policy, references=(reference,)).trusted
    assert judge(HOST.evidence(), policy=policy, references=(reference,)).reason is RejectReason.WRONG_PCR_SELECTION


def test_the_evidence_is_identified_by_a_digest() -> None:
    """The digest covers quote, signature and each log with its kind."""
    evidence = HOST.evidence()
    parts = (evidence.quote, evidence.signature, hashlib.sha256(evidence.logs[LogKind.TCG]).digest(), b"", b"")
    transcript = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert judge(evidence).evidence_digest == hashlib.sha256(transcript).digest()
    as_ima = replace(evidence, logs={LogKind.IMA: evidence.logs[LogKind.TCG]})
    assert as_ima.digest() != evidence.digest()
    assert evidence.log_hashes == {LogKind.TCG: parts[2]}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_changed_byte_of_the_log_is_noticed_or_harmless(data: st.DataObject) -> None:
    """A flipped bit of the log never makes another boot trusted: digests of quoted PCRs stay those of the reference."""
    evidence = HOST.evidence()
    log = bytearray(evidence.logs[LogKind.TCG])
    bit = data.draw(st.integers(min_value=0, max_value=8 * len(log) - 1))
    log[bit // 8] ^= 1 << bit % 8
    appraisal = judge(replace(evidence, logs={LogKind.TCG: bytes(log)}))
    if appraisal.trusted:
        parsed = parse_event_log(bytes(log))
        position = parsed.bank_position("sha256")
        assert position is not None
        events = {
            pcr: [e for e in parsed.events if e.pcr == pcr and e.type != Type.EV_NO_ACTION] for pcr in POLICY.pcrs
        }
        assert replay(events, position, "sha256", parsed.startup_locality) == HOST.pcr_values()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_log_is_refused_without_an_exception(log: bytes) -> None:
    """Whatever a host sends as its log, the answer is a refusal with a reason."""
    appraisal = judge(replace(HOST.evidence(), logs={LogKind.TCG: log}))
    assert not appraisal.trusted
    assert appraisal.reason in (RejectReason.MISSING_LOG, RejectReason.MALFORMED_LOG, RejectReason.LOG_DOES_NOT_REPLAY)


def test_a_log_cut_at_any_byte_is_refused() -> None:
    """A truncated log either does not parse or does not explain the quote."""
    evidence = HOST.evidence()
    log = evidence.logs[LogKind.TCG]
    last = max(event.number for event in parse_event_log(log).events if event.pcr in POLICY.pcrs)
    needed = len(make_log(EVENTS[:last], HOST.log_banks))
    for end in range(0, needed, 7):
        assert not judge(replace(evidence, logs={LogKind.TCG: log[:end]})).trusted


def test_a_variable_of_another_value_is_refused_by_the_reference() -> None:
    """Another key database is another boot, even with Secure Boot on."""
    other = replace(EVENTS[5], data=variable("db", b"other certificates", EVENTS[5].data[:16]))
    appraisal = judge(booted(edited(5, other)))
    assert appraisal.reason is RejectReason.REFERENCE_MISMATCH
    assert "db: 18 bytes" in appraisal.checks[-1].seen


def recorded_host(name: str) -> Host:
    """A host that booted one of the project's own recordings."""
    recording = Recording.load(name)
    values = {pcr: recording.pcrs[pcr] for pcr in POLICY.pcrs}
    digest = hashlib.sha256(b"".join(values.values())).digest()
    return replace(HOST.lying(pcr_digest=digest), log=recording.log, claimed=values)


def test_the_projects_own_recordings_are_told_apart() -> None:
    """T4: a real boot is trusted; the same one with another kernel command line is refused, and the log says where."""
    policy = AppraisalPolicy(name="any", version=1)
    reference = ReferenceBoot.from_log("good", Recording.load("good").log, PcrBank.SHA256, policy.pcrs)
    assert judge(recorded_host("good").evidence(), policy=policy, references=(reference,)).trusted
    appraisal = judge(recorded_host("changed-command-line").evidence(), policy=policy, references=(reference,))
    assert appraisal.reason is RejectReason.REFERENCE_MISMATCH
    named = [check for check in appraisal.checks if not check.passed and "kernel command line" in check.seen]
    assert [check.event.split(", ")[1] for check in named] == ["PCR 11", "PCR 9"]


@pytest.mark.parametrize(
    "name", ["ovmf-nosb-uki-python", "ovmf-nosb-uki-tampered-cmdline", "ovmf-secureboot-uki-python"]
)
def test_recorded_boots_are_told_apart(name: str) -> None:
    """Of three boots recorded under OVMF, only the one of the reference is trusted."""
    directory = VECTORS / "ovmf"
    if not directory.is_dir():
        pytest.skip("the collection of recorded boots is not here")
    golden = (directory / "ovmf-nosb-uki-python" / "binary_bios_measurements").read_bytes()
    log = (directory / name / "binary_bios_measurements").read_bytes()
    lines = (directory / name / "pcrs-sha256.txt").read_text().splitlines()
    recorded = {int(pcr): bytes.fromhex(value) for pcr, value in (line.split() for line in lines)}
    reference = ReferenceBoot.from_log("golden", golden, PcrBank.SHA256, POLICY.pcrs)
    values = {pcr: recorded[pcr] for pcr in POLICY.pcrs}
    digest = hashlib.sha256(b"".join(values.values())).digest()
    host = replace(HOST.lying(pcr_digest=digest), log=log, claimed=values)
    appraisal = judge(host.evidence(), policy=AppraisalPolicy(name="any", version=1), references=(reference,))
    if name == "ovmf-nosb-uki-python":
        assert appraisal.trusted
        return
    assert appraisal.reason is RejectReason.REFERENCE_MISMATCH
    pcrs = {check.event.split(", ")[1] for check in appraisal.checks if not check.passed}
    assert pcrs == (
        {"PCR 4", "PCR 9", "PCR 11"} if "tampered" in name else {"PCR 0", "PCR 4", "PCR 7", "PCR 9", "PCR 11"}
    )
