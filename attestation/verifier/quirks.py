"""Oddities of known firmware and boot loaders. Each is a deviation from a rule, and off unless a policy allows it.

Pure table.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Quirk(StrEnum):
    """One oddity that a policy may allow."""

    APPLICATION_BEFORE_READY_TO_BOOT = "application-before-ready-to-boot"
    EMPTY_SECURE_BOOT_VARIABLE = "empty-secure-boot-variable"
    MISSING_EXIT_BOOT_SERVICES = "missing-exit-boot-services"
    OLD_SHIM_AUTHORITY = "old-shim-authority"


QUIRKS: Final[Mapping[Quirk, str]] = {
    Quirk.APPLICATION_BEFORE_READY_TO_BOOT: (
        'PCR 4 measures an application before "Calling EFI Application from Boot Option", or without it'
        " (OVMF starting a kernel from QEMU's -kernel; some workstation firmware)"
    ),
    Quirk.EMPTY_SECURE_BOOT_VARIABLE: "PCR 7 measures SecureBoot without a value, which then counts as off",
    Quirk.MISSING_EXIT_BOOT_SERVICES: (
        "the log ends before the two ExitBootServices events of PCR 5 (kernels that do not read the final events"
        " table); they are taken as having happened, and the result must still equal the quote"
    ),
    Quirk.OLD_SHIM_AUTHORITY: (
        "EV_EFI_VARIABLE_AUTHORITY of an old shim, whose digest leaves out the last byte of the data"
    ),
}
"""What each quirk lets pass, for people."""
