"""``garant demo``: the main story on one machine, each claim shown on real parts."""
