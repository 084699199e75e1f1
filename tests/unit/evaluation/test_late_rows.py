"""Rows of an earlier stage after those of a later one: of a router that heard of the raise later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.backtest import feed, run
from evaluation.offline.columns import checked_table
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.later_blocks import Place
from evaluation.verdict import evaluation_report
from tests.fakes.evidence_maker import Columns

POLICY = GatePolicy.default().only("error", "latency_ms")
STAGES = (StagePlan(0.1, 50, {"latency_shape": 1.2}), StagePlan(0.5, 400, {"latency_shape": 1.2}))


def ramp(late: str, *, errors: float = 0.01, rows: int = 3000) -> Columns:
    """late: which rows after the raise are still of stage 0: none, the last one, or half of them."""
    rng = np.random.default_rng(8)
    stage = (np.arange(rows) >= 1500).astype(np.int64)
    if late == "last":
        stage[-1] = 0
    elif late == "half":
        stage[1500:] = rng.random(rows - 1500) < 0.5
        stage[-2:] = 1, 0
    w = np.where(stage == 0, 0.1, 0.5)
    arm = (rng.random(rows) < w).astype(np.int64)
    if late != "none":
        arm[-1] = 0
    rate = np.where((arm == 1) & (np.arange(rows) >= 1500), errors, 0.01)
    return {
        "t_s": np.arange(rows, dtype=np.float64), "arm": arm, "w": w, "stage": stage,
        "error": (rng.random(rows) < rate).astype(np.float64),
        "latency_ms": 400.0 * np.exp(0.4 * rng.standard_normal(rows)),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("late", ["none", "last", pytest.param("half", marks=pytest.mark.slow)])
def test_a_late_row_of_an_earlier_stage_ends_nothing(late: str) -> None:
    columns = ramp(late, rows=3000 if late != "half" else 4500)
    result = run(columns, POLICY, stages=STAGES)

    own = int(((columns["arm"] == 1) & (columns["stage"] == 1)).sum())
    assert result.decision == "promote"
    assert result.stages[-1].canary_requests == own


@pytest.mark.slow
def test_harm_is_found_beside_late_rows() -> None:
    assert run(ramp("half", errors=0.15), POLICY, stages=STAGES).decision == "rollback"


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_once", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7)), 500])
def test_the_result_does_not_depend_on_where_blocks_end(rows_at_once: int) -> None:
    columns = {name: values[1100:] for name, values in ramp("half", rows=2000).items()}
    reports = []
    for size in (rows_at_once, 10_000):
        policy = replace(POLICY)
        pipeline = Pipeline(policy, STAGES)
        feed(pipeline, checked_table(columns, policy), size)
        for lane in pipeline.lanes:
            lane.close_through(float("inf"))
        reports.append(evaluation_report(pipeline, STAGES, 1, through_s=float("inf")))

    assert reports[0] == reports[1]
    assert reports[0].stage_canary > 0


def test_a_late_row_does_not_make_a_unit_new_in_its_stage() -> None:
    place = Place(round=1, stage=1, block=2, judged=0b101)

    late = place.next_block(2, 0)
    assert (late.stage, late.judged) == (1, 0b101)
    assert late.next_block(3, 1).judged == 0b101
    assert place.next_block(2, 2).judged == 0
