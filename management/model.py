"""Values of the inventory.

Pure and frozen. Constructors refuse what has the wrong shape, with ``InvalidArgument``.
"""

import datetime
import re
import unicodedata
import uuid
from dataclasses import dataclass, field
from enum import StrEnum

from management.errors import InvalidArgument

MAX_NAME_LENGTH = 255
MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 100
_PROVIDER_NAME = re.compile(r"[a-z0-9-]{1,64}")
_DISK_NAME = re.compile(r"[a-z0-9-]{1,32}")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_HOST_ID = re.compile(r"[0-9a-f]{64}")
_HOST_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]{2,39}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")
_MAX_PATH_LENGTH = 4_096
_MAX_COMMAND_LINE_LENGTH = 4_096
_MAX_DISKS = 64
_MAX_DISK_BYTES = 1 << 62


def checked_name(name: str, what: str = "VM name") -> str:
    """Return ``name`` if it is a display name: 1 to 255 characters of any script, no control characters.

    Raises:
        InvalidArgument: It is not.
    """
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise InvalidArgument(f"a {what} has 1 to {MAX_NAME_LENGTH} characters, this one has {len(name)}")
    # Surrogates cannot be encoded, so no store or wire could carry them.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise InvalidArgument(f"a {what} has no control characters")
    return name


def is_vm_id(text: str) -> bool:
    """Whether this is a VM id in the form that the inventory gives out."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


class ProviderKind(StrEnum):
    """Kind of key provider."""

    STANDARD = "standard"
    TRUSTED = "trusted"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Provider:
    """A key provider, by name. What it holds is nobody's business here."""

    name: str
    kind: ProviderKind
    is_default: bool

    def __post_init__(self) -> None:
        """Refuse other names than the trust authority gives.

        Raises:
            InvalidArgument: Otherwise.
        """
        if not _PROVIDER_NAME.fullmatch(self.name):
            raise InvalidArgument("a key provider's name has 1 to 64 lower-case letters, digits and dashes")


@dataclass(frozen=True, slots=True)
class StoragePolicy:
    """What storage a VM gets."""

    name: str
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class Host:
    """A joined host."""

    name: str
    host_id: str
    """64 hexadecimal digits; empty for a host without a TPM."""
    cluster: str
    agent_address: str
    """``host:port``."""
    hardware_uuid: str
    """DMI product UUID as the host states it; empty where it states none."""

    def __post_init__(self) -> None:
        """Refuse malformed fields: hosts state them about themselves.

        Raises:
            InvalidArgument: A field is malformed.
        """
        if not _HOST_NAME.fullmatch(self.name):
            raise InvalidArgument("a host name has 1 to 253 letters, digits, dots, dashes and underscores")
        if self.host_id and not _HOST_ID.fullmatch(self.host_id):
            raise InvalidArgument("a host id is 64 lower-case hexadecimal digits, or empty")
        match = _HOST_ADDRESS.fullmatch(self.agent_address)
        if match is None or not 1 <= int(match[2]) <= 65_535:
            raise InvalidArgument("an agent address is HOST:PORT")
        if self.hardware_uuid:
            try:
                uuid.UUID(self.hardware_uuid)
            except ValueError as exc:
                raise InvalidArgument("a hardware UUID is an RFC 9562 UUID, or empty") from exc


@dataclass(frozen=True, slots=True)
class HostStatus:
    """What a host's agent says of itself, or that it says nothing."""

    connected: bool
    attested: bool
    reason: str
    """Why it is not attested, or does not answer; empty where all is well."""


