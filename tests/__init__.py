"""Tests of Garant."""
