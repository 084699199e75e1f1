"""A hold for `shared hardware?`: only for a slowdown of stable that came with the canary, and lasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.own_speed import OwnSpeed
from evaluation.units.sessions import Rows
from tests.fakes.evidence_maker import Columns

HELD = "shared hardware?"
FIRST, ROWS = 2000, 8000  # requests before the canary, and in all


def traffic(
    seed: int,
    *,
    weights: Mapping[str, float],
    latency_ms: Mapping[str, float],
    share: float = 0.4,
    w: float = 0.1,
) -> Columns:
    """Requests of `staff` (a share of them) and `rest`, each with a latency and, from the canary on, a
    weight; both versions are alike."""
    rng = np.random.default_rng(seed)
    staff, begun = rng.random(ROWS) < share, np.arange(ROWS) >= FIRST
    weight = np.where(begun, np.where(staff, weights.get("staff", w), weights.get("rest", w)), 0.0)
    median = np.where(staff, latency_ms["staff"], latency_ms["rest"])
    return {
        "t_s": np.arange(ROWS) * 1.0,
        "arm": (rng.random(ROWS) < weight).astype(np.int64),
        "w": weight,
        "assigned_by": np.full(ROWS, "request"),
        "error": (rng.random(ROWS) < 0.01) * 1.0,
        "rejected": np.zeros(ROWS),
        "latency_ms": median * rng.lognormal(0.0, 0.5, ROWS),
    }


def judged(columns: Columns, stages: int = 1) -> BacktestResult:
    policy = GatePolicy.default().only("error", "latency_ms")
    return run(columns, policy, stages=(StagePlan(0.1, 0, {"error": 5.0}),) * stages)


def is_held(result: BacktestResult) -> bool:
    return any(HELD in reason for reason in result.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.9, 0.98, 1.0])
def test_fast_clients_with_a_weight_of_their_own_are_no_slowdown(weight: float) -> None:
    """They leave stable when the canary begins, and so its mean rises though nothing is slower."""
    columns = traffic(1, weights={"staff": weight}, latency_ms={"staff": 400.0, "rest": 1500.0}, share=0.5)

    assert not is_held(judged(columns))


@pytest.mark.slow
def test_latency_that_rises_evenly_on_both_arms_is_no_slowdown_by_the_canary() -> None:
    columns = traffic(2, weights={}, latency_ms={"staff": 800.0, "rest": 800.0})
    columns["latency_ms"] *= np.exp(np.linspace(0.0, 1.2, ROWS))

    assert not is_held(judged(columns))


@pytest.mark.slow
def test_traffic_that_changes_within_a_stage_is_no_slowdown_by_the_canary() -> None:
    columns = traffic(3, weights={}, latency_ms={"staff": 800.0, "rest": 800.0})
    columns["latency_ms"][FIRST + 1200 :] *= 2.0

    assert not is_held(judged(columns))


@pytest.mark.slow
def test_a_slowdown_when_the_canary_begins_holds() -> None:
    columns = traffic(4, weights={}, latency_ms={"staff": 800.0, "rest": 800.0})
    columns["latency_ms"][FIRST:] *= 2.0

    assert is_held(judged(columns))


@pytest.mark.slow
def test_a_slowdown_when_the_weight_rises_holds() -> None:
    columns = traffic(5, weights={}, latency_ms={"staff": 800.0, "rest": 800.0})
    columns["stage"] = (np.arange(ROWS) >= 5000).astype(np.int64)
    columns["latency_ms"][5000:] *= 2.0

    assert is_held(judged(columns, stages=2))


@pytest.mark.slow
def test_a_hold_ends_when_stable_is_as_fast_again() -> None:
    columns = traffic(6, weights={}, latency_ms={"staff": 800.0, "rest": 800.0})
    columns["latency_ms"][FIRST : FIRST + 4000] *= 2.0
    during = {name: column[: FIRST + 4000] for name, column in columns.items()}

    assert is_held(judged(during))
    assert not is_held(judged(columns))


def own_speed(
    rng: np.random.Generator, *, is_bursty: bool, raises: float = 1.0, cut: int = 100_000
) -> OwnSpeed:
    """Stable's requests over five stages of 2000, 1000 before them; each stage `raises` times slower."""
    stage = np.concatenate((np.full(1000, -1), np.repeat(np.arange(5), 2000)))
    weight = np.concatenate((np.zeros(1000), np.repeat([0.02, 0.05, 0.1, 0.25, 0.5], 2000)))
    size = len(stage)
    long = np.repeat(rng.random(size // 50) < 0.3, 50) if is_bursty else np.zeros(size, dtype=np.bool_)
    values = np.where(long, 10.0, 1.0) * 400.0 * rng.lognormal(0.0, 0.3, size)
    values *= raises ** np.maximum(stage, 0)
    rows = replace(
        Rows.none(), arm=rng.random(size) < weight, logged_w=weight, stage=np.maximum(stage, 0),
    )  # fmt: skip
    speed = OwnSpeed()
    for start in range(0, size, cut):
        part = slice(start, start + cut)
        speed.learn(
            replace(rows, arm=rows.arm[part], logged_w=weight[part], stage=rows.stage[part]), values[part]
        )
    return speed


@pytest.mark.slow
def test_bursts_of_long_prompts_are_no_slowdown() -> None:
    """Nothing changes; runs of 50 prompts are ten times as long, 30 % of the time."""
    slow = [own_speed(np.random.default_rng(seed), is_bursty=True).slowdown() > 1.4 for seed in range(60)]

    assert sum(slow) <= 5


@pytest.mark.slow
def test_a_slowdown_at_every_raise_is_found_in_spite_of_the_noise() -> None:
    """15 % at each of four raises: 1.75x in all."""
    slow = [
        own_speed(np.random.default_rng(seed), is_bursty=False, raises=1.15).slowdown() > 1.4
        for seed in range(20)
    ]

    assert all(slow)


def test_the_noise_does_not_depend_on_the_blocks() -> None:
    whole, parts = (own_speed(np.random.default_rng(1), is_bursty=True, cut=cut) for cut in (100_000, 333))

    assert (whole.slowdown(), whole.spread.tolist()) == (parts.slowdown(), parts.spread.tolist())
