"""Parse systemd's own measurement log and continue the firmware's PCRs with it (src/shared/tpm2-util.c, pcrlock.c).

``/run/log/systemd/tpm2-measure.log`` is a JSON text sequence (RFC 7464): each record a record separator, an object, a
line feed. An object is close to a record of TCG's Canonical Event Log, without its number: ``pcr`` (or ``nv_index`` for
registers that systemd keeps in NV memory, which no PCR holds), ``digests``, ``content_type``, ``content`` with
``string``, ``bootId``, ``timestamp`` and ``eventType``. What is measured is described in docs/TPM2_PCR_MEASUREMENTS.md.

Where what was measured is ``content.string`` itself (boot phases, machine id, file systems …), each digest is computed
anew, and a log in which one differs is refused: no later step could forget to look. The digests of other types cover
secrets or files; they are only replayed. Fields that this service does not use may be there; a key may not be there
twice, and two boots may not share a log.

Pure: bytes in, frozen values out. Lets no error out but ``WireError``.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation.errors import WireError
from attestation.wire.event_log import MAX_DIGEST_SIZE, PCR_COUNT
from attestation.wire.tpm_algorithms import HASH_NAMES

MAX_LOG_SIZE: Final = 1024 * 1024
MAX_RECORDS: Final = 4096
"""A boot writes some ten; each login may add one."""
MAX_RECORD_SIZE: Final = 64 * 1024
MAX_BANKS: Final = 8
MAX_STRING: Final = 16 * 1024
KERNEL_BOOT_PCR: Final = 11
SYSTEMD_PCRS: Final = frozenset((9, KERNEL_BOOT_PCR, 12, 13, 15))
"""Those that systemd extends after the firmware's log ended. In others its log explains nothing."""
STRING_EVENTS: Final = frozenset(
    ("phase", "filesystem", "machine-id", "product-id", "keyslot", "nvpcr-init", "nvpcr-separator")
)
"""Event types whose digest is that of ``content.string``."""
OPAQUE_EVENTS: Final = frozenset(("volume-key", "dm-verity", "imds-userdata", "login", "os-separator"))
"""Event types whose digest covers something else."""
PHASE: Final = "phase"
_RECORD_SEPARATOR: Final = b"\x1e"
_MAX_BRACKETS: Final = 128
"""Objects and arrays in one record; a record of five banks has nine. Bounds how deep the JSON parser recurses."""
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_BOOT_ID: Final = re.compile(r"[0-9a-f]{32}")
_HASH_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
_KNOWN_HASHES: Final = frozenset(HASH_NAMES.values())


@dataclass(frozen=True, slots=True)
class SystemdRecord:
    """One measurement by systemd."""

    number: int
    """Place in the log, from 0."""
    pcr: int | None
    """None for a register in NV memory."""
    digests: Mapping[str, bytes]
    """By the bank's hash."""
    event_type: str
    """Of a PCR's record: one of ``STRING_EVENTS``, whose digests were checked, one of ``OPAQUE_EVENTS``, or empty."""
    string: str
    """What was measured, or words for it; empty where none is stated."""


@dataclass(frozen=True, slots=True)
class SystemdLog:
    """A log that parsed. Nothing in it is believed before it has replayed to quoted PCRs."""

    records: tuple[SystemdRecord, ...]
    boot_id: str
    """32 hexadecimal digits, as systemd says; empty for a log without records."""


@dataclass(frozen=True, slots=True)
class ContinuedBoot:
    """The part of a log that quoted PCRs prove."""

    count: int
    """Records up to its end."""
    tail: int
    """Records after it, of which nothing is believed: measured after the quote, if the host is honest."""
    records: tuple[SystemdRecord, ...]
    """The proven ones: those of quoted PCRs."""

    @property
    def phases(self) -> tuple[str, ...]:
        """The boot phases passed, in order: enter-initrd, leave-initrd, sysinit, ready, shutdown, final."""
        return tuple(
            record.string for record in self.records if record.pcr == KERNEL_BOOT_PCR and record.event_type == PHASE
        )


def parse_systemd_log(data: bytes) -> SystemdLog:
    """Parse a whole log.

    Args:
        data: At most 1 MiB; nothing, for a log without records.

    Raises:
        WireError: Not a log, beyond a bound, or a digest that is not that of its content.
    """
    if len(data) > MAX_LOG_SIZE:
        raise WireError(f"a log has at most {MAX_LOG_SIZE} bytes, not {len(data)}")
    if not data:
        return SystemdLog((), "")
    if not data.startswith(_RECORD_SEPARATOR):
        raise WireError("a log begins with a record separator")
    texts = data[1:].split(_RECORD_SEPARATOR, MAX_RECORDS)
    if len(texts) > MAX_RECORDS:
        raise WireError(f"a log has at most {MAX_RECORDS} records")
    records = []
    boot_id = ""
    for number, text in enumerate(texts):
        record, boot = _read_record(_read_object(text, number), number)
        if number and boot != boot_id:
            raise WireError(f"record {number} is of boot {boot}, the first is of {boot_id}")
        boot_id = boot
        records.append(record)
    return SystemdLog(tuple(records), boot_id)


