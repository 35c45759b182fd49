"""Errors at the RPC edge: domain error to gRPC status, in one table per daemon, with ``google.rpc.ErrorInfo``.

A domain knows no status codes. What no table names is INTERNAL, logged with its traceback, told to nobody.
"""

from __future__ import annotations  # grpc's handler types take parameters in its stubs only

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.errors import RemoteError

DOMAIN = "garant"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller is told."""

    code: grpc.StatusCode
    reason: str
    """Stable, upper case with underscores."""
    message: str


StatusRow = tuple[type[Exception], Callable[[Any], Refusal]]
"""An error type and how it is told; the first row that fits is used."""


def abort(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    """End the call with this refusal."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN))
    code: int = code_pb2.Code.Value(refusal.code.name)
    context.abort_with_status(
        rpc_status.to_status(status_pb2.Status(code=code, message=refusal.message, details=[detail]))
    )
    raise AssertionError("abort returned")


class StatusInterceptor(grpc.ServerInterceptor):
    """Turns errors that leave a handler into statuses."""

    def __init__(self, rows: Sequence[StatusRow]) -> None:
        """Use ``rows``, first match first."""
        self._rows = rows

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap unary answers; streams report their own errors."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behavior, method = handler.unary_unary, handler_call_details.method

        def translated(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return behavior(request, context)
            except Exception as exc:
                if context.code() is not None:  # type: ignore[attr-defined]
                    raise
                abort(context, self._refusal(exc, str(method)))

        return grpc.unary_unary_rpc_method_handler(
            translated, handler.request_deserializer, handler.response_serializer
        )

    def _refusal(self, exc: Exception, method: str) -> Refusal:
        for kind, tell in self._rows:
            if isinstance(exc, kind):
                refusal = tell(exc)
                _log.info("refused", method=method, reason=refusal.reason, message=refusal.message)
                return refusal
        _log.error("unexpected error", method=method, exc_info=exc)
        return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "unexpected error; the service's log has it")


def remote_error(error: grpc.RpcError) -> RemoteError:
    """Read what a peer told, or what gRPC says where no peer answered."""
    code: grpc.StatusCode = error.code()
    message = str(error.details() or code.name)
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return RemoteError(code, info.reason, message)
    return RemoteError(code, code.name, message)
