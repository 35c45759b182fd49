"""Errors of what the demo works with, before its story begins.

    ConfigError (serving)
    └── DemoError
        ├── GuestUnavailable   the demo's guest (Debian kernel, busybox) cannot be had or built
        └── ImageRejected      the disk image cannot be used

Each message is one line that says what is wrong and what to do. A claim that fails is ``ClaimFailed`` (``claims``).
"""

from serving.errors import ConfigError


class DemoError(ConfigError):
    """Root of these errors."""


class GuestUnavailable(DemoError):
    """The demo's guest cannot be had or built."""


class ImageRejected(DemoError):
    """The disk image cannot be used."""
