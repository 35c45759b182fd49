"""Attestation: a host proves with its TPM what it booted; the service decides whether to believe it."""
