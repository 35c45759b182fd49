"""Mark keys on the key server: whose they are, and what uses them (R-ATT-1 to R-ATT-4).

As vCenter 7 does it on the wire: the key is made without marks, then three attributes are added in one message, and
three more when the key is used. Here what is there is read first: what is missing is added, what differs is modified.
Marks are for those who look after the key server; no key is less good without them: a failure is a value, for an event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keyprovider.errors import KmipError, KmipRefusal, KmipRefused
from keyprovider.kmip.attribute_operations import AddAttribute, GetAttributes, ModifyAttribute
from keyprovider.kmip.attributes import Attribute, find_attribute
from keyprovider.kmip.client import KmipClient

VIRTUAL_MACHINE: Final = "Virtual Machine"
HOST: Final = "Host"
"""What :class:`UseStamp` says of a host; "ESXi Server" for key servers that have rules on it."""

_TRIED_ALONE: Final = (KmipRefusal.NOT_PROCESSED, KmipRefusal.BAD_REQUEST)
"""A server stops a batch at its first failure, and one that cannot read one value refuses the whole of it."""


@dataclass(frozen=True, slots=True)
class CreationStamp:
    """Who had the key made (R-ATT-1)."""

    vendor: str
    product: str
    product_version: str

    def attributes(self) -> dict[str, str]:
        """Name and value of each."""
        return {"x-Product_Version": self.product_version, "x-Vendor": self.vendor, "x-Product": self.product}


@dataclass(frozen=True, slots=True)
class UseStamp:
    """What uses the key: a VM (R-ATT-2) or a host (R-ATT-3)."""

    component: str
    name: str
    """Of the VM or host."""
    identifier: str
    """The VM's instance UUID, or the host's hardware UUID."""

    def attributes(self) -> dict[str, str]:
        """Name and value of each."""
        return {"x-Identifier": self.identifier, "x-Component": self.component, "x-Name": self.name}


@dataclass(frozen=True, slots=True)
class StampResult:
    """What became of the marks."""

    key_id: str
    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    failures: tuple[tuple[str, KmipError], ...] = ()
    """Names of the attributes that the key lacks now, or has with an old value, and why."""

    @property
    def complete(self) -> bool:
        """Whether the key carries all the marks."""
        return not self.failures


def stamp_key(client: KmipClient, key_id: str, stamp: CreationStamp | UseStamp) -> StampResult:
    """Give a key its marks. Raises nothing that a key server can cause."""
    wanted = stamp.attributes()
    try:
        present = client.call(GetAttributes(key_id, tuple(wanted)))
    except KmipRefused:
        present = ()  # a server that answers so for attributes it does not know may still add them
    except KmipError as exc:
        return StampResult(key_id, failures=tuple((name, exc) for name in wanted))
    current = {name: find_attribute(present, name) for name in wanted}
    missing = {name: value for name, value in wanted.items() if current[name] is None}
    differing = {name: value for name, value in wanted.items() if current[name] not in (None, value)}
    added, add_failures = _apply(client, AddAttribute, key_id, missing)
    modified, modify_failures = _apply(client, ModifyAttribute, key_id, differing)
    return StampResult(
        key_id,
        added=added,
        modified=modified,
        unchanged=tuple(name for name in wanted if name not in missing and name not in differing),
        failures=add_failures + modify_failures,
    )


def _apply(
    client: KmipClient,
    change: type[AddAttribute] | type[ModifyAttribute],
    key_id: str,
    attributes: Mapping[str, str],
) -> tuple[tuple[str, ...], tuple[tuple[str, KmipError], ...]]:
    requests = [change(key_id, Attribute(name, value)) for name, value in attributes.items()]
    outcomes = _batch(client, requests) if requests else []
    for number, outcome in enumerate(outcomes):
        if len(requests) > 1 and isinstance(outcome, KmipRefused) and outcome.reason in _TRIED_ALONE:
            outcomes[number] = _batch(client, [requests[number]])[0]
    pairs = list(zip(attributes, outcomes, strict=True))
    done = tuple(name for name, outcome in pairs if outcome is None)
    return done, tuple((name, outcome) for name, outcome in pairs if outcome is not None)


def _batch(client: KmipClient, requests: Sequence[AddAttribute | ModifyAttribute]) -> list[KmipError | None]:
    try:
        return client.batch(requests)
    except KmipError as exc:
        return [exc] * len(requests)
