"""Error rates of A/B tests: a sequential test read after every unit has a false winner with probability at
most alpha; a fixed test with interim looks on the same runs has not.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.ab_power import Effect, measure
from evaluation.ab.comparison import AbQuestion, AbVerdict, Scale
from evaluation.ab.fixed import fixed_horizon
from evaluation.ab.sequential import SequentialTest
from evaluation.ab.validity import FALSE_ALARM, AbValidity

pytestmark = pytest.mark.calibration
RUNS, UNITS, ALPHA = 250, 400, 0.1


def outcomes(scale: Scale, rng: np.random.Generator) -> np.ndarray:
    """Outcomes with the same distribution and the same drift on both sides."""
    drift = np.linspace(0.0, 0.4, UNITS)
    match scale:
        case Scale.RATE:
            return (rng.random(UNITS) < 0.7 - drift) * 1.0
        case Scale.SCORE:
            return np.clip(rng.beta(4, 2, UNITS) - drift, 0, 1)
        case Scale.VALUE:
            return rng.lognormal(6 + 2 * drift, 0.8)


def names_a_winner(y: np.ndarray, is_b: np.ndarray, w: float, question: AbQuestion) -> bool:
    """Whether a test read after each unit has a winner; the first verdict is that of the unit, and stays."""
    test = SequentialTest(question)
    test.add_all(y, is_b, np.full(len(y), w))
    return test.verdict is not AbVerdict.NOT_SHOWN


@pytest.mark.parametrize("w", [0.5, 0.1])
@pytest.mark.parametrize("scale", list(Scale))
def test_a_false_winner_has_probability_at_most_alpha(scale: Scale, w: float) -> None:
    question = AbQuestion(scale, higher_is_better=True, alpha=ALPHA)
    wrong = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        wrong += names_a_winner(outcomes(scale, rng), rng.random(UNITS) < w, w, question)

    assert wrong <= ALPHA * RUNS


def test_a_fixed_test_with_interim_looks_exceeds_its_alpha() -> None:
    question = AbQuestion(Scale.SCORE, higher_is_better=True, alpha=ALPHA)
    wrong = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        y, is_b = rng.beta(4, 2, UNITS), rng.random(UNITS) < 0.5
        looks = (fixed_horizon(y[:n][~is_b[:n]], y[:n][is_b[:n]], question) for n in range(80, UNITS, 20))
        wrong += any(look.verdict in (AbVerdict.A_BETTER, AbVerdict.B_BETTER) for look in looks)

    assert wrong > 2 * ALPHA * RUNS


def test_one_look_at_the_planned_size_is_wrong_with_probability_alpha() -> None:
    question = AbQuestion(Scale.SCORE, higher_is_better=True, alpha=ALPHA)
    wrong = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        y = rng.beta(4, 2, 120)
        wrong += fixed_horizon(y[:60], y[60:], question).verdict is not AbVerdict.NOT_SHOWN

    assert stats.binom.ppf(0.001, 1000, ALPHA) <= wrong <= stats.binom.ppf(0.999, 1000, ALPHA)


@pytest.mark.parametrize("graded", [0.1, 0.5, 0.97])
def test_a_healthy_test_is_called_invalid_at_most_as_often_as_promised(graded: float) -> None:
    invalid = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        test = AbValidity()
        test.add(rng.random(3000) < 0.5, np.full(3000, 0.5), rng.random(3000) < graded)
        invalid += test.reason() is not None

    assert invalid <= math.ceil(stats.binom.ppf(0.999, 400, FALSE_ALARM))


def test_a_sequential_test_needs_at_most_a_fifth_more_units_than_the_tuned_msprt() -> None:
    found = measure(Effect(0.4, 0.5, 6000), runs=200)

    assert np.median(found.ours) <= 1.2 * np.median(found.msprt)
    assert (found.disagree, found.missed <= 0.05 * 200) == (0, True)
