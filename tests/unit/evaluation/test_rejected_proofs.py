"""A stage proves that the canary does not reject many more requests, as it proves errors."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import DEFAULT_RUNGS, Rung, StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import requests


def rejecting(
    stable: float, canary: float, *, rows: int, seed: int = 1, error: float = 0.0
) -> BacktestResult:
    columns = requests(rows + 2000, before=2000, w=0.25, seed=seed, error=(error, error))
    chance = np.where(columns["arm"] == 1, canary, stable)
    columns["rejected"] = (np.random.default_rng(seed).random(rows + 2000) < chance).astype(float)
    gone = columns["rejected"] == 1.0
    columns["latency_ms"] = np.where(gone, 5.0, columns["latency_ms"])
    for name in ("quality", "hallucinated"):
        columns[name] = np.where(gone, np.nan, columns[name])
    return run(columns, GatePolicy.default().only("error", "rejected"), stages=(StagePlan(0.25, 200),))


@pytest.mark.parametrize("rung", DEFAULT_RUNGS, ids=lambda rung: str(rung.min_canary))
def test_every_rung_has_a_margin_for_rejections_as_for_errors(rung: Rung) -> None:
    assert rung.margins["rejected"] == rung.margins["error"]
    assert rung.own.get("rejected") == rung.own.get("error")


@pytest.mark.slow
@pytest.mark.parametrize("stable", [0.002, 0.005])
def test_a_canary_that_rejects_two_percent_more_is_not_proven(stable: float) -> None:
    results = [rejecting(stable, stable + 0.02, rows=1600, seed=s, error=0.01) for s in range(8)]

    assert [r.decision for r in results if r.decision == "promote"] == []


def test_no_rejections_at_all_are_proven_within_450_canary_requests() -> None:
    result = rejecting(0.0, 0.0, rows=1800)

    assert result.decision == "promote"
    assert max(result.proofs["rejected"], result.proofs["error"]) <= 450
