"""Protobuf messages of management and host agent, from and to the inventory's values."""

from google.protobuf import timestamp_pb2

from garant.host.v1 import host_pb2
from garant.management.v1 import management_pb2
from management.errors import InvalidArgument
from management.model import (
    DiskSpec,
    Event,
    Host,
    HostStatus,
    HostVm,
    PowerState,
    Provider,
    ProviderKind,
    StoragePolicy,
    VmSpec,
    VmView,
)

_POWER_STATES = {
    PowerState.UNKNOWN: host_pb2.POWER_STATE_UNSPECIFIED,
    PowerState.OFF: host_pb2.POWER_STATE_OFF,
    PowerState.ON: host_pb2.POWER_STATE_ON,
    PowerState.PAUSED: host_pb2.POWER_STATE_PAUSED,
}
_POWER_STATES_READ = {number: state for state, number in _POWER_STATES.items()}
_PROVIDER_KINDS = {
    ProviderKind.STANDARD: management_pb2.PROVIDER_KIND_STANDARD,
    ProviderKind.TRUSTED: management_pb2.PROVIDER_KIND_TRUSTED,
    ProviderKind.NATIVE: management_pb2.PROVIDER_KIND_NATIVE,
}


def read_spec(spec: host_pb2.VmSpec) -> VmSpec:
    """Hardware as a caller asks for it.

    Raises:
        InvalidArgument: A field is malformed, or the caller chose an id.
    """
    if spec.vm_id:
        raise InvalidArgument("the VM id is given by the management server; leave it empty")
    return VmSpec(
        name=spec.name,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        vtpm=spec.vtpm,
        disks=tuple(DiskSpec(disk.name, disk.source_path, disk.size_bytes) for disk in spec.disks),
        kernel_path=spec.kernel_path,
        initrd_path=spec.initrd_path,
        kernel_command_line=spec.kernel_command_line,
    )


def write_spec(vm_id: str, spec: VmSpec) -> host_pb2.VmSpec:
    """Hardware as a host is told it."""
    return host_pb2.VmSpec(
        vm_id=vm_id,
        name=spec.name,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disks=[
            host_pb2.DiskSpec(name=disk.name, source_path=disk.source_path, size_bytes=disk.size_bytes)
            for disk in spec.disks
        ],
        vtpm=spec.vtpm,
        kernel_path=spec.kernel_path,
        initrd_path=spec.initrd_path,
        kernel_command_line=spec.kernel_command_line,
    )


def read_host_vm(vm: host_pb2.Vm) -> HostVm:
    """A VM as its host tells it; a power state that is not known here is unknown."""
    power_state = _POWER_STATES_READ.get(vm.power_state, PowerState.UNKNOWN)
    return HostVm(vm.vm_id, power_state, vm.bundle_path, vm.qemu_pid)


def write_vm(view: VmView) -> management_pb2.Vm:
    """A VM for a caller."""
    vm, on_host = view.vm, view.on_host
    message = management_pb2.Vm(
        vm_id=vm.vm_id,
        name=vm.name,
        host=vm.host,
        storage_policy=vm.storage_policy,
        provider=vm.provider,
        vtpm=vm.vtpm,
    )
    if on_host is not None:
        message.power_state = _POWER_STATES[on_host.power_state]
        message.bundle_path = on_host.bundle_path
        message.qemu_pid = on_host.qemu_pid
    return message


def write_host(host: Host, status: HostStatus) -> management_pb2.Host:
    """A host for a caller."""
    return management_pb2.Host(
        name=host.name,
        host_id=host.host_id,
        cluster=host.cluster,
        agent_address=host.agent_address,
        connected=status.connected,
        attested=status.attested,
        reason=status.reason,
    )


def write_provider(provider: Provider) -> management_pb2.Provider:
    """A key provider for a caller."""
    return management_pb2.Provider(name=provider.name, kind=_PROVIDER_KINDS[provider.kind], default=provider.is_default)


def write_storage_policy(policy: StoragePolicy) -> management_pb2.StoragePolicy:
    """A storage policy for a caller."""
    return management_pb2.StoragePolicy(name=policy.name, encrypted=policy.is_encrypted)


def write_event(event: Event) -> management_pb2.Event:
    """An event for a caller."""
    occurred_at = timestamp_pb2.Timestamp()
    occurred_at.FromDatetime(event.occurred_at)
    return management_pb2.Event(
        cursor=event.cursor,
        occurred_at=occurred_at,
        type=event.type,
        principal=event.principal,
        vm_id=event.vm_id,
        host=event.host,
        message=event.message,
    )