class VmState(StrEnum):
    """Where a VM's row stands. Power states are the host's to know."""

    CREATING = "creating"
    ACTIVE = "active"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM of the inventory."""

    vm_id: str
    """RFC 9562 text form."""
    name: str
    host: str
    """Name of the host it is placed on."""
    storage_policy: str
    provider: str
    """Key provider; empty: not encrypted."""
    vtpm: bool
    state: VmState
    generation: int
    """Generation of the newest placement grant; 0 before the first."""

    @property
    def is_encrypted(self) -> bool:
        """Whether any operation on it needs a key."""
        return bool(self.provider)


class PowerState(StrEnum):
    """Power state of a VM."""

    UNKNOWN = "unknown"
    OFF = "off"
    ON = "on"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class HostVm:
    """A VM as its host tells it."""

    vm_id: str
    power_state: PowerState
    bundle_path: str
    qemu_pid: int


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM of the inventory and what its host tells of it, if it answers."""

    vm: Vm
    on_host: HostVm | None


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk to be made."""

    name: str
    source_path: str
    """On the host; empty: an empty disk."""
    size_bytes: int

    def __post_init__(self) -> None:
        """Refuse malformed fields.

        Raises:
            InvalidArgument: A field is malformed.
        """
        if not _DISK_NAME.fullmatch(self.name):
            raise InvalidArgument("a disk name has 1 to 32 lower-case letters, digits and dashes")
        _check_path(f"disk {self.name}: source", self.source_path)
        if not 0 <= self.size_bytes <= _MAX_DISK_BYTES:
            raise InvalidArgument(f"disk {self.name}: {self.size_bytes} bytes is too large")
        if not self.source_path and self.size_bytes == 0:
            raise InvalidArgument(f"disk {self.name}: an empty disk needs a size")


@dataclass(frozen=True, slots=True)
class VmSpec:
    """Hardware of a VM to be made."""

    name: str
    cpus: int
    memory_mib: int
    vtpm: bool
    disks: tuple[DiskSpec, ...] = ()
    kernel_path: str = ""
    """On the host, for direct boot; empty: boot from disk."""
    initrd_path: str = ""
    kernel_command_line: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse malformed fields.

        Raises:
            InvalidArgument: A field is malformed, a size is out of range, two disks share a name.
        """
        checked_name(self.name)
        if not 1 <= self.cpus <= 255:
            raise InvalidArgument(f"a VM has 1 to 255 CPUs, not {self.cpus}")
        if not 64 <= self.memory_mib <= 1_048_576:
            raise InvalidArgument(f"a VM has 64 to 1,048,576 MiB of memory, not {self.memory_mib:,}")
        if len(self.disks) > _MAX_DISKS:
            raise InvalidArgument(f"a VM has at most {_MAX_DISKS} disks, not {len(self.disks)}")
        names = [disk.name for disk in self.disks]
        if len(set(names)) != len(names):
            raise InvalidArgument("two disks have the same name")
        _check_path("kernel", self.kernel_path)
        _check_path("initial RAM disk", self.initrd_path)
        if not self.kernel_path and (self.initrd_path or self.kernel_command_line):
            raise InvalidArgument("an initial RAM disk or command line needs a kernel")
        if len(self.kernel_command_line) > _MAX_COMMAND_LINE_LENGTH or not self.kernel_command_line.isprintable():
            raise InvalidArgument(f"a command line has at most {_MAX_COMMAND_LINE_LENGTH:,} printable characters")


@dataclass(frozen=True, slots=True)
class EventDraft:
    """Something that happened, before it has a position in the log."""

    occurred_at: datetime.datetime
    type: str
    """Stable, such as ``vm.powered-on``."""
    principal: str
    """Who asked; empty: the server itself."""
    message: str
    vm_id: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the log."""

    cursor: int
    """Position, from 1, with no gaps."""
    occurred_at: datetime.datetime
    type: str
    principal: str
    message: str
    vm_id: str
    host: str


def page_size_of(requested: int) -> int:
    """Size of a page: the requested one, or the default where it is 0.

    Raises:
        InvalidArgument: More than 1,000.
    """
    if requested > MAX_PAGE_SIZE:
        raise InvalidArgument(f"a page has at most {MAX_PAGE_SIZE:,} entries, not {requested:,}")
    return requested or DEFAULT_PAGE_SIZE


def _check_path(what: str, path: str) -> None:
    if not path:
        return
    # PATH_MAX counts bytes; the host checks again, against its file system.
    if not path.startswith("/") or "\0" in path or len(path) > _MAX_PATH_LENGTH:
        raise InvalidArgument(f"{what}: expected an absolute path on the host")
