"""Measures each figure beside its floor in the same run. Run with: make bench."""
