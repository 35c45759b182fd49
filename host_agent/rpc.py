"""``garant.host.v1.HostService``: who may call, what is called, how errors are told."""

# ruff: noqa: ARG002, N802 - names and signatures are gRPC's

from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from attestation.errors import TpmError
from garant.host.v1 import host_pb2 as pb
from garant.host.v1 import host_pb2_grpc as pb_grpc
from host_agent import errors
from host_agent.agent import HostAgent
from host_agent.vm.lifecycle import VmState
from host_agent.vm.model import DiskSpec, Vm, VmSpec
from serving.identity import Role
from serving.server import Service
from serving.status import Refusal, StatusRow
from swtpm.errors import SwtpmError

_SERVICE: Final = "garant.host.v1.HostService"
_CALLERS: Final = frozenset({Role.MANAGEMENT_SERVER})

METHODS: Final = {
    f"/{_SERVICE}/{method}": _CALLERS
    for method in (
        "GetHostStatus",
        "Attest",
        "CreateVm",
        "PowerOnVm",
        "PowerOffVm",
        "GetVm",
        "ListVms",
        "ReadConsole",
        "DeleteVm",
    )
}
"""Who may call what."""

_POWER_STATES: Final = {
    VmState.CREATING: pb.POWER_STATE_OFF,
    VmState.OFF: pb.POWER_STATE_OFF,
    VmState.STARTING: pb.POWER_STATE_OFF,
    VmState.ON: pb.POWER_STATE_ON,
    VmState.PAUSED: pb.POWER_STATE_PAUSED,
    VmState.STOPPING: pb.POWER_STATE_ON,
    VmState.DELETING: pb.POWER_STATE_OFF,
    VmState.FAILED: pb.POWER_STATE_OFF,
}


def _peer_refused(error: errors.PeerRefused) -> Refusal:
    code = grpc.StatusCode.UNAVAILABLE if error.passing else grpc.StatusCode.PERMISSION_DENIED
    return Refusal(code, error.reason, str(error))


def _row(kind: type[Exception], code: grpc.StatusCode, reason: str) -> StatusRow:
    return kind, lambda error: Refusal(code, reason, str(error))


