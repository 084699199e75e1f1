"""Flags of a range that was learned from other traffic neither prove nor pass in silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.units.own_range import MOST, OwnRange
from evaluation.units.sessions import Rows
from tests.fakes.evidence_maker import Columns, draw_at, requests

METRIC = "unusual_length"
STAGES = (StagePlan(0.25, 0, {METRIC: 3.0}, 0.005),)


def _policy() -> GatePolicy:
    gate = {"metric": METRIC, "kind": "rate", "threshold": 2.0, "alpha_share": 0.05}
    return gate_policy_of({"gates": {METRIC: gate, "quality": {"alpha_share": 0.1}}}).only("error", METRIC)


def _traffic(stable: float | np.ndarray, canary: float, *, rows: int = 6000, seed: int = 1) -> Columns:
    """Requests of which these shares are outside, by arm."""
    columns = requests(rows, seed=seed, w=0.25)
    share = np.where(columns["arm"] == 1, canary, stable)
    outside = (np.random.default_rng(seed + 50).random(rows) < share).astype(np.float64)
    return {name: columns[name] for name in ("t_s", "arm", "w", "assigned_by", "error")} | {METRIC: outside}


def _judged(*traffic: float | np.ndarray, rows: int = 6000, seed: int = 1) -> BacktestResult:
    stable, canary = traffic
    return run(_traffic(stable, float(canary), rows=rows, seed=seed), _policy(), stages=STAGES)


@pytest.mark.slow
def test_a_canary_of_garbage_is_not_proven_by_a_range_of_other_traffic() -> None:
    for stable, canary in ((0.86, 1.0), (0.33, 0.5)):
        result = _judged(stable, canary)
        assert result.decision == "invalid"
        (reason,) = [one for one in result.reasons if METRIC in one]
        assert "the range was learned from other traffic: " in reason
        assert f"{stable:.0%}"[0] in reason


@pytest.mark.slow
def test_a_twin_within_its_range_is_proven_and_a_cut_is_rolled_back() -> None:
    assert [_judged(0.012, 0.012, seed=seed).decision for seed in range(4)] == ["promote"] * 4
    assert _judged(0.012, 0.3).decision == "rollback"


@pytest.mark.slow
def test_a_canary_that_is_outside_more_often_is_rolled_back_all_the_same() -> None:
    assert _judged(0.2, 0.8).decision == "rollback"


@pytest.mark.slow
def test_nothing_is_proven_while_the_share_is_too_large_by_chance_or_not() -> None:
    """6.5 % of 1500 units: it takes more to tell it from 5 %."""
    result = _judged(0.065, 0.065, rows=1500)
    assert result.decision == "undecided"
    assert any("not proven: the range was learned from other traffic" in one for one in result.reasons)


def test_an_hour_of_other_traffic_is_noticed_and_passes() -> None:
    """900 units in which 0.4 % are outside, 200 in which 40 % are, and 3000 as before."""
    rng, own, fits = np.random.default_rng(4), OwnRange(), []
    for units, share in ((900, 0.004), (200, 0.4), (3000, 0.004)):
        _count(own, (rng.random(units) < share).astype(np.float64))
        fits.append(own.invalid_reason() is None)
    assert fits == [True, False, True]


def _count(own: OwnRange, outside: np.ndarray, *, block: int = 10_000) -> None:
    """Count stable's requests, each of its own unit."""
    for at in range(0, len(outside), block):
        part = outside[at : at + block]
        n = len(part)
        ints, yes, no = np.ones(n, dtype=np.int64), np.ones(n), np.zeros(n, dtype=np.bool_)
        rows = Rows(ints, yes, no, yes * 0.5, ints, ints, ~no, ints, ints, no, ints * 0, ints * 0, ints, no,
                    ints, yes * 0.5, ints)  # fmt: skip
        own.count(rows, part, ~no)


def test_blocks_do_not_matter() -> None:
    outside = (np.random.default_rng(2).random(3100) < 0.1).astype(np.float64)
    whole, parts = OwnRange(), OwnRange()
    _count(whole, outside)
    _count(parts, outside, block=77)
    for name in OwnRange.__state__:
        assert getattr(whole, name).tolist() == getattr(parts, name).tolist()
    assert whole.invalid_reason() == parts.invalid_reason() is not None


@pytest.mark.slow
def test_a_share_at_the_limit_is_hardly_ever_called_too_large() -> None:
    found = 0
    for seed in range(40):
        own, outside = OwnRange(), (np.random.default_rng(seed).random(3000) < MOST).astype(np.float64)
        for at in range(0, 3000, 100):
            _count(own, outside[at : at + 100])
            found += own.invalid_reason() is not None
    assert found == 0


@pytest.mark.slow
def test_a_snapshot_keeps_it() -> None:
    columns = {**requests(400, w=0.25), METRIC: _traffic(0.5, 0.5, rows=400)[METRIC]}
    before = Evaluator.start(_policy(), stages=STAGES, seed_latency_ms={})
    before.enter_stage(0, 0.0)
    for row in range(400):
        before.add(replace(draw_at(columns, row), flags={METRIC: bool(columns[METRIC][row])}))
    before.advance(400.0, 2000.0)
    after = Evaluator.restore(_policy(), STAGES, before.snapshot())
    assert after.report() == before.report()
    assert any("other traffic: " in one for one in after.report().missing)
