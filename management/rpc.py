"""The management server's gRPC services: who may call, what is called, how errors are told."""

# ruff: noqa: N802 - methods are named as the protocol names them

from collections.abc import Callable, Mapping

import grpc
from cryptography import x509

from garant.management.v1 import management_pb2 as pb
from garant.management.v1 import management_pb2_grpc as pb_grpc
from management import errors
from management.join import HostJoining, JoinRequest
from management.messages import (
    read_spec,
    write_event,
    write_host,
    write_provider,
    write_storage_policy,
    write_vm,
)
from management.privileges import REQUIREMENTS, Principal, principal_of
from management.privileges import Role as PrivilegeRole
from management.service import ManagementService
from serving.authorization import AuthorizationTable, current_caller
from serving.errors import StoreError
from serving.identity import Role
from serving.server import Service
from serving.status import Refusal, StatusRow

MANAGEMENT_SERVICE = "garant.management.v1.ManagementService"
HOST_JOIN_SERVICE = "garant.management.v1.HostJoinService"


def authorization_table(vm_admin_ca: x509.Certificate) -> AuthorizationTable:
    """VM administrators may call each RPC that the privilege table names; the privilege is checked per call."""
    methods = {f"/{MANAGEMENT_SERVICE}/{rpc}": frozenset({Role.VM_ADMIN}) for rpc in REQUIREMENTS}
    return AuthorizationTable(methods, {Role.VM_ADMIN: (vm_admin_ca,)})


class ManagementServicer(pb_grpc.ManagementServiceServicer):
    """``ManagementService`` for proven VM administrators."""

    def __init__(self, service: ManagementService, roles: Mapping[str, PrivilegeRole]) -> None:
        """Serve ``service``; ``roles`` are those of the administrators, by name."""
        self._service = service
        self._roles = roles

    def _admit(self, rpc: str) -> Principal:
        """The caller, who holds what ``rpc`` always needs."""
        principal = principal_of(current_caller().identity.name, self._roles)
        principal.demand(rpc)
        return principal

    def ListHosts(self, _request: pb.ListHostsRequest, _context: grpc.ServicerContext) -> pb.ListHostsResponse:
        """All hosts."""
        self._admit("ListHosts")
        return pb.ListHostsResponse(hosts=[write_host(host, status) for host, status in self._service.list_hosts()])

    def RegisterProvider(
        self, request: pb.RegisterProviderRequest, _context: grpc.ServicerContext
    ) -> pb.RegisterProviderResponse:
        """A trusted provider, by name."""
        principal = self._admit("RegisterProvider")
        provider = self._service.register_provider(request.name, is_default=request.default, principal=principal)
        return pb.RegisterProviderResponse(provider=write_provider(provider))

    def ListProviders(
        self, _request: pb.ListProvidersRequest, _context: grpc.ServicerContext
    ) -> pb.ListProvidersResponse:
        """All key providers."""
        self._admit("ListProviders")
        return pb.ListProvidersResponse(providers=map(write_provider, self._service.list_providers()))

    def ListStoragePolicies(
        self, _request: pb.ListStoragePoliciesRequest, _context: grpc.ServicerContext
    ) -> pb.ListStoragePoliciesResponse:
        """All storage policies."""
        self._admit("ListStoragePolicies")
        policies = map(write_storage_policy, self._service.list_storage_policies())
        return pb.ListStoragePoliciesResponse(policies=policies)

    def CreateVm(self, request: pb.CreateVmRequest, _context: grpc.ServicerContext) -> pb.CreateVmResponse:
        """A new VM."""
        principal = self._admit("CreateVm")
        view = self._service.create_vm(
            read_spec(request.spec),
            storage_policy=request.storage_policy,
            provider=request.provider,
            host=request.host,
            principal=principal,
        )
        return pb.CreateVmResponse(vm=write_vm(view))

    def GetVm(self, request: pb.GetVmRequest, _context: grpc.ServicerContext) -> pb.GetVmResponse:
        """One VM."""
        self._admit("GetVm")
        return pb.GetVmResponse(vm=write_vm(self._service.get_vm(request.vm)))

    def ListVms(self, request: pb.ListVmsRequest, _context: grpc.ServicerContext) -> pb.ListVmsResponse:
        """A page of VMs."""
        self._admit("ListVms")
        views, token = self._service.list_vms(page_size=request.page_size, page_token=request.page_token)
        return pb.ListVmsResponse(vms=map(write_vm, views), next_page_token=token)

    def PowerOnVm(self, request: pb.PowerOnVmRequest, _context: grpc.ServicerContext) -> pb.PowerOnVmResponse:
        """Power on."""
        principal = self._admit("PowerOnVm")
        return pb.PowerOnVmResponse(vm=write_vm(self._service.power_on_vm(request.vm, principal=principal)))

    def PowerOffVm(self, request: pb.PowerOffVmRequest, _context: grpc.ServicerContext) -> pb.PowerOffVmResponse:
        """Power off."""
        principal = self._admit("PowerOffVm")
        view = self._service.power_off_vm(request.vm, grace_seconds=request.grace_seconds, principal=principal)
        return pb.PowerOffVmResponse(vm=write_vm(view))

    def ReadConsole(self, request: pb.ReadConsoleRequest, _context: grpc.ServicerContext) -> pb.ReadConsoleResponse:
        """A piece of the console's output."""
        self._admit("ReadConsole")
        output, next_offset = self._service.read_console(request.vm, offset=request.offset)
        return pb.ReadConsoleResponse(output=output, next_offset=next_offset)

    def DeleteVm(self, request: pb.DeleteVmRequest, _context: grpc.ServicerContext) -> pb.DeleteVmResponse:
        """Remove a VM."""
        principal = self._admit("DeleteVm")
        self._service.delete_vm(request.vm, principal=principal)
        return pb.DeleteVmResponse()

    def ListEvents(self, request: pb.ListEventsRequest, _context: grpc.ServicerContext) -> pb.ListEventsResponse:
        """A piece of the event log."""
        self._admit("ListEvents")
        events = self._service.list_events(after=request.after_cursor, page_size=request.page_size)
        return pb.ListEventsResponse(events=map(write_event, events))


