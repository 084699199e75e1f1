"""Fixed-horizon test of the difference of two rates, and the interval that is its inversion.

The test of a difference `delta` is the score test: the deviation from delta over its standard error with the
rates that fit best under it (at delta = 0, Mann and Whitney's with ties). With fewer than five expected
events or non-events on a side its normal approximation is wrong twice as often as it should be; there the
deviations are counted instead, over all outcomes of both sides at those rates, and a verdict needs Fisher's
exact test as well. The interval holds each delta that the test does not reject, so it excludes 0 exactly when
there is a verdict.

Source: Miettinen & Nurminen, Comparative analysis of two rates (1985); Storer & Kim, Exact properties of some
exact test statistics (1990); Fisher (1935).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, hypergeom

from evaluation.ab.comparison import Floats

MIN_EXPECTED = 5.0
STEPS = 20  # of a bisection: a millionth of the scale
UNLIKELY = 1e-9  # outcomes of a side that are left out, in all
SAME = 1e-9  # relative: a deviation as large as the observed one


class RateTest(NamedTuple):
    """Two-sided p-value of no difference, and the interval of the difference, B less A."""

    p_value: float
    interval: tuple[float, float]


def rate_test(events_a: int, n_a: int, events_b: int, n_b: int, *, alpha: float) -> RateTest:
    """The test of two rates: events of n units on each side. Check: 2 of 30 and 10 of 30 give p = 0.011 by
    counting, p = 0.021 by Fisher's, and the interval 0.068..0.462."""
    pooled = (events_a + events_b) / (n_a + n_b)
    is_counted = min(n_a, n_b) * min(pooled, 1.0 - pooled) < MIN_EXPECTED
    found = (events_a, n_a, events_b, n_b)

    def p_of(delta: float) -> float:
        return _counted_p(found, delta) if is_counted else _normal_p(found, delta)

    p_value = max(p_of(0.0), fisher(*found)) if is_counted else p_of(0.0)
    difference = events_b / n_b - events_a / n_a
    low, high = _edge(p_of, difference, -1.0, alpha), _edge(p_of, difference, 1.0, alpha)
    if p_value > alpha:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0.0 <= high:  # counting alone would not reject
        p_value = max(p_value, math.nextafter(alpha, 1.0))
    return RateTest(p_value, (low, high))


def fisher(events_a: int, n_a: int, events_b: int, n_b: int) -> float:
    """Fisher's exact test, two-sided: twice the smaller tail."""
    of = hypergeom(n_a + n_b, events_a + events_b, n_b)
    return float(min(1.0, 2.0 * min(of.cdf(events_b), of.sf(events_b - 1))))


def fisher_of_strata(strata: Sequence[tuple[int, int, int, int]]) -> float:
    """Fisher's test of all strata together, two-sided: twice the smaller tail of B's events, given those of
    both sides in each stratum. Each: events_a, n_a, events_b, n_b.

    Source: Cochran (1954), Mantel & Haenszel (1959), exactly. Check: one stratum gives `fisher`.
    """
    chance, observed = np.ones(1), 0
    for events_a, n_a, events_b, n_b in strata:
        events = events_a + events_b
        first, last = max(0, events - n_a), min(events, n_b)
        chance = np.convolve(chance, hypergeom(n_a + n_b, events, n_b).pmf(np.arange(first, last + 1)))
        observed += events_b - first
    return float(min(1.0, 2.0 * min(chance[: observed + 1].sum(), chance[observed:].sum())))


def _edge(p_of: Callable[[float], float], inside: float, outside: float, alpha: float) -> float:
    """Where the test begins to reject, between the observed difference and the end of the scale."""
    if p_of(outside) > alpha:
        return outside
    for _ in range(STEPS):
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if p_of(middle) > alpha else (inside, middle)
    return inside


def _normal_p(found: tuple[int, int, int, int], delta: float) -> float:
    events_a, n_a, events_b, n_b = found
    z = _deviation(np.array([events_a]), n_a, np.array([events_b]), n_b, delta)[0]
    return math.erfc(max(float(z), 0.0) / math.sqrt(2.0))


def _counted_p(found: tuple[int, int, int, int], delta: float) -> float:
    """Probability of a deviation as large as the observed one, at the rates that fit best under `delta`."""
    events_a, n_a, events_b, n_b = found
    rate = float(_best_rate(np.array([events_a]), n_a, np.array([events_b]), n_b, delta)[0])
    sides, other = [], min(max(rate + delta, 0.0), 1.0)
    for n, p in ((n_a, rate), (n_b, other)):
        first, last = int(binom.ppf(UNLIKELY, n, p)), int(binom.isf(UNLIKELY, n, p))
        sides.append(np.arange(max(first, 0), min(last, n) + 1))
    a, b = np.meshgrid(*sides, indexing="ij")
    chance = np.outer(binom.pmf(sides[0], n_a, rate), binom.pmf(sides[1], n_b, other))
    observed = _deviation(np.array([events_a]), n_a, np.array([events_b]), n_b, delta)[0]
    is_as_large = _deviation(a.ravel(), n_a, b.ravel(), n_b, delta) >= observed * (1.0 - SAME)
    return float(min(1.0, chance.ravel()[is_as_large].sum() + 2.0 * UNLIKELY))


def _deviation(a: Floats, n_a: int, b: Floats, n_b: int, delta: float) -> Floats:
    """Distance of the observed difference from `delta` in standard errors, less Mann-Whitney's correction."""
    rate = _best_rate(a, n_a, b, n_b, delta)
    other = np.clip(rate + delta, 0.0, 1.0)
    n = n_a + n_b
    variance = (rate * (1.0 - rate) / n_a + other * (1.0 - other) / n_b) * n / (n - 1.0)
    distance = np.abs(b / n_b - a / n_a - delta)
    apart = np.where(distance > 1e-12, np.inf, 0.0)
    z: Floats = np.where(
        variance > 0.0, (distance - 1.0 / (n_a * n_b)) / np.sqrt(np.maximum(variance, 1e-300)), apart
    )
    return z


def _best_rate(a: Floats, n_a: int, b: Floats, n_b: int, delta: float) -> Floats:
    """The likeliest rate of A where B's is `delta` higher: the root of Miettinen and Nurminen's cubic."""
    n = n_a + n_b
    square = ((n_b + 2.0 * n_a) * delta - n - a - b) / (3.0 * n)
    linear = ((n_a * delta - n - 2.0 * a) * delta + a + b) / (3.0 * n)
    constant = a * delta * (1.0 - delta) / (2.0 * n)
    c = square**3 - 1.5 * linear * square + constant
    size = np.sqrt(np.maximum(square**2 - linear, 0.0)) * np.where(c < 0.0, -1.0, 1.0)
    ratio = np.clip(c / np.where(size == 0.0, 1.0, size) ** 3, -1.0, 1.0)
    root = 2.0 * size * np.cos((math.pi + np.arccos(ratio)) / 3.0) - square
    rate: Floats = np.clip(root, max(0.0, -delta), min(1.0, 1.0 - delta))
    return rate
