"""Errors of the key provider component.

    KeyProviderError
    ├── EnvelopeError      a wrapped key, sealed key or encrypted stream is not what it should be
    ├── GrantRejected      a placement grant is not believed (reason: GrantReason)
    ├── ProviderListRejected  a list of key providers is not the trust authority's, or is older than the pinned one
    ├── ReleaseRefused     a key is not given out (reason: ReleaseReason)
    ├── HeartbeatRefused   a heartbeat contradicts a newer one
    ├── TtlvError          bytes are not TTLV; the only error that leaves ``keyprovider.kmip.ttlv``
    ├── KmipError        a KMIP key server did not do as asked; carries the server and the key ID
    │   ├── KmipConnectionFailed  no answer could be had (reason: KmipConnectionReason)
    │   ├── KmipKeyMissing        the key server holds no such key
    │   ├── KmipKeyUnusable       it holds the key, but not one to use (reason: KmipKeyReason)
    │   ├── KmipRefused           it refused the operation (reason: KmipRefusal)
    │   └── KmipMalformed         its answer is not what the protocol says
    ├── BackupError        a backup of a native key provider is not one, was changed, or its password is wrong or weak
    ├── BackendError       what holds the primary keys does not answer, or refuses
    ├── StoreError         the database does not answer, or holds what it should not
    ├── InvalidArgument    a name, identifier or size is not well formed
    ├── NotFound           no provider or principal of that name exists
    └── Conflict           the change contradicts what is there

Reasons are enums: stable, part of the interface, one per rule. Messages name what was expected and what was seen,
never a secret.
"""

from enum import StrEnum


class KeyProviderError(Exception):
    """Root of this component's errors."""


class EnvelopeError(KeyProviderError):
    """A wrapped key, sealed key or encrypted stream was refused; the only error that leaves ``keyprovider.envelope``.

    One message for every cryptographic failure: telling a wrong key from a changed byte helps nobody but a forger.
    """


class GrantReason(StrEnum):
    """Why a placement grant is not believed, in the order the rules are checked."""

    MISSING = "MISSING"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    MISSING_CLAIM = "MISSING_CLAIM"
    NOT_YET_VALID = "NOT_YET_VALID"
    EXPIRED = "EXPIRED"


class ReleaseReason(StrEnum):
    """Why a key was not released. One value per rule of ``trusted.release``, in the order they are checked."""

    CALLER_NOT_A_HOST = "CALLER_NOT_A_HOST"
    CERTIFICATE_OF_OTHER_HOST = "CERTIFICATE_OF_OTHER_HOST"
    TOKEN_OF_OTHER_KEY = "TOKEN_OF_OTHER_KEY"  # noqa: S105 - a reason, not a password
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - a reason, not a password
    NO_HEARTBEAT = "NO_HEARTBEAT"
    HEARTBEAT_STALE = "HEARTBEAT_STALE"
    TOKEN_OF_OLDER_EPOCH = "TOKEN_OF_OLDER_EPOCH"  # noqa: S105 - a reason, not a password
    HOST_REVOKED = "HOST_REVOKED"
    POLICY_TOO_OLD = "POLICY_TOO_OLD"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    GRANT_FOR_OTHER_HOST = "GRANT_FOR_OTHER_HOST"
    GRANT_FOR_OTHER_VM = "GRANT_FOR_OTHER_VM"
    PROVIDER_UNKNOWN = "PROVIDER_UNKNOWN"
    CLUSTER_NOT_ADMITTED = "CLUSTER_NOT_ADMITTED"
    HOST_NOT_ADMITTED = "HOST_NOT_ADMITTED"
    KEM_NOT_ALLOWED = "KEM_NOT_ALLOWED"


