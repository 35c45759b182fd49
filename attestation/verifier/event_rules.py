"""Judge what the events of a firmware log say (TCG PC Client Platform Firmware Profile 1.06, 3.3, 10.4).

A digest that replays proves only that something was extended. A log could still tell another story about it, because
neither an event's type nor, for many types, its data is covered by the digest. So, for the demanded PCRs:

1. Each PCR has an allow-list of types, apart for the time before and after its separator; an application starts only
   after "Calling EFI Application from Boot Option" (``EVENT_TYPE_NOT_ALLOWED``).
2. For types whose digest is that of their data, it is computed anew; variables of PCR 7 parse, none is there twice,
   and SecureBoot is 0 or 1 (``EVENT_DATA_MISMATCH``).
3. Separators are known by their digest: a separator of another type, a separator with another digest, and any number
   but one in each of the PCRs 0 to 7 are refused (``BAD_SEPARATOR``).
4. Where Secure Boot is demanded: SecureBoot is 1; PK, KEK and db are not empty; db let something run; no event of
   PCR 7 says that debugging was on or DMA protection off (``SECURE_BOOT_REQUIRED``).

The order of events of *different* PCRs is not judged: nothing that was extended protects it. For the types whose
digest is not that of their data (images, firmware blobs, boot loader's files) no rule reads the data: only their
digests count, when the boot is compared with a reference.

Pure: no clock, randomness, I/O or logging.
"""

from collections.abc import Collection, Mapping
from typing import Final

from attestation.errors import EvidenceRejected, RejectReason, WireError
from attestation.model import PcrBank
from attestation.verifier.quirks import Quirk
from attestation.verifier.replay import HASHES, MeasuredBoot
from attestation.wire.event_data import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    EfiVariable,
    describe_event,
    event_place,
    parse_efi_variable,
)
from attestation.wire.event_log import Event
from attestation.wire.event_types import EventType as Type

FIRMWARE_PCRS: Final = range(8)
SECURE_BOOT_PCR: Final = 7
_APPLICATION_PCR: Final = 4
_READY_TO_BOOT: Final = b"Calling EFI Application from Boot Option"
_SEPARATORS: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff")
_SEPARATOR_AFTER_ERROR: Final = b"\1\0\0\0"
_CONTRARY_ACTIONS: Final = (b"UEFI Debug Mode", b"DMA Protection Disabled")
_ENROLLED: Final = (
    (EFI_GLOBAL_VARIABLE, "PK"),
    (EFI_GLOBAL_VARIABLE, "KEK"),
    (EFI_IMAGE_SECURITY_DATABASE, "db"),
)
_SECURE_BOOT: Final = (EFI_GLOBAL_VARIABLE, "SecureBoot")

