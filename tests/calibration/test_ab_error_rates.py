"""Error rates of A/B tests: a sequential test read after every unit has a false winner with probability at
most alpha; a fixed test with interim looks on the same runs has not.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.gate.ab_trials import AbRun
from evaluation.ab.comparison import AbQuestion, AbVerdict, Scale
from evaluation.ab.fixed import fixed_horizon
from evaluation.ab.sequential import SequentialTest
from evaluation.ab.validity import FALSE_ALARM, AbValidity
from tests.samples import runs

pytestmark = pytest.mark.calibration
UNITS, ALPHA = 400, 0.1
RUNS = runs(80, whole=250)  # 80 fail in 99 of 100 cases at twice alpha, which peeking exceeds


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


@pytest.mark.parametrize(
    ("n_a", "n_b", "share", "size"),
    [(12_000, 600, 0.002, 1.0), (1900, 100, 0.03, 1.0), (540, 60, 0.02, 1.0), (760, 40, 0.1, 0.5)],
)
def test_few_units_off_the_usual_value_name_a_winner_at_most_as_often_as_promised(
    n_a: int, n_b: int, share: float, size: float
) -> None:
    """Flags, thumbs, and judged scores that are nearly always full: identical versions, uneven splits."""
    question, wrong, runs = AbQuestion(Scale.SCORE, higher_is_better=False, alpha=0.05), 0, 400
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        a, b = ((rng.random(n) < share) * size for n in (n_a, n_b))
        wrong += fixed_horizon(a, b, question).verdict is not AbVerdict.NOT_SHOWN

    assert wrong <= stats.binom.ppf(0.999, runs, 0.05)


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
    trial = AbRun("calibration", 0.4, 0.5, 6000)
    rows = [trial(rep) for rep in range(200)]
    ours, msprt = (np.median([row[name] or trial.units for row in rows]) for name in ("ours", "msprt"))

    assert ours <= 1.2 * msprt
    assert {row["interval"] for row in rows} == {"agrees"}
