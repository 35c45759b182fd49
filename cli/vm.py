"""``garant vm``: virtual machines, as a VM administrator."""

import re
import sys
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import BadInput
from cli.output import OutputFormat, plain, print_json
from cli.session import Session, command

if TYPE_CHECKING:
    from garant.host.v1.host_pb2 import DiskSpec
    from garant.management.v1.management_pb2 import ReadConsoleResponse

app = typer.Typer(no_args_is_help=True)

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or id of the VM.")]
_COLUMNS = ("name", "power_state", "host", "storage_policy", "provider", "vtpm", "vm_id")
_CREATE_TIMEOUT_SECONDS = 31 * 60.0
_POWER_TIMEOUT_SECONDS = 6 * 60.0
_FOLLOW_INTERVAL_SECONDS = 0.5
_SIZE = re.compile(r"([0-9]{1,19})([KMGT]?)(?:i?B)?", re.IGNORECASE)


@command(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name, 1 to 255 characters, unique.")],
    cpus: Annotated[int, typer.Option(min=1, max=255, help="Virtual CPUs.")] = 1,
    memory: Annotated[int, typer.Option(min=64, max=1_048_576, help="Memory in MiB.")] = 1024,
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Disk copied from an image on the host, qcow2 or raw; repeatable."),
    ] = None,
    empty_disk: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SIZE", help="Empty disk, such as data=20G; repeatable.")
    ] = None,
    vtpm: Annotated[bool, typer.Option("--vtpm", help="With a virtual TPM; it demands encryption.")] = False,
    policy: Annotated[
        str, typer.Option(help='Storage policy (default: "encrypted" with a vTPM, else "plain")', show_default=False)
    ] = "",
    provider: Annotated[str, typer.Option(help="Key provider (default: the default one)", show_default=False)] = "",
    host: Annotated[str, typer.Option(help="Host to place it on (default: any that can)", show_default=False)] = "",
    kernel: Annotated[str, typer.Option(help="Kernel on the host to boot directly.", show_default=False)] = "",
    initrd: Annotated[str, typer.Option(help="Initial RAM disk on the host.", show_default=False)] = "",
    append: Annotated[str, typer.Option(help="Kernel command line.", show_default=False)] = "",
) -> None:
    """Make a VM, powered off.

    Example: garant vm create web --memory 2048 --disk root=/images/debian.qcow2 --vtpm
    """
    from garant.host.v1.host_pb2 import VmSpec
    from garant.management.v1.management_pb2 import CreateVmRequest

    spec = VmSpec(
        name=_encodable(name),
        cpus=cpus,
        memory_mib=memory,
        disks=_disks(disk or [], empty_disk or []),
        vtpm=vtpm,
        kernel_path=_host_path("--kernel", kernel),
        initrd_path=_host_path("--initrd", initrd),
        kernel_command_line=append,
    )
    request = CreateVmRequest(spec=spec, storage_policy=policy, provider=provider, host=host)
    management = session.site().management()
    vm = management.call(management.stub.CreateVm, request, timeout_seconds=_CREATE_TIMEOUT_SECONDS).vm
    session.show(plain(vm))


@command(app, "list")
def list_vms(session: Session) -> None:
    """List all VMs.

    Example: garant vm list --output json
    """
    from garant.management.v1.management_pb2 import ListVmsRequest

    management = session.site().management()
    vms, token = [], ""
    while True:
        page = management.call(management.stub.ListVms, ListVmsRequest(page_size=1_000, page_token=token))
        vms += [plain(vm) for vm in page.vms]
        token = page.next_page_token
        if not token:
            break
    session.show_list(vms, _COLUMNS, empty="no VMs")


@command(app, "show")
def show(session: Session, vm: VmArgument) -> None:
    """Show a VM.

    Example: garant vm show web
    """
    from garant.management.v1.management_pb2 import GetVmRequest

    management = session.site().management()
    session.show(plain(management.call(management.stub.GetVm, GetVmRequest(vm=_encodable(vm))).vm))