def _read_object(text: bytes, number: int) -> dict[str, Any]:
    if not text.endswith(b"\n") or len(text) > MAX_RECORD_SIZE:
        raise WireError(f"record {number} is longer than {MAX_RECORD_SIZE} bytes, or has no line feed at its end")
    if text.count(b"[") + text.count(b"{") > _MAX_BRACKETS:
        raise WireError(f"record {number} has more than {_MAX_BRACKETS} objects and arrays in it")
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise WireError(f"record {number} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise WireError(f"record {number} is not an object")
    return document


def _read_record(document: dict[str, Any], number: int) -> tuple[SystemdRecord, str]:
    pcr = _read_register(document, number)
    digests = _read_digests(document.get("digests"), number)
    if document.get("content_type") != "systemd":
        raise WireError(f"record {number} has content of another type than systemd's")
    content = document.get("content")
    if not isinstance(content, dict):
        raise WireError(f"record {number} has no content")
    event_type = _text(content, "eventType", number)
    string = _text(content, "string", number)
    boot_id = _text(content, "bootId", number)
    if not _BOOT_ID.fullmatch(boot_id):
        raise WireError(f"record {number} has no boot id of 32 hexadecimal digits")
    if pcr is not None and event_type and event_type not in STRING_EVENTS | OPAQUE_EVENTS:
        raise WireError(f"record {number} is of a type that is not known")
    if pcr is not None and event_type in STRING_EVENTS:
        _check_content(string, digests, number)
    return SystemdRecord(number, pcr, digests, event_type, string), boot_id


def _read_register(document: dict[str, Any], number: int) -> int | None:
    pcr, nv_index = document.get("pcr"), document.get("nv_index")
    if (pcr is None) == (nv_index is None):
        raise WireError(f"record {number} names neither a PCR nor an NV index, or both")
    value, limit = (pcr, PCR_COUNT) if nv_index is None else (nv_index, 1 << 32)
    if type(value) is not int or not 0 <= value < limit:
        raise WireError(f"record {number} is of a PCR or NV index that no TPM has")
    return value if nv_index is None else None


def _read_digests(entries: object, number: int) -> dict[str, bytes]:
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_BANKS:
        raise WireError(f"record {number} has not 1 to {MAX_BANKS} digests")
    digests: dict[str, bytes] = {}
    for entry in entries:
        name, text = (entry.get("hashAlg"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not _HASH_NAME.fullmatch(name) or name in digests:
            raise WireError(f"record {number} has a digest without an algorithm, or two of one")
        if not isinstance(text, str) or len(text) > 2 * MAX_DIGEST_SIZE or not _HEX.fullmatch(text):
            raise WireError(f"record {number} has a {name} digest that is not hexadecimal")
        digests[name] = bytes.fromhex(text)
        if name in _KNOWN_HASHES and len(digests[name]) != hashlib.new(name).digest_size:
            raise WireError(f"record {number} has a {name} digest of {len(digests[name])} bytes")
    return digests


def _text(content: dict[str, Any], key: str, number: int) -> str:
    value = content.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_STRING:
        raise WireError(f"record {number} has in {key} no text of at most {MAX_STRING} characters")
    return value


def _check_content(string: str, digests: Mapping[str, bytes], number: int) -> None:
    try:
        measured = string.encode()
    except UnicodeEncodeError as exc:
        raise WireError(f"record {number} has text that is not Unicode") from exc
    for name in _KNOWN_HASHES & digests.keys():
        expected = hashlib.new(name, measured).hexdigest()
        if digests[name].hex() != expected:
            raise WireError(f"record {number} has {name} digest {digests[name].hex()}, its content has {expected}")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is there twice")
    return keys


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def continue_boot(
    log: SystemdLog, *, bank_name: str, start: Mapping[int, bytes], quoted: Mapping[int, bytes]
) -> ContinuedBoot | None:
    """Find the shortest prefix of a log that takes the firmware's PCRs to the quoted ones.

    Args:
        log: As parsed.
        bank_name: The quoted bank.
        start: What the firmware's log replays to. A PCR that it says nothing of starts at zero.
        quoted: As a TPM signed them. Only those of ``SYSTEMD_PCRS`` are looked at.

    Returns:
        The proven part; None where no prefix explains them all: the log lies, is cut or does not cover the bank.
    """
    wanted = {pcr: value for pcr, value in quoted.items() if pcr in SYSTEMD_PCRS}
    values = {pcr: start.get(pcr, bytes(len(value))) for pcr, value in wanted.items()}
    proven: list[SystemdRecord] = []
    for record in log.records:
        if values == wanted:
            return ContinuedBoot(record.number, len(log.records) - record.number, tuple(proven))
        if record.pcr not in wanted:
            continue
        digest = record.digests.get(bank_name)
        if digest is None or record.pcr is None:
            return None
        values[record.pcr] = hashlib.new(bank_name, values[record.pcr] + digest).digest()
        proven.append(record)
    return ContinuedBoot(len(log.records), 0, tuple(proven)) if values == wanted else None
