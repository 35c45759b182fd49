"""Secret keys in memory that is kept out of swap, core dumps and other processes.

Keys live in slots of ``memfd_secret`` pages (Linux 5.14+: not swappable, not in the kernel's direct map, unreadable
through ``/proc/PID/mem`` even for root). Where the kernel or RLIMIT_MEMLOCK refuses them, in pages with ``mlock`` and
``MADV_DONTDUMP``; where even locking is refused, with ``MADV_DONTDUMP`` alone. :func:`memory_protection` tells which.

What this cannot promise: OpenSSL, the interpreter and libraries that return ``bytes`` make short-lived copies, and root
on a running machine can still get at keys in use.
Must not: print, log, serialise or compare keys other than in constant time.
"""

import ctypes
import hmac
import mmap
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Final, NoReturn, Self

MAX_KEY_SIZE: Final = 128
"""Bytes in the largest key: twice the XTS master key of a disk, its hexadecimal form."""

_SLOT_SIZE: Final = MAX_KEY_SIZE
_SEGMENT_SIZE: Final = 16 * mmap.PAGESIZE
_SYS_MEMFD_SECRET: Final = 447  # the same number on every architecture (unified table since Linux 5.1)

_libc = ctypes.CDLL(None, use_errno=True)


class MemoryProtection(StrEnum):
    """How well the pages that hold keys are kept."""

    SECRETMEM = "secretmem"
    """memfd_secret: out of swap, dumps, and the kernel's own map."""
    LOCKED = "locked"
    """mlock and MADV_DONTDUMP: out of swap and dumps."""
    UNLOCKED = "unlocked"
    """MADV_DONTDUMP only: may be swapped out; encrypt the swap."""


class _Segment:
    """A run of protected pages cut into slots, shared by many keys."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._pages, self.protection = _secret_pages() or _locked_pages()
        self._free = list(range(0, _SEGMENT_SIZE, _SLOT_SIZE))

    @property
    def full(self) -> bool:
        return not self._free

    def take(self, size: int) -> tuple[int, memoryview]:
        offset = self._free.pop()
        return offset, memoryview(self._pages)[offset : offset + size]

    def wipe(self, offset: int) -> None:
        # Secret pages are shared with forked children: a child that drops its copy of a key must not wipe its parent's.
        if os.getpid() == self.owner:
            self._pages[offset : offset + _SLOT_SIZE] = bytes(_SLOT_SIZE)

    def give_back(self, offset: int) -> None:
        if os.getpid() == self.owner:
            self._free.append(offset)


class _Arena:
    """All segments of this process."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a key on the thread that is just making one.
        self._lock = threading.RLock()
        self._segments: list[_Segment] = []

    def take(self, size: int) -> tuple[_Segment, int, memoryview]:
        with self._lock:
            segment = next((each for each in self._segments if not each.full), None)
            if segment is None:
                segment = _Segment()
                self._segments.append(segment)
            return segment, *segment.take(size)

    def give_back(self, segment: _Segment, offset: int, view: memoryview) -> None:
        with self._lock:
            segment.wipe(offset)
            try:
                view.release()
            except BufferError:
                return  # somebody still holds a buffer on the slot: it is wiped, and never used again
            segment.give_back(offset)

    def protection(self) -> MemoryProtection:
        with self._lock:
            if not self._segments:
                self._segments.append(_Segment())
            order = list(MemoryProtection)
            return max((each.protection for each in self._segments), key=order.index)

    def forget(self) -> None:
        self._lock = threading.RLock()
        self._segments = []


def _secret_pages() -> tuple[mmap.mmap, MemoryProtection] | None:
    descriptor = _libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if descriptor < 0:
        return None
    try:
        os.ftruncate(descriptor, _SEGMENT_SIZE)
        return mmap.mmap(descriptor, _SEGMENT_SIZE), MemoryProtection.SECRETMEM
    except OSError:  # RLIMIT_MEMLOCK is used up
        return None
    finally:
        os.close(descriptor)