@command(app, "power-on")
def power_on(session: Session, vm: VmArgument) -> None:
    """Power a VM on. Its host must be attested if it is encrypted.

    Example: garant vm power-on web
    """
    from garant.management.v1.management_pb2 import PowerOnVmRequest

    management = session.site().management()
    request = PowerOnVmRequest(vm=_encodable(vm))
    made = management.call(management.stub.PowerOnVm, request, timeout_seconds=_POWER_TIMEOUT_SECONDS).vm
    session.done(f"VM {vm} is on, on host {made.host}", plain(made))


@command(app, "power-off")
def power_off(
    session: Session,
    vm: VmArgument,
    grace: Annotated[int, typer.Option(min=0, max=3_600, help="Ask the guest, and wait so many seconds.")] = 0,
) -> None:
    """Power a VM off: at once, or by asking its guest first.

    Example: garant vm power-off web --grace 60
    """
    from garant.management.v1.management_pb2 import PowerOffVmRequest

    management = session.site().management()
    request = PowerOffVmRequest(vm=_encodable(vm), grace_seconds=grace)
    made = management.call(management.stub.PowerOffVm, request, timeout_seconds=grace + _POWER_TIMEOUT_SECONDS).vm
    session.done(f"VM {vm} is off", plain(made))


@command(app, "console")
def console(
    session: Session,
    vm: VmArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on reading until Ctrl-C.")] = False,
) -> None:
    """Print a VM's serial console, since its last power-on.

    Example: garant vm console web --follow
    """
    from garant.management.v1.management_pb2 import ReadConsoleRequest

    management = session.site().management()

    def read(offset: int) -> "ReadConsoleResponse":
        return management.call(management.stub.ReadConsole, ReadConsoleRequest(vm=_encodable(vm), offset=offset))

    offset, whole = 0, b""
    while True:
        piece = read(offset)
        offset = piece.next_offset
        if session.output is OutputFormat.JSON:
            whole += piece.output
        elif piece.output:
            sys.stdout.buffer.write(piece.output)
            sys.stdout.buffer.flush()
        if piece.output:
            continue
        if not follow or session.output is OutputFormat.JSON:
            break
        time.sleep(_FOLLOW_INTERVAL_SECONDS)
    if session.output is OutputFormat.JSON:
        print_json({"vm": vm, "output": whole.decode(errors="replace"), "next_offset": offset})


@command(app, "delete")
def delete(session: Session, vm: VmArgument) -> None:
    """Remove a VM that is powered off, with its disks. There is no way back.

    Example: garant vm delete web
    """
    from garant.management.v1.management_pb2 import DeleteVmRequest

    management = session.site().management()
    request = DeleteVmRequest(vm=_encodable(vm))
    management.call(management.stub.DeleteVm, request, timeout_seconds=_POWER_TIMEOUT_SECONDS)
    session.done(f"VM {vm} is deleted")


def _disks(copied: list[str], empty: list[str]) -> "list[DiskSpec]":
    from garant.host.v1.host_pb2 import DiskSpec

    disks = []
    for entry in copied:
        name, path = _split("--disk", entry, "NAME=PATH")
        disks.append(DiskSpec(name=name, source_path=_host_path("--disk", path)))
    for entry in empty:
        name, size = _split("--empty-disk", entry, "NAME=SIZE")
        disks.append(DiskSpec(name=name, size_bytes=_bytes(size)))
    return disks


def _split(option: str, entry: str, form: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not (name and equals and value):
        raise BadInput(f"{option} {entry}: expected {form}")
    return name, value


def _host_path(option: str, path: str) -> str:
    """A path on the host; a relative one would mean something else here than there."""
    if path and not PurePosixPath(path).is_absolute():
        raise BadInput(f"{option} {path}: expected an absolute path; it is read on the VM's host")
    return _encodable(path)


def _bytes(size: str) -> int:
    match = _SIZE.fullmatch(size)
    if match is None or int(match[1]) == 0:
        raise BadInput(f"--empty-disk: {size!r} is not a size; write it like 20G or 512M")
    number = int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))
    if number >= 1 << 62:
        raise BadInput(f"--empty-disk: {size} is too large")
    return number


def _encodable(text: str) -> str:
    """Refuse what the shell passed as bytes that are not UTF-8: no message could carry it."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise BadInput("a name or path is not valid UTF-8") from exc
    return text
