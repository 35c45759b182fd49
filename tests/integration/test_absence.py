"""The proof of absence: what is there is found, and what cannot be read is said."""

import base64
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.demo.absence import CHUNK_SIZE, Needle, ScanResult, all_pids, encodings, files_below, find_planted, scan

RANDOM = random.Random(20260101)  # noqa: S311 - test data
KEY = RANDOM.randbytes(32)
ENCODINGS = dict(encodings(KEY))
NOBODY = 65534


def scan_bytes(directory: Path, content: bytes, *needles: Needle) -> ScanResult:
    """Scan one file."""
    path = directory / "file"
    path.write_bytes(content)
    return scan(needles or [Needle("key", KEY)], [path], [])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("before", [0, 1, 7, 8, 23, 24, 25, 1000])
def test_a_key_is_found_in_each_encoding_wherever_it_lies(tmp_path: Path, encoding: str, before: int) -> None:
    """Raw, hexadecimal and base64 forms are found at any offset, alone or inside something."""
    text = ENCODINGS[encoding]
    for after in (0, 5):
        (hit,) = scan_bytes(tmp_path, bytes(before) + text + bytes(after)).hits

        assert (hit.needle, hit.encoding, hit.offset) == ("key", encoding, before)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_inside_a_longer_base64_text_is_found(
    tmp_path: Path, shift: int, encode: Callable[[bytes], bytes]
) -> None:
    """Where the key begins in the encoded text does not matter."""
    assert scan_bytes(tmp_path, encode(bytes(shift) + KEY + b"more")).hits


@pytest.mark.parametrize("inside", [1, 16, 31])
def test_a_key_across_chunks_is_found_once(tmp_path: Path, inside: int) -> None:
    """A key that begins in one chunk and ends in the next is found, and told once."""
    offset = CHUNK_SIZE - inside
    result = scan_bytes(tmp_path, RANDOM.randbytes(offset) + KEY + RANDOM.randbytes(100))

    assert [(hit.encoding, hit.offset) for hit in result.hits] == [("raw", offset)]


def test_a_key_in_a_sparse_file_is_found_and_holes_are_not_read(tmp_path: Path) -> None:
    """Data between holes is scanned, holes are skipped."""
    path = tmp_path / "sparse"
    offset = (1 << 30) + 12345
    with path.open("wb") as file:
        file.truncate(4 << 30)
        file.seek(offset)
        file.write(KEY)

    result = scan([Needle("key", KEY)], [path], [])

    assert [hit.offset for hit in result.hits] == [offset]
    assert result.scanned_bytes < CHUNK_SIZE


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    """Half a key, a key with one bit changed, and a key in pieces are no hits; all bytes are counted."""
    changed = bytes([KEY[0] ^ 1]) + KEY[1:]
    content = KEY[:16] + changed + KEY[16:] + b"\n".join(KEY[at : at + 4] for at in range(0, 32, 4))

    result = scan_bytes(tmp_path, content)

    assert result.clean
    assert result.scanned_bytes == len(content)


def test_needles_with_words_of_zeros_are_told_apart_from_padding(tmp_path: Path) -> None:
    """A needle that is mostly zeros is found, and zeros alone are not taken for it."""
    needle = Needle("sparse", bytes(28) + b"\x01" + bytes(35))

    assert scan_bytes(tmp_path, bytes(1 << 16), needle).clean
    assert scan_bytes(tmp_path, b"\xff" * 11 + needle.value, needle).hits


def test_the_scanner_passes_its_own_trial(tmp_path: Path) -> None:
    """What is planted in files, an argument list and an environment is found, and nothing stays behind."""
    # Bits that base64 writes as "/" make both alphabets differ at each alignment.
    found = find_planted(tmp_path, b"\xff" * 16 + RANDOM.randbytes(16))

    assert {"raw", "hex", "HEX", "base64+0", "base64url+2", "argument list", "environment"} <= set(found)
    assert not list(tmp_path.iterdir())


def test_a_key_in_a_processs_environment_is_found_among_all_processes() -> None:
    """All processes of the machine are searched, and the hit names the process."""
    value = RANDOM.randbytes(32)
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"SECRET": base64.b64encode(value).decode()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        result = scan([Needle("key", value)], [], all_pids())

    assert {hit.where for hit in result.hits} == {f"/proc/{child.pid}/environ"}


def test_what_is_gone_is_fine_and_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    """A file and a process that ended meanwhile are passed over; a FIFO is reported and does not block."""
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["/bin/true"]) as child:
        pass

    result = scan([Needle("key", KEY)], [tmp_path / "gone", tmp_path / "fifo"], [child.pid])

    assert result.unreadable == (f"{tmp_path / 'fifo'}: not a regular file",)
    assert not result.clean


SCAN_OTHER = """
import os, sys
from pathlib import Path
from cli.demo.absence import Needle, scan
os.setuid(int(sys.argv[1]))
pid, since = int(sys.argv[2]), float(sys.argv[3])
for needles_since in (None, since - 3600, since):
    result = scan([Needle("key", bytes(range(32)))], [Path("/etc/shadow")], [pid], needles_since=needles_since)
    print(result.unreadable, result.predating)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_read_is_reported() -> None:
    """Without the rights, a file and a process are unreadable; only an environment older than the keys is excused."""
    with subprocess.Popen(["/bin/sh", "-c", "echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        since = time.clock_gettime(time.CLOCK_BOOTTIME) + 1
        done = subprocess.run(
            [sys.executable, "-c", SCAN_OTHER, str(NOBODY), str(child.pid), str(since)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    shadow, environ = "/etc/shadow: Permission denied", f"/proc/{child.pid}/environ: Permission denied"
    assert done.stdout.splitlines() == [
        f"{(shadow, environ)} ()",
        f"{(shadow, environ)} ()",
        f"{(shadow,)} {(environ,)}",
    ], done.stderr


def test_files_below_lists_hidden_files_and_follows_no_link(tmp_path: Path) -> None:
    """Every regular file is listed once; a directory that is not there is an error and not an empty list."""
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "file").touch()
    (tmp_path / "link").symlink_to("/etc/passwd")

    assert list(files_below(tmp_path)) == [tmp_path / ".hidden" / "file"]
    with pytest.raises(FileNotFoundError):
        list(files_below(tmp_path / "absent"))


@pytest.mark.parametrize("value", [b"short", KEY[:31], bytes(64)])
def test_a_needle_that_means_nothing_is_refused(value: bytes) -> None:
    """Short or constant needles would be found by chance; the error does not show the value."""
    with pytest.raises(ValueError, match="at least 32") as error:
        Needle("key", value)

    assert "short" not in str(error.value)


def test_a_needle_is_not_shown() -> None:
    """Neither its repr nor a hit shows a needle's value."""
    assert KEY.hex() not in repr(Needle("key", KEY))
    assert repr(KEY) not in repr(Needle("key", KEY))


def test_a_scan_for_nothing_is_refused() -> None:
    """A scan that searches for nothing would prove everything."""
    with pytest.raises(ValueError, match="nothing"):
        scan([], [], [])
