"""Who may call what: one table per daemon, default deny, checked before any handler runs.

Every call proves its caller anew (``serving.identity.prove_caller``): a connection outlives its certificate.
A method that is not in the table is refused, whoever calls.
"""

from __future__ import annotations  # grpc's handler types take parameters in its stubs only

import contextvars
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509

from serving.errors import IdentityError
from serving.identity import Caller, Role, prove_caller
from serving.status import Refusal, abort

_caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)

EVERYBODY: frozenset[Role] = frozenset(Role)
"""Any proven caller."""


@dataclass(frozen=True, slots=True)
class AuthorizationTable:
    """Roles per method, and the issuers that prove them."""

    methods: Mapping[str, frozenset[Role]]
    """Full method name, such as ``/garant.host.v1.HostService/GetVm``, to the roles that may call it."""
    issuers: Mapping[Role, tuple[x509.Certificate, ...]]
    """CA certificates per role."""
    refuse: Callable[[Caller], str | None] = lambda _caller: None
    """A further word on a proven caller: why it is refused (revoked, say), or nothing."""

    def allowed(self, method: str) -> frozenset[Role]:
        """Roles that may call ``method``; none where the table does not name it."""
        if method.startswith(("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")):
            return EVERYBODY
        return self.methods.get(method, frozenset())


def current_caller() -> Caller:
    """The proven caller of the RPC that this thread is serving.

    Raises:
        LookupError: There is none: the method is served without authorization.
    """
    caller = _caller.get()
    if caller is None:
        raise LookupError("no authorized call is being served")
    return caller


class AuthorizationInterceptor(grpc.ServerInterceptor):
    """Runs each call through the table."""

    def __init__(self, table: AuthorizationTable, clock: Callable[[], datetime.datetime]) -> None:
        """Guard a server with ``table``; ``clock`` gives aware times."""
        self._table = table
        self._clock = clock

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler in the check."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        return _wrap(handler, lambda context: self._check(str(handler_call_details.method), context))

    def _check(self, method: str, context: grpc.ServicerContext) -> None:
        try:
            pem = context.auth_context().get("x509_pem_cert")
            if not pem:
                raise IdentityError("the connection carries no client certificate")
            caller = prove_caller(_load(bytes(pem[0])), self._table.issuers, self._clock())
        except IdentityError as exc:
            abort(context, Refusal(grpc.StatusCode.UNAUTHENTICATED, "CALLER_NOT_PROVEN", str(exc)))
        allowed = self._table.allowed(method)
        if caller.identity.role not in allowed:
            wanted = ", ".join(sorted(allowed)) or "nobody"
            message = f"{method} may be called by: {wanted}; the caller is {caller.identity}"
            abort(context, Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", message))
        why_not = self._table.refuse(caller)
        if why_not is not None:
            abort(context, Refusal(grpc.StatusCode.PERMISSION_DENIED, "CALLER_REVOKED", why_not))
        _caller.set(caller)


def _load(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as exc:
        raise IdentityError("the client certificate cannot be read") from exc


def _wrap(
    handler: grpc.RpcMethodHandler[Any, Any], check: Callable[[grpc.ServicerContext], None]
) -> grpc.RpcMethodHandler[Any, Any]:
    def guard(behavior: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def guarded(request_or_iterator: Any, context: grpc.ServicerContext) -> Any:
            check(context)
            return behavior(request_or_iterator, context)

        return guarded

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    make, behavior = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    if behavior is None:
        raise TypeError("a handler without behaviour")
    return make(guard(behavior), handler.request_deserializer, handler.response_serializer)
