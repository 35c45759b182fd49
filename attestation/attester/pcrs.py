"""Platform configuration registers: select, read."""

from tpm2_pytss import ESAPI, TPML_PCR_SELECTION, TPMS_ATTEST

from attestation.errors import TpmError
from attestation.model import PcrBank

_PCRS_PER_READ = 8
"""TPM2_PCR_Read returns at most this many digests (TPML_DIGEST)."""


def checked_pcrs(pcrs: tuple[int, ...]) -> tuple[int, ...]:
    """Sort PCRs.

    Raises:
        ValueError: None, one twice, or one that no TPM has.
    """
    selected = tuple(sorted(set(pcrs)))
    if not selected or selected[0] < 0 or selected[-1] > 23 or len(selected) != len(pcrs):
        raise ValueError("PCRs are distinct, from 0 to 23, and at least one")
    return selected


def selection(bank: PcrBank, pcrs: tuple[int, ...]) -> TPML_PCR_SELECTION:
    """Select PCRs of one bank."""
    return TPML_PCR_SELECTION.parse(f"{bank.value}:{','.join(map(str, pcrs))}")


def read_pcrs(esapi: ESAPI, bank: PcrBank, pcrs: tuple[int, ...]) -> tuple[tuple[int, bytes], ...]:
    """Read PCRs: (PCR, value), in the order given. More than 8 take several commands, between which PCRs may move.

    Raises:
        TpmError: The bank is not allocated.
    """
    values: list[tuple[int, bytes]] = []
    for start in range(0, len(pcrs), _PCRS_PER_READ):
        part = pcrs[start : start + _PCRS_PER_READ]
        _, _, digests = esapi.pcr_read(selection(bank, part))
        read = [bytes(digests[i]) for i in range(digests.count)]
        if len(read) != len(part):
            raise TpmError(f"the {bank.value} bank is not allocated: {len(read)} of {len(part)} PCRs were read")
        values += zip(part, read, strict=True)
    return tuple(values)


def pcr_digest(attest: bytes) -> bytes:
    """Digest of the PCR values that a TPMS_ATTEST of a quote vouches for."""
    parsed, _ = TPMS_ATTEST.unmarshal(attest)
    attested = parsed.attested
    quote = attested.quote
    return bytes(quote.pcrDigest)
