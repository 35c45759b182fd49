"""The documents of a VM bundle: ``bundle.json`` in clear, and the home. Specified in ``docs/vm-bundle.md``.

Strict: one form only. What a document says is believed only if writing it again gives the same bytes, so there are no
duplicate or unknown fields, and no second way to write a value.
Pure: bytes in, frozen values out. ``BundleError`` is the only error that bytes from outside can raise.
"""

from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from host_agent.errors import BundleError, BundleReason, InvalidSpec
from host_agent.vm.model import MOST_DISKS, require_direct_boot

FORMAT: Final = "garant-vm-bundle"
VERSION: Final = 1
MOST_BYTES: Final = 1 << 20
"""Longest document that is read."""

_Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
_VmId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z")]
_DiskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}\z")]
_Path = Annotated[str, StringConstraints(max_length=4095)]


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        hide_input_in_errors=True,
    )


class ComponentKey(_Document):
    """The keys of a component as they lie beside the VM: useless without the provider."""

    provider: _Name
    key_reference: _Name
    wrapped_kek: Annotated[bytes, Field(max_length=512)]
    """As the provider wrapped it; empty where the reference alone is enough."""
    wrapped_dek: Annotated[bytes, Field(min_length=1, max_length=512)]


class Manifest(_Document):
    """``bundle.json``: what can be read without a key."""

    format: Literal["garant-vm-bundle"] = FORMAT
    version: Literal[1] = VERSION
    vm_id: _VmId
    generation: Annotated[int, Field(ge=1, lt=1 << 63)]
    """Grows with each change of the home; the home repeats it."""
    home_key: ComponentKey | None
    """None: the VM is not encrypted, and the home lies in clear."""


class Disk(_Document):
    """A disk of the VM."""

    name: _DiskName
    file: Annotated[str, StringConstraints(pattern=r"^disk-[a-z0-9-]{1,32}\.qcow2\z")]
    """Name within the bundle."""
    key: ComponentKey | None

    @model_validator(mode="after")
    def _file_is_of_the_name(self) -> "Disk":
        if self.file != f"disk-{self.name}.qcow2":
            raise ValueError("the file of a disk carries its name")
        return self


class Home(_Document):
    """The configuration of the VM, with the keys of its disks and vTPM."""

    vm_id: _VmId
    generation: Annotated[int, Field(ge=1, lt=1 << 63)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    cpus: Annotated[int, Field(ge=1, le=255)]
    memory_mib: Annotated[int, Field(ge=64, le=1 << 20)]
    disks: Annotated[tuple[Disk, ...], Field(max_length=MOST_DISKS, strict=False)]
    vtpm_key: ComponentKey | None
    """None: no vTPM."""
    kernel_path: _Path
    initrd_path: _Path
    kernel_command_line: Annotated[str, StringConstraints(max_length=2047)]

    @model_validator(mode="after")
    def _is_consistent(self) -> "Home":
        if len({disk.name for disk in self.disks}) != len(self.disks):
            raise ValueError("two disks have the same name")
        try:
            require_direct_boot(self.kernel_path, self.initrd_path, self.kernel_command_line)
        except InvalidSpec as exc:
            raise ValueError(str(exc)) from exc
        return self


class _Version(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    format: str
    version: int


_D = TypeVar("_D", bound=_Document)


def encode(document: _Document) -> bytes:
    """Write a document in its one form: UTF-8 JSON, indented, with a final newline."""
    return document.model_dump_json(indent=1).encode() + b"\n"


def parse_manifest(blob: bytes) -> Manifest:
    """Parse ``bundle.json``.

    Raises:
        BundleError: MALFORMED; or UNKNOWN_VERSION, naming the version.
    """
    try:
        seen = _Version.model_validate_json(blob)
    except ValidationError as exc:
        raise BundleError(BundleReason.MALFORMED, f"bundle.json is not a bundle's manifest: {_first(exc)}") from exc
    if (seen.format, seen.version) != (FORMAT, VERSION):
        raise BundleError(
            BundleReason.UNKNOWN_VERSION,
            f"the bundle has format {seen.format[:40]!r} version {seen.version}; this agent reads {FORMAT!r} version "
            f"{VERSION}",
        )
    return _parse(Manifest, blob, "bundle.json")


def parse_home(blob: bytes) -> Home:
    """Parse the home's configuration.

    Raises:
        BundleError: MALFORMED.
    """
    return _parse(Home, blob, "the home")


def _parse(kind: type[_D], blob: bytes, what: str) -> _D:
    try:
        document = kind.model_validate_json(blob)
    except ValidationError as exc:
        raise BundleError(BundleReason.MALFORMED, f"{what} is malformed: {_first(exc)}") from exc
    if encode(document) != blob:
        raise BundleError(BundleReason.MALFORMED, f"{what} is malformed: not in the form that it is written in")
    return document


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
