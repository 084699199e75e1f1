"""Point estimates of both arms over the same traffic."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import snapshot as snapshots
from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.points import Points
from tests.fakes.evidence_maker import Columns, draw_at


def twins(seed: int, w: np.ndarray, rate: np.ndarray, median_ms: np.ndarray) -> Columns:
    """Identical versions, whose errors and latency change with the traffic."""
    rng = np.random.default_rng(seed)
    size = len(w)
    return {
        "t_s": np.arange(size) * 1.0,
        "arm": (rng.random(size) < w).astype(np.int64),
        "w": w,
        "assigned_by": np.full(size, "request"),
        "error": (rng.random(size) < rate).astype(float),
        "latency_ms": median_ms * rng.lognormal(0.0, 0.1, size),
    }


def estimates(columns: Columns, gate: str) -> tuple[float, float]:
    policy = GatePolicy.default().only("error", "latency_ms")
    plan = (StagePlan(0.05, 0, {"error": 5.0}),) * (1 + int(max(columns.get("stage", [0]))))
    report = next(r for r in run(columns, policy, stages=plan).gates if r.gate == gate)
    assert report.stable is not None
    assert report.canary is not None
    return report.stable, report.canary


@pytest.mark.slow
def test_a_drift_during_a_ramp_moves_both_arms_alike() -> None:
    """1 % errors at 5 %, 6 % errors at 50 %: pooled, stable showed about 3 % and the canary 5.5 %."""
    late = np.arange(24_000) >= 12_000
    columns = twins(1, np.where(late, 0.5, 0.05), np.where(late, 0.06, 0.01), np.where(late, 900.0, 300.0))
    columns["stage"] = late.astype(np.int64)

    stable, canary = estimates(columns, "error")
    assert canary == pytest.approx(stable, rel=0.1)
    stable, canary = estimates(columns, "latency_shape")
    assert canary == pytest.approx(stable, rel=0.05)


@pytest.mark.slow
def test_clients_with_a_weight_of_their_own_move_both_arms_alike() -> None:
    staff = np.random.default_rng(2).random(24_000) < 0.2
    columns = twins(3, np.where(staff, 0.5, 0.05), np.where(staff, 0.10, 0.01), np.full(24_000, 300.0))

    stable, canary = estimates(columns, "error")
    assert canary == pytest.approx(stable, rel=0.15)


def test_at_one_weight_the_estimates_are_the_means() -> None:
    rng = np.random.default_rng(4)
    arm, y = rng.random(500) < 0.2, rng.random(500)
    points = Points(with_histogram=False)
    points.add(arm, np.full(500, 0.2), y)

    assert points.means() == pytest.approx((y[~arm].mean(), y[arm].mean()))


@pytest.mark.parametrize("with_histogram", [False, True])
def test_the_estimates_do_not_depend_on_the_blocks(with_histogram: bool) -> None:
    rng = np.random.default_rng(5)
    w = rng.choice([0.0, 0.05, 0.3, 1.0], 800)
    arm, y = rng.random(800) < w, rng.lognormal(6.0, 0.5, 800)
    y[rng.random(800) < 0.1] = np.nan
    whole, parts = (Points(with_histogram=with_histogram) for _ in range(2))
    whole.add(arm, w, y)
    for cut in np.split(np.arange(800), [3, 20, 45, 300, 301]):
        parts.add(arm[cut], w[cut], y[cut])

    assert snapshots.write(whole, digest="") == snapshots.write(parts, digest="")


def test_without_values_there_is_no_estimate() -> None:
    assert Points(with_histogram=False).means() == (None, None)
    assert Points(with_histogram=True).percentiles(0.5) == (None, None)


def test_the_first_values_have_percentiles_for_the_reason_of_a_rollback_alone() -> None:
    points = Points(with_histogram=True)
    canary = np.array([True] * 5 + [False] * 6)
    points.add(canary, np.full(11, 0.5), np.array([160.0, 170, 180, 165, 175, 20, 21, 19, 20.5, 18, 0]))

    assert points.percentiles(0.5) == (None, None)  # too few to compare by
    stable, shown = points.first_percentiles(0.5)
    assert stable == pytest.approx(19.0, rel=0.011)
    assert shown == pytest.approx(170.0, rel=0.011)
    assert points.first_percentiles(0.5, (0.0, 0.6))[1] == np.inf  # most have no answer


def test_a_gate_that_fires_on_few_values_says_both_medians() -> None:
    rng, n = np.random.default_rng(1), 1600
    w = np.where(np.arange(n) < 1500, 0.0, 0.2)
    arm = (rng.random(n) < w).astype(np.int64)
    columns = {
        "t_s": np.arange(n) / 4.0,
        "unit": np.array([f"u{row}" for row in range(n)]),
        "arm": arm,
        "w": w,
        "assigned_by": np.full(n, "request"),
        "latency_ms": np.where(arm == 1, 170.0, 20.0) + rng.random(n),
    }
    evaluator = Evaluator.start(GatePolicy.default(), stages=(StagePlan(0.2, 60),), seed_latency_ms={})
    fired = None
    for row in range(n):
        evaluator.add(draw_at(columns, row))
        evaluator.advance(row / 4.0, row / 4.0)
        if row >= 1500 and (fired := evaluator.report().rollback) is not None:
            break

    assert fired is not None
    assert (fired.gate, fired.n_canary < 10) == ("latency_shape", True)
    assert fired.canary == pytest.approx(170.5, rel=0.02)
    assert fired.stable == pytest.approx(20.5, rel=0.03)
