"""Answers that a judge drew and gave no score: they roll back no canary, and hide no more than a margin."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.report import GateReport, Verdict
from tests.fakes.evidence_maker import Columns

SHARE, W, RIGHT = 0.5, 0.5, 0.9
SAMPLING = {"stable": SHARE, "canary": SHARE}
STAGES = (StagePlan(W, 0, {"quality": 0.05}),)


def judged(rows: int, *, hard: float, unread: tuple[bool, bool], right_of_hard: float) -> Columns:
    """Requests of which a share is hard. unread: whether stable's and the canary's hard ones have no score.
    right_of_hard: share of right ones among those that have one."""
    rng = np.random.default_rng(7)
    arm = (rng.random(rows) < W).astype(np.int64)
    is_hard, drawn = rng.random(rows) < hard, rng.random(rows) < SHARE
    quality = (rng.random(rows) < np.where(is_hard, right_of_hard, RIGHT)).astype(float)
    has_none = ~drawn | (is_hard & np.where(arm == 1, unread[1], unread[0]))
    return {
        "t_s": 0.1 * np.arange(rows),
        "arm": arm,
        "w": np.full(rows, W),
        "assigned_by": np.full(rows, "request"),
        "error": (rng.random(rows) < 0.01).astype(float),
        "quality": np.where(has_none, np.nan, quality),
        "quality_sampled": drawn.astype(float),
    }


def of_quality(columns: Columns, preset: str = "default") -> tuple[BacktestResult, GateReport]:
    given = {"preset": preset, "gates": {"quality": {"deadline": 60, "sampling": SAMPLING}}}
    result = run(columns, gate_policy_of(given).only("error", "quality"), stages=STAGES)
    return result, next(one for one in result.gates if (one.gate, one.side) == ("quality", "promotion"))


@pytest.mark.parametrize(("preset", "right"), [("default", 0.0), ("strict", 0.3)])
def test_a_canary_that_answers_readably_what_no_judge_reads_of_stable_is_not_rolled_back(
    preset: str, right: float
) -> None:
    """Stable's hard answers are all wrong, for they loop."""
    columns = judged(24_000, hard=0.08, unread=(True, False), right_of_hard=right)

    result, _ = of_quality(columns, preset)

    assert result.decision != "rollback"


def test_harm_beside_a_judges_few_misses_is_still_rolled_back() -> None:
    columns = judged(24_000, hard=0.03, unread=(True, True), right_of_hard=0.0)
    is_wrong = (np.random.default_rng(8).random(24_000) < 0.15) & (columns["arm"] == 1)
    columns["quality"] = np.where(is_wrong & ~np.isnan(columns["quality"]), 0.0, columns["quality"])

    result, _ = of_quality(columns)

    assert (result.decision, result.metric) == ("rollback", "quality")


def test_nothing_is_proven_while_more_have_no_score_than_the_margin() -> None:
    """Both arms lack 8 %, and the canary's could all be wrong."""
    columns = judged(12_000, hard=0.08, unread=(True, True), right_of_hard=0.0)

    _, proof = of_quality(columns)

    assert proof.verdict is Verdict.UNDECIDED
    assert "sampled answers have no quality, and could be the worst ones (5.0% may)" in proof.reason


def test_a_few_missing_scores_of_both_arms_hold_no_proof() -> None:
    columns = judged(12_000, hard=0.02, unread=(True, True), right_of_hard=0.0)

    _, proof = of_quality(columns)

    assert proof.verdict is Verdict.PASS
