"""A bounded reader of binary structures: every read is checked, and so is the end.

Pure: bytes in, values out. Lets no error out but ``WireError``.
"""

from typing import Final, Literal

from attestation.errors import WireError

MAX_TPM2B_SIZE: Final = 0xFFFF


class Reader:
    """Reads integers and byte strings from a buffer, in order, and never past its end."""

    __slots__ = ("_byte_order", "_data", "_offset")

    def __init__(self, data: bytes, *, byte_order: Literal["big", "little"] = "big") -> None:
        """Start at the first byte of ``data``. TPM structures are big-endian, event logs little-endian."""
        self._data = data
        self._byte_order = byte_order
        self._offset = 0

    @property
    def offset(self) -> int:
        """How many bytes were read."""
        return self._offset

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._offset

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            WireError: Fewer are left.
        """
        start = self._offset
        end = start + size
        if size < 0 or end > len(self._data):
            raise WireError(f"{size} bytes expected at offset {start}, {len(self._data) - start} are left")
        self._offset = end
        return self._data[start:end]

    def uint(self, size: int) -> int:
        """The next unsigned integer of ``size`` bytes, at least 1.

        Raises:
            WireError: Fewer bytes are left.
        """
        start = self._offset
        end = start + size
        if end > len(self._data):
            raise WireError(f"{size} bytes expected at offset {start}, {len(self._data) - start} are left")
        self._offset = end
        return int.from_bytes(self._data[start:end], self._byte_order)

    def u8(self) -> int:
        """The next byte."""
        return self.uint(1)

    def u16(self) -> int:
        """The next 16-bit unsigned integer."""
        return self.uint(2)

    def u32(self) -> int:
        """The next 32-bit unsigned integer."""
        return self.uint(4)

    def u64(self) -> int:
        """The next 64-bit unsigned integer."""
        return self.uint(8)

    def tpm2b(self, max_size: int = MAX_TPM2B_SIZE) -> bytes:
        """The next TPM2B: a 16-bit length, then so many bytes.

        Raises:
            WireError: Longer than ``max_size``, or fewer bytes are left.
        """
        size = self.u16()
        if size > max_size:
            raise WireError(f"{size} bytes announced at offset {self._offset}, at most {max_size} are allowed")
        return self.take(size)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining)

    def finish(self) -> None:
        """Refuse trailing bytes.

        Raises:
            WireError: There are some.
        """
        if self.remaining:
            raise WireError(f"{self.remaining} bytes too many after offset {self._offset}")
