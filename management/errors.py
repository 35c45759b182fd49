"""Errors of the management server.

    ManagementError
    ├── InvalidArgument    a name, size or reference in a request is not well formed
    ├── NotFound           nothing of that name exists
    ├── AlreadyExists      the name is taken
    ├── PrivilegeMissing   the caller lacks a privilege
    ├── PolicyRefused      storage policy and key provider do not fit together (reason: PolicyReason)
    ├── PlacementRefused   no host, or not this host, can take the VM (reason: PlacementReason)
    ├── JoinRefused        a host may not join (reason: JoinReason)
    ├── VmBusy             another operation on the VM is under way
    ├── VmUnsettled        the VM is half made or half removed
    └── HostError          a host agent did not do what was asked
        ├── HostUnreachable    it did not answer; what it did may be unknown
        └── HostRefused        it refused (reason and status as it gave them)

Reasons are enums: stable, part of the interface. Messages name what was expected and what was seen, never a secret.
"""

from enum import StrEnum


class ManagementError(Exception):
    """Root of this component's errors."""


class InvalidArgument(ManagementError):
    """A name, size or reference in a request is not well formed."""


class NotFound(ManagementError):
    """Nothing of that name exists."""


class AlreadyExists(ManagementError):
    """The name is taken."""


class PrivilegeMissing(ManagementError):
    """The caller lacks a privilege."""


class PolicyReason(StrEnum):
    """Why storage policy and key provider do not fit together, in the order the rules are checked."""

    UNKNOWN_STORAGE_POLICY = "UNKNOWN_STORAGE_POLICY"
    VTPM_NEEDS_ENCRYPTION = "VTPM_NEEDS_ENCRYPTION"
    PROVIDER_WITHOUT_ENCRYPTION = "PROVIDER_WITHOUT_ENCRYPTION"
    NO_KEY_PROVIDER = "NO_KEY_PROVIDER"
    UNKNOWN_KEY_PROVIDER = "UNKNOWN_KEY_PROVIDER"
    NO_DEFAULT_KEY_PROVIDER = "NO_DEFAULT_KEY_PROVIDER"


class PolicyRefused(ManagementError):
    """Storage policy and key provider do not fit together; nothing was made."""

    def __init__(self, reason: PolicyReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PlacementReason(StrEnum):
    """Why a VM cannot be placed."""

    UNKNOWN_HOST = "UNKNOWN_HOST"
    HOST_NOT_CONNECTED = "HOST_NOT_CONNECTED"
    HOST_NOT_ATTESTED = "HOST_NOT_ATTESTED"
    NO_SUITABLE_HOST = "NO_SUITABLE_HOST"


class PlacementRefused(ManagementError):
    """No host, or not the one named, can take the VM; nothing was made."""

    def __init__(self, reason: PlacementReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class JoinReason(StrEnum):
    """Why a host may not join, in the order the rules are checked."""

    TOKEN_INVALID = "JOIN_TOKEN_INVALID"  # noqa: S105 - a reason, not a password
    OTHER_CLUSTER = "OTHER_CLUSTER"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    BAD_CERTIFICATE_REQUEST = "BAD_CERTIFICATE_REQUEST"
    TOKEN_SPENT = "JOIN_TOKEN_SPENT"  # noqa: S105 - a reason, not a password
    IDENTITY_CONFLICT = "IDENTITY_CONFLICT"


class JoinRefused(ManagementError):
    """A host may not join."""

    def __init__(self, reason: JoinReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VmBusy(ManagementError):
    """Another operation on the VM is under way; nothing was begun."""


class VmUnsettled(ManagementError):
    """The VM is half made or half removed; it settles when its host answers, or can be deleted."""


class HostError(ManagementError):
    """A host agent did not do what was asked."""


class HostUnreachable(HostError):
    """A host agent did not answer.

    Attributes:
        detail: What the network says.
        may_have_acted: Whether the request may have reached it, so that nobody knows what it did.
    """

    def __init__(self, host: str, detail: str, *, may_have_acted: bool) -> None:
        super().__init__(f"host {host} does not answer: {detail}")
        self.detail = detail
        self.may_have_acted = may_have_acted


class HostRefused(HostError):
    """A host agent refused.

    Attributes:
        reason: Stable reason as the host gave it.
        status: Name of the status that the host answered with; passed on, not decided on, save ``NOT_FOUND``.
        message: For people, as the host gave it.
    """

    def __init__(self, reason: str, status: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.message = message

    @property
    def is_not_found(self) -> bool:
        """Whether the host says that it has no such VM."""
        return self.status == "NOT_FOUND"
