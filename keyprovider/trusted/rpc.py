"""The RPC edge of the key provider service: messages to values and back, errors to statuses, who may call what."""
# ruff: noqa: N802, ARG002 - gRPC names the methods and passes the arguments

import functools
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from attestation.binding import tls_thumbprint
from attestation.errors import TokenRejected
from garant.keyprovider.v1 import keyprovider_pb2 as pb
from garant.keyprovider.v1 import keyprovider_pb2_grpc as pb_grpc
from keyprovider.errors import (
    BackendError,
    Conflict,
    EnvelopeError,
    GrantRejected,
    InvalidArgument,
    NotFound,
    ReleaseReason,
    ReleaseRefused,
    StoreError,
)
from keyprovider.trusted.administration import Administration
from keyprovider.trusted.model import BackendKind, KeyRequest, LoggedRelease, Operation, Peer, Provider
from keyprovider.trusted.service import Authority, KeyReleaseService
from serving.authorization import current_caller
from serving.identity import Role
from serving.server import Service
from serving.status import Refusal, StatusRow

_RELEASE: Final = "garant.keyprovider.v1.KeyReleaseService"
_ADMIN: Final = "garant.keyprovider.v1.KeyProviderAdminService"

METHODS: Final = {
    f"/{_RELEASE}/CreateKey": frozenset({Role.ATTESTED_HOST}),
    f"/{_RELEASE}/UnwrapKey": frozenset({Role.ATTESTED_HOST}),
    f"/{_ADMIN}/CreateProvider": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/ListProviders": frozenset({Role.TRUST_ADMIN, Role.MANAGEMENT_SERVER}),
    f"/{_ADMIN}/RegisterPrincipal": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/ListReleases": frozenset({Role.TRUST_ADMIN}),
}
"""Who may call what. A management server's role is proven by an issuer of its own, where one is configured."""

_WAITING: Final = frozenset({ReleaseReason.NO_HEARTBEAT, ReleaseReason.HEARTBEAT_STALE})
"""Refusals that pass by themselves: the host may ask again."""


def _refused(error: ReleaseRefused) -> Refusal:
    code = grpc.StatusCode.UNAVAILABLE if error.reason in _WAITING else grpc.StatusCode.PERMISSION_DENIED
    return Refusal(code, error.reason.value, str(error))


