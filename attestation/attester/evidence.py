"""Collect evidence: a quote bound to everything that ``attestation.binding`` lists."""

from attestation.attester.tpm import Quote, Tpm
from attestation.binding import QuoteBinding
from attestation.model import PcrBank


def collect_evidence(tpm: Tpm, binding: QuoteBinding, bank: PcrBank, pcrs: tuple[int, ...]) -> Quote:
    """Quote the PCRs that a challenge demands, with the binding as extraData.

    The caller must have read the logs that ``binding`` names before: what the PCRs gain after that makes the evidence
    fail to replay, which a new challenge heals.

    Raises:
        TpmError: The TPM refused or did not answer, the bank is not allocated, or the PCRs kept changing.
        ValueError: The PCRs are out of range.
    """
    return tpm.quote(binding.extra_data(), bank, pcrs)
