"""The RPC edge of the key provider service: messages to values and back, errors to statuses, who may call what."""
# ruff: noqa: N802, ARG002 - gRPC names the methods and passes the arguments

import functools
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

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
from keyprovider.trusted.errors import LogShortened, LogUnsigned
from keyprovider.trusted.model import KeyRequest, Operation, Peer
from keyprovider.trusted.rpc_messages import (
    known_tree_size,
    policy_message,
    provider_message,
    read_backend,
    read_policy,
    read_rewrap,
    read_unwrap,
    receipt_message,
    release_message,
)
from keyprovider.trusted.service import Authority, KeyReleaseService
from serving.authorization import current_caller
from serving.identity import Role
from serving.server import Service
from serving.status import Refusal, StatusRow

_RELEASE: Final = "garant.keyprovider.v1.KeyReleaseService"
_ADMIN: Final = "garant.keyprovider.v1.KeyProviderAdminService"

_WITNESSES: Final = frozenset({Role.TRUST_ADMIN, Role.MANAGEMENT_SERVER, Role.ATTESTED_HOST})
"""Whoever keeps heads of the release log: they tell its size, and nothing of what is in it."""

METHODS: Final = {
    f"/{_RELEASE}/CreateKey": frozenset({Role.ATTESTED_HOST}),
    f"/{_RELEASE}/UnwrapKey": frozenset({Role.ATTESTED_HOST}),
    f"/{_RELEASE}/RewrapKeys": frozenset({Role.ATTESTED_HOST}),
    f"/{_ADMIN}/CreateProvider": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/ListProviders": frozenset({Role.TRUST_ADMIN, Role.MANAGEMENT_SERVER}),
    f"/{_ADMIN}/RegisterPrincipal": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/UpdateProviderPolicy": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/GetProviderPolicy": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/RotatePrimaryKey": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/ListReleases": frozenset({Role.TRUST_ADMIN}),
    f"/{_ADMIN}/GetTreeHead": _WITNESSES,
    f"/{_ADMIN}/GetConsistencyProof": _WITNESSES,
}
"""Who may call what. A management server's role is proven by an issuer of its own, where one is configured."""

_WAITING: Final = frozenset({ReleaseReason.NO_HEARTBEAT, ReleaseReason.HEARTBEAT_STALE})
"""Refusals that pass by themselves: the host may ask again."""


def _refused(error: ReleaseRefused) -> Refusal:
    code = grpc.StatusCode.UNAVAILABLE if error.reason in _WAITING else grpc.StatusCode.PERMISSION_DENIED
    return Refusal(code, error.reason.value, error.detail)