class HostJoinServicer(pb_grpc.HostJoinServiceServicer):
    """``HostJoinService`` for holders of a join token."""

    def __init__(self, joining: HostJoining) -> None:
        """Serve ``joining``."""
        self._joining = joining

    def Join(self, request: pb.JoinRequest, _context: grpc.ServicerContext) -> pb.JoinResponse:
        """A join identity."""
        identity = self._joining.join(
            JoinRequest(
                join_token=request.join_token,
                certificate_request=request.certificate_request,
                host_id=request.host_id,
                agent_address=request.agent_address,
                hardware_uuid=request.hardware_uuid,
            )
        )
        return pb.JoinResponse(certificate_pem=identity.certificate_pem, management_ca_pem=identity.management_ca_pem)


def management_service(servicer: ManagementServicer) -> Service:
    """How ``ManagementService`` is added to a server."""
    return Service(MANAGEMENT_SERVICE, lambda server: pb_grpc.add_ManagementServiceServicer_to_server(servicer, server))


def host_join_service(servicer: HostJoinServicer) -> Service:
    """How ``HostJoinService`` is added to a server."""
    return Service(HOST_JOIN_SERVICE, lambda server: pb_grpc.add_HostJoinServiceServicer_to_server(servicer, server))


def _told(code: grpc.StatusCode, reason: str) -> Callable[[Exception], Refusal]:
    return lambda exc: Refusal(code, reason, str(exc))


def _told_with_reason(
    code: grpc.StatusCode,
) -> Callable[[errors.PolicyRefused | errors.PlacementRefused | errors.JoinRefused], Refusal]:
    return lambda exc: Refusal(code, exc.reason.value, str(exc))


def _told_as_the_host_did(exc: errors.HostRefused) -> Refusal:
    return Refusal(grpc.StatusCode[exc.status], exc.reason, exc.message)


STATUSES: tuple[StatusRow, ...] = (
    (errors.InvalidArgument, _told(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")),
    (errors.NotFound, _told(grpc.StatusCode.NOT_FOUND, "NOT_FOUND")),
    (errors.AlreadyExists, _told(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")),
    (errors.PrivilegeMissing, _told(grpc.StatusCode.PERMISSION_DENIED, "PRIVILEGE_MISSING")),
    (errors.PolicyRefused, _told_with_reason(grpc.StatusCode.FAILED_PRECONDITION)),
    (errors.PlacementRefused, _told_with_reason(grpc.StatusCode.FAILED_PRECONDITION)),
    (errors.JoinRefused, _told_with_reason(grpc.StatusCode.PERMISSION_DENIED)),
    (errors.VmBusy, _told(grpc.StatusCode.ABORTED, "VM_BUSY")),
    (errors.VmUnsettled, _told(grpc.StatusCode.FAILED_PRECONDITION, "VM_UNSETTLED")),
    (errors.HostUnreachable, _told(grpc.StatusCode.UNAVAILABLE, "HOST_UNREACHABLE")),
    (errors.HostRefused, _told_as_the_host_did),
    (StoreError, _told(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")),
)
"""Every error of this component, as callers are told it."""
