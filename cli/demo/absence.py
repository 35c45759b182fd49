"""Proof of absence: search files and the argument lists and environments of processes for keys and plaintext.

Each needle is searched for as it is, in hexadecimal (upper and lower case) and in base64 (standard and URL alphabet,
at each of the three places that a needle inside a longer text can begin at). What could not be read is reported,
never passed over: only a scan with no hit and nothing unreadable proves anything.

Fast because every encoding has at least 31 bytes: however an occurrence lies, it covers one of the 8-byte words at
multiples of 24 bytes whole, so looking at every third word is enough to know that a chunk holds nothing.
"""

import base64
import errno
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.demo.claims import ClaimFailed

MIN_NEEDLE_SIZE = 32
"""Shorter needles would need a denser search, and would turn up by chance."""
CHUNK_SIZE = 4 << 20
_WORD = 8
_STRIDE = 24
_SHORTEST = _STRIDE + _WORD - 1
_BASE64_FIRST_WHOLE = (0, 2, 3)
"""Characters before the first one that only the needle decides, for a needle that begins after 0, 1 or 2 bytes."""


@dataclass(frozen=True, slots=True)
class Needle:
    """Something that must not be found."""

    name: str
    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be searched for meaningfully.

        Raises:
            ValueError: It has fewer than 32 bytes, or all its bytes are the same.
        """
        if len(self.value) < MIN_NEEDLE_SIZE or len(set(self.value)) == 1:
            raise ValueError(f"{self.name}: a needle has at least {MIN_NEEDLE_SIZE} bytes, not all the same")


@dataclass(frozen=True, slots=True)
class Hit:
    """A needle that was found."""

    needle: str
    encoding: str
    where: str
    """Path of a file, or of a process's file in /proc."""
    offset: int

    def __str__(self) -> str:
        """What was found where."""
        return f"{self.needle} ({self.encoding}) in {self.where} at {self.offset}"


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan saw."""

    hits: tuple[Hit, ...]
    """The first one for each needle, encoding and place."""
    scanned_bytes: int
    """Holes of sparse files are not counted."""
    unreadable: tuple[str, ...]
    """What could not be read, and why; a process or file that was gone by its turn is not among these."""
    predating: tuple[str, ...] = ()
    """Environments that the kernel shows to nobody, of processes that are older than the needles."""

    @property
    def clean(self) -> bool:
        """Whether everything was read and nothing was found."""
        return not self.hits and not self.unreadable


def scan(
    needles: Sequence[Needle], files: Iterable[Path], pids: Iterable[int], *, needles_since: float | None = None
) -> ScanResult:
    """Search ``files``, and the argument list and environment of each process.

    Args:
        needles: At least one.
        files: Regular files; symbolic links are followed.
        pids: Process ids; reading those of other users takes root.
        needles_since: When the first needle came to be, in seconds of CLOCK_BOOTTIME. Some machines hide the
            environment of process 1 even from root. A process gets its environment when it begins, so one that is
            older than the needles was given none of them: it is told as predating, and not as unreadable.
            Without this, everything that cannot be read is unreadable.

    Raises:
        ValueError: There is no needle.
    """
    search = _Search(needles)
    hits: list[Hit] = []
    unreadable: list[str] = []
    predating: list[str] = []
    scanned = 0
    processes = (Path(f"/proc/{pid}") / name for pid in pids for name in ("cmdline", "environ"))
    for paths, read in ((files, _file_chunks), (processes, _whole)):
        for path in paths:
            try:
                for offset, chunk, new in read(path, search.longest - 1):
                    scanned += new
                    hits += search.in_chunk(chunk, offset, str(path))
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as exc:
                hidden = read is _whole and path.name == "environ" and isinstance(exc, PermissionError)
                excused = hidden and needles_since is not None and _started(path.parent) < needles_since
                (predating if excused else unreadable).append(f"{path}: {exc.strerror}")
    first = {(hit.needle, hit.encoding, hit.where): hit for hit in reversed(hits)}
    return ScanResult(tuple(reversed(first.values())), scanned, tuple(unreadable), tuple(predating))


def files_below(*directories: Path) -> Iterator[Path]:
    """All regular files below directories, hidden ones too; symbolic links are not followed.

    Raises:
        OSError: A directory cannot be listed, or does not exist.
    """

    def fail(error: OSError) -> None:
        raise error

    for directory in directories:
        for parent, _, names in os.walk(directory, onerror=fail):
            for name in names:
                path = Path(parent) / name
                if path.is_file() and not path.is_symlink():
                    yield path


def all_pids() -> list[int]:
    """All processes of this machine, this one too."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def find_planted(directory: Path, value: bytes) -> tuple[str, ...]:
    """Show that the scanner works: plant ``value`` in each encoding, in a file, an argument list and an environment.

    Args:
        directory: Where the file is made, and removed again.
        value: 32 random bytes that are no key.

    Returns:
        What was planted, and found.

    Raises:
        ClaimFailed: Something planted was not found, or found before it was planted: the scan proves nothing.
    """
    needle = Needle("planted", value)
    planted = directory / "planted"
    shown = []
    try:
        planted.write_bytes(b"nothing")
        if scan([needle], [planted], []).hits:
            raise ClaimFailed("the scanner found a key that was not planted")
        for encoding, text in encodings(value):
            planted.write_bytes(os.urandom(CHUNK_SIZE - len(text) // 2) + text + b"after")
            if encoding not in {hit.encoding for hit in scan([needle], [planted], []).hits}:
                raise ClaimFailed(f"a key planted as {encoding} was not found")
            shown.append(encoding)
    finally:
        planted.unlink(missing_ok=True)
    digits = value.hex()
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo; read _", "sh", digits],
        env={"PLANTED": digits},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        # The kernel fills in the argument list after Popen has returned; the shell's first line comes after that.
        if child.stdout is not None:
            child.stdout.readline()
        found = {Path(hit.where).name for hit in scan([needle], [], [child.pid]).hits}
    if found != {"cmdline", "environ"}:
        raise ClaimFailed(f"a key planted in a process's arguments and environment was found in {sorted(found)} only")
    return (*dict.fromkeys(shown), "argument list", "environment")


def encodings(value: bytes) -> list[tuple[str, bytes]]:
    """Every text that ``value`` is searched for as, with the encoding's name, each once."""
    found = {value: "raw", value.hex().encode(): "hex", value.hex().upper().encode(): "HEX"}
    for skipped, start in enumerate(_BASE64_FIRST_WHOLE):
        whole = (skipped + len(value)) * 8 // 6
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            found.setdefault(encode(bytes(skipped) + value)[start:whole], f"{name}+{skipped}")
    return [(name, text) for text, name in found.items()]


class _Search:
    """All encodings of all needles, ready to be looked for at once."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        if not needles:
            raise ValueError("there is nothing to search for")
        self._patterns = [(needle.name, name, text) for needle in needles for name, text in encodings(needle.value)]
        self.longest = max(len(text) for _, _, text in self._patterns)
        self._by_word: dict[int, list[int]] = {}
        for number, (_, _, text) in enumerate(self._patterns):
            for word in _sample(text):
                self._by_word.setdefault(word, []).append(number)
        self._words = frozenset(self._by_word)

    def in_chunk(self, chunk: bytes, offset: int, where: str) -> list[Hit]:
        """Hits in a chunk that lies at ``offset`` of ``where``."""
        words = memoryview(chunk)[: len(chunk) - len(chunk) % _WORD].cast("Q")[:: _STRIDE // _WORD]
        if self._words.isdisjoint(words):
            return []
        numbers = sorted({number for word in self._words.intersection(words) for number in self._by_word[word]})
        hits = []
        for number in numbers:
            needle, encoding, text = self._patterns[number]
            position = chunk.find(text)
            if position >= 0:
                hits.append(Hit(needle, encoding, where, offset + position))
        return hits


def _sample(text: bytes) -> set[int]:
    """For each way that ``text`` may lie to the sampled words, one word of it that is then among them.

    Of several, the least regular: words such as eight zeros are everywhere, and each costs a closer look.
    """
    if len(text) < _SHORTEST:
        raise ValueError(f"an encoding of {len(text)} bytes is shorter than {_SHORTEST}")
    sample = set()
    for phase in range(_STRIDE):
        words = (text[at : at + _WORD] for at in range(phase, len(text) - _WORD + 1, _STRIDE))
        best = max(words, key=lambda word: len(set(word)))
        sample.add(memoryview(best).cast("Q")[0])
    return sample


def _file_chunks(path: Path, overlap: int) -> Iterator[tuple[int, bytes, int]]:
    """Parts of a file that hold data, as offset, bytes and how many of these are new.

    Neighbours overlap so that nothing up to ``overlap`` + 1 bytes long can hide between two.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        for start, end in _data_extents(descriptor):
            offset = max(0, start - overlap)
            while offset < end:
                size = min(CHUNK_SIZE, end - offset)
                chunk = os.pread(descriptor, size + overlap, offset)
                if not chunk:
                    break
                yield offset, chunk, min(len(chunk), size)
                offset += size
    finally:
        os.close(descriptor)


def _data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Parts of a sparse file that are not holes."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _whole(path: Path, _overlap: int) -> Iterator[tuple[int, bytes, int]]:
    """All of a file in /proc, which has no size."""
    content = path.read_bytes()
    yield 0, content, len(content)


def _started(process: Path) -> float:
    """When a process began, in seconds of CLOCK_BOOTTIME; for ever later if it does not say (proc(5), stat)."""
    try:
        fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return float("inf")
