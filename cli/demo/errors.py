"""Errors of the demo.

    DemoError
    ├── GuestUnavailable   the demo's guest (Debian kernel, busybox) cannot be had or built
    ├── ImageRejected      the disk image that the user named cannot be used
    └── ScannerBroken      the proof of absence did not find what was planted: it proves nothing

Each message is one line that says what is wrong and what to do.
"""


class DemoError(Exception):
    """Root of the demo's errors."""


class GuestUnavailable(DemoError):
    """The demo's guest cannot be had or built."""


class ImageRejected(DemoError):
    """The disk image that the user named cannot be used."""


class ScannerBroken(DemoError):
    """The proof of absence did not find a planted key."""
