"""Describe a firmware log for people and programs: what it holds, and which PCR values it would explain.

Nothing is decided here. Needs no service, key or state.
Pure: bytes in, plain values out.
"""

from typing import Any

from attestation.verifier.replay import HASHES, replay
from attestation.wire.event_data import describe_event
from attestation.wire.event_log import NO_PCR, Event, EventLog, parse_event_log
from attestation.wire.event_types import EventType, event_type_name


def describe_log(data: bytes) -> dict[str, Any]:
    """Describe a log.

    Args:
        data: TCG event log, binary, at most 4 MiB.

    Returns:
        Values that JSON can hold: ``banks`` (names), ``startup_locality``, ``events`` (``index``, ``pcr``, ``type``,
        ``digests`` by bank, ``description``, ``digest_matches_data``) and ``pcrs`` (by bank and index, the values
        that replaying gives; PCRs and banks that cannot be computed are left out).

    Raises:
        WireError: Not a log.
    """
    log = parse_event_log(data)
    return {
        "banks": [algorithm.name for algorithm in log.algorithms],
        "startup_locality": log.startup_locality,
        "events": [_describe(log, event) for event in log.events],
        "pcrs": {
            algorithm.name: _pcrs(log, position, algorithm.name)
            for position, algorithm in enumerate(log.algorithms)
            if algorithm.name in HASHES
        },
    }


def _describe(log: EventLog, event: Event) -> dict[str, Any]:
    # The header is an event of the older format: it has one SHA-1 digest, which says nothing about the log's banks.
    named = [
        (algorithm.name, digest)
        for algorithm, digest in zip(log.algorithms, event.digests, strict=False)
        if len(digest) == algorithm.digest_size
    ]
    known = [HASHES[name](event.data).digest() == digest for name, digest in named if name in HASHES]
    return {
        "index": event.number,
        "pcr": event.pcr,
        "type": event_type_name(event.type),
        "digests": {name: digest.hex() for name, digest in named},
        "description": describe_event(event),
        "digest_matches_data": bool(known) and all(known),
    }


def _pcrs(log: EventLog, position: int, bank_name: str) -> dict[str, str]:
    events: dict[int, list[Event]] = {}
    for event in log.events:
        if event.type != EventType.EV_NO_ACTION and event.pcr != NO_PCR:
            events.setdefault(event.pcr, []).append(event)
    values = replay(dict(sorted(events.items())), position, bank_name, log.startup_locality)
    return {str(pcr): value.hex() for pcr, value in values.items()}
