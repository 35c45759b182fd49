"""Fixtures that every test may use."""

import os

from hypothesis import settings

pytest_plugins = ["tests.postgres", "tests.software_tpm", "tests.attestation_site"]

# No deadline: a loaded machine is not a failure. `HYPOTHESIS_PROFILE=thorough` looks ten times as long.
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
