"""The client of a standard provider's key servers: replicating servers, tried in order.

1. Servers that failed lately come last.
2. A request goes out once per server, and once more, on a new connection, if the first one turns out to be dead.
3. A request that must not be repeated (``Request.repeatable``) is given up as soon as it may have reached a server:
   :attr:`KmipConnectionFailed.outcome_unknown` tells.
4. A key that one server lacks is looked for on the others, for replication takes time.

Thread-safe, and nothing here knows what a key is for. Logs nothing.
"""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from keyprovider.errors import (
    KmipConnectionFailed,
    KmipConnectionReason,
    KmipError,
    KmipKeyMissing,
    KmipKeyReason,
    KmipKeyUnusable,
    KmipMalformed,
    KmipRefusal,
    KmipRefused,
)
from keyprovider.keymaterial import SecretKey
from keyprovider.kmip.attribute_operations import GetAttributes
from keyprovider.kmip.attributes import key_state
from keyprovider.kmip.connection import KmipTls, ServerAddress, wipe
from keyprovider.kmip.fields import Items
from keyprovider.kmip.messages import (
    PREFERRED_VERSIONS,
    Credential,
    Failure,
    ProtocolVersion,
    RequestItem,
    build_request,
    parse_response,
)
from keyprovider.kmip.operations import Create, DiscoverVersions, Get, Request
from keyprovider.kmip.pool import FRESH_SECONDS, MAX_IDLE_SECONDS, ServerPool
from keyprovider.kmip.tags import KeyState, ResultReason

Result = TypeVar("Result")
Answer = TypeVar("Answer")

_FAILED_SECONDS: Final = 30.0
"""How long a server that failed is tried last."""
_ASKING_VERSION: Final = ProtocolVersion(1, 1)
"""The first version with DiscoverVersions."""
_UNUSABLE: Final = {
    KeyState.PRE_ACTIVE: KmipKeyReason.PRE_ACTIVE,
    KeyState.DEACTIVATED: KmipKeyReason.DEACTIVATED,
    KeyState.COMPROMISED: KmipKeyReason.COMPROMISED,
    KeyState.DESTROYED: KmipKeyReason.DESTROYED,
    KeyState.DESTROYED_COMPROMISED: KmipKeyReason.DESTROYED_COMPROMISED,
}


