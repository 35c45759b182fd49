"""Errors of the release log; the rest of the component's are in ``keyprovider.errors``.

KeyProviderError
├── ProofRejected          a proof or tree head of a release log does not hold
└── StoreError
    └── LogShortened       a host has seen more of the release log than there is: entries were lost
"""

from keyprovider.errors import KeyProviderError, StoreError


class ProofRejected(KeyProviderError):
    """A proof or a signed tree head of a release log does not hold."""


class LogShortened(StoreError):
    """A host has seen a release log that was longer than this one: it was cut, or put back to an older state."""
