"""Backtests of beginnings: the decisions of whole backtests, for less."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gate.growing import GrowingBacktest, Traffic, rollback_time
from benchmarks.gate.published import rollback_result
from benchmarks.gate.records import Estimate
from benchmarks.gate.trials import FIRST_RUNG, NO_PROOF, PRESETS
from benchmarks.gate.world_columns import columns_of
from benchmarks.gate.worlds import Arm, World
from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy

HARMFUL = World(sticky=True, canary=Arm(error=0.06), w=0.2, canary_requests=600, stable_first=400)
LENGTHS = (60, 240, 600)


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_a_beginning_has_the_result_of_its_own_backtest(sticky: bool, preset: str) -> None:
    columns = columns_of(replace(HARMFUL, sticky=sticky), [3])
    traffic = Traffic(columns)
    backtest = GrowingBacktest(traffic, GatePolicy.named(preset), FIRST_RUNG)

    for length in LENGTHS:
        rows = traffic.rows_of(length)
        backtest.grow(rows)
        ours = backtest.result()
        own = run({n: c[:rows] for n, c in columns.items()}, GatePolicy.named(preset), stages=(FIRST_RUNG,))
        assert replace(ours, intervals={}, not_judged=(), gates=()) == replace(
            own, intervals={}, not_judged=(), gates=(), t_s=ours.t_s
        )
        assert [replace(gate, interval=None) for gate in own.gates] == list(ours.gates)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sticky", [False, True])
def test_a_rollback_is_found_where_the_first_backtest_with_one_finds_it(sticky: bool, seed: int) -> None:
    columns = columns_of(replace(HARMFUL, sticky=sticky), [seed])
    traffic, policy = Traffic(columns), GatePolicy.named("strict")
    expected = None
    for length in LENGTHS:
        rows = traffic.rows_of(length)
        result = rollback_result({name: column[:rows] for name, column in columns.items()}, policy)
        if result.decision == "rollback":
            expected = result.canary_requests
            break

    assert rollback_time(traffic, policy, LENGTHS) == expected


@pytest.mark.slow
def test_the_draws_of_one_traffic_are_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(columns_of(HARMFUL, [1]))
    first = GrowingBacktest(traffic, GatePolicy.named("strict"), NO_PROOF)
    first.grow(len(traffic))
    monkeypatch.setattr("evaluation.units.units.Units._resolve_sticky", None)  # fails if it is called
    second = GrowingBacktest(traffic, GatePolicy.named("strict"), NO_PROOF)
    second.grow(len(traffic))

    assert second.result().log_e == first.result().log_e


@pytest.mark.slow
def test_backtests_of_one_traffic_are_fed_alike() -> None:
    traffic = Traffic(columns_of(HARMFUL, [1]))
    GrowingBacktest(traffic, GatePolicy.named("strict"), NO_PROOF).grow(len(traffic))

    with pytest.raises(AssertionError, match="equal parts"):
        GrowingBacktest(traffic, GatePolicy.named("default"), NO_PROOF).grow(10)


@pytest.mark.slow
def test_an_early_rollback_is_none_while_the_arms_are_alike() -> None:
    traffic = Traffic(columns_of(replace(HARMFUL, canary=Arm()), [1]))
    backtest = GrowingBacktest(traffic, GatePolicy.named("strict"), NO_PROOF)
    backtest.grow(len(traffic))

    assert backtest.early_rollback() is None


def test_what_is_left_is_estimated_by_item() -> None:
    remaining = Counter({0: 10, 1: 100, 2: 5})
    estimate = Estimate(remaining)
    estimate.add(0, 2.0)
    estimate.add(0, 4.0)
    estimate.add(1, 0.5)
    usual = (2.0 + 4.0 + 0.5) / 3

    assert estimate.left_s() == pytest.approx(10 * 3.0 + 100 * 0.5 + 5 * usual)
    assert estimate.text(2) == "115 runs left: 2 core-minutes, 1 minutes on 2 cores"
    assert np.isfinite(Estimate(remaining).left_s())
