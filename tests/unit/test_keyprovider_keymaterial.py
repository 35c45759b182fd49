"""Secret keys in protected memory."""

import copy
import gc
import mmap
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from keyprovider import keymaterial
from keyprovider.keymaterial import MemoryProtection, SecretKey, memory_protection


def test_random_keys_have_the_size_asked_for_and_differ() -> None:
    """Two random keys of one size are different keys of that size."""
    with SecretKey.random() as first, SecretKey.random() as second, SecretKey.random(64) as long:
        assert (len(first), len(second), len(long)) == (32, 32, 64)
        assert not first.matches(second)
        assert bytes(first.view()) != bytes(32)


def test_adopting_a_bytearray_wipes_it() -> None:
    """The plain buffer that a key came in holds zeros afterwards."""
    buffer = bytearray(range(32))
    with SecretKey.adopt(buffer) as key:
        assert buffer == bytes(32)
        assert bytes(key.view()) == bytes(range(32))


def test_adopting_a_library_result_overwrites_it() -> None:
    """A result that nobody else holds is gone from the heap."""
    result = b"".join([b"library", os.urandom(25)])
    expected = bytearray(result)
    with SecretKey.adopt_result(result) as key:
        assert key.view() == expected
        assert result == bytes(32)


@pytest.mark.parametrize("size", [0, -1, 129])
def test_impossible_sizes_are_refused(size: int) -> None:
    """A key has 1 to 128 bytes."""
    with pytest.raises(ValueError, match="1 to 128 bytes"):
        SecretKey.random(size)


def test_a_closed_key_is_wiped_and_unusable() -> None:
    """After close no view of the key shows its bytes."""
    key = SecretKey.adopt(b"k" * 32)
    kept = key.view()[:]  # a caller who kept a buffer on it
    key.close()
    key.close()
    assert bytes(kept) == bytes(32)
    with pytest.raises(ValueError, match="closed"):
        key.view()


def test_the_view_itself_ends_with_the_key() -> None:
    """A view handed out earlier raises instead of showing another key in the same place."""
    key = SecretKey.adopt(b"k" * 32)
    view = key.view()
    key.close()
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_a_slot_that_somebody_still_reads_is_not_given_to_another_key() -> None:
    """Memory under a forgotten export holds zeros for ever, never a later key."""
    key = SecretKey.adopt(b"k" * 32)
    exported = pickle.PickleBuffer(key.view())  # any consumer of the buffer protocol
    key.close()
    others = [SecretKey.adopt(b"o" * 32) for _ in range(2000)]
    assert bytes(exported.raw()) == bytes(32)
    for other in others:
        other.close()


def test_a_key_dropped_without_close_is_wiped() -> None:
    """Garbage collection closes a forgotten key."""
    key = SecretKey.adopt(b"forgotten-key-of-thirty-two-byte")
    kept = key.view()[:]
    del key
    gc.collect()
    assert bytes(kept) == bytes(32)


def test_a_key_shows_itself_nowhere() -> None:
    """Neither repr nor str nor an error text holds a byte of the key."""
    with SecretKey.adopt(b"plainly-visible-if-it-were-shown") as key:
        assert "visible" not in f"{key!r} {key}"
        assert b"visible".hex() not in f"{key!r} {key}"


def test_keys_are_compared_in_constant_time_only() -> None:
    """== is an error, matches() is the way."""
    with SecretKey.adopt(b"a" * 32) as key, SecretKey.adopt(b"a" * 32) as same, SecretKey.adopt(b"a" * 31) as short:
        assert key.matches(same)
        assert not key.matches(short)
        with pytest.raises(TypeError, match="matches"):
            _ = key == same
        with pytest.raises(TypeError):
            hash(key)


def test_keys_are_neither_copied_nor_pickled() -> None:
    """No library can make a copy of a key behind our back."""
    with SecretKey.random() as key:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="neither copied nor pickled"):
                attempt(key)


def test_a_failed_writer_leaves_no_key() -> None:
    """When the writer raises, what it wrote is wiped."""
    seen: list[memoryview] = []

    def write(page: memoryview) -> None:
        page[:] = b"x" * 32
        seen.append(page[:])
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        SecretKey.written_by(32, write)
    assert bytes(seen[0]) == bytes(32)


def test_more_keys_than_fit_in_one_segment() -> None:
    """Keys get more pages when the first are full, and memory is used again."""
    per_segment = 16 * mmap.PAGESIZE // keymaterial.MAX_KEY_SIZE
    keys = [SecretKey.adopt(number.to_bytes(32, "big")) for number in range(2 * per_segment + 1)]
    assert [int.from_bytes(key.view(), "big") for key in keys] == list(range(len(keys)))
    for key in keys:
        key.close()


_IN_A_CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
import ctypes, os
if os.getuid() == 0:
    libc = ctypes.CDLL(None); libc.prctl(24, 14, 0, 0, 0)   # drop CAP_IPC_LOCK from the bounding set
    os.setgid(65534); os.setuid(65534)
from keyprovider.keymaterial import SecretKey, memory_protection
with SecretKey.random() as key:
    assert bytes(key.view()) != bytes(32)
print(memory_protection())
"""


def test_without_lockable_memory_keys_still_work_and_say_so(tmp_path: Path) -> None:
    """Where RLIMIT_MEMLOCK is used up, the fallback serves and is reported."""
    done = subprocess.run([sys.executable, "-c", _IN_A_CHILD], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == MemoryProtection.UNLOCKED


def test_protection_is_reported() -> None:
    """A process knows how well it keeps its keys."""
    assert memory_protection() in set(MemoryProtection)


def test_a_forked_child_does_not_wipe_its_parents_keys() -> None:
    """A child that ends after fork leaves the parent's keys as they are."""
    key = SecretKey.adopt(b"p" * 32)
    child = os.fork()
    if child == 0:
        key.close()
        SecretKey.adopt(b"c" * 32)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(key.view()) == b"p" * 32
    key.close()
