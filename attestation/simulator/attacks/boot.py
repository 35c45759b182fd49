"""Attacks on what boots: another boot than the reference, told honestly."""

from dataclasses import replace

from attestation.errors import RejectReason
from attestation.simulator.attacks.attack import Attack
from attestation.simulator.attacks.edits import boots, change, command_line, content, drop, insert
from attestation.simulator.software_host import Measured, honest_events, image, variable
from attestation.wire.event_types import EventType as Type

_INSECURE, _OTHER_BOOT = RejectReason.SECURE_BOOT_REQUIRED, RejectReason.REFERENCE_MISMATCH
_EVIL = Measured(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, image("\\EFI\\evil.efi"), b"evil")

ATTACKS = (
    Attack(
        "secure-boot-off",
        "anything may run (T4)",
        _INSECURE,
        lambda host: host.booting(lambda events: [events[0], *honest_events(secure_boot=False)]),
    ),
    Attack(
        "no-platform-key",
        "Secure Boot with nobody's keys (T4)",
        _INSECURE,
        boots(change(7, Type.EV_EFI_VARIABLE_DRIVER_CONFIG, lambda e: replace(e, data=variable("PK", b"")), 1)),
    ),
    Attack(
        "firmware-in-debug-mode",
        "firmware that lets anyone in (T4)",
        _INSECURE,
        boots(insert(7, Type.EV_SEPARATOR, Measured(7, Type.EV_EFI_ACTION, b"UEFI Debug Mode"))),
    ),
    Attack(
        "no-authority",
        "nothing was verified before it ran (T4)",
        _INSECURE,
        boots(drop(7, Type.EV_EFI_VARIABLE_AUTHORITY)),
    ),
    Attack(
        "changed-command-line",
        "the kernel is told to start something else (T4)",
        _OTHER_BOOT,
        boots(command_line("init=/bin/sh")),
    ),
    Attack(
        "changed-root-hash",
        "another system is started (T4)",
        _OTHER_BOOT,
        boots(command_line("console=ttyS0 root=/dev/vda2 roothash=bad0")),
    ),
    Attack(
        "changed-firmware",
        "firmware was replaced (T4)",
        _OTHER_BOOT,
        boots(change(0, Type.EV_EFI_PLATFORM_FIRMWARE_BLOB, content(b"evil"))),
    ),
    Attack(
        "changed-initrd",
        "the first programs were replaced (T4)",
        _OTHER_BOOT,
        boots(change(9, Type.EV_EVENT_TAG, content(b"evil"), 1)),
    ),
    Attack(
        "another-application-first",
        "something ran before the kernel (T4)",
        _OTHER_BOOT,
        boots(insert(4, Type.EV_EFI_BOOT_SERVICES_APPLICATION, _EVIL)),
    ),
    Attack(
        "option-rom",
        "a card's driver ran that is not in the reference (T4)",
        _OTHER_BOOT,
        boots(insert(2, Type.EV_SEPARATOR, Measured(2, Type.EV_EFI_BOOT_SERVICES_DRIVER, image("rom"), b"rom"))),
    ),
    Attack(
        "more-after-the-boot",
        "what was extended after the boot does not count (T4)",
        _OTHER_BOOT,
        boots(lambda events: [*events, Measured(11, Type.EV_IPL, b"more", b"more")]),
    ),
)
"""Attacks on the boot."""
