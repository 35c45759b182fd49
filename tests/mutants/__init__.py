"""Mutation check: each check of the trust authority is disabled in turn, and a test must notice."""
