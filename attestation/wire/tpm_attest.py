"""Parse quotes: TPMS_ATTEST holding TPMS_QUOTE_INFO (TPM 2.0 Part 2, 10.12.12 and 10.12.4).

Pure: bytes in, frozen values out. Lets no error out but ``WireError``. Magic and type are read, not judged: nothing
parsed here is believed yet; ``attestation.verifier.quote`` does that.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from attestation.errors import WireError
from attestation.wire.reader import Reader

TPM_GENERATED: Final = 0xFF544347
TPM_ST_ATTEST_QUOTE: Final = 0x8018
MAX_ATTEST_SIZE: Final = 1024
_MAX_NAME_SIZE: Final = 66
_MAX_DATA_SIZE: Final = 66
_MAX_DIGEST_SIZE: Final = 64
_MAX_SELECTIONS: Final = 16
_MAX_SELECT_SIZE: Final = 4
# clock, resetCount, restartCount, safe, firmwareVersion
_CLOCK_AND_FIRMWARE: Final = struct.Struct(">QIIBQ")


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """One TPMS_PCR_SELECTION: a hash, by its TPM_ALG_ID, and PCR indices in ascending order."""

    hash_id: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnverifiedQuoteInfo:
    """TPMS_QUOTE_INFO, as claimed."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedAttest:
    """TPMS_ATTEST, as claimed; ``quote`` is None where the type says that it is something else."""

    magic: int
    type: int
    qualified_signer: bytes
    extra_data: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_is_safe: bool
    firmware_version: int
    quote: UnverifiedQuoteInfo | None


def parse_tpm_attest(data: bytes) -> UnverifiedAttest:
    """Parse a marshalled TPMS_ATTEST of at most 1 KiB.

    Raises:
        WireError: Not one.
    """
    if len(data) > MAX_ATTEST_SIZE:
        raise WireError(f"an attestation has at most {MAX_ATTEST_SIZE} bytes, not {len(data)}")
    reader = Reader(data)
    magic = reader.u32()
    attest_type = reader.u16()
    qualified_signer = reader.tpm2b(_MAX_NAME_SIZE)
    extra_data = reader.tpm2b(_MAX_DATA_SIZE)
    clock, reset_count, restart_count, safe, firmware = _CLOCK_AND_FIRMWARE.unpack(
        reader.take(_CLOCK_AND_FIRMWARE.size)
    )
    if safe > 1:
        raise WireError(f"TPMI_YES_NO is 0 or 1, not {safe}")
    quote = None
    if attest_type == TPM_ST_ATTEST_QUOTE:
        quote = UnverifiedQuoteInfo(_read_selections(reader), reader.tpm2b(_MAX_DIGEST_SIZE))
        reader.finish()
    return UnverifiedAttest(
        magic=magic,
        type=attest_type,
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock_ms=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        clock_is_safe=safe == 1,
        firmware_version=firmware,
        quote=quote,
    )


def _read_selections(reader: Reader) -> tuple[PcrSelection, ...]:
    count = reader.u32()
    if count > _MAX_SELECTIONS:
        raise WireError(f"a selection names at most {_MAX_SELECTIONS} banks, not {count}")
    selections = []
    for _ in range(count):
        hash_id = reader.u16()
        size = reader.u8()
        if not 0 < size <= _MAX_SELECT_SIZE:
            raise WireError(f"a selection has 1 to {_MAX_SELECT_SIZE} bytes, not {size}")
        selections.append(_selection(hash_id, reader.take(size)))
    return tuple(selections)


@lru_cache(maxsize=256)
def _selection(hash_id: int, bitmap: bytes) -> PcrSelection:
    """One selection; a fleet quotes the same PCRs over and over."""
    bits = int.from_bytes(bitmap, "little")
    return PcrSelection(hash_id, tuple(i for i in range(bits.bit_length()) if bits >> i & 1))
