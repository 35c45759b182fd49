"""Errors of the host agent component.

    HostAgentError
    ├── NotAttested              this host holds no valid attestation token (reason: NotAttestedReason, or the peer's)
    ├── PeerUnreachable          a service did not answer (peer: Peer)
    ├── PeerRefused              a service refused (peer: Peer; reason as it gave it)
    ├── ProviderNotPinned        no key provider of that name is in the pinned list
    ├── ReleaseRejected          what a key provider sent as a key is not one for this host and request
    ├── JoinFailed               this host has no usable join identity and cannot get one
    ├── StateDamaged             a file of the state directory cannot be read or written, or is not what it should be
    ├── EventLogUnreadable       a measurement log cannot be read
    └── VmError
        ├── InvalidSpec          what was asked for is not well formed
        ├── VmNotFound           there is no VM of that id on this host
        ├── VmExists             there is one already
        ├── IllegalTransition    the VM's state does not allow it; nothing was changed
        ├── OperationInProgress  another operation on the same VM has not ended
        ├── VmDirectoryInUse     another host agent serves the directory
        ├── ImageRefused         a disk image is not copied (reason: ImageReason)
        ├── DiskFull             there is no room; nothing was left behind
        ├── StorageError         the file system refuses a file of the VM
        ├── FormatError          bytes of a disk header are malformed; the only error of ``vm.luks`` and ``vm.qcow2``
        ├── BundleError          a VM's bundle is not to be used (reason: BundleReason)
        ├── DiskError            a disk of the VM is not to be used (reason: DiskReason)
        ├── VtpmError            the virtual TPM could not be made or started
        ├── ToolUnavailable      QEMU or its firmware is missing or too old
        └── QemuError            QEMU or qemu-img refused, died or does not answer

Reasons are enums: stable, part of the interface, one per rule. Messages name what was expected, what was seen and what
to do, never a secret.
"""

from enum import StrEnum


class HostAgentError(Exception):
    """Root of this component's errors."""


class NotAttestedReason(StrEnum):
    """Why this host holds no token, where it was not a service that refused one."""

    STARTING = "STARTING"
    TPM_UNAVAILABLE = "TPM_UNAVAILABLE"
    STATE_DAMAGED = "STATE_DAMAGED"
    NOT_ENROLLED = "NOT_ENROLLED"
    HOST_IDENTITY_CHANGED = "HOST_IDENTITY_CHANGED"
    HOST_ID_MISMATCH = "HOST_ID_MISMATCH"
    PROVIDER_LIST_REFUSED = "PROVIDER_LIST_REFUSED"
    EVENT_LOG_UNREADABLE = "EVENT_LOG_UNREADABLE"
    TRUST_AUTHORITY_UNREACHABLE = "TRUST_AUTHORITY_UNREACHABLE"
    TOKEN_NOT_OURS = "TOKEN_NOT_OURS"  # noqa: S105 - a reason, not a password
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - a reason, not a password


class NotAttested(HostAgentError):
    """No valid attestation token is held.

    ``reason`` is a ``NotAttestedReason``, or the reason that the attestation service gave.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = str(reason)


class Peer(StrEnum):
    """A service that the host agent calls."""

    TRUST_AUTHORITY = "TRUST_AUTHORITY"
    KEY_PROVIDER = "KEY_PROVIDER"
    MANAGEMENT_SERVER = "MANAGEMENT_SERVER"


class PeerUnreachable(HostAgentError):
    """A service did not answer."""

    def __init__(self, peer: Peer, message: str) -> None:
        super().__init__(message)
        self.peer = peer


class PeerRefused(HostAgentError):
    """A service answered and refused.

    Attributes:
        peer: Which service.
        reason: Stable reason as it gave it.
        passing: Whether it says that the refusal passes by itself.
    """

    def __init__(self, peer: Peer, reason: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.peer = peer
        self.reason = reason
        self.passing = passing


class ProviderNotPinned(HostAgentError):
    """No key provider of that name is in the list that this host pinned."""


class ReleaseRejected(HostAgentError):
    """What a key provider sent as a key does not open with this host's key for this request."""


class JoinFailed(HostAgentError):
    """The host has no usable join identity and cannot get one."""


class StateDamaged(HostAgentError):
    """A file of the state directory cannot be read or written, or is not what this agent wrote."""


class EventLogUnreadable(HostAgentError):
    """A measurement log that the configuration names cannot be read."""


class VmError(HostAgentError):
    """A VM operation failed."""


class InvalidSpec(VmError):
    """A name, size, path or identifier is not well formed."""


class VmNotFound(VmError):
    """There is no VM of that id on this host."""


class VmExists(VmError):
    """A VM of that id is on this host already."""


class IllegalTransition(VmError):
    """The VM's state does not allow the operation; nothing was changed."""


class OperationInProgress(VmError):
    """Another operation on the same VM has not ended; nothing was changed."""


class VmDirectoryInUse(VmError):
    """Another host agent serves the directory."""


class ImageReason(StrEnum):
    """Why a disk image is not copied, in the order the rules are checked."""

    NOT_IN_IMAGE_DIRECTORY = "NOT_IN_IMAGE_DIRECTORY"
    NOT_FOUND = "NOT_FOUND"
    NOT_A_FILE = "NOT_A_FILE"
    UNREADABLE = "UNREADABLE"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    MALFORMED = "MALFORMED"
    BACKING_FILE = "BACKING_FILE"
    EXTERNAL_DATA = "EXTERNAL_DATA"
    ENCRYPTED = "ENCRYPTED"
    IN_USE = "IN_USE"
    LARGER_THAN_DISK = "LARGER_THAN_DISK"


class ImageRefused(VmError):
    """A disk image is not copied."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DiskFull(VmError):
    """There is no room for a file of the VM; nothing was left behind."""


class StorageError(VmError):
    """The file system refuses a file of the VM."""


class FormatError(VmError):
    """Bytes are not a header of the format, or use what is not supported."""


class BundleReason(StrEnum):
    """Why a VM's bundle is not used, in the order the rules are checked."""

    MISSING = "MISSING"
    MALFORMED = "MALFORMED"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    OTHER_VM = "OTHER_VM"
    WRONG_PROVIDER = "WRONG_PROVIDER"
    WRONG_KEY = "WRONG_KEY"
    GENERATION_MISMATCH = "GENERATION_MISMATCH"


class BundleError(VmError):
    """A VM's bundle is missing, damaged, of another VM, or not this key's."""

    def __init__(self, reason: BundleReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DiskReason(StrEnum):
    """Why a disk of a VM is not used, in the order the rules are checked."""

    MISSING = "MISSING"
    MALFORMED = "MALFORMED"
    NOT_SELF_CONTAINED = "NOT_SELF_CONTAINED"
    WRONG_ENCRYPTION = "WRONG_ENCRYPTION"
    WRONG_KEY = "WRONG_KEY"


class DiskError(VmError):
    """A disk or the NVRAM of a VM is missing, damaged, or not this VM's."""

    def __init__(self, reason: DiskReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VtpmError(VmError):
    """The virtual TPM could not be made or started, or its state is damaged or not this VM's."""


class ToolUnavailable(VmError):
    """QEMU or its firmware is missing, or older than this component can drive; says what to install."""


class QemuError(VmError):
    """QEMU or qemu-img refused, died or does not answer."""
