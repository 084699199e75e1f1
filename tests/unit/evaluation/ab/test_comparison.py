"""A/B comparisons: reference values from scipy, invalid input, error rates under peeking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from evaluation.ab.comparison import AbQuestion, AbVerdict, Scale, correct_categories, holm
from evaluation.ab.fixed import fixed_horizon, mann_whitney, t_quantile
from evaluation.ab.fixed_rates import rate_test
from evaluation.ab.sequential import SequentialTest, sequential

SCORE = AbQuestion(Scale.SCORE, higher_is_better=True)
LATENCY = AbQuestion(Scale.VALUE, higher_is_better=False)
RATE = AbQuestion(Scale.RATE, higher_is_better=False)


def split(n: int, seed: int, *, gain: float = 0.0, w: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n units and their arms; B's mean is higher by `gain`."""
    rng = np.random.default_rng(seed)
    is_b = rng.random(n) < w
    return rng.beta(4 * (0.7 + gain * is_b), 4 * (0.3 - gain * is_b)), is_b


@pytest.mark.parametrize("ties", [False, True])
def test_mann_whitney_is_scipys(ties: bool) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, 80), rng.normal(0.3, 1, 45)
    if ties:
        a, b = np.round(a), np.round(b)
    expected = stats.mannwhitneyu(b, a, method="asymptotic")

    u, p = mann_whitney(a, b)
    assert u == expected.statistic
    assert p == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("freedom", [25.0, 30.0, 58.7, 1000.0])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995, 0.9995])
def test_the_t_quantile_is_scipys(probability: float, freedom: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=1e-4)


@pytest.mark.parametrize("p_values", [(0.01, 0.04, 0.03), (0.5,), (0.001, 0.2, 0.03, 0.9, 0.04)])
def test_holm_agrees_with_the_step_down_definition(p_values: tuple[float, ...]) -> None:
    for level in (0.01, 0.05, 0.12):
        rejected = set()
        for rank, i in enumerate(np.argsort(p_values)):
            if p_values[i] > level / (len(p_values) - rank):
                break
            rejected.add(int(i))

        assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_the_fixed_test_of_rates_is_mann_whitneys_where_events_are_many() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.binomial(1, 0.3, 200).astype(float), rng.binomial(1, 0.4, 90).astype(float)

    result = fixed_horizon(a, b, RATE)

    assert result.p_value == pytest.approx(stats.mannwhitneyu(b, a, method="asymptotic").pvalue, abs=1e-9)


def test_the_interval_of_rates_ends_where_the_score_test_rejects() -> None:
    """Against the likelihood's own maximum under each difference, found by scipy."""
    events_a, n_a, events_b, n_b = 60, 200, 36, 90

    def p_of(delta: float) -> float:
        def loss(p: float) -> float:
            q = p + delta
            return -float(stats.binom.logpmf(events_a, n_a, p) + stats.binom.logpmf(events_b, n_b, q))

        inside = (max(0.0, -delta) + 1e-9, min(1.0, 1.0 - delta) - 1e-9)
        p = minimize_scalar(loss, bounds=inside, method="bounded", options={"xatol": 1e-10}).x
        q, n = p + delta, n_a + n_b
        error = math.sqrt((p * (1 - p) / n_a + q * (1 - q) / n_b) * n / (n - 1))
        distance = abs(events_b / n_b - events_a / n_a - delta) - 1 / (n_a * n_b)
        return float(2.0 * stats.norm.sf(distance / error))

    for edge in rate_test(events_a, n_a, events_b, n_b, alpha=0.05).interval:
        assert p_of(edge) == pytest.approx(0.05, abs=2e-4)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("n_a", "n_b", "rate"), [(3000, 30, 0.005), (2000, 100, 0.005), (30, 30, 0.05)])
def test_small_sides_are_rarely_told_apart_and_the_interval_agrees(n_a: int, n_b: int, rate: float) -> None:
    """By the probability of each outcome: 9 % were told apart, and in 63 to 98 % the interval disagreed."""
    wrong = seen = 0.0
    events_a = int(stats.binom.ppf(0.5, n_a, rate))
    for events_b in range(int(stats.binom.ppf(0.999, n_b, rate)) + 2):
        p_value, (low, high) = rate_test(events_a, n_a, events_b, n_b, alpha=0.05)
        chance = float(stats.binom.pmf(events_b, n_b, rate))
        wrong, seen = wrong + chance * (p_value <= 0.05), seen + chance
        assert (p_value <= 0.05) == (not low <= 0.0 <= high)

    assert wrong <= 0.05 < 0.99 < seen


