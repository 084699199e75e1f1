"""False rollbacks of gates with covariates, where these drift, come with time, or are of no use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.samples import runs

pytestmark = pytest.mark.calibration
ROWS = 1600
# 20 runs of each world fail where 30 % of one world's, or 5 % of all, go wrong: in 97 and 99 of 100 cases.
RUNS = runs(20, whole=60)
AT_MARGIN = 60  # runs; they are quick
MOST = int(stats.binom.ppf(0.998, RUNS, 0.01))  # of one world, of which 1 % may go wrong
STAGE = (StagePlan(0.5, 0, {"quality": 0.05}),)
NAMES = ("x", "noise")
WORLDS = (
    "explains half", "drifts", "with time", "constant", "huge", "half missing", "missing with failures",
    "seven of noise", "first toss at once", "changes its effect", "tail", "binary scores",
)  # fmt: skip


def world(name: str, seed: int) -> dict[str, np.ndarray]:
    """One run without harm: on both arms the same scores, which x explains."""
    rng = np.random.default_rng([WORLDS.index(name), seed])
    w = (0.05, 0.2, 0.5)[seed % 3]
    before = 0 if name == "first toss at once" else 100
    row = np.arange(ROWS)
    weight = np.where(row < before, 0.0, w)
    arm = (rng.random(ROWS) < weight).astype(np.int64)
    z, time = rng.standard_normal(ROWS), row / ROWS
    effect = np.where(time > 0.5, -0.12, 0.12) if name == "changes its effect" else 0.12
    if name == "drifts":
        z = z + 3.0 * time
    y = 0.6 + effect * (z - 1.5 * (name == "drifts")) + 0.12 * rng.standard_normal(ROWS)
    if name == "with time":
        y = y - 0.3 * time
    y = np.clip(y, 0.0, 1.0)
    if name == "binary scores":
        y = (rng.random(ROWS) < y).astype(np.float64)
    x = np.exp(z)
    match name:
        case "with time":
            x = row.astype(np.float64)
        case "constant":
            x = np.full(ROWS, 3.0)
        case "huge":
            x = np.where(rng.random(ROWS) < 0.02, 1e300, x)
        case "half missing":
            x = np.where(rng.random(ROWS) < 0.5, np.nan, x)
        case "tail":
            x = rng.standard_cauchy(ROWS) * np.exp(5.0 * rng.standard_normal(ROWS))
    error = np.zeros(ROWS)
    if name == "missing with failures":
        error = (rng.random(ROWS) < np.where(z > 1.0, 0.2, 0.02)).astype(np.float64)
        y = np.where(error == 1.0, np.nan, y)
    return {
        "t_s": row.astype(np.float64), "arm": arm, "w": weight, "quality": y, "x": x,
        "error": error, "noise": rng.standard_normal(ROWS),
        **{f"noise{k}": rng.standard_normal(ROWS) for k in range(6)},
    }  # fmt: skip


def policy(name: str) -> GatePolicy:
    """Quality alone, with all of alpha: 1 % for the one gate."""
    names = ("noise", *(f"noise{k}" for k in range(6))) if name == "seven of noise" else NAMES
    gate = replace(GatePolicy.strict().gate("quality"), alpha_share=1.0, covariates=names)
    return replace(GatePolicy.strict(), gates=(gate,))


def test_no_harm_stays() -> None:
    wrong = {}
    for name in WORLDS:
        results = [run(world(name, seed), policy(name), stages=STAGE) for seed in range(RUNS)]
        wrong[name] = sum(result.decision in ("rollback", "invalid") for result in results)

    assert max(wrong.values()) <= MOST, wrong
    assert sum(wrong.values()) <= 0.016 * RUNS * len(WORLDS), wrong


@pytest.mark.parametrize("name", ["explains half", "with time", "drifts", "missing with failures"])
def test_harm_at_the_margin_is_proven_in_few_runs(name: str) -> None:
    proven = 0
    for seed in range(AT_MARGIN):
        given = world(name, seed)
        given["quality"] = np.where(given["arm"] == 1, given["quality"] - 0.05, given["quality"]).clip(
            -1.0, 1.0
        )
        given["quality"] = (given["quality"] + 0.05) / 1.05  # within 0..1 without a cut
        result = run(given, policy(name), stages=(StagePlan(0.5, 0, {"quality": 0.05 / 1.05}),))
        proven += any(g.side == "promotion" and g.verdict is Verdict.PASS for g in result.gates)

    assert proven <= 0.05 * AT_MARGIN
