"""One thread that owns one TPM context.

A tss2 context must not be used by two threads, and a command to a hung TPM never returns: the thread is a daemon and
waits have a limit, so that neither callers nor the end of the process hang with it.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from attestation.errors import TpmError

T = TypeVar("T")


class OwnerThread:
    """Runs functions one after the other on a thread of its own."""

    def __init__(self, name: str, timeout_seconds: float) -> None:
        """Start the thread."""
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._timeout_seconds = timeout_seconds
        self._closed = False
        self._hangs = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the thread and return what it returns, or raise what it raises.

        Raises:
            TpmError: The thread was closed, or the function took too long; the thread takes nothing after that.
        """
        if self._closed:
            raise TpmError("this TPM was closed, or did not answer before")
        future: Future[T] = Future()
        self._tasks.put((future, function))
        try:
            return future.result(self._timeout_seconds)
        except TimeoutError as exc:
            if future.done():
                raise
            self._closed = self._hangs = True
            raise TpmError(f"the TPM did not answer within {self._timeout_seconds} s") from exc

    def close(self) -> None:
        """Let the thread end after what it has to do, and wait for that unless it hangs."""
        self._closed = True
        self._tasks.put(None)
        if not self._hangs:
            self._thread.join(self._timeout_seconds)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as exc:  # Handed to the caller, who raises it.
                future.set_exception(exc)