def _locked_pages() -> tuple[mmap.mmap, MemoryProtection]:
    pages = mmap.mmap(-1, _SEGMENT_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_DONTDUMP)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    locked = _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(_SEGMENT_SIZE)) == 0
    return pages, MemoryProtection.LOCKED if locked else MemoryProtection.UNLOCKED


_arena = _Arena()
os.register_at_fork(after_in_child=_arena.forget)


def memory_protection() -> MemoryProtection:
    """The weakest protection among the pages that this process keeps keys in."""
    return _arena.protection()


class SecretKey:
    """A key of fixed size, 1 to 128 bytes, in protected memory until :meth:`close`.

    Has no ``==`` (use :meth:`matches`), no hash, no pickle, no copy, and a ``repr`` that tells the size only.
    """

    __slots__ = ("__weakref__", "_offset", "_segment", "_size", "_view")

    def __init__(self, size: int) -> None:
        """Make a key of zeros, to be filled by one of the class methods.

        Raises:
            ValueError: The size is not 1 to 128 bytes.
        """
        self._view: memoryview | None = None
        if not 1 <= size <= MAX_KEY_SIZE:
            raise ValueError(f"a key has 1 to {MAX_KEY_SIZE} bytes, not {size}")
        self._segment, self._offset, self._view = _arena.take(size)
        self._size = size

    @classmethod
    def random(cls, size: int = 32) -> Self:
        """Make a new key from the kernel's random generator, written straight into its page.

        Raises:
            ValueError: The size is not 1 to 128 bytes.
            OSError: The kernel gives no randomness.
        """
        return cls.written_by(size, _fill_random)

    @classmethod
    def adopt(cls, buffer: bytes | bytearray) -> Self:
        """Take over a key that came as plain bytes; a ``bytearray`` is overwritten with zeros, ``bytes`` cannot be.

        Raises:
            ValueError: The buffer does not hold 1 to 128 bytes.
        """

        def write(target: memoryview) -> None:
            target[:] = buffer

        key = cls.written_by(len(buffer), write)
        if isinstance(buffer, bytearray):
            buffer[:] = bytes(len(buffer))
        return key

    @classmethod
    def adopt_result(cls, result: bytes) -> Self:
        """Take over a library's freshly made result and overwrite it in place.

        Only for ``bytes`` that nobody else holds: changing an immutable object is safe in CPython for exactly those.

        Raises:
            ValueError: The result does not hold 2 to 128 bytes (CPython shares single bytes).
        """
        if len(result) < 2:  # the interpreter shares these
            raise ValueError(f"a key from a library has 2 to {MAX_KEY_SIZE} bytes, not {len(result)}")
        key = cls.adopt(result)
        ctypes.memset(id(result) + bytes.__basicsize__ - 1, 0, len(result))
        return key

    @classmethod
    def written_by(cls, size: int, write: Callable[[memoryview], object]) -> Self:
        """Make a key that ``write`` puts straight into its page; wiped again if ``write`` raises.

        Raises:
            ValueError: The size is not 1 to 128 bytes.
        """
        key = cls(size)
        try:
            write(key.view())
        except BaseException:
            key.close()
            raise
        return key

    def view(self) -> memoryview:
        """The key's bytes, in place; valid until :meth:`close`. The caller must not release it.

        Raises:
            ValueError: The key was closed.
        """
        if self._view is None:
            raise ValueError("the key was closed")
        return self._view

    def matches(self, other: "SecretKey") -> bool:
        """Tell in constant time whether both hold the same bytes.

        Raises:
            ValueError: Either key was closed.
        """
        return hmac.compare_digest(self.view(), other.view())

    def close(self) -> None:
        """Overwrite the key with zeros and give its memory back. May be repeated."""
        view, self._view = self._view, None
        if view is not None:
            _arena.give_back(self._segment, self._offset, view)

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecretKey, {self._size} bytes>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("keys are not compared by ==; use matches()")

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a key is neither copied nor pickled")


def _fill_random(target: memoryview) -> None:
    done = 0
    while done < len(target):
        room = (ctypes.c_char * (len(target) - done)).from_buffer(target, done)
        got = _libc.getrandom(room, ctypes.c_size_t(len(room)), ctypes.c_uint(0))
        del room  # lets the slot go
        if got < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        done += got
