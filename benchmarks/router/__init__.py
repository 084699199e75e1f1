"""Benchmark of the router beside its peers, all in front of the same fake engines in one run."""