_BLOBS: Final = {Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB2}
_TABLES: Final = {Type.EV_EFI_HANDOFF_TABLES, Type.EV_EFI_HANDOFF_TABLES2}
_DRIVERS: Final = {Type.EV_EFI_BOOT_SERVICES_DRIVER, Type.EV_EFI_RUNTIME_SERVICES_DRIVER}
_BOOT_VARIABLES: Final = {Type.EV_EFI_VARIABLE_BOOT, Type.EV_EFI_VARIABLE_BOOT2}
_BEFORE_SEPARATOR: Final[Mapping[int, frozenset[int]]] = {
    0: frozenset(
        {
            Type.EV_S_CRTM_CONTENTS,
            Type.EV_S_CRTM_VERSION,
            Type.EV_POST_CODE,
            Type.EV_POST_CODE2,
            Type.EV_NONHOST_CODE,
            Type.EV_NONHOST_CONFIG,
            Type.EV_NONHOST_INFO,
            Type.EV_EFI_HCRTM_EVENT,
            Type.EV_EFI_ACTION,
            Type.EV_ACTION,
            *_BLOBS,
            *_TABLES,
            *_DRIVERS,
        }
    ),
    1: frozenset(
        {
            Type.EV_CPU_MICROCODE,
            Type.EV_PLATFORM_CONFIG_FLAGS,
            Type.EV_TABLE_OF_DEVICES,
            Type.EV_NONHOST_CONFIG,
            Type.EV_EFI_VARIABLE_DRIVER_CONFIG,
            Type.EV_EVENT_TAG,
            Type.EV_EFI_ACTION,
            Type.EV_ACTION,
            *_TABLES,
            *_BOOT_VARIABLES,
        }
    ),
    2: frozenset(
        {
            Type.EV_EFI_SPDM_FIRMWARE_BLOB,
            Type.EV_EVENT_TAG,
            Type.EV_EFI_ACTION,
            Type.EV_ACTION,
            *_BLOBS,
            *_DRIVERS,
        }
    ),
    3: frozenset(
        {
            Type.EV_EFI_SPDM_FIRMWARE_CONFIG,
            Type.EV_EFI_VARIABLE_DRIVER_CONFIG,
            Type.EV_EVENT_TAG,
            Type.EV_EFI_ACTION,
            Type.EV_ACTION,
        }
    ),
    4: frozenset(
        {
            Type.EV_COMPACT_HASH,
            Type.EV_IPL,
            Type.EV_ACTION,
            Type.EV_EFI_ACTION,
            Type.EV_EFI_BOOT_SERVICES_APPLICATION,
            Type.EV_OMIT_BOOT_DEVICE_EVENTS,
        }
    ),
    5: frozenset({Type.EV_EFI_ACTION, Type.EV_EVENT_TAG, Type.EV_EFI_GPT_EVENT, Type.EV_EFI_GPT_EVENT2}),
    6: frozenset({Type.EV_COMPACT_HASH, Type.EV_EVENT_TAG, Type.EV_EFI_ACTION}),
    7: frozenset({Type.EV_EFI_VARIABLE_DRIVER_CONFIG, Type.EV_EFI_ACTION}),
}
_AFTER_SEPARATOR: Final[Mapping[int, frozenset[int]]] = {
    0: frozenset(),
    1: frozenset(_BOOT_VARIABLES),
    2: frozenset(),
    3: frozenset(),
    4: frozenset(
        {
            Type.EV_IPL,
            Type.EV_COMPACT_HASH,
            Type.EV_ACTION,
            Type.EV_EFI_ACTION,
            Type.EV_EFI_BOOT_SERVICES_APPLICATION,
        }
    ),
    5: frozenset(
        {
            Type.EV_EFI_ACTION,
            Type.EV_EVENT_TAG,
            Type.EV_EFI_GPT_EVENT,
            Type.EV_EFI_GPT_EVENT2,
            Type.EV_IPL_PARTITION_DATA,
        }
    ),
    6: frozenset({Type.EV_COMPACT_HASH, Type.EV_EVENT_TAG, Type.EV_EFI_ACTION}),
    7: frozenset({Type.EV_EFI_VARIABLE_AUTHORITY}),
}
_OF_THE_SYSTEM: Final = frozenset({Type.EV_IPL, Type.EV_EVENT_TAG})
"""What boot loaders and the kernel's EFI stub write to PCRs 8 to 15. No separator is due there."""

_DIGEST_OF_DATA: Final = frozenset(
    {
        Type.EV_SEPARATOR,
        Type.EV_ACTION,
        Type.EV_EFI_ACTION,
        Type.EV_S_CRTM_VERSION,
        Type.EV_NONHOST_INFO,
        Type.EV_OMIT_BOOT_DEVICE_EVENTS,
        Type.EV_EFI_VARIABLE_DRIVER_CONFIG,
        Type.EV_EFI_VARIABLE_BOOT2,
        Type.EV_EFI_VARIABLE_AUTHORITY,
        Type.EV_EFI_GPT_EVENT,
    }
)


def _digests(texts: tuple[bytes, ...]) -> Mapping[PcrBank, frozenset[bytes]]:
    return {bank: frozenset(HASHES[bank.value](text).digest() for text in texts) for bank in PcrBank}


