"""The side that has a TPM: endorsement key, attestation key, credential activation, quotes."""