STATUSES: Final[list[StatusRow]] = [
    (ReleaseRefused, _refused),
    (TokenRejected, lambda exc: Refusal(grpc.StatusCode.UNAUTHENTICATED, f"TOKEN_{exc.reason.value}", exc.detail)),
    (GrantRejected, lambda exc: Refusal(grpc.StatusCode.PERMISSION_DENIED, f"GRANT_{exc.reason.value}", exc.detail)),
    (EnvelopeError, lambda exc: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "WRAPPED_KEY_REFUSED", str(exc))),
    (InvalidArgument, lambda exc: Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", str(exc))),
    (NotFound, lambda exc: Refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", str(exc))),
    (Conflict, lambda exc: Refusal(grpc.StatusCode.ALREADY_EXISTS, "CONFLICT", str(exc))),
    (BackendError, lambda exc: Refusal(grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE", str(exc))),
    (LogUnsigned, lambda exc: Refusal(grpc.StatusCode.FAILED_PRECONDITION, "LOG_UNSIGNED", str(exc))),
    (LogShortened, lambda exc: Refusal(grpc.StatusCode.FAILED_PRECONDITION, "LOG_SHORTENED", str(exc))),
    (StoreError, lambda exc: Refusal(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", str(exc))),
]
"""How each error is told."""


class ReleaseServicer(pb_grpc.KeyReleaseServiceServicer):
    """``garant.keyprovider.v1.KeyReleaseService``."""

    def __init__(self, service: KeyReleaseService) -> None:
        """Serve ``service``."""
        self._service = service

    def CreateKey(self, request: pb.CreateKeyRequest, context: grpc.ServicerContext) -> pb.CreateKeyResponse:
        """See the proto."""
        wanted = KeyRequest(Operation.CREATE, request.provider, request.vm_id, request.component.name)
        known = known_tree_size(request)
        released = self._service.release(_peer(), _authority(request.authority), wanted, known)
        return pb.CreateKeyResponse(
            key_reference=released.key_reference,
            wrapped_key=released.wrapped_key,
            sealed_key=released.sealed_key,
            release_index=released.receipt.index,
            log=receipt_message(released.receipt),
        )

    def UnwrapKey(self, request: pb.UnwrapKeyRequest, context: grpc.ServicerContext) -> pb.UnwrapKeyResponse:
        """See the proto."""
        known = known_tree_size(request)
        released = self._service.release(_peer(), _authority(request.authority), read_unwrap(request), known)
        return pb.UnwrapKeyResponse(
            sealed_key=released.sealed_key, release_index=released.receipt.index, log=receipt_message(released.receipt)
        )

    def RewrapKeys(self, request: pb.RewrapKeysRequest, context: grpc.ServicerContext) -> pb.RewrapKeysResponse:
        """See the proto."""
        rewrapped = self._service.rewrap(_peer(), _authority(request.authority), read_rewrap(request))
        return pb.RewrapKeysResponse(wrapped_keys=rewrapped)


class AdminServicer(pb_grpc.KeyProviderAdminServiceServicer):
    """``garant.keyprovider.v1.KeyProviderAdminService``."""

    def __init__(self, administration: Administration) -> None:
        """Serve ``administration``."""
        self._administration = administration

    def CreateProvider(
        self, request: pb.CreateProviderRequest, context: grpc.ServicerContext
    ) -> pb.CreateProviderResponse:
        """See the proto."""
        backend = read_backend(request.backend)
        policy = read_policy(request.policy) if request.HasField("policy") else None
        provider = self._administration.create_provider(request.name, backend, policy)
        return pb.CreateProviderResponse(provider=provider_message(provider))

    def UpdateProviderPolicy(
        self, request: pb.UpdateProviderPolicyRequest, context: grpc.ServicerContext
    ) -> pb.UpdateProviderPolicyResponse:
        """See the proto."""
        if not request.HasField("policy"):
            raise InvalidArgument("a policy is replaced as a whole; give the new one")
        policy = read_policy(request.policy)
        self._administration.update_policy(request.name, policy)
        return pb.UpdateProviderPolicyResponse(policy=policy_message(policy))

    def GetProviderPolicy(
        self, request: pb.GetProviderPolicyRequest, context: grpc.ServicerContext
    ) -> pb.GetProviderPolicyResponse:
        """See the proto."""
        return pb.GetProviderPolicyResponse(policy=policy_message(self._administration.policy(request.name)))

    def RotatePrimaryKey(
        self, request: pb.RotatePrimaryKeyRequest, context: grpc.ServicerContext
    ) -> pb.RotatePrimaryKeyResponse:
        """See the proto."""
        provider = self._administration.rotate_primary_key(request.name, request.from_version)
        return pb.RotatePrimaryKeyResponse(provider=provider_message(provider))

    def ListProviders(
        self, request: pb.ListProvidersRequest, context: grpc.ServicerContext
    ) -> pb.ListProvidersResponse:
        """See the proto."""
        providers = self._administration.list_providers()
        return pb.ListProvidersResponse(providers=[provider_message(each) for each in providers])

    def RegisterPrincipal(
        self, request: pb.RegisterPrincipalRequest, context: grpc.ServicerContext
    ) -> pb.RegisterPrincipalResponse:
        """See the proto."""
        self._administration.register_principal(request.name, request.public_key)
        return pb.RegisterPrincipalResponse()

    def ListReleases(self, request: pb.ListReleasesRequest, context: grpc.ServicerContext) -> pb.ListReleasesResponse:
        """See the proto."""
        entries = self._administration.list_releases(request.start_index, request.page_size)
        return pb.ListReleasesResponse(releases=[release_message(entry) for entry in entries])

    def GetTreeHead(self, request: pb.GetTreeHeadRequest, context: grpc.ServicerContext) -> pb.GetTreeHeadResponse:
        """See the proto."""
        head, size = self._administration.tree_head()
        return pb.GetTreeHeadResponse(tree_head=head, size=size)

    def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: grpc.ServicerContext
    ) -> pb.GetConsistencyProofResponse:
        """See the proto."""
        proof = self._administration.consistency_proof(request.old_size, request.new_size)
        return pb.GetConsistencyProofResponse(proof=proof)


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
