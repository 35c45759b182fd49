"""The side that decides: admission, appraisal, tokens. It issues no TPM command."""
