"""Errors of what every daemon shares.

ServingError
├── ConfigError        a configuration file is missing, unreadable or wrong
├── IdentityError      a certificate names no identity of this product
├── JwsError           a signed document is malformed, of another type, or not signed by a known key
├── JoinTokenError     a join token is malformed, expired or not signed by an administrator
├── StoreError         the database is unreachable, full, locked, corrupt or of a newer schema
└── RemoteError        a call was refused or not answered (code, reason, message)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc  # pure cores import this module, and know no transport


class ServingError(Exception):
    """Root of this package's errors."""


class ConfigError(ServingError):
    """A configuration file is missing, unreadable or wrong."""


class IdentityError(ServingError):
    """A certificate names no identity of this product."""


class JwsError(ServingError):
    """A signed document is malformed, of another type, or not signed by a known key."""


class JoinTokenError(ServingError):
    """A join token is malformed, expired or not signed by an administrator."""


class StoreError(ServingError):
    """The database is unreachable, full, locked, corrupt or of a newer schema."""


class RemoteError(ServingError):
    """A call was refused or not answered.

    Attributes:
        code: gRPC status code.
        reason: Stable reason from ``google.rpc.ErrorInfo``; the code's name where the peer gave none.
        message: For people.
    """

    def __init__(self, code: "grpc.StatusCode", reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
