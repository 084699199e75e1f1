"""Anytime-valid tests (e-processes) on the router's coin: wealth, bettors by kind of metric, intervals."""
