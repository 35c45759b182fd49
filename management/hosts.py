"""The agents of joined hosts, over mutually authenticated gRPC.

One channel per host, kept. The agent must show a join identity of that very host: signed by our host CA, under the
TLS name that stands for its host id (``management.host_name``). Another host's certificate fails the handshake.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import TypeVar

import grpc

from garant.host.v1 import host_pb2, host_pb2_grpc
from management.errors import HostError, HostRefused, HostUnreachable
from management.host_name import agent_server_name
from management.messages import read_host_vm, write_spec
from management.model import Host, HostStatus, HostVm, VmSpec
from serving.client import ClientTls, call, open_channel
from serving.errors import RemoteError

READ_TIMEOUT_SECONDS = 3.0
"""For what a host answers at once: a host that is gone must not hold up a list for longer."""
CREATE_TIMEOUT_SECONDS = 30 * 60.0
"""For making a VM: its disks are copied."""
POWER_TIMEOUT_SECONDS = 5 * 60.0
_PARALLEL = 16
_UNANSWERED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}
_RECONNECT_SECONDS = 1.0
"""Longer than a channel waits before it tries to connect again."""
_OPTIONS: list[tuple[str, str | int]] = [
    # Pings keep a long call from waiting for a host that lost its power.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 500),
]

Answer = TypeVar("Answer")


class GrpcHosts:
    """``management.ports.Hosts`` over the network."""

    def __init__(self, tls: ClientTls) -> None:
        """Dial with ``tls``: our certificate, and the CA of join identities."""
        self._tls = tls
        self._lock = threading.Lock()
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._pool = futures.ThreadPoolExecutor(_PARALLEL, thread_name_prefix="hosts")

    def connect(self, host: Host) -> "GrpcHostConnection":
        """See ``Hosts.connect``."""
        server_name = agent_server_name(host.name, host.host_id)
        key = (host.agent_address, server_name)
        with self._lock:
            channel = self._channels.get(key)
            if channel is None:
                options: list[tuple[str, str | int]] = [("grpc.ssl_target_name_override", server_name), *_OPTIONS]
                channel = self._channels[key] = open_channel(host.agent_address, self._tls, options=options)
        return GrpcHostConnection(host.name, channel)

    def statuses(self, hosts: Sequence[Host]) -> Mapping[str, HostStatus]:
        """See ``Hosts.statuses``; asks all at the same time."""
        return dict(zip((host.name for host in hosts), self._pool.map(self._status, hosts), strict=True))

    def vms(self, hosts: Sequence[Host]) -> Mapping[str, HostVm]:
        """See ``Hosts.vms``; asks all at the same time."""
        return {vm.vm_id: vm for vms in self._pool.map(self._vms, hosts) for vm in vms}

    def close(self) -> None:
        """Close all channels."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def _status(self, host: Host) -> HostStatus:
        try:
            return self.connect(host).status()
        except HostUnreachable as exc:
            return HostStatus(connected=False, attested=False, reason=exc.detail)
        except HostRefused as exc:
            return HostStatus(connected=False, attested=False, reason=exc.reason)

    def _vms(self, host: Host) -> list[HostVm]:
        try:
            return self.connect(host).list_vms()
        except HostError:
            return []


class GrpcHostConnection:
    """``management.ports.HostConnection`` over a channel."""

    def __init__(self, name: str, channel: grpc.Channel) -> None:
        """Talk to host ``name`` over ``channel``."""
        self._name = name
        self._stub = host_pb2_grpc.HostServiceStub(channel)

    def status(self) -> HostStatus:
        """How the host says it is."""
        answer = self._read(self._stub.GetHostStatus, host_pb2.GetHostStatusRequest())
        return HostStatus(connected=True, attested=answer.attested, reason=answer.reason)

    def create_vm(self, vm_id: str, spec: VmSpec, *, provider: str, grant: str) -> HostVm:
        """See ``HostConnection.create_vm``."""
        request = host_pb2.CreateVmRequest(spec=write_spec(vm_id, spec), provider=provider, grant=grant)
        return read_host_vm(self._change(self._stub.CreateVm, request, CREATE_TIMEOUT_SECONDS).vm)

    def power_on_vm(self, vm_id: str, *, grant: str) -> HostVm:
        """See ``HostConnection.power_on_vm``."""
        request = host_pb2.PowerOnVmRequest(vm_id=vm_id, grant=grant)
        return read_host_vm(self._change(self._stub.PowerOnVm, request, POWER_TIMEOUT_SECONDS).vm)

    def power_off_vm(self, vm_id: str, *, grace_seconds: int) -> HostVm:
        """See ``HostConnection.power_off_vm``."""
        request = host_pb2.PowerOffVmRequest(vm_id=vm_id, grace_seconds=grace_seconds)
        timeout_seconds = grace_seconds + POWER_TIMEOUT_SECONDS
        return read_host_vm(self._change(self._stub.PowerOffVm, request, timeout_seconds).vm)

    def list_vms(self) -> list[HostVm]:
        """See ``HostConnection.list_vms``."""
        answer = self._read(self._stub.ListVms, host_pb2.ListVmsRequest())
        return [read_host_vm(vm) for vm in answer.vms]

    def get_vm(self, vm_id: str) -> HostVm:
        """See ``HostConnection.get_vm``."""
        request = host_pb2.GetVmRequest(vm_id=vm_id)
        return read_host_vm(self._read(self._stub.GetVm, request).vm)

    def read_console(self, vm_id: str, *, offset: int) -> tuple[bytes, int]:
        """See ``HostConnection.read_console``."""
        request = host_pb2.ReadConsoleRequest(vm_id=vm_id, offset=offset)
        answer = self._read(self._stub.ReadConsole, request)
        return answer.output, answer.next_offset

    def delete_vm(self, vm_id: str) -> None:
        """See ``HostConnection.delete_vm``."""
        self._change(self._stub.DeleteVm, host_pb2.DeleteVmRequest(vm_id=vm_id), POWER_TIMEOUT_SECONDS)

    def _read(self, method: Callable[..., Answer], request: object) -> Answer:
        """Ask for something; where nobody answers, once more, since the channel may be waiting to connect again."""
        try:
            return self._call(method, request, READ_TIMEOUT_SECONDS, may_have_acted=False)
        except HostUnreachable as first:
            try:
                return self._call(method, request, _RECONNECT_SECONDS, may_have_acted=False, wait=True)
            except HostUnreachable:
                # Says what is wrong; the second one only that it took too long.
                raise first from None

    def _change(self, method: Callable[..., Answer], request: object, timeout_seconds: float) -> Answer:
        """Have something done by a host that answers: if it does not, nothing was sent."""
        self.status()
        return self._call(method, request, timeout_seconds, may_have_acted=True)

    def _call(
        self,
        method: Callable[..., Answer],
        request: object,
        timeout_seconds: float,
        *,
        may_have_acted: bool,
        wait: bool = False,
    ) -> Answer:
        try:
            return call(method, request, timeout_seconds=timeout_seconds, wait=wait)
        except RemoteError as exc:
            # A peer that gave a reason of its own did answer, whatever its code.
            if exc.code in _UNANSWERED and exc.reason == exc.code.name:
                raise HostUnreachable(self._name, exc.message, may_have_acted=may_have_acted) from exc
            raise HostRefused(exc.reason, exc.code.name, exc.message) from exc