_READY_DIGESTS: Final = _digests((_READY_TO_BOOT,))
_SEPARATOR_DIGESTS: Final = _digests(_SEPARATORS)
_ERROR_DIGESTS: Final = _digests((_SEPARATOR_AFTER_ERROR,))
_CONTRARY_DIGESTS: Final = _digests(_CONTRARY_ACTIONS)


def check_event_rules(boot: MeasuredBoot, quirks: Collection[Quirk] = ()) -> None:
    """Apply rules 1 to 3 of this module's list to a boot whose PCRs replay.

    Raises:
        EvidenceRejected: EVENT_TYPE_NOT_ALLOWED, EVENT_DATA_MISMATCH or BAD_SEPARATOR, in that order of checking.
    """
    for pcr, events in boot.events.items():
        _check_types(pcr, events, boot, quirks)
    for pcr, events in boot.events.items():
        _check_data(events, boot, quirks)
        if pcr == SECURE_BOOT_PCR:
            _check_secure_boot_variables(events, quirks)
    for pcr, events in boot.events.items():
        if pcr in FIRMWARE_PCRS:
            _check_separator(pcr, events, boot)


def check_secure_boot(boot: MeasuredBoot) -> None:
    """Apply rule 4 to a boot that passed :func:`check_event_rules`.

    Raises:
        EvidenceRejected: SECURE_BOOT_REQUIRED.
    """
    events = boot.events.get(SECURE_BOOT_PCR, ())
    for event in events:
        if event.digests[boot.position] in _CONTRARY_DIGESTS[boot.bank]:
            raise _insecure("no such event", describe_event(event), event)
    values = dict(_driver_variables(events))
    state = values.get(_SECURE_BOOT)
    if state is None or state[1].data != b"\1":
        raise _insecure(
            "SecureBoot: 01", describe_event(state[0]) if state else "no SecureBoot variable", state and state[0]
        )
    for key in _ENROLLED:
        found = values.get(key)
        if found is None or not found[1].data:
            raise _insecure(f"{key[1]} enrolled", f"{key[1]}: empty", found and found[0])
    if not any(_is_db_authority(event) for event in events):
        raise _insecure("an authority of db that let a boot loader run", "none", None)


def _is_db_authority(event: Event) -> bool:
    """Whether firmware says that an entry of db verified what it started; shim names authorities of its own."""
    if event.type != Type.EV_EFI_VARIABLE_AUTHORITY:
        return False
    try:
        variable = parse_efi_variable(event.data)
    except WireError:
        return False
    return (variable.guid, variable.name) == (EFI_IMAGE_SECURITY_DATABASE, "db") and bool(variable.data)


def _check_types(pcr: int, events: tuple[Event, ...], boot: MeasuredBoot, quirks: Collection[Quirk]) -> None:
    """Rule 1."""
    allowed = _BEFORE_SEPARATOR.get(pcr, _OF_THE_SYSTEM)
    ready = pcr != _APPLICATION_PCR or Quirk.APPLICATION_BEFORE_READY_TO_BOOT in quirks
    for event in events:
        event_type = event.type
        if event_type == Type.EV_SEPARATOR and pcr in FIRMWARE_PCRS:
            allowed = _AFTER_SEPARATOR[pcr]
        elif event_type not in allowed:
            raise EvidenceRejected(
                RejectReason.EVENT_TYPE_NOT_ALLOWED,
                f"PCR {pcr} may not have this event here",
                expected=", ".join(sorted(Type(name).name for name in allowed)) or "no further event",
                seen=f"{event_place(event)}: {describe_event(event)}",
                event=event_place(event),
            )
        elif not ready:
            ready = event.digests[boot.position] in _READY_DIGESTS[boot.bank]
            if event_type == Type.EV_EFI_BOOT_SERVICES_APPLICATION:
                raise EvidenceRejected(
                    RejectReason.EVENT_TYPE_NOT_ALLOWED,
                    "an application started before the firmware said that it calls one",
                    expected=_READY_TO_BOOT.decode(),
                    seen=describe_event(event),
                    event=event_place(event),
                )