class KmipClient:
    """Asks the key servers of one provider."""

    def __init__(
        self,
        servers: Sequence[ServerAddress],
        tls: KmipTls,
        *,
        credential: Credential | None = None,
        timeout_seconds: float = 10.0,
        connections_per_server: int = 4,
        versions: Sequence[ProtocolVersion] = PREFERRED_VERSIONS,
    ) -> None:
        """Read the identity; nothing is connected before the first request.

        Args:
            servers: Replicas of each other, the preferred one first.
            tls: Whom to trust, and this client's identity.
            credential: User name and password, for servers that want them too.
            timeout_seconds: For one request on one server, connecting included.
            connections_per_server: At most so many at a time.
            versions: Those to speak, best first.

        Raises:
            ValueError: No server, or certificates and key are not usable.
        """
        if not servers:
            raise ValueError("a provider has at least one key server")
        context = tls.context()
        self._pools = tuple(ServerPool(server, context, size=connections_per_server) for server in servers)
        self._credential = credential
        self._timeout_seconds = timeout_seconds
        self._versions = tuple(versions)
        # From a random start, so that an answer to another client or an earlier run matches nothing asked here.
        self._batch_ids = itertools.count(int.from_bytes(os.urandom(6), "big"))

    def call(self, request: Request[Result]) -> Result:
        """Carry out one operation on the first server that can.

        Raises:
            KmipConnectionFailed: No server answered (R-ERR-3); the last one's reason.
            KmipKeyMissing: No server that answered holds the key (R-ERR-2).
            KmipKeyUnusable: The server does not give it out, or it is no AES-256 key.
            KmipRefused: The server refused.
            KmipMalformed: The answer is not what the protocol says.
        """

        def read(outcomes: Sequence[Result | KmipError]) -> Result:
            (outcome,) = outcomes
            if isinstance(outcome, KmipError):
                raise outcome
            return outcome

        return self._on_some_server([request], read)

    def batch(self, requests: Sequence[Request[Result]]) -> list[Result | KmipError]:
        """Carry out several operations in one message, on one server.

        Returns:
            For each its result, or why there is none. After the first failure a server carries out no more.

        Raises:
            KmipConnectionFailed: No server answered; the last one's reason.
            KmipMalformed: The answer is not what the protocol says.
        """
        return self._on_some_server(requests, list)

    def create_key(self) -> str:
        """Have an AES-256 key made, in state Pre-Active. Gives its ID (R-STD-1).

        Raises:
            KmipError: As :meth:`call`.
        """
        return self.call(Create())

    def get_key(self, key_id: str) -> SecretKey:
        """Fetch a key, whatever its state.

        Raises:
            KmipError: As :meth:`call`.
        """
        return self.call(Get(key_id))

    def key_state(self, key_id: str) -> KeyState:
        """A key's state.

        Raises:
            KmipError: As :meth:`call`.
        """
        return key_state(self.call(GetAttributes(key_id, ("State",))))

    def fetch_active_key(self, key_id: str) -> SecretKey:
        """Fetch a key that may be used for new encryption: an Active one. Of others not even the bytes are asked for.

        Raises:
            KmipKeyUnusable: PRE_ACTIVE, DEACTIVATED, COMPROMISED, DESTROYED or DESTROYED_COMPROMISED.
            KmipError: As :meth:`call`.
        """
        state = self.key_state(key_id)
        if state is not KeyState.ACTIVE:
            raise KmipKeyUnusable(_UNUSABLE[state], "only an Active key is used", key_id=key_id)
        return self.get_key(key_id)

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _on_some_server(
        self, requests: Sequence[Request[Result]], read: Callable[[Sequence[Result | KmipError]], Answer]
    ) -> Answer:
        repeatable = all(request.repeatable for request in requests)
        missing: KmipKeyMissing | None = None
        failed: KmipError | None = None
        for pool in self._in_order():
            try:
                return read(self._on_server(pool, requests, repeatable=repeatable))
            except KmipKeyMissing as exc:
                if not repeatable:
                    raise
                missing = missing or exc
            except (KmipConnectionFailed, KmipMalformed) as exc:
                unknown = not isinstance(exc, KmipConnectionFailed) or exc.outcome_unknown
                if unknown and not repeatable:
                    raise
                failed = exc
        raise missing or failed or AssertionError("there is at least one server")

    def _in_order(self) -> list[ServerPool]:
        now = time.monotonic()
        return sorted(
            self._pools, key=lambda pool: pool.failed_at is not None and now - pool.failed_at < _FAILED_SECONDS
        )

    def _on_server(
        self, pool: ServerPool, requests: Sequence[Request[Result]], *, repeatable: bool
    ) -> list[Result | KmipError]:
        deadline = time.monotonic() + self._timeout_seconds
        try:
            version = pool.version or self._negotiate(pool, deadline)
            max_idle_seconds = MAX_IDLE_SECONDS if repeatable else FRESH_SECONDS
            try:
                outcomes = self._ask(pool, requests, version, deadline, max_idle_seconds)
            except KmipConnectionFailed as exc:
                if not repeatable or exc.reason is not KmipConnectionReason.CLOSED:
                    raise
                outcomes = self._ask(pool, requests, version, deadline, 0.0)
        except KmipError as exc:
            if isinstance(exc, KmipConnectionFailed | KmipMalformed):
                pool.failed_at, pool.version = time.monotonic(), None
            exc.server = exc.server or str(pool.server)
            raise
        pool.failed_at = None
        for outcome in outcomes:
            if isinstance(outcome, KmipError):
                outcome.server = str(pool.server)
        return outcomes

    def _negotiate(self, pool: ServerPool, deadline: float) -> ProtocolVersion:
        speaks_1 = any(version.major == 1 for version in self._versions)
        asking = _ASKING_VERSION if speaks_1 else self._versions[0]
        (outcome,) = self._ask(pool, [DiscoverVersions(self._versions)], asking, deadline, MAX_IDLE_SECONDS)
        if isinstance(outcome, KmipRefused) and outcome.reason in (KmipRefusal.NOT_SUPPORTED, KmipRefusal.BAD_REQUEST):
            # Of 1.0, which has no DiscoverVersions.
            outcome = (ProtocolVersion(1, 0),)
        if isinstance(outcome, KmipError):
            raise outcome
        for version in self._versions:
            if version in outcome:
                pool.version = version
                return version
        offered = ", ".join(map(str, outcome)) or "none of ours"
        raise KmipRefused(
            KmipRefusal.NOT_SUPPORTED, f"it speaks {offered}", code=ResultReason.UNSUPPORTED_PROTOCOL_VERSION
        )

    def _ask(
        self,
        pool: ServerPool,
        requests: Sequence[Request[Result]],
        version: ProtocolVersion,
        deadline: float,
        max_idle_seconds: float,
    ) -> list[Result | KmipError]:
        items = [
            RequestItem(request.operation, next(self._batch_ids).to_bytes(8, "big"), request.payload(version))
            for request in requests
        ]
        message = build_request(version, items, credential=self._credential)
        answer = bytearray()
        try:
            with pool.connection(deadline=deadline, max_idle_seconds=max_idle_seconds) as connection:
                answer = connection.exchange(message, deadline=deadline)
                response = parse_response(answer, version=version, items=items)
                if response.version != version:
                    pool.version = None  # it could not read the request: perhaps it is another server now
                return [
                    _read(request, outcome, version)
                    for request, outcome in zip(requests, response.outcomes, strict=True)
                ]
        finally:
            wipe(message)
            wipe(answer)


def _read(request: Request[Result], outcome: Items | Failure, version: ProtocolVersion) -> Result | KmipError:
    if isinstance(outcome, Failure):
        return outcome.error(request.key_id)
    try:
        return request.result(outcome, version)
    except KmipKeyUnusable as exc:
        return exc
