"""Answers whose latency was not recorded could be the slowest ones: so many of them leave a proof open."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.units.missingness import Lacking
from tests.fakes.evidence_maker import Columns, settings_of

W = 0.25
GATES = ("latency_p99", "latency_shape")
STAGES = (StagePlan(W, 0, dict.fromkeys(GATES, 1.2), 0.0005),)
TIMES = GatePolicy.default().only("error", "latency_ms")


def traffic(seed: int, canary_requests: int = 5000) -> tuple[np.random.Generator, Columns]:
    """Arms that are alike, per request, without errors."""
    rng = np.random.default_rng(seed)
    rows = 6000 + round(canary_requests / W)
    w = np.where(np.arange(rows) < 6000, 0.0, W)
    return rng, {
        "t_s": np.arange(rows) * 0.1,
        "arm": (rng.random(rows) < w).astype(np.int64),
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
        "latency_ms": 800.0 * np.exp(0.5 * rng.standard_normal(rows)),
    }


def lost(seed: int, share: float, *, slow: float = 0.0, policy: GatePolicy = TIMES) -> BacktestResult:
    """share: of both arms' latencies, lost at random. slow: of the canary's answers, five times slower and
    without a latency."""
    rng, columns = traffic(seed)
    gone = (columns["arm"] == 1) & (rng.random(len(columns["arm"])) < slow)
    gone |= rng.random(len(gone)) < share
    columns["latency_ms"] = np.where(gone, np.nan, columns["latency_ms"])
    return run(columns, policy, stages=STAGES)


@pytest.mark.calibration
@pytest.mark.parametrize(("share", "slow"), [(0.03, 0.012), (0.05, 0.012), (0.07, 0.02)])
def test_slow_answers_without_a_latency_among_others_without_one_prove_nothing(
    share: float, slow: float
) -> None:
    results = [lost(1000 + seed, share, slow=slow) for seed in range(3)]

    assert [set(GATES) & result.proofs.keys() for result in results] == [set(), set(), set()]


@pytest.mark.slow
def test_where_as_many_latencies_are_missing_on_both_arms_it_is_said_what_they_could_hide() -> None:
    """Stable's are lost at random, and the canary's may be its slowest 3 %."""
    result = lost(1, 0.03)

    assert set(GATES) & result.proofs.keys() == set()
    assert result.reasons == tuple(
        f"{words} not proven: 3.0% of stable's and 3.0% of the canary's answers have no latency_ms, and "
        "could be the slowest ones (0.25% may); if what is recorded is sampled by a coin tossed before the "
        "answer, state its `sampling`"
        for words in (
            "latency_p99: latency_p99 < 1.2x",
            "latency_shape: latency_shape: not slower throughout than 1.2x",
        )
    )


@pytest.mark.calibration
@pytest.mark.parametrize("share", [0.0005, 0.001])
def test_one_missing_latency_in_a_thousand_costs_a_proof_nothing(share: float) -> None:
    whole, lacking = ([lost(s, part).proofs["latency_p99"] for s in range(5)] for part in (0.0, share))

    assert np.median(lacking) <= 1.1 * np.median(whole)


def test_one_missing_latency_does_not_hold_up_a_proof_of_250_answers() -> None:
    lacking = Lacking()
    arm, present = np.arange(500) % 2 == 1, np.arange(500) != 499
    lacking.count(arm, np.zeros(500, dtype=np.int64), present)
    assert not lacking.is_above(0.0025, of_stage=True)
    lacking.count(arm, np.ones(500, dtype=np.int64), present & (np.arange(500) != 497))

    assert [lacking.is_above(0.0025, of_stage=of_stage) for of_stage in (True, False)] == [True, True]
    assert lacking.shares(of_stage=True) == (0.0, 2 / 250)
    assert lacking.shares(of_stage=False) == (0.0, 3 / 500)


@pytest.mark.calibration
def test_latencies_that_a_stated_coin_left_out_hide_nothing() -> None:
    coin = {"stable": 0.9, "canary": 0.9}
    gates = {name: {**settings_of(TIMES, name), "sampling": coin} for name in GATES}
    gates["error"] = settings_of(TIMES, "error")

    assert set(GATES) <= lost(1, 0.1, policy=parse_gate_policy({"gates": gates})).proofs.keys()


@pytest.mark.calibration
def test_a_rollback_does_not_need_the_missing_latencies() -> None:
    rng, columns = traffic(3, 1500)
    times = np.where(columns["arm"] == 1, 1.6, 1.0) * columns["latency_ms"]
    columns["latency_ms"] = np.where(rng.random(len(times)) < 0.05, np.nan, times)

    assert run(columns, TIMES, stages=STAGES).decision == "rollback"
