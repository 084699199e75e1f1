"""A harmless canary leaves its observed range with a probability of at most the gate's alpha, looked at after
every request; drift, which both arms share, is the documented exception."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.observed_range import RangeMonitor
from evaluation.policy.observed_ranges import PercentileRange, RangeGate

pytestmark = pytest.mark.calibration
RUNS = 600
REQUESTS = 3000
ALPHA = 0.2  # large, so that a few hundred runs say something of it


def at_the_edge(sides: str) -> RangeGate:
    """p50, p90 and p95 of a lognormal(6, 0.4), each at the very end of its range: the worst harmless case."""
    found = {0.5: 0.0, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722}
    at = {p: math.exp(6.0 + 0.4 * z) for p, z in found.items()}
    ranges = tuple(PercentileRange(p, value if sides == "both" else 0.0, value) for p, value in at.items())
    return RangeGate("edge", "latency_ms", ranges, sides=sides)


def share_outside(gate: RangeGate, drift: float, runs: int = RUNS) -> float:
    """Runs in which some look found the canary outside. `peak` is of all looks, one after each request."""
    found = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        watch = RangeMonitor(gate, alpha=ALPHA)
        watch.add(rng.lognormal(6.0, 0.4, REQUESTS) * np.linspace(1.0, 1.0 + drift, REQUESTS))
        found += watch.peak >= watch.limit
    return found / runs


@pytest.mark.parametrize("sides", ["both", "above"])
def test_a_harmless_canary_at_the_very_edge_is_outside_in_at_most_alpha_of_runs(sides: str) -> None:
    share = share_outside(at_the_edge(sides), drift=0.0)

    # Below alpha for what the three percentiles share, and far from 0: the budget is spent, not hoarded.
    assert 0.01 < share <= ALPHA


def test_drift_that_both_arms_share_takes_a_harmless_canary_out() -> None:
    assert share_outside(at_the_edge("above"), drift=0.3, runs=40) > 0.9
