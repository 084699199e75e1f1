"""Properties of intervals, A/B tests, guards and sample sizes, for arbitrary input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.ab.outcomes import OutcomeLedger
from controller.store.rows import AbOutcome
from evaluation.ab.comparison import AbQuestion, Scale, holm
from evaluation.ab.fixed import mann_whitney
from evaluation.ab.sample_size import required_sample_size
from evaluation.ab.sequential import SequentialTest
from evaluation.betting.intervals import EventCount, MeanDifference, ratio_interval, ratio_log_e
from evaluation.guards import ErrorGuard
from serving.messages import RequestRecord

weights = st.floats(0.01, 0.99)
outcomes = st.floats(0.0, 1.0)
RECORD = RequestRecord(
    seq=1, request_id="q", answer_id=None, unit="u", bucket=5, arm=0, w=0.5, assigned_by="request", stage=0,
    rollout="r-1", at_s=1.0, done_at_s=2.0, status=200, outcome="answered", served_arm=0, error=False,
    cause=None, latency_ms=900.0, ttft_ms=None, itl_ms=None, prompt_tokens=5, completion_tokens=7,
    finish_reason="stop", empty=False, path="/v1/chat/completions", router="x", epoch=1, revision=1,
)  # fmt: skip


@pytest.mark.slow
@given(w=weights, null=st.floats(0.2, 5.0), share=st.floats(0.0, 1.0), worse=st.booleans())
def test_the_ratio_bets_mean_is_at_most_one_under_its_null(
    w: float, null: float, share: float, worse: bool
) -> None:
    ratio = null * share if worse else null / max(share, 0.01)
    p_canary = w * ratio / (w * ratio + 1 - w)
    wealth = [math.exp(ratio_log_e([EventCount(w, k, 1 - k)], null, worse=worse)) for k in (0, 1)]

    assert (1 - p_canary) * wealth[0] + p_canary * wealth[1] <= 1 + 1e-9


@pytest.mark.slow
@given(w=weights, canary=st.integers(0, 60), stable=st.integers(0, 60), alpha=st.floats(0.001, 0.3))
def test_the_ratio_interval_contains_the_observed_ratio(
    w: float, canary: int, stable: int, alpha: float
) -> None:
    low, high = ratio_interval([EventCount(w, canary, stable)], alpha=alpha)
    observed = (canary / w) / (stable / (1 - w)) if stable else math.inf

    assert low <= max(observed, 1e-4)
    assert high >= min(observed, 1e4)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    before=st.lists(st.tuples(outcomes, st.booleans()), max_size=12),
    w=weights,
    values=st.lists(outcomes, min_size=1, max_size=4),
    higher=st.booleans(),
)
def test_the_sequential_tests_next_factor_has_mean_one_without_a_difference(
    before: list[tuple[float, bool]], w: float, values: list[float], higher: bool
) -> None:
    def wealth(*last: tuple[float, bool]) -> dict[str, float]:
        test = SequentialTest(AbQuestion(Scale.SCORE, higher_is_better=higher))
        for y, is_b in (*before, *last):
            test.add(y, is_b=is_b, w=w)
        return {side.value: math.exp(log_e) for side, log_e in test.log_e.items()}

    now = wealth()
    for side in now:
        mean = sum((w * wealth((y, True))[side] + (1 - w) * wealth((y, False))[side]) for y in values) / len(
            values
        )
        assert math.isclose(mean, now[side], rel_tol=1e-9)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(outcomes, st.booleans(), weights), max_size=60))
def test_the_mean_difference_is_always_an_interval_within_its_range(
    rows: list[tuple[float, bool, float]],
) -> None:
    sequence = MeanDifference(0.05)
    for y, canary, w in rows:
        sequence.add(y, canary=canary, w=w)
    low, high = sequence.interval()

    assert -1.0 <= low <= 1.0
    assert -1.0 <= high <= 1.0


@pytest.mark.slow
@given(p_values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)

    assert all(p <= q <= 1.0 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


@pytest.mark.slow
@given(a=st.lists(outcomes, min_size=2, max_size=30), b=st.lists(outcomes, min_size=2, max_size=30))
def test_swapping_the_sides_reverses_u(a: list[float], b: list[float]) -> None:
    forth, back = mann_whitney(np.array(a), np.array(b)), mann_whitney(np.array(b), np.array(a))

    assert forth[0] + back[0] == len(a) * len(b)
    assert math.isclose(forth[1], back[1])


@pytest.mark.slow
@given(
    requests=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 20)), max_size=80),
    cut=st.integers(0, 80),
)
def test_a_guard_restored_at_any_point_returns_the_same_verdicts(
    requests: list[tuple[bool, bool, int]], cut: int
) -> None:
    guard, restored = ErrorGuard(), ErrorGuard()
    units = [f"u{row % 60}" for row in range(len(requests))]
    added = [
        {"unit": u, "canary": c, "w": weight / 20, "error": e, "rejected": not e}
        for u, (c, e, weight) in zip(units, requests, strict=True)
    ]
    expected = [guard.add(**one) for one in added]  # type: ignore[arg-type]
    verdicts = [restored.add(**one) for one in added[:cut]]  # type: ignore[arg-type]
    restored = ErrorGuard.from_mapping(restored.to_mapping())
    verdicts += [restored.add(**one) for one in added[cut:]]  # type: ignore[arg-type]

    assert verdicts == expected


@pytest.mark.slow
@given(effect=st.floats(0.001, 2.0), sd=st.floats(0.01, 3.0), power=st.floats(0.5, 0.99))
def test_half_the_effect_needs_four_times_the_units(effect: float, sd: float, power: float) -> None:
    whole, half = (required_sample_size(e, sd=sd, power=power) for e in (effect, effect / 2))

    assert abs(half.n_a - 4 * whole.n_a) <= 4


@pytest.mark.slow
@settings(max_examples=50)
@given(data=st.data(), arms=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=20))
def test_an_ab_test_counts_the_same_in_any_order_of_arrival(
    data: st.DataObject, arms: list[tuple[bool, int]]
) -> None:
    records = [
        replace(RECORD, seq=i, request_id=f"q{i}", unit=f"u{unit}", arm=int(is_b), at_s=float(i))
        for i, (is_b, unit) in enumerate(arms)
    ]

    def counted(order: list[RequestRecord]) -> list[AbOutcome]:
        ledger = OutcomeLedger("r-1", "latency_ms", 600.0)
        for record in order:
            ledger.add_request(record)
        return ledger.settle(1e9, 1e9)

    assert counted(data.draw(st.permutations(records))) == counted(records)
