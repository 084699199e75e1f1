"""Benchmark of the gate on simulated traffic: `python -m benchmarks.gate`.

Two parts. The published cases (`cases.py`) measure times and error rates beside other methods on the same
events. The trials (`trial_cases.py`) are claims, each with its traffic, runs and limit.
"""
