"""Gates and alarms on mean costs: how seldom they are wrong, and after how many answers they are right.

The figures of docs/cost.md are these, with all runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from evaluation.offline.backtest import run
from tests.fakes.evidence_maker import ONE_STAGE
from tests.fakes.priced_maker import policy, priced
from tests.samples import runs

pytestmark = pytest.mark.calibration
ONLY = policy().only("cost")
TRAFFIC: Mapping[str, Mapping[str, Any]] = {
    "requests": {},
    "users": {"people": 800},
    "drift": {"drift": 2.0},
}


def alarms(ratio: float, count: int, *, rows: int = 30_000) -> list[int | None]:
    """Canary requests at which each run raised the budget alarm; None: it did not."""
    found = []
    for seed in range(count):
        gates = run(priced(ratio, seed=seed, rows=rows)).gates
        found.append(next(one.decided_canary for one in gates if one.gate == "cost_alarm"))
    return found


@pytest.mark.parametrize("kind", TRAFFIC)
def test_a_canary_at_the_tolerance_is_not_rolled_back(kind: str) -> None:
    """1.1x as dear is what must not roll back: the worst case of the null; alpha of the gate 0.0005."""
    count = runs(30, whole=300)

    decisions = [run(priced(1.1, seed=seed, **TRAFFIC[kind]), ONLY).decision for seed in range(count)]

    print(f"{kind}: {decisions.count('rollback')} of {count} rolled back at 1.1x")
    assert decisions.count("rollback") <= 1


@pytest.mark.parametrize("kind", TRAFFIC)
def test_a_canary_at_the_margin_is_not_proven(kind: str) -> None:
    """1.2x as dear, where "below 1.2x" is to be proven; alpha 0.045."""
    count = runs(30, whole=300)
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 1.2}),)

    proven = [
        run(priced(1.2, seed=seed, **TRAFFIC[kind]), ONLY, stages=stage).proofs for seed in range(count)
    ]

    print(f"{kind}: {sum(map(bool, proven))} of {count} proven below 1.2x at 1.2x")
    assert sum(map(bool, proven)) <= 0.045 * count + 2.6 * (0.045 * 0.955 * count) ** 0.5


def test_an_equal_canary_and_one_within_the_budget_raise_no_alarm() -> None:
    count = runs(10, whole=100)

    assert alarms(1.0, count) == [None] * count
    assert alarms(1.15, count) == [None] * count


@pytest.mark.parametrize(("ratio", "median"), [(1.25, 700), (1.5, 180), (2.0, 120)])
def test_a_dear_canary_raises_the_alarm_soon(ratio: float, median: int) -> None:
    found = alarms(ratio, runs(10, whole=60))

    answers = sorted(one for one in found if one is not None)
    print(f"alarm at {ratio}x: median {statistics.median(answers)}, p90 {answers[int(0.9 * len(answers))]}")
    assert None not in found
    assert statistics.median(answers) <= median


def test_an_equal_canary_is_proven_to_be_no_dearer_soon() -> None:
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 1.3}),)
    proofs = [run(priced(1.0, seed=seed), ONLY, stages=stage).proofs for seed in range(runs(10, whole=60))]

    assert all(proofs)
    answers = sorted(one["cost"] for one in proofs)
    print(f"below 1.3x: median {statistics.median(answers)}, p90 {answers[int(0.9 * len(answers))]}")
    assert statistics.median(answers) <= 250
