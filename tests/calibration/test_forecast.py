"""The forecast of a stage against the gate itself, on the same traffic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.forecast.detectable_effect import Baseline
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import simulate_plan
from evaluation.offline.backtest import feed
from evaluation.offline.columns import checked_table, policy_for_columns
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from evaluation.verdict import evaluation_report
from tests.fakes.evidence_maker import Columns

pytestmark = pytest.mark.calibration
STAGE, RATE, BEFORE_S = StagePlan(0.1, 200), 20.0, 100.0


def conversations(rng: np.random.Generator, turns: float, length_s: float) -> Columns:
    """Conversations of a geometric number of requests, 20 s apart; the canary begins after BEFORE_S."""
    count = int(rng.poisson(RATE * length_s / turns))
    sizes, begin_s = rng.geometric(1.0 / turns, count), np.sort(rng.uniform(0.0, length_s, count))
    unit = np.repeat(np.arange(count), sizes)
    turn = np.arange(len(unit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    t_s = begin_s[unit] + 20.0 * turn
    order = np.argsort(t_s, kind="stable")
    order = order[t_s[order] < length_s]
    unit, t_s = unit[order], t_s[order]
    w = np.where(t_s < BEFORE_S, 0.0, STAGE.weight)
    return {
        "t_s": t_s,
        "unit": unit,
        "arm": (rng.random(count)[unit] < w).astype(np.int64),
        "w": w,
        "assigned_by": np.full(len(unit), "sticky"),
        "error": (rng.random(len(unit)) < 0.01) * 1.0,
    }


def minutes_of_gate(seed: int, policy: GatePolicy, turns: float, length_s: float) -> float:
    """Minutes until the stage is proven, by looks 60 times in all; infinite: never."""
    columns = conversations(np.random.default_rng([51, seed]), turns, length_s)
    policy = policy_for_columns(columns, policy)
    table, pipeline = checked_table(columns, policy), Pipeline(policy, (STAGE,))
    looks = np.linspace(0.0, length_s, 61)
    rows = np.searchsorted(columns["t_s"], looks)
    for start, stop, now_s in zip(rows, rows[1:], looks[1:], strict=False):
        feed(pipeline, table.pick(slice(int(start), int(stop))))
        for lane in pipeline.lanes:
            lane.close_through(float(now_s))
        report = evaluation_report(pipeline, (STAGE,), 0, through_s=float(now_s))
        if report.stage_verdict is Verdict.PASS:
            return (float(now_s) - BEFORE_S) / 60.0
    return math.inf


@pytest.mark.parametrize("turns", [3.0, 20.0])
def test_the_forecast_of_conversations_is_near_what_the_gate_needs(turns: float) -> None:
    """Of 20 turns, later requests must prove the margins as well, and need 3.5 times the units."""
    policy = GatePolicy.default().only("error")
    traffic = TrafficModel(RATE, unit_requests=turns, baseline=Baseline())
    [forecast] = simulate_plan(policy, [STAGE], traffic, deadlines_s=[4 * 86_400.0], reps=10)
    assert forecast.seconds_median is not None
    said = forecast.seconds_median / 60.0
    needed = np.median([minutes_of_gate(seed, policy, turns, 60.0 * said * 3.0) for seed in range(5)])

    assert 0.6 <= needed / said <= 1.6
