"""Parse measurement logs of firmware (TCG PC Client Platform Firmware Profile 1.06, 10.2 to 10.5), strictly.

Two formats: crypto-agile (TCG_PCR_EVENT2 after a "Spec ID Event03" header, each event with one digest for each
algorithm that the header lists) and the older one with SHA-1 only (TCG_PCR_EVENT). Refused: sizes and counts over
the bounds below, bytes after the last whole event, a second header, PCRs that a PC does not have, an event whose
algorithms are not exactly the header's. An algorithm that is unknown here is carried by its declared size.

Rules about what the events say (types, data, separators) are not applied here: ``attestation.verifier.event_rules``.
Pure: bytes in, frozen values out. Lets no error out but ``WireError``.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from attestation.errors import WireError
from attestation.wire.event_types import EventType
from attestation.wire.reader import Reader
from attestation.wire.tpm_algorithms import HASH_NAMES, TpmAlgorithm

MAX_LOG_SIZE: Final = 4 * 1024 * 1024
"""As much as the service takes in one message."""
MAX_EVENTS: Final = 10_000
"""Real logs hold 15 to 300 events."""
MAX_EVENT_DATA_SIZE: Final = 1024 * 1024
MAX_ALGORITHMS: Final = 8
MAX_DIGEST_SIZE: Final = 64
PCR_COUNT: Final = 24
"""PCRs of a PC Client TPM (TCG PC Client Platform TPM Profile, 4.6)."""
NO_PCR: Final = 0xFFFFFFFF
"""PCR index of events that belong to none; they are never extended."""
SPEC_ID_AGILE: Final = b"Spec ID Event03\0"
_SPEC_ID: Final = b"Spec ID Event"
_SPEC_IDS_LEGACY: Final = (b"Spec ID Event00\0", b"Spec ID Event02\0")
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
H_CRTM_LOCALITY: Final = 4
_STARTUP_LOCALITIES: Final = (0, 3, H_CRTM_LOCALITY)
# TCG_PCR_EVENT: pcrIndex, eventType, digest, eventSize
_LEGACY_EVENT: Final = struct.Struct("<II20sI")
_EVENT_START: Final = struct.Struct("<III")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class LogAlgorithm:
    """One bank that a log covers."""

    hash_id: int
    digest_size: int

    @property
    def name(self) -> str:
        """Such as sha256; the number of an algorithm that has no name here."""
        try:
            known = TpmAlgorithm(self.hash_id)
        except ValueError:
            return f"0x{self.hash_id:04x}"
        return HASH_NAMES.get(known, known.name.lower())


class Event(NamedTuple):
    """One record of a log. A tuple, and not a dataclass, because an appraisal makes hundreds of them."""

    number: int
    """Place in the log, from 0; a crypto-agile log's header is event 0."""
    pcr: int
    type: int
    """As logged; the digest does not cover it."""
    digests: tuple[bytes, ...]
    """One for each of the log's algorithms, in their order."""
    data: bytes
    """As logged; for many types the digest does not cover it."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log that parsed. Nothing in it is believed before it has replayed to quoted PCRs."""

    algorithms: tuple[LogAlgorithm, ...]
    events: tuple[Event, ...]
    startup_locality: int
    """Locality of TPM2_Startup, which is PCR 0's first value (10.4.5.3); 4 where an H-CRTM came first."""

    def bank_position(self, name: str) -> int | None:
        """Where in each event's ``digests`` this bank's digest is; None if the log does not cover the bank."""
        for position, algorithm in enumerate(self.algorithms):
            if algorithm.name == name:
                return position
        return None


def parse_event_log(data: bytes) -> EventLog:
    """Parse a whole log, as ``/sys/kernel/security/tpm0/binary_bios_measurements`` gives it.

    Args:
        data: At most 4 MiB.

    Raises:
        WireError: Not a log, or beyond a bound.
    """
    if len(data) > MAX_LOG_SIZE:
        raise WireError(f"a log has at most {MAX_LOG_SIZE} bytes, not {len(data)}")
    if not data:
        raise WireError("the log is empty")
    first, offset = _read_legacy_event(data, 0, 0)
    if first.data.startswith(SPEC_ID_AGILE):
        algorithms = _read_header(first)
        events = _read_agile_events(data, offset, first, algorithms)
    else:
        if first.data.startswith(_SPEC_ID) and not first.data.startswith(_SPEC_IDS_LEGACY):
            raise WireError(f"a log of format {first.data[:16]!r} is not supported")
        algorithms = (LogAlgorithm(TpmAlgorithm.SHA1, 20),)
        events = _read_legacy_events(data, offset, first)
    return EventLog(algorithms, tuple(events), _startup_locality(events))


def _read_header(event: Event) -> tuple[LogAlgorithm, ...]:
    """Read TCG_EfiSpecIdEvent (10.4.5.1)."""
    if event.pcr != 0 or event.type != EventType.EV_NO_ACTION:
        raise WireError("the header is an EV_NO_ACTION event of PCR 0")
    reader = Reader(event.data, byte_order="little")
    # Signature, platformClass, specVersion (minor, major, errata) and uintnSize say nothing that parsing needs.
    reader.take(len(SPEC_ID_AGILE) + 8)
    count = reader.u32()
    if not 0 < count <= MAX_ALGORITHMS:
        raise WireError(f"a log covers 1 to {MAX_ALGORITHMS} banks, not {count}")
    algorithms = tuple(LogAlgorithm(reader.u16(), reader.u16()) for _ in range(count))
    reader.take(reader.u8())
    reader.finish()
    for algorithm in algorithms:
        known = hashlib.new(algorithm.name).digest_size if algorithm.name in HASH_NAMES.values() else None
        if not 0 < algorithm.digest_size <= MAX_DIGEST_SIZE or algorithm.digest_size != (
            known or algorithm.digest_size
        ):
            raise WireError(f"{algorithm.name} digests have not {algorithm.digest_size} bytes")
    if len({algorithm.hash_id for algorithm in algorithms}) != count:
        raise WireError("the header lists a bank twice")
    return algorithms


