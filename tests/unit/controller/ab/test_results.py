"""Statistics of an A/B test's outcomes: missing values, invalid tests, fixed sample sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.ab.results import AbEvaluator
from controller.ab.spec import parse_ab
from controller.store.rows import AbOutcome
from evaluation.ab.comparison import AbVerdict
from tests.fakes.ab_maker import BODY


@pytest.mark.slow
def test_a_sample_ratio_mismatch_makes_the_test_invalid() -> None:
    spec, rng = parse_ab(BODY), np.random.default_rng(0)
    sides = [bool(side) for side in rng.random(4000) < 0.4]
    rows = [AbOutcome(n, side, 0.5, 0.9 if side else 0.1, float(n)) for n, side in enumerate(sides)]

    evaluator = AbEvaluator(spec, rows)
    assert evaluator.result().verdict is AbVerdict.INVALID
    assert (evaluator.note() or "").startswith("B has 40.4% of the units, the split is 50.0%")


def test_a_test_without_any_score_is_noted() -> None:
    rows = [AbOutcome(n, n % 2 == 1, 0.5, None, float(n)) for n in range(120)]

    evaluator = AbEvaluator(parse_ab(BODY), rows)
    assert (evaluator.result().verdict, evaluator.note()) == (AbVerdict.NOT_SHOWN, "no value in 120 requests")


def test_a_fractional_hallucination_score_is_accepted() -> None:
    evaluator = AbEvaluator(parse_ab(BODY | {"metric": "hallucinated"}), [AbOutcome(1, True, 0.5, 0.5, 1.0)])

    assert (evaluator.result().n_b, evaluator.missing) == (1, [0, 0])


@pytest.mark.parametrize(("metric", "y"), [("latency_ms", -3.0), ("quality", 1.5), ("error", math.nan)])
def test_an_outcome_off_its_scale_counts_as_missing(metric: str, y: float) -> None:
    evaluator = AbEvaluator(parse_ab(BODY | {"metric": metric}), [AbOutcome(1, True, 0.5, y, 1.0)])

    assert (evaluator.result().n_b, evaluator.missing) == (0, [0, 1])


def test_a_fixed_test_has_no_verdict_until_both_sides_are_full() -> None:
    spec = parse_ab(BODY | {"mode": "fixed", "sample_size": 50})
    rows = [AbOutcome(n, n % 2 == 1, 0.5, 0.9 if n % 2 else 0.1, float(n)) for n in range(140)]

    early, late = AbEvaluator(spec, rows[:99]).result(), AbEvaluator(spec, rows).result()
    assert (early.verdict, early.p_value, early.interval) == (AbVerdict.TOO_FEW, 1.0, None)
    assert AbEvaluator(spec, rows[:99]).note() == "evaluated once, at 50 units a side; it has 50 and 49"
    assert (late.verdict, late.n_a, late.n_b) == (AbVerdict.B_BETTER, 50, 50)


def test_units_on_both_sides_are_noted_and_many_make_the_test_invalid() -> None:
    rows = [AbOutcome(n, n % 2 == 1, 0.5, 0.9 if n % 2 else 0.1, float(n)) for n in range(200)]
    evaluator = AbEvaluator(parse_ab(BODY), rows)
    evaluator.note_crossed(2)
    few = evaluator.result().verdict, evaluator.note()
    evaluator.note_crossed(40)

    assert few == (AbVerdict.B_BETTER, "2 of 200 units are on both sides; each counts on its first")
    assert evaluator.result().verdict is AbVerdict.INVALID
    assert (evaluator.note() or "").startswith("40 of 200 units are on both sides")


def test_a_fixed_test_of_units_at_two_splits_is_stratified() -> None:
    rng = np.random.default_rng(4)
    rows = []
    for n in range(4000):
        w, mean = (0.05, 0.8) if n < 2000 else (0.5, 0.4)  # the split is raised while quality falls
        rows.append(AbOutcome(n, bool(rng.random() < w), w, float(rng.random() < mean), float(n)))
    spec = parse_ab(BODY | {"mode": "fixed", "sample_size": 1000})

    result = AbEvaluator(spec, rows).result()
    assert (result.verdict, result.method) == (AbVerdict.NOT_SHOWN, "fixed horizon, by split")
