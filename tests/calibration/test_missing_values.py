"""Error rates where outcomes are missing: exactly at the null that two channels together test."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.missingness import Presence
from tests.fakes.evidence_maker import Columns
from tests.samples import runs

pytestmark = pytest.mark.calibration
RUNS = runs(40, whole=80)  # 40 fail in 95 of 100 cases where 30 % go wrong
W = 0.25


def traffic(rng: np.random.Generator, rows: int) -> Columns:
    return {
        "t_s": np.arange(rows) * 1.0,
        "arm": (rng.random(rows) < W).astype(np.int64),
        "w": np.where(np.arange(rows) < 400, 0.0, W),
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
    }


def most(share: float) -> int:
    """What this share causes in all but one of a thousand samples."""
    return int(np.quantile(np.random.default_rng(0).binomial(RUNS, share, 200_000), 0.999))


@pytest.mark.parametrize("judged", [0.95, 0.6, 0.3])
@pytest.mark.parametrize("metric", ["quality", "hallucinated"])
def test_harm_at_the_margin_in_unscored_answers_is_seldom_proven(metric: str, judged: float) -> None:
    """Stable and canary are alike; so much of the canary has no value that it hides just the margin."""
    proven = 0
    for seed in range(RUNS):
        rng = np.random.default_rng([seed, round(10 * judged)])
        columns = traffic(rng, 6000)
        columns["arm"] *= columns["w"] > 0.0
        # Of 0.75, a fifteenth scores 0 instead: 0.05. Of 3 %, events in 6 % more make three times that.
        hidden = (columns["arm"] == 1) & (rng.random(6000) < (1 / 15 if metric == "quality" else 0.06))
        values = rng.beta(6.0, 2.0, 6000) if metric == "quality" else (rng.random(6000) < 0.03) * 1.0
        columns[metric] = np.where(hidden | (rng.random(6000) >= judged), np.nan, values)
        policy = GatePolicy.default().only("error", metric)
        stages = (
            StagePlan(W, 0, {policy.gates_for(metric)[0].name: 0.05 if metric == "quality" else 3.0}, 0.001),
        )
        proven += bool(run(columns, policy, stages=stages).proofs)

    assert proven <= most(0.05)


@pytest.mark.parametrize("preset", ["strict", "default"])
@pytest.mark.parametrize("hard", [0.02, 0.10])
def test_the_worst_answers_to_what_stable_fails_seldom_roll_back(hard: float, preset: str) -> None:
    rolled_back = 0
    for seed in range(RUNS):
        rng = np.random.default_rng([seed, round(100 * hard)])
        columns = traffic(rng, 8000)
        columns["arm"] *= columns["w"] > 0.0
        is_hard = rng.random(8000) < hard
        columns["error"] = (is_hard & (columns["arm"] == 0)) * 1.0
        values = (
            np.where(is_hard, 0.0, rng.beta(6.0, 2.0, 8000)),
            np.where(is_hard, 1.0, rng.random(8000) < 0.03),
        )
        for metric, value in zip(("quality", "hallucinated"), values, strict=True):
            columns[metric] = np.where(columns["error"] == 1.0, np.nan, value)
        policy = GatePolicy.named(preset).only("quality", "hallucinated", "error")
        rolled_back += run(columns, policy).decision == "rollback"

    assert rolled_back <= most(0.016)


@pytest.mark.parametrize("requests", [1, 5])
def test_a_share_of_missing_values_at_the_limit_is_seldom_too_large(requests: int) -> None:
    """Looks after every 20 requests of 40,000; units of `requests` that miss all of their values or none."""
    wrong = 0
    for seed in range(RUNS):
        present = np.repeat(np.random.default_rng(seed).random(40_000 // requests) >= 0.1, requests)
        is_first = np.arange(40_000) % requests == 0
        presence = Presence(on_present=False, max_missing=0.1, restart_share=0.0, is_judged=False)
        is_invalid = False
        for start in range(0, 40_000, 20):
            part = slice(start, start + 20)
            every = np.ones(20, dtype=np.bool_)
            presence.count(
                present[part], every, is_first[part], np.arange(start, start + 20, dtype=np.float64)
            )
            is_invalid |= presence.reason() is not None
        wrong += is_invalid

    assert wrong <= most(0.002)
