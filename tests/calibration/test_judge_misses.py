"""Answers that a judge drew and gave no verdict: what they hide is not proven, and they alone are no harm."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from controller.evidence.feed import Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig
from controller.evidence.score_join import Joined
from controller.rollout.judge_plan import JudgeState
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from tests.fakes.evidence_maker import Columns
from tests.fakes.feed_maker import ROLLOUT, START_S, a_record, in_stage
from tests.fakes.judged import a_verdict, admitted
from tests.samples import runs

pytestmark = pytest.mark.calibration
RUNS = runs(8, whole=40)
SHARE, RIGHT, W = 0.2, 0.9, 0.2
SAMPLING = {"stable": SHARE, "canary": SHARE}
POLICY = gate_policy_of({"gates": {"quality": {"deadline": 180, "sampling": SAMPLING}}})
LOOPED = 0.08  # of the canary's answers: 0.072 of the right ones, where the margin is 0.05


def most(share: float) -> int:
    """What this share causes in all but one of a thousand samples."""
    return int(np.quantile(np.random.default_rng(0).binomial(RUNS, share, 200_000), 0.999))


def recorded(seed: int, looped: float, *, of_both: bool = False) -> Columns:
    """2500 canary requests, of which so many loop and have no verdict."""
    rng, rows = np.random.default_rng([seed, round(1000 * looped)]), 14_000
    w = np.where(np.arange(rows) < 1500, 0.0, W)
    arm = (rng.random(rows) < w).astype(np.int64)
    drawn, loops = rng.random(rows) < SHARE, rng.random(rows) < looped
    quality = (rng.random(rows) < RIGHT).astype(float)
    has_none = ~drawn | (loops & ((arm == 1) | of_both))
    return {
        "t_s": np.cumsum(rng.exponential(0.3, rows)),
        "arm": arm,
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": (rng.random(rows) < 0.01).astype(float),
        "quality": np.where(has_none, np.nan, quality),
        "quality_sampled": drawn.astype(float),
    }


def decided(looped: float, *, of_both: bool = False) -> Counter[str]:
    """How often quality was proven, and how often the canary was rolled back."""
    found: Counter[str] = Counter()
    for seed in range(RUNS):
        columns = recorded(seed, looped, of_both=of_both)
        stages = (StagePlan(W, 0, {"quality": 0.05}),)
        result = run(columns, POLICY.only("error", "quality"), stages=stages)
        found.update(proven="quality" in result.proofs, rolled_back=result.decision == "rollback")
    return found


def test_harm_beyond_the_margin_in_unjudged_answers_of_the_canary_is_seldom_proven() -> None:
    found = decided(LOOPED)

    assert found["proven"] <= most(0.05)
    assert found["rolled_back"] == 0


def test_a_canary_whose_judge_misses_as_few_as_stables_is_proven() -> None:
    assert decided(0.01, of_both=True)["proven"] >= RUNS // 2


def live(seed: int, looped: float) -> str:
    """The verdict of a rollout's feed: its judge cannot read the canary's looped answers."""
    rng = np.random.default_rng([seed, 7])
    kept = {**dict.fromkeys(("rejected", "latency_p99", "latency_shape", "ttft_shape", "hallucination"))}
    policy = gate_policy_of({"gates": {**kept, "quality": {"deadline_s": 60.0, "sampling": SAMPLING}}})
    stage = StagePlan(W, 500, {"quality": 0.05, "error": 5.0})
    feed = Feed(ROLLOUT, GateConfig(policy, (stage,), "quality"))
    state = replace(in_stage(), judge=JudgeState(1, admitted()))
    for start in range(0, 12_000, 3000):
        records, verdicts = [], []
        for n in range(start, start + 3000):
            arm, is_drawn = int(rng.random() < W), bool(rng.random() < SHARE)
            record = a_record(n, arm=arm, w=W, judged=is_drawn, seq=n + 1)
            records.append(Joined(record, True, ()))
            if is_drawn:
                is_lost = arm == 1 and rng.random() < looped
                bad, cause = (None, "unreadable") if is_lost else (bool(rng.random() > RIGHT), None)
                verdicts.append(a_verdict(f"q{n}", bad, at_s=record.at_s + 1.0, cause=cause))
        now_s = START_S + 0.1 * (start + 3000)
        feed.follow(state, None, now_s)
        feed.on_page(JoinedPage(records, (), now_s, True, (), verdicts), now_s + 100.0)
        status = feed.status()
        assert status is not None
        if status.verdict.value in ("PASS", "FAIL"):
            return status.verdict.value
    assert status is not None
    return status.verdict.value


def test_a_rollout_whose_judge_cannot_read_the_canarys_worst_answers_seldom_passes() -> None:
    found = Counter(live(seed, LOOPED) for seed in range(RUNS))

    assert found["PASS"] <= most(0.05)
    assert found["FAIL"] == 0
