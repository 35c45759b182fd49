"""Key releases over mTLS gRPC, each recorded durably before its answer, beside an echo on the same server."""

import collections
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from bench.figures import Figure, median_seconds
from bench.site import PROVIDER, running_site
from garant.keyprovider.v1 import keyprovider_pb2, keyprovider_pb2_grpc

_IN_FLIGHT = 16
_SECONDS = 4.0
_REACH = 0.3
_AIM_MS = 2.0
Answer = TypeVar("Answer")


def measure() -> list[Figure]:
    """Unwrap keys one at a time, and sixteen at a time."""
    with running_site() as site:
        host = site.session.current()
        channel = site.key_provider(host)
        stub, echo = (
            keyprovider_pb2_grpc.KeyReleaseServiceStub(channel),
            channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            ),
        )
        vm_id = str(uuid.uuid4())
        authority = keyprovider_pb2.Authority(token=host.token, grant=site.grant(host, vm_id))
        component = keyprovider_pb2.Component(name="home")
        create = keyprovider_pb2.CreateKeyRequest(
            authority=authority, provider=PROVIDER, vm_id=vm_id, component=component
        )
        made = _once_up(lambda: stub.CreateKey(create, timeout=10))
        unwrap = keyprovider_pb2.UnwrapKeyRequest(
            authority=authority,
            provider=PROVIDER,
            vm_id=vm_id,
            component=component,
            key_reference=made.key_reference,
            wrapped_key=made.wrapped_key,
        )
        ping = health_pb2.HealthCheckRequest()
        rates = {"echo": 0.0, "unwrap": 0.0}
        for _ in range(3):  # in turns, so that whatever else the machine does hits both
            rates["echo"] = max(rates["echo"], _rate(echo, ping))
            rates["unwrap"] = max(rates["unwrap"], _rate(stub.UnwrapKey, unwrap))
        single_echo = median_seconds(lambda: echo(ping, timeout=10), times=300) * 1000
        single = median_seconds(lambda: stub.UnwrapKey(unwrap, timeout=10), times=300) * 1000
    return [
        Figure(
            name=f"key releases (unwrap), {_IN_FLIGHT} in flight, record durable before the answer",
            value=rates["unwrap"],
            unit="per second",
            floor="echo (health check) on the same server",
            floor_value=rates["echo"],
            reach=f"at least {_REACH} of the floor",
            reached=rates["unwrap"] >= _REACH * rates["echo"],
        ),
        Figure(
            name="key release alone, one at a time; median",
            value=single,
            unit="ms",
            floor="echo (health check) on the same server",
            floor_value=single_echo,
            reach=f"aim: at most {_AIM_MS:.0f} ms",
            reached=single <= _AIM_MS,
        ),
    ]


def _once_up(work: Callable[[], Answer]) -> Answer:
    """Try until the service has seen a heartbeat."""
    for _ in range(100):
        try:
            return work()
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.1)
    return work()


def _rate(method: Callable[..., Any], request: object) -> float:
    """Calls per second with a fixed number in flight."""
    for _ in range(_IN_FLIGHT):
        method(request, timeout=10)
    future = method.future  # type: ignore[attr-defined]
    pending = collections.deque(future(request, timeout=10) for _ in range(_IN_FLIGHT))
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _SECONDS / 3:
        pending.popleft().result()
        pending.append(future(request, timeout=10))
        done += 1
    for call in pending:
        call.result()
    return done / elapsed
