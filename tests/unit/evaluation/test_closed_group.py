"""A small closed group whose members come back: what counts towards a stage's `min_canary`."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw
from tests.fakes.evidence_maker import Columns

POLICY = GatePolicy.default().only("error")


def group(rows: int = 3000, every_s: float = 28.0) -> Columns:
    """Thirty people by a fixed bucket; they ask for a day."""
    rng = np.random.default_rng(40)
    person, side = rng.integers(0, 30, rows), rng.random(30) < 0.5
    return {
        "t_s": np.arange(rows) * every_s, "arm": side[person].astype(np.int64), "w": np.full(rows, 0.5),
        "unit": np.array([f"u{number}" for number in person]), "error": np.zeros(rows),
    }  # fmt: skip


@pytest.mark.slow
def test_later_sessions_count_towards_min_canary() -> None:
    result = run(group(), POLICY, stages=(StagePlan(0.5, 200, {}),))

    assert result.stages[0].canary_requests > 200
    assert "canary requests" not in " ".join(result.reasons)


def test_what_does_not_count_is_said_with_the_remedy() -> None:
    """All within an hour: a first session of each, and no round has passed."""
    columns = group(rows=3000, every_s=1.0)
    result = run(columns, POLICY, stages=(StagePlan(0.5, 900, {}),))

    found, seen = result.stages[0].canary_requests, int(columns["arm"].sum())
    assert found < 900 < seen
    assert (
        f"{found} of 900 canary requests in this stage: it had {seen}, but of its "
        f"{len(np.unique(columns['unit'][columns['arm'] == 1]))} new units those of a first session count"
    ) in result.reasons[-1]
    assert "lower min_canary, or let conversations be the unit" in result.reasons[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("every_s", "needed"), [pytest.param(28.0, 200, marks=pytest.mark.slow), (1.0, 900)])
def test_a_live_rollout_counts_alike_and_says_it(every_s: float, needed: int) -> None:
    columns = group(every_s=every_s)
    stages = (StagePlan(0.5, needed, {}),)
    evaluator = Evaluator.start(POLICY, stages=stages, seed_latency_ms={})
    names = ("t_s", "arm", "w", "unit")
    for row, (t_s, arm, w, unit) in enumerate(zip(*(columns[name].tolist() for name in names), strict=True)):
        evaluator.add(
            Draw(
                request_id=str(row), at_s=t_s, unit=unit, assigned_by="sticky", arm=arm, w=w, error=False,
                latency_ms=None,
            )
        )  # fmt: skip
    evaluator.advance(float("inf"), float("inf"))
    report = evaluator.report()

    assert report.stage_canary == run(columns, POLICY, stages=stages).stages[0].canary_requests
    assert any("first session" in note for note in report.notes) is (needed == 900)