_Code = grpc.StatusCode
STATUSES: Final[tuple[StatusRow, ...]] = (
    (
        errors.NotAttested,
        lambda error: Refusal(_Code.FAILED_PRECONDITION, "HOST_NOT_ATTESTED", f"{error.reason}: {error}"),
    ),
    (
        errors.PeerUnreachable,
        lambda error: Refusal(_Code.UNAVAILABLE, f"{error.peer}_UNREACHABLE", str(error)),
    ),
    (errors.PeerRefused, _peer_refused),
    _row(errors.ProviderNotPinned, _Code.FAILED_PRECONDITION, "PROVIDER_NOT_PINNED"),
    _row(errors.ReleaseRejected, _Code.FAILED_PRECONDITION, "RELEASED_KEY_REJECTED"),
    _row(errors.StateDamaged, _Code.FAILED_PRECONDITION, "STATE_DAMAGED"),
    _row(TpmError, _Code.UNAVAILABLE, "TPM_UNAVAILABLE"),
    _row(errors.InvalidSpec, _Code.INVALID_ARGUMENT, "INVALID_SPEC"),
    _row(errors.VmNotFound, _Code.NOT_FOUND, "VM_NOT_FOUND"),
    _row(errors.VmExists, _Code.ALREADY_EXISTS, "VM_EXISTS"),
    _row(errors.IllegalTransition, _Code.FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
    _row(errors.OperationInProgress, _Code.ABORTED, "OPERATION_IN_PROGRESS"),
    (
        errors.ImageRefused,
        lambda error: Refusal(_Code.INVALID_ARGUMENT, f"IMAGE_{error.reason}", str(error)),
    ),
    _row(errors.DiskFull, _Code.RESOURCE_EXHAUSTED, "DISK_FULL"),
    (
        errors.BundleError,
        lambda error: Refusal(_Code.FAILED_PRECONDITION, f"BUNDLE_{error.reason}", str(error)),
    ),
    (
        errors.DiskError,
        lambda error: Refusal(_Code.FAILED_PRECONDITION, f"DISK_{error.reason}", str(error)),
    ),
    _row(errors.ToolUnavailable, _Code.FAILED_PRECONDITION, "TOOL_UNAVAILABLE"),
    _row(errors.StorageError, _Code.FAILED_PRECONDITION, "STORAGE_FAILED"),
    _row(errors.VtpmError, _Code.FAILED_PRECONDITION, "VTPM_FAILED"),
    _row(SwtpmError, _Code.FAILED_PRECONDITION, "VTPM_FAILED"),
    _row(errors.QemuError, _Code.FAILED_PRECONDITION, "QEMU_FAILED"),
    _row(errors.VmError, _Code.FAILED_PRECONDITION, "VM_FAILED"),
)
"""How each error is told."""


class HostServicer(pb_grpc.HostServiceServicer):
    """``HostService`` for the management server."""

    def __init__(self, agent: HostAgent) -> None:
        """Serve ``agent``."""
        self._agent = agent

    def GetHostStatus(
        self, request: pb.GetHostStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetHostStatusResponse:
        """See the proto."""
        status = self._agent.status()
        until = None
        if status.attested_until is not None:
            until = Timestamp()
            until.FromDatetime(status.attested_until)
        return pb.GetHostStatusResponse(
            host_id=status.host_id,
            name=status.name,
            attested=status.attested_until is not None,
            attested_until=until,
            reason=status.reason,
            provider_list_version=status.provider_list_version,
        )

    def Attest(self, request: pb.AttestRequest, context: grpc.ServicerContext) -> pb.AttestResponse:
        """See the proto."""
        view = self._agent.attest()
        return pb.AttestResponse(attested=view.attested is not None, reason=view.reason)

    def CreateVm(self, request: pb.CreateVmRequest, context: grpc.ServicerContext) -> pb.CreateVmResponse:
        """See the proto."""
        vm = self._agent.create_vm(_spec(request.spec), provider=request.provider, grant=request.grant)
        return pb.CreateVmResponse(vm=_vm(vm))

    def PowerOnVm(self, request: pb.PowerOnVmRequest, context: grpc.ServicerContext) -> pb.PowerOnVmResponse:
        """See the proto."""
        return pb.PowerOnVmResponse(vm=_vm(self._agent.power_on_vm(request.vm_id, grant=request.grant)))

    def PowerOffVm(self, request: pb.PowerOffVmRequest, context: grpc.ServicerContext) -> pb.PowerOffVmResponse:
        """See the proto."""
        vm = self._agent.power_off_vm(request.vm_id, grace_seconds=request.grace_seconds)
        return pb.PowerOffVmResponse(vm=_vm(vm))

    def GetVm(self, request: pb.GetVmRequest, context: grpc.ServicerContext) -> pb.GetVmResponse:
        """See the proto."""
        return pb.GetVmResponse(vm=_vm(self._agent.get_vm(request.vm_id)))

    def ListVms(self, request: pb.ListVmsRequest, context: grpc.ServicerContext) -> pb.ListVmsResponse:
        """See the proto."""
        return pb.ListVmsResponse(vms=[_vm(vm) for vm in self._agent.list_vms()])

    def ReadConsole(self, request: pb.ReadConsoleRequest, context: grpc.ServicerContext) -> pb.ReadConsoleResponse:
        """See the proto."""
        output, next_offset = self._agent.read_console(request.vm_id, offset=request.offset)
        return pb.ReadConsoleResponse(output=output, next_offset=next_offset)

    def DeleteVm(self, request: pb.DeleteVmRequest, context: grpc.ServicerContext) -> pb.DeleteVmResponse:
        """See the proto."""
        self._agent.delete_vm(request.vm_id)
        return pb.DeleteVmResponse()


def services(agent: HostAgent) -> list[Service]:
    """The service, for a server."""
    return [Service(_SERVICE, lambda server: pb_grpc.add_HostServiceServicer_to_server(HostServicer(agent), server))]


def _spec(spec: pb.VmSpec) -> VmSpec:
    return VmSpec(
        vm_id=spec.vm_id,
        name=spec.name,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disks=tuple(DiskSpec(disk.name, disk.source_path, disk.size_bytes) for disk in spec.disks),
        vtpm=spec.vtpm,
        kernel_path=spec.kernel_path,
        initrd_path=spec.initrd_path,
        kernel_command_line=spec.kernel_command_line,
    )


def _vm(vm: Vm) -> pb.Vm:
    return pb.Vm(
        vm_id=vm.vm_id,
        name=vm.name,
        power_state=_POWER_STATES[vm.state],
        provider=vm.provider,
        bundle_path=vm.bundle_path,
        qemu_pid=vm.qemu_pid,
    )
