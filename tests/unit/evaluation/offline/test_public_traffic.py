"""Traffic of public reports that other tools judged wrongly, and the decision on it.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evaluation.offline.backtest import run
from tests.fakes.evidence_maker import Columns

ROWS = 6000


def traffic(*, rows: int = ROWS, w: float = 0.5, seed: int = 6) -> Columns:
    """Two equal arms, 1 % errors, per request."""
    rng = np.random.default_rng(seed)
    return {
        "t_s": 1.78e9 + np.cumsum(rng.exponential(1.0, rows)),
        "arm": (rng.random(rows) < w).astype(int),
        "w": np.full(rows, w),
        "error": (rng.random(rows) < 0.01).astype(float),
        "latency_ms": rng.lognormal(6.0, 0.5, rows),
    }


def of(columns: Columns, arm: int) -> np.ndarray:
    return np.flatnonzero(columns["arm"] == arm)


def with_latency(arm: int, rows: slice, value: float) -> Columns:
    columns = traffic()
    columns["latency_ms"][of(columns, arm)[rows]] = value
    return columns


def with_constant_latency(canary_ms: float) -> Columns:
    columns = traffic()
    return columns | {"latency_ms": np.where(columns["arm"] == 1, canary_ms, 100.0)}


def without_errors_on_stable() -> Columns:
    columns, rng = traffic(), np.random.default_rng(61)
    return columns | {"error": ((columns["arm"] == 1) & (rng.random(ROWS) < 0.03)).astype(float)}


def failing_fast() -> Columns:
    columns = traffic()
    dead = columns["arm"] == 1
    return columns | {"error": dead.astype(float), "latency_ms": np.where(dead, 1.0, columns["latency_ms"])}


def without_values(metric: str, arms: tuple[int, ...]) -> Columns:
    columns = traffic()
    return columns | {metric: np.where(np.isin(columns["arm"], arms), np.nan, columns[metric])}


def control_first(*, known: bool) -> Columns:
    rng, columns = np.random.default_rng(62), traffic(rows=8000)
    w = np.where(np.arange(8000) < 3000, 0.0, 0.5)
    return columns | {"arm": (rng.random(8000) < w).astype(int), "w": w if known else np.full(8000, 0.5)}


def third_arm_left_out() -> Columns:
    columns, draw = traffic(rows=8000), np.random.default_rng(63).random(8000)
    columns |= {"arm": (draw >= 0.75).astype(int), "w": np.full(8000, 0.25)}
    return {name: values[(draw < 0.5) | (draw >= 0.75)] for name, values in columns.items()}


def ramp_under_growing_errors() -> Columns:
    rng, n = np.random.default_rng(64), 12_000
    w, share = (np.repeat(values, n // 3) for values in ([0.02, 0.1, 0.5], [0.005, 0.02, 0.08]))
    columns = traffic(rows=n)
    return columns | {
        "arm": (rng.random(n) < w).astype(int), "w": w, "error": (rng.random(n) < share).astype(float),
    }  # fmt: skip


def before_and_after() -> Columns:
    columns = traffic()
    return columns | {"arm": np.sort(columns["arm"])}


def by_turns() -> Columns:
    return traffic() | {"arm": (np.arange(ROWS) // 600) % 2}


def sticky(*, salted_anew: bool) -> Columns:
    rng, n = np.random.default_rng(65), 20_000
    users, buckets, others = rng.integers(0, 2500, n), rng.random(2500), rng.random(2500)
    w = np.repeat([0.05, 0.5, 0.05, 0.5], n // 4)
    later = others if salted_anew else buckets
    bucket = np.where(np.arange(n) < n // 2, buckets[users], later[users])
    return traffic(rows=n) | {"arm": (bucket < w).astype(int), "w": w, "unit": users}


def one_heavy_user() -> Columns:
    rng = np.random.default_rng(66)
    users = np.where(rng.random(ROWS) < 0.3, 0, rng.integers(1, 1500, ROWS))
    arms = (rng.random(1500) < 0.5).astype(int)
    arms[0] = 1
    error = np.where(users == 0, 1.0, rng.random(ROWS) < 0.01).astype(float)
    return traffic() | {"arm": arms[users], "unit": users, "error": error}


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("make", "decision"),
    [
        (without_errors_on_stable, "rollback"),
        (lambda: with_latency(1, slice(1), 1e15), "promote"),
        (lambda: with_latency(0, slice(1), 1e15), "promote"),
        (lambda: with_latency(1, slice(None, None, 7), 1e7), "rollback"),
        (lambda: with_constant_latency(100.0), "undecided"),  # 100 to 120 ms may have been recorded so
        (lambda: with_constant_latency(150.0), "rollback"),
        (lambda: without_values("latency_ms", (1,)), "invalid"),
        (lambda: without_values("error", (0, 1)), "invalid"),
        (lambda: control_first(known=True), "promote"),
        (lambda: control_first(known=False), "invalid"),
        pytest.param(lambda: sticky(salted_anew=False), "promote", marks=pytest.mark.slow),
        pytest.param(lambda: sticky(salted_anew=True), "invalid", marks=pytest.mark.slow),
        (third_arm_left_out, "invalid"),
        (ramp_under_growing_errors, "promote"),
        (before_and_after, "invalid"),
        (by_turns, "invalid"),
        (failing_fast, "rollback"),
    ],
    ids=[
        "stable has no errors", "one canary outlier", "one outlier of stable", "every seventh hangs",
        "constant latency", "constant and slower", "no latency on the canary", "no error known",
        "control first, w known", "control first, one w", "sticky ramp", "salted anew", "third arm left out",
        "ramp under growing errors", "before and after", "by turns", "dead and fast",
    ],
)  # fmt: skip
def test_traffic_that_other_tools_judged_wrongly(make: Callable[[], Columns], decision: str) -> None:
    assert run(make()).decision == decision


@pytest.mark.slow
def test_one_heavy_user_who_always_fails_is_no_reason_to_roll_back() -> None:
    assert run(one_heavy_user()).decision != "rollback"


@pytest.mark.slow
def test_a_cookie_that_sticks_on_the_canary_alone_is_no_fair_split() -> None:
    """Users of stable are drawn anew with each request, so the canary collects them."""
    rng, users = np.random.default_rng(67), 1500
    user, arm, kept = rng.integers(0, users, ROWS), np.zeros(ROWS, dtype=int), np.zeros(users, dtype=bool)
    for row, one in enumerate(user.tolist()):
        kept[one] |= rng.random() < 0.1
        arm[row] = kept[one]

    assert run(traffic() | {"arm": arm, "w": np.full(ROWS, 0.1), "unit": user}).decision == "invalid"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arms", "share", "decision"),
    [((1,), 0.09, "invalid"), ((0, 1), 0.09, "undecided"), ((0, 1), 0.001, "promote")],
)
def test_generations_without_an_end_are_missing_values(
    arms: tuple[int, ...], share: float, decision: str
) -> None:
    """They may be the slowest ones, so many of them prove no latency."""
    columns = traffic()
    lost = np.isin(columns["arm"], arms) & (np.random.default_rng(68).random(ROWS) < share)

    result = run(columns | {"latency_ms": np.where(lost, np.nan, columns["latency_ms"])})

    assert result.decision == decision


def test_one_failure_in_sixty_requests_is_no_rollback() -> None:
    columns = {name: values[:60] for name, values in traffic().items()}
    failed = np.zeros(60)
    failed[np.flatnonzero(columns["arm"] == 1)[3]] = 1.0

    assert run(columns | {"error": failed}).decision != "rollback"
