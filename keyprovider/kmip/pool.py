"""The connections to one key server: few, reused while they are good, and the version that it speaks.

Thread-safe. A connection is used by one thread at a time; one that failed is never taken again.
"""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from keyprovider.errors import KmipConnectionFailed, KmipConnectionReason
from keyprovider.kmip.connection import Connection, ServerAddress
from keyprovider.kmip.messages import ProtocolVersion

MAX_IDLE_SECONDS: Final = 60.0
"""Load balancers and servers drop connections that were idle for two to three minutes, some of them silently."""
FRESH_SECONDS: Final = 2.0
"""How lately a connection must have been used for what is not repeated, such as Create."""


class ServerPool:
    """Connections to one server."""

    def __init__(self, server: ServerAddress, context: ssl.SSLContext, *, size: int) -> None:
        self.server = server
        self.version: ProtocolVersion | None = None
        """What was agreed with the server; nothing before the first request and after a failure."""
        self.failed_at: float | None = None
        """When the last connection failed, by ``time.monotonic``; nothing if a later one did not."""
        self._context = context
        self._places = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    @contextmanager
    def connection(self, *, deadline: float, max_idle_seconds: float = MAX_IDLE_SECONDS) -> Iterator[Connection]:
        """A connection for one request; it is kept for the next one unless the block raises.

        Args:
            deadline: By ``time.monotonic``; also for waiting while all connections are in use.
            max_idle_seconds: One that was idle longer is closed and another made; 0 for a new one at any rate.

        Raises:
            KmipConnectionFailed: No connection, in time.
        """
        if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise KmipConnectionFailed(
                KmipConnectionReason.TIMED_OUT, "all connections to it are in use", server=str(self.server)
            )
        try:
            connection = self._take(max_idle_seconds) or Connection(self.server, self._context, deadline=deadline)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close what is idle, and what comes back later."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def _take(self, max_idle_seconds: float) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.alive and time.monotonic() - connection.used_at <= max_idle_seconds:
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()