def _read_agile_events(data: bytes, offset: int, header: Event, algorithms: tuple[LogAlgorithm, ...]) -> list[Event]:
    ids = tuple(algorithm.hash_id for algorithm in algorithms)
    count = len(ids)
    # pcrIndex, eventType, digests.count, then algorithm and digest for each bank, eventSize. Every known firmware
    # lists the digests in the header's order, so one unpacking reads an event's whole head.
    head = struct.Struct("<III" + "".join(f"H{algorithm.digest_size}s" for algorithm in algorithms) + "I")
    unpack, head_size, end = head.unpack_from, head.size, len(data)
    no_action = int(EventType.EV_NO_ACTION)
    # Event(...) by its C half: the constructor that NamedTuple makes is Python and would cost a third of the parsing.
    new_event: Callable[[tuple[object, ...]], Event] = partial(tuple.__new__, Event)
    events = [header]
    append = events.append
    while offset < end:
        index = len(events)
        if index >= MAX_EVENTS:
            raise WireError(f"a log has at most {MAX_EVENTS} events")
        if end - offset < head_size:
            raise WireError(f"event {index} at offset {offset} is cut off")
        fields = unpack(data, offset)
        pcr, event_type, size = fields[0], fields[1], fields[-1]
        if fields[2] != count:
            raise WireError(f"event {index} has {fields[2]} digests, the header announces {count}")
        if fields[3:-1:2] == ids:
            digests = fields[4:-1:2]
        else:
            digests = _read_reordered_digests(data, offset + _EVENT_START.size, index, algorithms)
        offset += head_size
        if size > MAX_EVENT_DATA_SIZE or size > end - offset:
            raise WireError(f"event {index} announces {size} bytes of data, {end - offset} are left")
        content = data[offset : offset + size]
        offset += size
        if pcr >= PCR_COUNT and (pcr != NO_PCR or event_type != no_action):
            raise WireError(f"event {index} is of PCR {pcr}, which no PC has")
        if event_type == no_action and content.startswith(_SPEC_ID):
            raise WireError(f"event {index} is a second header")
        append(new_event((index, pcr, event_type, digests, content)))
    return events


def _read_reordered_digests(
    data: bytes, offset: int, index: int, algorithms: tuple[LogAlgorithm, ...]
) -> tuple[bytes, ...]:
    """Read digests that are not in the header's order; the caller checked that the bytes are there."""
    sizes = {algorithm.hash_id: algorithm.digest_size for algorithm in algorithms}
    found: dict[int, bytes] = {}
    for _ in algorithms:
        (hash_id,) = _U16.unpack_from(data, offset)
        if hash_id not in sizes or hash_id in found:
            raise WireError(f"event {index} has a digest of algorithm 0x{hash_id:04x}: unannounced, or twice")
        offset += _U16.size
        found[hash_id] = data[offset : offset + sizes[hash_id]]
        offset += sizes[hash_id]
    return tuple(found[algorithm.hash_id] for algorithm in algorithms)


def _read_legacy_event(data: bytes, offset: int, index: int) -> tuple[Event, int]:
    if len(data) - offset < _LEGACY_EVENT.size:
        raise WireError(f"event {index} at offset {offset} is cut off")
    pcr, event_type, digest, size = _LEGACY_EVENT.unpack_from(data, offset)
    offset += _LEGACY_EVENT.size
    if size > MAX_EVENT_DATA_SIZE or size > len(data) - offset:
        raise WireError(f"event {index} announces {size} bytes of data, {len(data) - offset} are left")
    if pcr >= PCR_COUNT and (pcr != NO_PCR or event_type != EventType.EV_NO_ACTION):
        raise WireError(f"event {index} is of PCR {pcr}, which no PC has")
    return Event(index, pcr, event_type, (digest,), data[offset : offset + size]), offset + size


def _read_legacy_events(data: bytes, offset: int, first: Event) -> list[Event]:
    events = [first]
    while offset < len(data):
        if len(events) >= MAX_EVENTS:
            raise WireError(f"a log has at most {MAX_EVENTS} events")
        event, offset = _read_legacy_event(data, offset, len(events))
        if event.type == EventType.EV_NO_ACTION and event.data.startswith(_SPEC_ID):
            raise WireError(f"event {event.number} is a second header")
        events.append(event)
    return events


def _startup_locality(events: list[Event]) -> int:
    """Find what PCR 0 started from: a StartupLocality event before PCR 0's first extend, or an H-CRTM event."""
    stated: int | None = None
    h_crtm = extended = False
    for event in events:
        if event.pcr != 0:
            continue
        if event.type != EventType.EV_NO_ACTION:
            extended = True
            h_crtm = h_crtm or event.type == EventType.EV_EFI_HCRTM_EVENT
        elif event.data.startswith(_STARTUP_LOCALITY):
            if stated is not None or extended:
                raise WireError(f"event {event.number} states the startup locality twice or too late")
            if len(event.data) != len(_STARTUP_LOCALITY) + 1 or event.data[-1] not in _STARTUP_LOCALITIES:
                raise WireError(f"event {event.number} states no startup locality that exists")
            stated = event.data[-1]
    if h_crtm and stated not in (None, H_CRTM_LOCALITY):
        raise WireError(f"the log has an H-CRTM event and states startup locality {stated}")
    return H_CRTM_LOCALITY if h_crtm else stated or 0