def test_win_rate_and_d_agree_with_counting_pairs() -> None:
    rng = np.random.default_rng(7)
    a, b = np.round(rng.uniform(0, 1, 40), 1), np.round(rng.uniform(0.1, 1, 35), 1)
    wins = sum((y > x) + 0.5 * (y == x) for y in b for x in a) / (40 * 35)
    pooled = math.sqrt((a.var(ddof=1) * 39 + b.var(ddof=1) * 34) / 73)

    result = fixed_horizon(a, b, SCORE)
    assert result.win_rate == pytest.approx(wins)
    assert result.cohens_d == pytest.approx((b.mean() - a.mean()) / pooled)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"is outside \(0, 1\); use 0\.05"):
        AbQuestion(Scale.SCORE, higher_is_better=True, alpha=alpha)


@pytest.mark.parametrize("w", [0.0, 1.0, math.nan])
def test_a_split_without_a_coin_is_refused_and_changes_nothing(w: float) -> None:
    test = SequentialTest(SCORE)

    with pytest.raises(ValueError, match="is outside \\(0, 1\\); rows without a coin are not evidence"):
        test.add(0.5, is_b=True, w=w)
    assert test.result().n_b == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_fixed_test_refuses_invalid_outcomes(bad: float) -> None:
    with pytest.raises(ValueError, match="leave out what is unknown"):
        fixed_horizon([0.5] * 40, [0.5] * 39 + [bad], SCORE)


@pytest.mark.slow
def test_the_interval_of_a_sequential_test_contains_the_difference() -> None:
    missed = 0
    for seed in range(40):
        y, is_b = split(1500, seed, gain=0.1)
        low, high = sequential(y, is_b, 0.5, SCORE).interval or (math.nan, math.nan)
        missed += not low <= 0.1 <= high

    assert missed <= 2


def test_lower_latency_wins() -> None:
    rng = np.random.default_rng(8)

    result = fixed_horizon(rng.lognormal(7, 0.5, 300), rng.lognormal(6.7, 0.5, 300), LATENCY)
    assert result.verdict is AbVerdict.B_BETTER
    assert result.win_rate is not None
    assert result.win_rate > 0.6


def test_twenty_nine_outcomes_a_side_are_too_few() -> None:
    assert fixed_horizon([0.0] * 29, [1.0] * 300, SCORE).verdict is AbVerdict.TOO_FEW
    assert fixed_horizon([0.0] * 30, [1.0] * 30, SCORE).verdict is AbVerdict.B_BETTER


def test_identical_outcomes_show_nothing() -> None:
    result = fixed_horizon([1.0] * 50, [1.0] * 50, SCORE)

    assert (result.verdict, result.p_value, result.cohens_d) == (AbVerdict.NOT_SHOWN, 1.0, None)


@pytest.mark.calibration
@pytest.mark.parametrize("scale", list(Scale))
def test_peeking_without_a_difference_is_wrong_with_probability_at_most_alpha(scale: Scale) -> None:
    wrong = 0
    for seed in range(60):
        y, is_b = split(600, seed)
        y = {Scale.RATE: (y > 0.9) * 1.0, Scale.SCORE: y, Scale.VALUE: 1000 * y}[scale]
        question = AbQuestion(scale, higher_is_better=True, alpha=0.1)
        wrong += sequential(y, is_b, 0.5, question).verdict is not AbVerdict.NOT_SHOWN

    assert wrong <= 6


@pytest.mark.parametrize("w", [0.5, 0.1])
def test_a_better_b_is_found_at_any_split(w: float) -> None:
    y, is_b = split(6000, 9, gain=0.1, w=w)

    assert sequential(y, is_b, w, SCORE).verdict is AbVerdict.B_BETTER


def test_reversing_the_question_reverses_the_verdict() -> None:
    y, is_b = split(3000, 10, gain=0.1)
    worse = AbQuestion(Scale.SCORE, higher_is_better=False)

    assert sequential(y, is_b, 0.5, worse).verdict is AbVerdict.A_BETTER


