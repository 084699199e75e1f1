"""Requests without a score, or without an answer, hide neither harm nor its absence."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, settings_of

W = 0.25
STAGE = (StagePlan(W, 0),)


def traffic(seed: int, canary_requests: int) -> tuple[np.random.Generator, Columns]:
    """Arms that are alike, per request: quality 0.75, hallucinations 3 %, no errors."""
    rng = np.random.default_rng(seed)
    rows = round(canary_requests / W)
    return rng, {
        "t_s": np.arange(rows) * 0.1,
        "arm": (rng.random(rows) < W).astype(np.int64),
        "w": np.full(rows, W),
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
        "quality": rng.beta(6.0, 2.0, rows),
        "hallucinated": (rng.random(rows) < 0.03).astype(float),
    }


def without_scores(columns: Columns, missing: np.ndarray) -> Columns:
    return columns | {
        name: np.where(missing, np.nan, columns[name])
        for name in ("quality", "hallucinated")
        if name in columns
    }


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["quality", "hallucinated"])
@pytest.mark.parametrize("base", [0.1, 0.5, 0.7])
def test_what_the_judge_leaves_out_on_the_canary_alone_proves_nothing(base: float, metric: str) -> None:
    """The judge scores the same share of both arms at random, but never the canary's worst tenth."""
    rng, columns = traffic(round(base * 10), 600)
    hidden = (columns["arm"] == 1) & (rng.random(len(columns["arm"])) < 0.1)
    columns = without_scores(columns, hidden | (rng.random(len(hidden)) < base))
    policy = GatePolicy.default().only("error", metric)

    result = run(columns, policy, stages=(StagePlan(W, 0, floor=0.01),))

    assert policy.gates_for(metric)[0].name not in result.proofs


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("metric", ["quality", "hallucinated"])
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_judge_that_samples_both_arms_alike_can_prove(metric: str, is_declared: bool) -> None:
    """With the sampling stated, as soon as before; else once the others can hide nothing."""
    rng, columns = traffic(3, 1200 if is_declared else 8000)
    columns = without_scores(columns, rng.random(len(columns["arm"])) < 0.5)
    gates = {name: settings_of(GatePolicy.default(), name) for name in ("error", "quality", "hallucination")}
    if is_declared:
        gates |= {n: {**gates[n], "sampling": {"stable": 0.5, "canary": 0.5}} for n in gates if n != "error"}
    policy = parse_gate_policy({"gates": gates}).only("error", metric)

    result = run(columns, policy, stages=(StagePlan(W, 0, floor=0.01),))

    assert policy.gates_for(metric)[0].name in result.proofs


@pytest.mark.parametrize("metric", ["quality", "hallucinated"])
@pytest.mark.parametrize("preset", ["strict", "default"])
@pytest.mark.slow
def test_answers_to_what_stable_fails_are_no_harm_however_bad(metric: str, preset: str) -> None:
    rolled_back = []
    for seed in range(6):
        rng, columns = traffic(seed, 3000)
        is_hard = rng.random(len(columns["arm"])) < 0.1
        columns["error"] = (is_hard & (columns["arm"] == 0)).astype(float)
        columns["quality"] = np.where(is_hard, 0.0, columns["quality"])
        columns["hallucinated"] = np.where(is_hard, 1.0, columns["hallucinated"])
        columns = without_scores(columns, columns["error"] == 1.0)
        rolled_back.append(
            run(columns, GatePolicy.named(preset).only("error", metric)).decision == "rollback"
        )

    assert not any(rolled_back)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("before", "quality"), [(0.20, 0.75), (0.12, 0.5), (0.08, 0.3)])
def test_a_canary_that_fixes_many_errors_is_proven(before: float, quality: float) -> None:
    rng, columns = traffic(5, 4000)
    rows = len(columns["arm"])
    columns["error"] = (rng.random(rows) < np.where(columns["arm"] == 1, 0.01, before)).astype(float)
    columns["quality"] = rng.beta(8.0 * quality, 8.0 * (1.0 - quality), rows)
    columns = without_scores(columns, columns["error"] == 1.0)

    assert run(columns, GatePolicy.default(), stages=STAGE).decision == "promote"
