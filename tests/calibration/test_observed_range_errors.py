"""A harmless canary is reported outside its observed range with probability at most the gate's alpha, read
after every request; shared drift is the documented exception."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.observed_range import RangeMonitor
from evaluation.policy.observed_ranges import PercentileRange, RangeGate

pytestmark = pytest.mark.calibration
RUNS = 600
REQUESTS = 3000
ALPHA = 0.2  # large, so that a few hundred runs measure it


def at_the_edge(sides: str) -> RangeGate:
    """p50, p90 and p95 of a lognormal(6, 0.4), each at the end of its range: the worst harmless case."""
    z_of = {0.5: 0.0, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722}
    ends = {p: math.exp(6.0 + 0.4 * z) for p, z in z_of.items()}
    ranges = tuple(PercentileRange(p, value if sides == "both" else 0.0, value) for p, value in ends.items())
    return RangeGate("edge", "latency_ms", ranges, sides=sides)


def share_outside(gate: RangeGate, drift: float, runs: int = RUNS) -> float:
    """Share of runs with the canary outside at any look. `peak`: over all looks, one after each request."""
    outside = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        monitor = RangeMonitor(gate, alpha=ALPHA)
        monitor.add(rng.lognormal(6.0, 0.4, REQUESTS) * np.linspace(1.0, 1.0 + drift, REQUESTS))
        outside += monitor.peak >= monitor.limit
    return outside / runs


@pytest.mark.parametrize("sides", ["both", "above"])
def test_a_canary_at_the_edge_is_reported_outside_in_at_most_alpha_of_runs(sides: str) -> None:
    share = share_outside(at_the_edge(sides), drift=0.0)

    # Below alpha, because the three percentiles are correlated, and far from 0: the budget is used.
    assert 0.01 < share <= ALPHA


def test_shared_drift_moves_a_harmless_canary_out_of_its_range() -> None:
    assert share_outside(at_the_edge("above"), drift=0.3, runs=40) > 0.9
