"""The part of DER (X.690) that a backup file needs: write values, and read them back strictly.

One form only: definite lengths, as short as can be; minimal integers. Pure; :class:`DerError` is the only error that
bytes can raise.
"""

from typing import Final

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
UTC_TIME: Final = 0x17
BMP_STRING: Final = 0x1E
SEQUENCE: Final = 0x30
SET: Final = 0x31
EXPLICIT_0: Final = 0xA0

_MAX_LENGTH_BYTES: Final = 3


class DerError(Exception):
    """The bytes are not what was expected."""


def encode(tag: int, *parts: bytes) -> bytes:
    """A value of that tag, its content being the parts."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def encode_integer(value: int) -> bytes:
    """A number from 0."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_oid(dotted: str) -> bytes:
    """An object identifier in dotted form."""
    first, second, *rest = map(int, dotted.split("."))
    return encode(OBJECT_IDENTIFIER, *map(_base_128, (first * 40 + second, *rest)))


def _base_128(arc: int) -> bytes:
    digits = [arc & 0x7F]
    while arc := arc >> 7:
        digits.append(0x80 | arc & 0x7F)
    return bytes(reversed(digits))


class DerReader:
    """Reads values one after another; what is left over is an error of the caller's asking (:meth:`finish`)."""

    def __init__(self, content: bytes) -> None:
        """Read from the start of ``content``."""
        self._content = content
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self._at == len(self._content)

    def finish(self) -> None:
        """Check that everything was read.

        Raises:
            DerError: It was not.
        """
        if not self.at_end:
            raise DerError(f"{len(self._content) - self._at} bytes more than expected")

    def value(self, tag: int) -> bytes:
        """The content of the next value.

        Raises:
            DerError: It has another tag, a malformed length, or is cut off.
        """
        found = self._take(1)[0]
        if found != tag:
            raise DerError(f"expected a value of tag {tag:#04x}, found {found:#04x}")
        return self._take(self._length())

    def inner(self, tag: int) -> "DerReader":
        """A reader of the content of the next value.

        Raises:
            DerError: As for :meth:`value`.
        """
        return DerReader(self.value(tag))

    def integer(self, *, least: int, most: int) -> int:
        """A number.

        Raises:
            DerError: Not minimal, or out of range.
        """
        content = self.value(INTEGER)
        number = int.from_bytes(content[:8], "big", signed=True)
        if number < 0 or encode_integer(number) != encode(INTEGER, content):
            raise DerError("expected a number in its shortest form")
        if not least <= number <= most:
            raise DerError(f"expected a number from {least:,} to {most:,}, found {number:,}")
        return number

    def octets(self, *, least: int, most: int) -> bytes:
        """An octet string.

        Raises:
            DerError: Its length is out of range.
        """
        content = self.value(OCTET_STRING)
        if not least <= len(content) <= most:
            raise DerError(f"expected {least} to {most} bytes, found {len(content)}")
        return content

    def expect(self, encoded: bytes, what: str) -> None:
        """Skip exactly these bytes.

        Raises:
            DerError: Others stand there.
        """
        if self._content[self._at : self._at + len(encoded)] != encoded:
            raise DerError(f"expected {what}")
        self._at += len(encoded)

    def _length(self) -> int:
        first = self._take(1)[0]
        if first < 0x80:
            return first
        count = first & 0x7F
        if not 1 <= count <= _MAX_LENGTH_BYTES:
            raise DerError("a length is indefinite or too long")
        encoded = self._take(count)
        length = int.from_bytes(encoded, "big")
        if length < 0x80 or encoded[0] == 0:
            raise DerError("a length is not in its shortest form")
        return length

    def _take(self, size: int) -> bytes:
        taken = self._content[self._at : self._at + size]
        if len(taken) != size:
            raise DerError("the bytes end too early")
        self._at += size
        return taken
