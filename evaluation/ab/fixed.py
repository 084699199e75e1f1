"""Fixed-horizon A/B test: one test of all units, and stratified by the split where that changed.

Of values and scores the question is the win rate, and the p-value is the larger of two: Brunner and Munzel's,
which holds where the sides differ in spread, and Mann and Whitney's, which holds where few units are off the
usual value. (Flags of 0.5 % at 6000 : 300: the small side often has none, its variance is estimated as zero,
and Brunner and Munzel's alone names the same winner in 22 % of tests of identical versions.) Of rates it is
the difference, by the score test and its inversion (`fixed_rates.py`).

Units drawn at different splits must not be pooled: where the split went from 5 to 50 % while quality drifted,
the pooled test names a winner between identical versions. Each weight is a stratum of its own (van Elteren).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation.ab.comparison import (
    MIN_PER_SIDE,
    AbQuestion,
    AbResult,
    AbVerdict,
    Floats,
    Scale,
    cohens_d,
    moments_of,
)
from evaluation.ab.fixed_rates import fisher_of_strata, rate_test

MAX_STRATA = 64
MANY_EVENTS = 10_000  # or units without one, from which on the normal approximation is as good as exact
MAX_Z = 37.0  # a p-value of 1e-299


def fixed_horizon(a: ArrayLike, b: ArrayLike, question: AbQuestion) -> AbResult:
    """Two-sided test, win rate, d and interval of the same question, so that both agree.

    a, b: outcomes of each side, independent units. TOO_FEW below 30 a side, with p = 1. Of values and scores
    the interval is of the win rate (Brunner and Munzel, up to 0.5 where Mann-Whitney shows nothing), of rates
    of the difference (`fixed_rates.py`; with enough events the test is Mann-Whitney's, ties and continuity
    corrected). Raises ValueError for outcomes that are not on the scale.
    Source: Brunner & Munzel (2000); Mann & Whitney (1947); Miettinen & Nurminen (1985).
    Check: scipy.stats.brunnermunzel(b, a); scipy.stats.mannwhitneyu(b, a, method="asymptotic").
    """
    ya, yb = (np.asarray(side, dtype=np.float64) for side in (a, b))
    for value in np.concatenate((ya, yb)):
        question.check(float(value))
    a_moments, b_moments = moments_of(ya), moments_of(yb)
    (n_a, mean_a, _), (n_b, mean_b, _) = a_moments, b_moments
    win_rate, p_value, interval = None, 1.0, None
    verdict = AbVerdict.TOO_FEW
    if min(n_a, n_b) >= MIN_PER_SIDE:
        u, p_value = mann_whitney(ya, yb)
        win_rate = u / (n_a * n_b) if question.higher_is_better else 1 - u / (n_a * n_b)
        if question.scale is Scale.RATE:
            events_a, events_b = round(mean_a * n_a), round(mean_b * n_b)
            p_value, interval = rate_test(events_a, n_a, events_b, n_b, alpha=question.alpha)
        else:
            p_value, interval = _win_interval(brunner_munzel(ya, yb), p_value, question)
        verdict = AbVerdict.NOT_SHOWN
        if p_value <= question.alpha:
            verdict = AbVerdict.B_BETTER if win_rate > 0.5 else AbVerdict.A_BETTER
    return AbResult(
        verdict,
        "fixed horizon",
        n_a,
        n_b,
        mean_a if n_a else None,
        mean_b if n_b else None,
        mean_b - mean_a if n_a and n_b else None,
        interval,
        "difference" if question.scale is Scale.RATE else "win rate",
        win_rate,
        cohens_d(a_moments, b_moments),
        p_value,
        question.alpha,
    )


def fixed_by_split(y: ArrayLike, is_b: ArrayLike, w: ArrayLike, question: AbQuestion) -> AbResult:
    """The fixed test of units drawn at several splits; `fixed_horizon` where there is only one.

    w: P(B) at each unit's draw. Means, difference, win rate and interval are averages over the splits, of
    the splits with at least two units on each side. Raises ValueError for outcomes off the scale, and beyond
    64 splits.
    Source: van Elteren, On the combination of independent two-sample tests of Wilcoxon (1960).
    """
    outcomes, weights = np.asarray(y, dtype=np.float64), np.asarray(w, dtype=np.float64)
    arms = np.asarray(is_b, dtype=np.bool_)
    splits = np.unique(weights)
    if len(splits) <= 1:
        return fixed_horizon(outcomes[~arms], outcomes[arms], question)
    if len(splits) > MAX_STRATA:
        raise ValueError(
            f"the split has {len(splits)} values, and a fixed test compares at most {MAX_STRATA}; "
            "use the sequential test, which is valid at any"
        )
    for value in outcomes:
        question.check(float(value))
    pairs = [(outcomes[(weights == s) & ~arms], outcomes[(weights == s) & arms]) for s in splits]
    return _combined([(a, b) for a, b in pairs if min(len(a), len(b)) > 1], question)


def _combined(strata: Sequence[tuple[Floats, Floats]], question: AbQuestion) -> AbResult:
    """Results of the strata, weighted: ranks by 1 / (n + 1), means by n_a n_b / n."""
    excess = variance = wins = pairs = 0.0
    mean_a = mean_b = spread = size = win_variance = 0.0
    within = [0, 0.0]
    n_a, n_b = (sum(len(stratum[side]) for stratum in strata) for side in (0, 1))
    for a, b in strata:
        n = len(a) + len(b)
        u, var_u = rank_sum(a, b)
        excess += (u - len(a) * len(b) / 2) / (n + 1)
        variance += var_u / (n + 1) ** 2
        wins, pairs = wins + u / (n + 1), pairs + len(a) * len(b) / (n + 1)
        win_variance += (len(a) * len(b) / (n + 1)) ** 2 * brunner_munzel(a, b).variance
        share, one, two = len(a) * len(b) / n, moments_of(a), moments_of(b)
        mean_a, mean_b, size = mean_a + share * one.mean, mean_b + share * two.mean, size + share
        spread += share**2 * (one.square / (one.n - 1) / one.n + two.square / (two.n - 1) / two.n)
        within = [within[0] + n - 2, within[1] + one.square + two.square]
    enough = min(n_a, n_b) >= MIN_PER_SIDE and bool(strata)
    p_value = math.erfc(abs(excess) / math.sqrt(2 * variance)) if enough and variance > 0 else 1.0
    win_rate = (wins / pairs if question.higher_is_better else 1 - wins / pairs) if enough else None
    difference = (mean_b - mean_a) / size if size else None
    radius = NormalDist().inv_cdf(1 - question.alpha / 2) * math.sqrt(spread) / size if size else 0.0
    interval = (difference - radius, difference + radius) if enough and difference is not None else None
    if enough and question.scale is not Scale.RATE:
        whole = WinRate(wins / pairs, win_variance / pairs**2, math.inf)
        p_value, interval = _win_interval(whole, p_value, question)
    elif enough and interval is not None:
        p_value, interval = _exact(strata, p_value, interval, question.alpha)
    verdict = AbVerdict.NOT_SHOWN if enough else AbVerdict.TOO_FEW
    if win_rate is not None and p_value <= question.alpha:
        verdict = AbVerdict.B_BETTER if win_rate > 0.5 else AbVerdict.A_BETTER
    sd = math.sqrt(within[1] / within[0]) if within[0] > 0 else 0.0
    return AbResult(
        verdict,
        "fixed horizon, by split",
        n_a,
        n_b,
        mean_a / size if size else None,
        mean_b / size if size else None,
        difference,
        interval,
        "difference" if question.scale is Scale.RATE else "win rate",
        win_rate,
        difference / sd if difference is not None and sd > 0 else None,
        p_value,
        question.alpha,
    )


def _exact(
    strata: Sequence[tuple[Floats, Floats]], p_value: float, interval: tuple[float, float], alpha: float
) -> tuple[float, tuple[float, float]]:
    """The larger of the p-value and, unless there are very many events, that of the exact test; and the
    interval, which contains 0 exactly where that is above alpha."""
    tables = [(int(a.sum()), len(a), int(b.sum()), len(b)) for a, b in strata]
    if sum(min(a + b, n_a + n_b - a - b) for a, n_a, b, n_b in tables) <= MANY_EVENTS:
        p_value = max(p_value, fisher_of_strata(tables))
    low, high = interval
    if p_value > alpha:
        return p_value, (min(low, 0.0), max(high, 0.0))
    if low <= 0.0 <= high:
        p_value = math.nextafter(alpha, 1.0)
    return p_value, interval


class WinRate(NamedTuple):
    """P(an outcome of B is higher), ties half; variance and degrees of freedom of the estimate."""

    share: float
    variance: float
    freedom: float


def brunner_munzel(a: Floats, b: Floats) -> WinRate:
    """The win rate of b, whose variance is estimated without assuming equal spreads; two or more a side.

    Source: Brunner & Munzel, The nonparametric Behrens-Fisher problem (2000).
    """
    of_b, of_a = _placements(b, a), _placements(a, b)
    part_a, part_b = float(of_a.var(ddof=1)) / len(a), float(of_b.var(ddof=1)) / len(b)
    total = part_a + part_b
    if total <= 0.0:
        return WinRate(float(of_b.mean()), 0.0, math.inf)
    freedom = total**2 / (part_a**2 / (len(a) - 1) + part_b**2 / (len(b) - 1))
    return WinRate(float(of_b.mean()), total, freedom)


def _placements(y: Floats, others: Floats) -> Floats:
    """For each outcome the share of the other side's that are lower, ties half."""
    ordered = np.sort(others)
    counts = np.searchsorted(ordered, y, "left") + np.searchsorted(ordered, y, "right")
    return np.asarray(counts / (2.0 * len(others)), dtype=np.float64)


