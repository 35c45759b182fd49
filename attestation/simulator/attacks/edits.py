"""Edits of a boot's events, and the three ways to tell of them."""

from collections.abc import Callable
from dataclasses import replace

from attestation.simulator.lying_host import HonestHost
from attestation.simulator.software_host import Measured, honest_events

Lie = Callable[[HonestHost], HonestHost]
Events = list[Measured]


def find(events: Events, pcr: int, kind: int, nth: int = 0) -> int:
    """Where the nth event of a PCR and type is."""
    return [place for place, event in enumerate(events) if (event.pcr, event.type) == (pcr, kind)][nth]


def boots(edit: Callable[[Events], Events]) -> Lie:
    """Boot something else, and say so."""
    return lambda host: host.booting(edit)


def says(edit: Callable[[Events], Events]) -> Lie:
    """Boot as ever, and tell something else."""
    return lambda host: host.logging(edit)


def writes(edit: Callable[[bytes], bytes]) -> Lie:
    """Change the bytes of the log."""
    return lambda host: host.log_bytes(edit)


def change(pcr: int, kind: int, edit: Callable[[Measured], Measured], nth: int = 0) -> Callable[[Events], Events]:
    """Change the nth event of a PCR and type."""

    def changed(events: Events) -> Events:
        place = find(events, pcr, kind, nth)
        return [*events[:place], edit(events[place]), *events[place + 1 :]]

    return changed


def drop(pcr: int, kind: int, nth: int = 0) -> Callable[[Events], Events]:
    """Leave the nth event of a PCR and type out."""

    def dropped(events: Events) -> Events:
        place = find(events, pcr, kind, nth)
        return events[:place] + events[place + 1 :]

    return dropped


def insert(pcr: int, kind: int, event: Measured, *, after: bool = False) -> Callable[[Events], Events]:
    """Put an event before the first of a PCR and type, or after it."""

    def inserted(events: Events) -> Events:
        place = find(events, pcr, kind) + after
        return [*events[:place], event, *events[place:]]

    return inserted


def retyped(kind: int) -> Callable[[Measured], Measured]:
    """The same digest under another type."""
    return lambda event: replace(event, type=kind, content=event.data if event.content is None else event.content)


def redescribed(data: bytes) -> Callable[[Measured], Measured]:
    """The same digest with other data."""
    return lambda event: replace(event, data=data, content=event.data if event.content is None else event.content)


def content(measured: bytes) -> Callable[[Measured], Measured]:
    """Other content, of which the event's data says nothing."""
    return lambda event: replace(event, content=measured)


def command_line(text: str) -> Callable[[Events], Events]:
    """The same boot with another kernel command line."""
    return lambda events: [events[0], *honest_events(text)]
