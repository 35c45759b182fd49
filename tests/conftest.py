"""Fixtures that every test may use."""

pytest_plugins = ["tests.postgres", "tests.software_tpm", "tests.attestation_site"]
