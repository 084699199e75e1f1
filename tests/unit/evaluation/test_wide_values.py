"""Services whose values span far more than a factor of 100: short and long requests, and many zeros."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics import Kind
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns

BEFORE, W = 2000, 0.2
LATENCY = GatePolicy.strict().only("error", "latency_ms")
COST = GatePolicy(name="cost", gates=(Gate("cost", "cost", Kind.SHAPE, 0.5, 0.2, 0.0),))


def rollout(seed: int, canary: int) -> tuple[np.random.Generator, Columns]:
    rng, rows = np.random.default_rng(seed), BEFORE + int(canary / W)
    w = np.where(np.arange(rows) < BEFORE, 0.0, W)
    arm = (rng.random(rows) < w).astype(np.int64)
    return rng, {"t_s": np.arange(rows) / 10.0, "arm": arm, "w": w, "error": np.zeros(rows)}


def short_and_long(seed: int, long_times: float) -> BacktestResult:
    """93 % of requests take about 200 ms, 7 % about 25 s, on the canary `long_times` that."""
    rng, columns = rollout(seed, canary=4000)
    rows = len(columns["arm"])
    long_ms = 25_000.0 * np.exp(0.25 * rng.standard_normal(rows))
    long_ms *= np.where(columns["arm"] == 1, long_times, 1.0)
    short_ms = 200.0 * np.exp(0.5 * rng.standard_normal(rows))
    columns["latency_ms"] = np.where(rng.random(rows) < 0.07, long_ms, short_ms)
    return run(columns, LATENCY, stages=[StagePlan(W, 2700)])


def often_free(seed: int, times: float) -> BacktestResult:
    """60 % of the answers cost nothing, the others about 0.01, on the canary `times` that."""
    rng, columns = rollout(seed, canary=2000)
    rows = len(columns["arm"])
    cost = 0.01 * np.exp(0.5 * rng.standard_normal(rows)) * np.where(columns["arm"] == 1, times, 1.0)
    columns["cost"] = np.where(rng.random(rows) < 0.6, 0.0, cost)
    return run(columns, COST, stages=[StagePlan(W, 1500, margins={"cost": 1.2})])


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_service_with_short_and_long_requests_is_judged_by_its_percentile(seed: int) -> None:
    """The p99 is 150 times the median: a twin is promoted, and long answers at 2x are found."""
    assert short_and_long(seed, 1.0).decision == "promote"
    assert short_and_long(seed, 2.0).decision == "rollback"


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(3))
def test_costs_that_are_mostly_zero_are_judged_by_the_others(seed: int) -> None:
    assert often_free(seed, 1.0).decision == "promote"
    assert often_free(seed, 1.5).decision == "rollback"