STATUSES: Final[list[StatusRow]] = [
    (ReleaseRefused, _refused),
    (TokenRejected, lambda exc: Refusal(grpc.StatusCode.UNAUTHENTICATED, f"TOKEN_{exc.reason.value}", str(exc))),
    (GrantRejected, lambda exc: Refusal(grpc.StatusCode.PERMISSION_DENIED, f"GRANT_{exc.reason.value}", str(exc))),
    (EnvelopeError, lambda exc: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "WRAPPED_KEY_REFUSED", str(exc))),
    (InvalidArgument, lambda exc: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", str(exc))),
    (NotFound, lambda exc: Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", str(exc))),
    (Conflict, lambda exc: Refusal(grpc.StatusCode.ALREADY_EXISTS, "CONFLICT", str(exc))),
    (BackendError, lambda exc: Refusal(grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE", str(exc))),
    (StoreError, lambda exc: Refusal(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", str(exc))),
]
"""How each error is told."""

_BACKENDS: Final = {pb.BACKEND_SOFTWARE: BackendKind.SOFTWARE}
_BACKEND_VALUES: Final = {kind: value for value, kind in _BACKENDS.items()}


class ReleaseServicer(pb_grpc.KeyReleaseServiceServicer):
    """``garant.keyprovider.v1.KeyReleaseService``."""

    def __init__(self, service: KeyReleaseService) -> None:
        """Serve ``service``."""
        self._service = service

    def CreateKey(self, request: pb.CreateKeyRequest, context: grpc.ServicerContext) -> pb.CreateKeyResponse:
        """See the proto."""
        wanted = KeyRequest(Operation.CREATE, request.provider, request.vm_id, request.component.name)
        released = self._service.release(_peer(), _authority(request.authority), wanted)
        return pb.CreateKeyResponse(
            key_reference=released.key_reference,
            wrapped_key=released.wrapped_key,
            sealed_key=released.sealed_key,
            release_index=released.release_index,
        )

    def UnwrapKey(self, request: pb.UnwrapKeyRequest, context: grpc.ServicerContext) -> pb.UnwrapKeyResponse:
        """See the proto."""
        wanted = KeyRequest(
            Operation.UNWRAP,
            request.provider,
            request.vm_id,
            request.component.name,
            request.key_reference,
            request.wrapped_key,
        )
        released = self._service.release(_peer(), _authority(request.authority), wanted)
        return pb.UnwrapKeyResponse(sealed_key=released.sealed_key, release_index=released.release_index)


class AdminServicer(pb_grpc.KeyProviderAdminServiceServicer):
    """``garant.keyprovider.v1.KeyProviderAdminService``."""

    def __init__(self, administration: Administration) -> None:
        """Serve ``administration``."""
        self._administration = administration

    def CreateProvider(
        self, request: pb.CreateProviderRequest, context: grpc.ServicerContext
    ) -> pb.CreateProviderResponse:
        """See the proto."""
        backend = _BACKENDS.get(request.backend)
        if backend is None:
            raise InvalidArgument("name the backend that shall hold the primary key")
        return pb.CreateProviderResponse(
            provider=_provider(self._administration.create_provider(request.name, backend))
        )

    def ListProviders(
        self, request: pb.ListProvidersRequest, context: grpc.ServicerContext
    ) -> pb.ListProvidersResponse:
        """See the proto."""
        return pb.ListProvidersResponse(providers=[_provider(each) for each in self._administration.list_providers()])

    def RegisterPrincipal(
        self, request: pb.RegisterPrincipalRequest, context: grpc.ServicerContext
    ) -> pb.RegisterPrincipalResponse:
        """See the proto."""
        self._administration.register_principal(request.name, request.public_key)
        return pb.RegisterPrincipalResponse()

    def ListReleases(self, request: pb.ListReleasesRequest, context: grpc.ServicerContext) -> pb.ListReleasesResponse:
        """See the proto."""
        entries = self._administration.list_releases(request.start_index, request.page_size)
        return pb.ListReleasesResponse(releases=[_release(entry) for entry in entries])


def services(release: KeyReleaseService, administration: Administration) -> list[Service]:
    """Both services, for a server."""
    return [
        Service(
            _RELEASE, lambda server: pb_grpc.add_KeyReleaseServiceServicer_to_server(ReleaseServicer(release), server)
        ),
        Service(
            _ADMIN,
            lambda server: pb_grpc.add_KeyProviderAdminServiceServicer_to_server(AdminServicer(administration), server),
        ),
    ]


def _peer() -> Peer:
    caller = current_caller()
    return Peer(caller.identity.role.value, caller.identity.name, _thumbprint(caller.certificate))


@functools.lru_cache(maxsize=4096)
def _thumbprint(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return b""
    return tls_thumbprint(key)


def _authority(message: pb.Authority) -> Authority:
    return Authority(message.token, message.grant)


def _provider(provider: Provider) -> pb.Provider:
    return pb.Provider(
        name=provider.name, backend=_BACKEND_VALUES[provider.backend], primary_version=provider.primary_version
    )


def _release(entry: LoggedRelease) -> pb.Release:
    record = entry.record
    return pb.Release(
        index=entry.index,
        released_at=Timestamp(seconds=record.released_at),
        operation=record.operation.value,
        host_id=record.host_id.text,
        vm_id=record.vm_id,
        component=record.component,
        provider=record.provider,
        key_reference=record.key_reference,
        token_id=record.token_id,
        grant_id=record.grant_id,
        policy_version=record.policy_version,
        reset_count=record.boot.reset_count,
        restart_count=record.boot.restart_count,
    )
