"""Errors of the release log; the rest of the component's are in ``keyprovider.errors``.

    KeyProviderError
    ├── ProofRejected      a proof or tree head of a release log does not hold
    ├── ExportMalformed    a file is not an exported release log
    ├── LogUnsigned        the service has no key to sign heads of its release log with
    └── StoreError
        └── LogShortened   a host has seen more of the release log than there is: entries were lost

Messages name what was expected and what was seen.
"""

from keyprovider.errors import KeyProviderError, StoreError


class ProofRejected(KeyProviderError):
    """A proof or a signed tree head of a release log does not hold."""


class ExportMalformed(KeyProviderError):
    """A file is not an exported release log."""


class LogUnsigned(KeyProviderError):
    """The service has no key to sign heads of its release log with."""


class LogShortened(StoreError):
    """A host has seen a release log that was longer than this one: it was cut, or put back to an older state."""