def _check_data(events: tuple[Event, ...], boot: MeasuredBoot, quirks: Collection[Quirk]) -> None:
    """Rule 2, digests."""
    hash_function, position = HASHES[boot.bank.value], boot.position
    for event in events:
        if event.type not in _DIGEST_OF_DATA:
            continue
        digest = event.digests[position]
        computed = hash_function(event.data).digest()
        if computed == digest:
            continue
        if (
            Quirk.OLD_SHIM_AUTHORITY in quirks
            and event.type == Type.EV_EFI_VARIABLE_AUTHORITY
            and hash_function(event.data[:-1]).digest() == digest
        ):
            continue
        raise EvidenceRejected(
            RejectReason.EVENT_DATA_MISMATCH,
            "the digest is not that of the event's data",
            expected=digest.hex(),
            seen=f"{computed.hex()} of {describe_event(event)}",
            event=event_place(event),
        )


def _check_secure_boot_variables(events: tuple[Event, ...], quirks: Collection[Quirk]) -> None:
    """Rule 2, variables of PCR 7."""
    seen: set[tuple[bytes, str]] = set()
    for key, (event, variable) in _driver_variables(events):
        if key in seen:
            raise _mismatch("each variable once", f"{variable.name} again", event)
        seen.add(key)
        if key != _SECURE_BOOT or variable.data in (b"\0", b"\1"):
            continue
        if variable.data or Quirk.EMPTY_SECURE_BOOT_VARIABLE not in quirks:
            raise _mismatch("SecureBoot: 00 or 01", describe_event(event), event)


def _driver_variables(events: tuple[Event, ...]) -> list[tuple[tuple[bytes, str], tuple[Event, EfiVariable]]]:
    """The variables that firmware measured before it decided what may run."""
    found = []
    for event in events:
        if event.type == Type.EV_EFI_VARIABLE_DRIVER_CONFIG:
            try:
                variable = parse_efi_variable(event.data)
            except WireError as exc:
                raise _mismatch("a variable", str(exc), event) from exc
            found.append(((variable.guid, variable.name), (event, variable)))
    return found


def _check_separator(pcr: int, events: tuple[Event, ...], boot: MeasuredBoot) -> None:
    """Rule 3."""
    good, after_error = _SEPARATOR_DIGESTS[boot.bank], _ERROR_DIGESTS[boot.bank]
    count = 0
    for event in events:
        digest = event.digests[boot.position]
        is_separator = event.type == Type.EV_SEPARATOR
        if is_separator != (digest in good) or digest in after_error:
            raise EvidenceRejected(
                RejectReason.BAD_SEPARATOR,
                "type and digest do not agree on whether this is a separator",
                expected="EV_SEPARATOR with the digest of 00000000 or ffffffff, or another event with neither",
                seen=f"{event_place(event)}: {describe_event(event)}, {digest.hex()}",
                event=event_place(event),
            )
        count += is_separator
    if count != 1:
        raise EvidenceRejected(
            RejectReason.BAD_SEPARATOR,
            f"PCR {pcr} must have one separator",
            expected="1",
            seen=str(count),
            event=f"PCR {pcr}",
        )


def _mismatch(expected: str, seen: str, event: Event) -> EvidenceRejected:
    return EvidenceRejected(
        RejectReason.EVENT_DATA_MISMATCH,
        "a variable of PCR 7 is not as it must be",
        expected=expected,
        seen=seen,
        event=event_place(event),
    )


def _insecure(expected: str, seen: str, event: Event | None) -> EvidenceRejected:
    return EvidenceRejected(
        RejectReason.SECURE_BOOT_REQUIRED,
        "Secure Boot is not in force",
        expected=expected,
        seen=seen,
        event=event_place(event) if event else f"PCR {SECURE_BOOT_PCR}",
    )