def _win_interval(win: WinRate, rank_p: float, question: AbQuestion) -> tuple[float, tuple[float, float]]:
    """The two-sided p-value and the interval of the win rate in the direction of better: it contains 0.5
    where the p-value is above alpha.

    rank_p: Mann and Whitney's, which the p-value is at least; alone where the variance is zero: of sides
    without any overlap, or of equal constants.
    """
    share = win.share if question.higher_is_better else 1.0 - win.share
    p_value, low, high = _spread_interval(win, share, question.alpha)
    if max(p_value, rank_p) > question.alpha:
        low, high = min(low, 0.5), max(high, 0.5)
    return max(p_value, rank_p), (low, high)


def _spread_interval(win: WinRate, share: float, alpha: float) -> tuple[float, float, float]:
    """Brunner and Munzel's p-value and interval around `share`; (0, share, share) where the variance is 0."""
    if win.variance <= 0.0:
        return 0.0, share, share
    error = math.sqrt(win.variance)
    target, low, high = abs(share - 0.5) / error, 0.0, MAX_Z
    for _ in range(80):  # p is that of the z whose t quantile is the observed one
        middle = (low + high) / 2
        low, high = (middle, high) if _t_of_z(middle, win.freedom) <= target else (low, middle)
    radius = error * _t_of_z(NormalDist().inv_cdf(1 - alpha / 2), win.freedom)
    return math.erfc(low / math.sqrt(2)), max(0.0, share - radius), min(1.0, share + radius)