class GrantRejected(KeyProviderError):
    """A placement grant is not believed."""

    def __init__(self, reason: GrantReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.detail = message


class ProviderListRejected(KeyProviderError):
    """A list of key providers is not the trust authority's, is older than the pinned one, or lacks the provider."""


class ReleaseRefused(KeyProviderError):
    """A key is not given out."""

    def __init__(self, reason: ReleaseReason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.detail = message


class HeartbeatRefused(KeyProviderError):
    """A heartbeat is genuine but contradicts a newer one: its epoch or policy version went back."""


class TtlvError(KeyProviderError):
    """Bytes are not TTLV, or a value cannot be encoded as it."""


class KmipConnectionReason(StrEnum):
    """Why no answer could be had from a key server."""

    UNREACHABLE = "UNREACHABLE"
    TIMED_OUT = "TIMED_OUT"
    SERVER_NOT_TRUSTED = "SERVER_NOT_TRUSTED"
    """Its certificate is not from a trusted issuer, not valid now, or for another name."""
    CLIENT_NOT_TRUSTED = "CLIENT_NOT_TRUSTED"
    """It wants a client certificate, or refuses the one it was shown."""
    CLOSED = "CLOSED"
    """The connection ended before the answer was complete."""


class KmipKeyReason(StrEnum):
    """Why a key that the key server holds is not used."""

    PRE_ACTIVE = "PRE_ACTIVE"
    DEACTIVATED = "DEACTIVATED"
    COMPROMISED = "COMPROMISED"
    DESTROYED = "DESTROYED"
    DESTROYED_COMPROMISED = "DESTROYED_COMPROMISED"
    NOT_EXTRACTABLE = "NOT_EXTRACTABLE"
    WRONG_ALGORITHM = "WRONG_ALGORITHM"
    WRONG_LENGTH = "WRONG_LENGTH"


class KmipRefusal(StrEnum):
    """Why a key server refused an operation: KMIP's result reasons, as far as a caller acts on them differently."""

    NOT_AUTHENTICATED = "NOT_AUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    BAD_REQUEST = "BAD_REQUEST"
    WRONG_STATE = "WRONG_STATE"
    NOT_PROCESSED = "NOT_PROCESSED"
    """An earlier operation of the same batch failed."""
    SERVER_FAILURE = "SERVER_FAILURE"
    OTHER = "OTHER"


class KmipError(KeyProviderError):
    """A KMIP key server did not do as asked.

    ``server`` ("host:port") and ``key_id`` are empty where they are not known, or where the request was about no key.
    """

    def __init__(self, message: str, *, server: str = "", key_id: str = "") -> None:
        super().__init__(message)
        self.server = server
        self.key_id = key_id

    def __str__(self) -> str:
        """The message, after the server where that is known."""
        message = super().__str__()
        return f"key server {self.server}: {message}" if self.server else message


class KmipConnectionFailed(KmipError):
    """No answer could be had from the key server."""

    def __init__(
        self, reason: KmipConnectionReason, message: str, *, server: str = "", outcome_unknown: bool = False
    ) -> None:
        super().__init__(f"{reason}: {message}", server=server)
        self.reason = reason
        self.outcome_unknown = outcome_unknown
        """Whether the request may have been carried out: a key may have been made of which nobody knows the ID."""


class KmipKeyMissing(KmipError):
    """The key server holds no such key, or none that this client may see."""


class KmipKeyUnusable(KmipError):
    """The key server holds the key, but not one to use."""

    def __init__(self, reason: KmipKeyReason, message: str, *, server: str = "", key_id: str = "") -> None:
        super().__init__(f"{reason}: {message}", server=server, key_id=key_id)
        self.reason = reason


class KmipRefused(KmipError):
    """The key server refused the operation. ``code`` is its result reason (KMIP 1.4, 9.1.3.2.29)."""

    def __init__(self, reason: KmipRefusal, message: str, *, code: int = 0, server: str = "", key_id: str = "") -> None:
        super().__init__(f"{reason}: {message}", server=server, key_id=key_id)
        self.reason = reason
        self.code = code


class KmipMalformed(KmipError):
    """The key server's answer is not what the protocol says; the connection was closed."""


class BackupError(KeyProviderError):
    """A backup of a native key provider is not one, was changed, or its password is wrong or too weak."""


class BackendError(KeyProviderError):
    """What holds the primary keys does not answer, refuses, or holds no such key."""


class StoreError(KeyProviderError):
    """The database does not answer, or holds what it should not."""


class InvalidArgument(KeyProviderError):
    """A name, identifier or size in a request is not well formed."""


class NotFound(KeyProviderError):
    """Nothing of that name exists."""


class Conflict(KeyProviderError):
    """The change contradicts what is there."""
