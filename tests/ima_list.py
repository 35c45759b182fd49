"""Lists of measured files as a kernel makes them."""

import hashlib
import struct

from attestation.verifier.ima_policy import PcrExtension

PCRS = {pcr: bytes([pcr]) * 32 for pcr in range(10)}
AGGREGATE = hashlib.sha256(b"".join(PCRS.values())).digest()


class List:
    """A kernel: what it measures goes into the list and into PCR 10."""

    def __init__(
        self, bank: str = "sha256", extension: PcrExtension = PcrExtension.BANK_HASH, aggregate: bytes = AGGREGATE
    ) -> None:
        """Start to measure; ``aggregate`` is that of a SHA-256 bank."""
        self.bank, self.extension = bank, extension
        self.data = b""
        self.pcr10 = bytes(hashlib.new(bank).digest_size)
        self.add("boot_aggregate", aggregate if bank == "sha256" else bytes(len(self.pcr10)))

    def add(
        self,
        name: str,
        digest: bytes,
        *extra: bytes,
        template: str = "ima-sig",
        algorithm: str = "",
        violation: bool = False,
        pcr: int = 10,
        shown: bytes = b"",
    ) -> "List":
        """Measure something; its last field is a signature or a buffer."""
        if template == "ima-sig" and not extra:
            extra = (b"",)
        label = (algorithm or self.bank).encode() + b":\0"
        parts = (label + digest, name.encode("latin-1") + b"\0", *extra)
        data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        template_hash = bytes(20) if violation else shown or hashlib.sha1(data, usedforsecurity=False).digest()
        self.data += struct.pack("<I20sI", pcr, template_hash, len(template)) + template.encode()
        self.data += struct.pack("<I", len(data)) + data
        self.pcr10 = hashlib.new(self.bank, self.pcr10 + self._extended(data, violation)).digest()
        return self

    def _extended(self, data: bytes, violation: bool) -> bytes:
        size = len(self.pcr10)
        if violation:
            return b"\xff" * 20 + bytes(size - 20) if self.extension is PcrExtension.PADDED_SHA1 else b"\xff" * size
        if self.extension is PcrExtension.BANK_HASH:
            return hashlib.new(self.bank, data).digest()
        return hashlib.sha1(data, usedforsecurity=False).digest().ljust(size, b"\0")

    def file(self, name: str, content: bytes = b"", signature: bytes = b"") -> "List":
        """Measure a file."""
        return self.add(name, hashlib.new(self.bank, content).digest(), signature)

    def buffer(self, name: str, content: bytes) -> "List":
        """Measure a buffer."""
        return self.add(name, hashlib.new(self.bank, content).digest(), content, template="ima-buf")