def mann_whitney(a: Floats, b: Floats) -> tuple[float, float]:
    """U of b (pairs in which b is higher, ties half) and the two-sided p-value."""
    u, variance = rank_sum(a, b)
    if variance <= 0:
        return u, 1.0
    z = (abs(u - len(a) * len(b) / 2) - 0.5) / math.sqrt(variance)
    return u, min(1.0, math.erfc(z / math.sqrt(2)))


def rank_sum(a: Floats, b: Floats) -> tuple[float, float]:
    """U of b and its variance without a difference, corrected for ties."""
    n_a, n_b = len(a), len(b)
    ordered = np.sort(a)
    u = float((np.searchsorted(ordered, b, "left") + np.searchsorted(ordered, b, "right")).sum()) / 2
    _, ties = np.unique(np.concatenate((a, b)), return_counts=True)
    n = n_a + n_b
    tied = float((ties.astype(np.float64) ** 3 - ties).sum())
    return u, n_a * n_b / 12 * (n + 1 - tied / (n * (n - 1)))


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile for at least 25 degrees of freedom, within 1e-4 for probabilities up to 0.9995.

    Source: Abramowitz & Stegun 26.7.5. Check: t_quantile(0.975, 30) = 2.04227.
    """
    return _t_of_z(NormalDist().inv_cdf(probability), freedom)


def _t_of_z(z: float, freedom: float) -> float:
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4