@pytest.mark.slow
def test_a_slower_b_loses_the_sequential_test_of_values() -> None:
    rng = np.random.default_rng(11)
    is_b = rng.random(3000) < 0.5
    y = rng.lognormal(7, 0.5, 3000) * np.where(is_b, 1.3, 1.0)

    result = sequential(y, is_b, 0.5, LATENCY)
    u, _ = mann_whitney(y[~is_b], y[is_b])
    assert result.verdict is AbVerdict.A_BETTER
    assert result.win_rate == pytest.approx(1 - u / (is_b.sum() * (~is_b).sum()), abs=0.005)
    assert result.interval is not None
    assert result.win_rate is not None
    assert result.interval_of == "win rate"
    assert result.interval[0] <= result.win_rate <= result.interval[1] < 0.5


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("higher", [False, True])
def test_equal_values_share_the_win_rate_also_where_they_are_zero(higher: bool) -> None:
    """70 % of both sides' costs are 0; the shown win rate was 0.24, beside an interval around 0.5."""
    rng = np.random.default_rng(74)
    is_b = rng.random(4000) < 0.5
    cost = np.where(rng.random(4000) < 0.7, 0.0, 0.01 * np.exp(0.5 * rng.standard_normal(4000)))
    question = AbQuestion(Scale.VALUE, higher_is_better=higher)

    result = sequential(cost, is_b, 0.5, question)

    assert result.win_rate == pytest.approx(
        fixed_horizon(cost[~is_b], cost[is_b], question).win_rate, abs=0.005
    )
    assert result.interval is not None
    assert result.interval[0] <= (result.win_rate or 0.0) <= result.interval[1]


@pytest.mark.slow
def test_zeros_among_the_first_values_hide_no_difference_of_the_others() -> None:
    """The same evidence as with another value below all others in their place."""
    rng = np.random.default_rng(75)
    is_b, is_zero = rng.random(4000) < 0.5, rng.random(4000) < 0.7
    cost = 0.01 * np.exp(0.5 * rng.standard_normal(4000)) * np.where(is_b, 3.0, 1.0)

    zeros, others = (sequential(np.where(is_zero, low, cost), is_b, 0.5, LATENCY) for low in (0.0, 0.0005))

    assert zeros.verdict is AbVerdict.A_BETTER
    assert (zeros.win_rate, zeros.interval) == (others.win_rate, others.interval)


@pytest.mark.slow
def test_drift_shared_by_both_sides_is_not_a_difference() -> None:
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        w = np.where(
            np.arange(1000) < 500, 0.1, 0.9
        )  # the split is raised while quality falls: Simpson's trap
        y = (rng.random(1000) < np.where(np.arange(1000) < 500, 0.9, 0.5)) * 1.0
        question = AbQuestion(Scale.RATE, higher_is_better=True, alpha=0.1)
        wrong += sequential(y, rng.random(1000) < w, w, question).verdict is not AbVerdict.NOT_SHOWN

    assert wrong <= 4


@pytest.mark.slow
def test_the_sequential_verdict_stays() -> None:
    test = SequentialTest(RATE)
    rng = np.random.default_rng(12)
    for _ in range(400):
        is_b = bool(rng.random() < 0.5)
        test.add(float(not is_b), is_b=is_b, w=0.5)
    assert test.result().verdict is AbVerdict.B_BETTER
    for _ in range(2000):
        is_b = bool(rng.random() < 0.5)
        test.add(float(is_b), is_b=is_b, w=0.5)

    assert test.result().verdict is AbVerdict.B_BETTER


def test_a_category_that_is_significant_alone_is_not_among_many() -> None:
    rng = np.random.default_rng(13)
    results = {}
    for i in range(20):
        a, b = rng.beta(3, 1, 60), rng.beta(3, 1, 60)
        results[f"topic {i}"] = fixed_horizon(a, b, SCORE)
    assert any(r.verdict is not AbVerdict.NOT_SHOWN for r in results.values())

    assert all(c.verdict is AbVerdict.NOT_SHOWN for c in correct_categories(results))


def test_more_than_64_categories_are_refused() -> None:
    result = fixed_horizon([0.5] * 30, [0.5] * 30, SCORE)

    with pytest.raises(ValueError, match="65 categories exceed 64; group the rare ones"):
        correct_categories({str(i): result for i in range(65)})


@pytest.mark.parametrize(
    ("question", "y", "message"),
    [
        (SCORE, math.nan, "not a number"),
        (SCORE, 1.2, "exceeds 1"),
        (RATE, 0.5, "neither 0 nor 1"),
        (LATENCY, -3.0, "at least 0"),
    ],
)
def test_outcomes_off_the_scale_are_refused_and_change_nothing(
    question: AbQuestion, y: float, message: str
) -> None:
    test = SequentialTest(question)

    with pytest.raises(ValueError, match=message):
        test.add(y, is_b=True, w=0.5)
    assert test.result().n_b == 0
