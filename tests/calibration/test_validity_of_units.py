"""Error rates where a coin was bet by request, failures left the evidence, or conversations differ in length.

Small samples of each case: a healthy canary is rolled back or INVALID in hardly any run, and one at the
margin is promoted in few. `make bench-gate` has the published runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns

pytestmark = pytest.mark.calibration
RUNS = 8
W = 0.1


def conversations(
    seed: int,
    turns: tuple[float, float] = (3.0, 3.0),
    people: int = 4000,
    exactly: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> Columns:
    """Users with conversations of `turns` mean requests on stable and the canary, and habits of their own.
    exactly: lengths of stable's and the canary's, each as often; None: geometrically distributed ones."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(people) < people // 10, 0.0, W)
    arm = (rng.random(people) < weight).astype(np.int64)
    size = np.minimum(rng.geometric(1 / np.where(arm == 1, turns[1], turns[0])), 30)
    if exactly is not None:
        size = np.where(arm == 1, rng.choice(exactly[1], people), rng.choice(exactly[0], people))
    unit = np.repeat(np.arange(people), size)
    depth = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
    t_s = np.sort(rng.uniform(0.0, 2.0 * people, people))[unit] + 12.0 * depth
    order = np.argsort(t_s, kind="stable")
    unit, depth, rows = unit[order], depth[order], len(unit)
    return {
        "t_s": t_s[order],
        "unit": unit,
        "arm": arm[unit],
        "w": weight[unit],
        "assigned_by": np.full(rows, "sticky"),
        "depth": depth,
        "error": (rng.random(rows) < 0.01 * rng.gamma(2.0, 0.5, people)[unit]).astype(np.float64),
        "latency_ms": rng.lognormal(6.0, 0.5, rows) * rng.lognormal(0.0, 0.5, people)[unit],
        "quality": np.clip(rng.normal(0.75, 0.2, rows), 0.0, 1.0),
        "hallucinated": (rng.random(rows) < 0.03).astype(np.float64),
    }


def of_users(columns: Columns, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    chosen: np.ndarray = (rng.random(int(columns["unit"].max()) + 1) < share)[columns["unit"]]
    return chosen


def some(columns: Columns, stable: float, canary: float, seed: int) -> np.ndarray:
    chance = np.where(columns["arm"] == 1, canary, stable)
    chosen: np.ndarray = np.random.default_rng([seed, 2]).random(len(chance)) < chance
    return chosen


def without_answer(columns: Columns, bad: np.ndarray, metric: str = "error") -> Columns:
    columns[metric] = np.where(bad, 1.0, columns.get(metric, np.zeros(len(bad))))
    columns["latency_ms"] = np.where(bad, 4.0, columns["latency_ms"])
    return columns


def half_never_stream(seed: int) -> Columns:
    columns = conversations(seed)
    columns["ttft_ms"] = np.where(of_users(columns, 0.5, seed), np.nan, columns["latency_ms"] / 8.0)
    return columns


def some_users_always_fail(seed: int) -> Columns:
    columns = conversations(seed)
    return without_answer(columns, of_users(columns, 0.03, seed))


def judged_by_user(seed: int) -> Columns:
    columns = conversations(seed)
    for name in ("quality", "hallucinated"):
        columns[name] = np.where(of_users(columns, 0.5, seed), np.nan, columns[name])
    return columns


def longer(seed: int) -> Columns:
    return conversations(seed, turns=(3.0, 6.0))


def of_another_spread(seed: int) -> Columns:
    """Three turns in the mean; the first is answered more slowly, as no prefix is cached yet."""
    columns = conversations(seed, exactly=((1, 2, 2, 3, 3, 3, 4, 4, 5), (1, 5)))
    columns["latency_ms"] *= np.where(columns["depth"] == 0, 4.0, 1.0)
    return columns


def longer_after_the_session(seed: int) -> Columns:
    """More turns after the tenth, each slower than the one before."""
    columns = conversations(seed, people=1200, exactly=((12,), (20,)))
    columns["latency_ms"] *= 1.1 ** columns["depth"]
    return columns


def fixes_errors(seed: int) -> Columns:
    columns = conversations(seed)
    return without_answer(columns, some(columns, 0.05, 0.0, seed))


def fixes_the_slowest(seed: int) -> Columns:
    columns = conversations(seed)
    slowest = columns["latency_ms"] > np.quantile(columns["latency_ms"], 0.98)
    return without_answer(columns, slowest & (columns["arm"] == 0))


def spurious_rejections(seed: int) -> Columns:
    columns = conversations(seed)
    return without_answer(columns, some(columns, 0.05, 0.05, seed), "rejected")


HEALTHY: Mapping[str, Callable[[int], Columns]] = {
    one.__name__: one
    for one in (
        half_never_stream,
        some_users_always_fail,
        judged_by_user,
        longer,
        of_another_spread,
        longer_after_the_session,
        fixes_errors,
        fixes_the_slowest,
        spurious_rejections,
    )
}


@pytest.mark.parametrize("preset", ["default", "strict"])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_canary_is_neither_rolled_back_nor_invalid(name: str, preset: str) -> None:
    decisions = [run(_columns(HEALTHY[name](seed)), preset).decision for seed in range(RUNS)]

    assert sum(decision in ("rollback", "invalid") for decision in decisions) <= 1


@pytest.mark.parametrize(("turns", "growth"), [((4.0, 2.0), 1.0), ((3.0, 2.0), 1.0), ((4.0, 2.0), 1.1)])
def test_a_canary_at_the_margin_is_rarely_promoted_by_shorter_conversations(
    turns: tuple[float, float], growth: float
) -> None:
    """Latency exactly at 1.2x; `growth`: of latency by turn."""
    stages = (StagePlan(W, 0, {"latency_shape": 1.2}),)
    policy = GatePolicy.default().only("latency_ms")
    promoted = 0
    for seed in range(RUNS):
        columns = conversations(seed, turns)
        columns["latency_ms"] *= growth ** columns["depth"] * np.where(columns["arm"] == 1, 1.2, 1.0)
        promoted += bool(run(_columns(columns), policy, stages=stages).proofs)

    assert promoted <= 2


def test_harm_that_begins_in_a_later_stage_is_not_promoted_by_the_earlier_ones_proof() -> None:
    stages = (StagePlan(W, 0, {"quality": 0.05}), StagePlan(W, 0, {"quality": 0.05}))
    policy = GatePolicy.default().only("quality")
    promoted = 0
    for seed in range(RUNS):
        columns = conversations(seed)
        columns["stage"] = (columns["unit"] >= 2000).astype(np.int64)
        columns["t_s"] = np.sort(columns["t_s"])
        late = (columns["stage"] == 1) & (columns["arm"] == 1)
        columns["quality"] = np.clip(columns["quality"] - 0.06 * late, 0.0, 1.0)
        promoted += run(_columns(columns), policy, stages=stages).decision == "promote"

    assert promoted <= 2


def _columns(columns: Columns) -> Columns:
    return {name: values for name, values in columns.items() if name != "depth"}
