"""Requests of which nobody knows whether they failed: a proof of errors holds if all of the canary's did."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns

W = 0.25


def traffic(seed: int, metric: str, canary_requests: int = 3000) -> tuple[np.random.Generator, Columns]:
    """Arms that are alike, per request, with 1 % of events."""
    rng = np.random.default_rng(seed)
    rows = 2000 + round(canary_requests / W)
    w = np.where(np.arange(rows) < 2000, 0.0, W)
    columns = {
        "t_s": np.arange(rows) * 0.1,
        "arm": (rng.random(rows) < w).astype(np.int64),
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
    }
    return rng, columns | {metric: (rng.random(rows) < 0.01).astype(float)}


def result_of(metric: str, columns: Columns) -> BacktestResult:
    policy = GatePolicy.default().only("error", metric)
    return run(columns, policy, stages=(StagePlan(W, 0, {metric: 3.0}, 0.005),))


@pytest.mark.parametrize("metric", ["error", "rejected"])
@pytest.mark.parametrize(("stable", "canary"), [(0.06, 0.06), (0.05, 0.06)])
def test_outcomes_that_are_missing_could_all_be_the_canarys_failures(
    metric: str, stable: float, canary: float
) -> None:
    rng, columns = traffic(1, metric)
    gone = rng.random(len(columns["arm"])) < np.where(columns["arm"] == 1, canary, stable)
    columns[metric] = np.where(gone, np.nan, columns[metric])

    result = result_of(metric, columns)

    assert metric not in result.proofs
    assert f"of requests have no {metric}: a proof counts" in " ".join(result.reasons)


@pytest.mark.parametrize("metric", ["error", "rejected"])
def test_few_missing_outcomes_are_proven(metric: str) -> None:
    rng, columns = traffic(1, metric)
    columns[metric] = np.where(rng.random(len(columns["arm"])) < 0.001, np.nan, columns[metric])

    assert metric in result_of(metric, columns).proofs


def test_a_request_that_failed_otherwise_was_not_rejected() -> None:
    """A file may have no `rejected` where there is an `error`."""
    rng, columns = traffic(1, "rejected")
    failed = (rng.random(len(columns["arm"])) < 0.05) & (columns["rejected"] == 0.0)
    columns["error"] = failed.astype(float)
    columns["rejected"] = np.where(failed, np.nan, columns["rejected"])

    assert "rejected" in result_of("rejected", columns).proofs


def test_identical_arms_whose_clients_leave_are_proven() -> None:
    """Who left before an answer has no outcome, and is no failure."""
    rng, columns = traffic(1, "error")
    gone = rng.random(len(columns["arm"])) < 0.06
    columns["cancelled"] = gone.astype(float)
    columns["error"] = np.where(gone, np.nan, columns["error"])

    assert "error" in result_of("error", columns).proofs
