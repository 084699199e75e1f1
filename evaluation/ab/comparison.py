"""Comparison of an A/B test: is B *better* than A? In two modes.

- sequential (the default): valid at every look, so it can stop at the first verdict. Two bets on the coin,
  one that B is better and one that A is; a verdict is wrong with probability at most alpha over all looks.
  Drift that both arms share cancels, and any split and unit is valid, since w belongs to the draw.
- fixed horizon: Mann-Whitney once, at a sample size chosen in advance (`sample_size.required_sample_size`),
  with the win rate, Cohen's d and Welch's interval. Stopping early on an interim result breaks its alpha.

Results by category are corrected for their number (Holm), in both modes.

Invariant: no canary gate tests for better, and an A/B test never moves traffic by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.betting.histogram import WIDTH, LogHistogram
from evaluation.betting.intervals import MeanDifference

Floats = NDArray[np.float64]

MIN_PER_SIDE = 30
MAX_CATEGORIES = 64
_BETS = (0.02, 0.05, 0.12, 0.25, 0.45, 0.7, 0.9)
_UNIT_BINS = 256


class Scale(StrEnum):
    """Scale of an outcome. RATE: 0 or 1. SCORE: within 0..1. VALUE: at least 0 (latency, tokens)."""

    RATE = "rate"
    SCORE = "score"
    VALUE = "value"


class AbVerdict(StrEnum):
    """Verdict so far. TOO_FEW: a fixed-horizon test has fewer than 30 outcomes on a side. INVALID: the
    experiment itself is broken (`validity.py`), so that no difference means anything."""

    B_BETTER = "b better"
    A_BETTER = "a better"
    NOT_SHOWN = "no difference shown"
    TOO_FEW = "too few"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class AbQuestion:
    """What an A/B test compares. Raises ValueError for an alpha outside (0, 1)."""

    scale: Scale
    higher_is_better: bool
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha {self.alpha} is outside (0, 1); use 0.05")

    def check(self, y: float) -> None:
        """Raise ValueError unless y is an outcome on this scale."""
        if not math.isfinite(y) or y < 0:
            raise ValueError(f"outcome {y} is not a number of at least 0; leave out what is unknown")
        if self.scale is not Scale.VALUE and y > 1:
            raise ValueError(f"outcome {y} exceeds 1 on the scale {self.scale}; rescale it to 0..1")
        if self.scale is Scale.RATE and y not in (0.0, 1.0):
            raise ValueError(f"outcome {y} is neither 0 nor 1; use the scale score")


@dataclass(frozen=True, slots=True)
class AbResult:
    """Result of one comparison.

    `difference`: mean of B - mean of A, in the outcome's unit; `interval`: of the difference, or of the win
    rate for a sequential test of values. `win_rate`: P(an outcome of B is better than one of A), ties half.
    `p_value`: of the fixed test, or 1 / (maximum evidence so far), which is valid at any time.
    """

    verdict: AbVerdict
    method: str
    n_a: int
    n_b: int
    mean_a: float | None  # None: no outcome yet
    mean_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_of: str
    win_rate: float | None
    cohens_d: float | None  # None: fewer than two on a side, or no spread
    p_value: float
    alpha: float


class _Moments(NamedTuple):
    n: int
    mean: float
    square: float  # sum of squared deviations


@dataclass(slots=True)
class _Arm:
    """Running moments and a bounded histogram of one side."""

    n: int = 0
    mean: float = 0.0
    square: float = 0.0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_UNIT_BINS, dtype=np.int64))
    values: LogHistogram = field(default_factory=LogHistogram)

    @property
    def moments(self) -> _Moments:
        return _Moments(self.n, self.mean, self.square)

    def add(self, y: float, scale: Scale) -> None:
        self.n += 1
        deviation = y - self.mean
        self.mean += deviation / self.n
        self.square += deviation * (y - self.mean)
        if scale is Scale.VALUE:
            self.values.add(np.array([y]))
        else:
            self.bins[min(int(y * _UNIT_BINS), _UNIT_BINS - 1)] += 1


class SequentialTest:
    """A running A/B test: one outcome a unit in order of assignment, a valid result at any time.

    A returning unit (a sticky user) counts once: leave its later outcomes out. About 30 KiB of state.
    """

    def __init__(self, question: AbQuestion) -> None:
        self.question = question
        self._a, self._b = _Arm(), _Arm()
        log_prior = -math.log(len(_BETS))
        self._wealth = {side: [log_prior] * len(_BETS) for side in (AbVerdict.B_BETTER, AbVerdict.A_BETTER)}
        self._peak = {AbVerdict.B_BETTER: 0.0, AbVerdict.A_BETTER: 0.0}
        self._difference = MeanDifference(question.alpha)
        self._good_total = 0.5  # of A's goodness, with a prior of half an outcome
        self._verdict = AbVerdict.NOT_SHOWN

    def add(self, y: float, *, is_b: bool, w: float) -> None:
        """Add one unit's outcome; w: P(B) at its draw. Raises ValueError for bad input, changing nothing."""
        self.question.check(y)
        if not 0 < w < 1:
            raise ValueError(f"w {w} is outside (0, 1); rows without a coin are not evidence")
        good = self._goodness(y)
        mean = self._good_total / (self._a.n + 1)
        # Mean zero without a difference, for every `mean`: w(1-w)(good_b - mean) - (1-w)w(good_a - mean).
        x = (1 - w) * (good - mean) if is_b else -w * (good - mean)
        worst = max((1 - w) * max(mean, 1 - mean), w * max(mean, 1 - mean))
        for side, sign in ((AbVerdict.B_BETTER, 1.0), (AbVerdict.A_BETTER, -1.0)):
            wealth = self._wealth[side]
            # Plain floats: on seven bets numpy takes twice as long, and a restart replays every unit.
            for i, bet in enumerate(_BETS):
                wealth[i] += math.log1p(sign * bet * x / worst)
            top = max(wealth)
            log_e = top + math.log(sum(math.exp(lw - top) for lw in wealth))
            self._peak[side] = max(self._peak[side], log_e)
            if self._verdict is AbVerdict.NOT_SHOWN and log_e >= math.log(2 / self.question.alpha):
                self._verdict = side
        shown = good if self.question.scale is Scale.VALUE else y
        self._difference.add(shown, canary=is_b, w=w)
        if is_b:
            self._b.add(y, self.question.scale)
        else:
            self._a.add(y, self.question.scale)
            self._good_total += good

    def _goodness(self, y: float) -> float:
        """The outcome in 0..1, higher is better; of a value its rank among the past values of both arms."""
        if self.question.scale is not Scale.VALUE:
            return y if self.question.higher_is_better else 1 - y
        n = self._a.n + self._b.n
        if n == 0:
            return 0.5
        above = sum(arm.n * _mid_share_above(arm.values, y) for arm in (self._a, self._b) if arm.n)
        return 1 - above / n if self.question.higher_is_better else above / n

    @property
    def verdict(self) -> AbVerdict:
        """The first verdict that was reached; it stays."""
        return self._verdict

    def result(self) -> AbResult:
        """The current result."""
        a, b = self._a, self._b
        is_value = self.question.scale is Scale.VALUE
        low, high = self._difference.interval()
        both = a.n > 0 and b.n > 0
        peak = max(self._peak.values())
        return AbResult(
            self._verdict,
            "sequential",
            a.n,
            b.n,
            a.mean if a.n else None,
            b.mean if b.n else None,
            b.mean - a.mean if both else None,
            (max(0.0, low + 0.5), min(1.0, high + 0.5)) if is_value else (low, high),
            "win rate" if is_value else "difference",
            self._win_rate() if both else None,
            _cohens_d(a.moments, b.moments),
            min(1.0, 2 * math.exp(-peak)),
            self.question.alpha,
        )

    def _win_rate(self) -> float:
        if self.question.scale is Scale.VALUE:
            middles, share = self._b.values.occupied()
            b_lower = float(
                sum(s * _mid_share_above(self._a.values, m) for m, s in zip(middles, share, strict=True))
            )
        else:
            share_a, share_b = self._a.bins / self._a.n, self._b.bins / self._b.n
            b_lower = float(share_b @ (1 - np.cumsum(share_a) + share_a / 2))
        return 1 - b_lower if self.question.higher_is_better else b_lower


def _mid_share_above(values: LogHistogram, y: float) -> float:
    """Share of values above y, with half of those in its own bin."""
    return (values.share_above(y) + values.share_above(y * math.exp(-WIDTH))) / 2


def sequential(y: ArrayLike, is_b: ArrayLike, w: ArrayLike, question: AbQuestion) -> AbResult:
    """The sequential test over arrays in order of assignment. w: P(B) at the draw, a number or an array."""
    outcomes = np.asarray(y, dtype=np.float64)
    arms = np.asarray(is_b, dtype=np.bool_)
    weights = np.broadcast_to(np.asarray(w, dtype=np.float64), outcomes.shape)
    if arms.shape != outcomes.shape:
        raise ValueError(f"{len(arms)} arms for {len(outcomes)} outcomes; give one arm for each outcome")
    test = SequentialTest(question)
    for value, arm, weight in zip(outcomes, arms, weights, strict=True):
        test.add(float(value), is_b=bool(arm), w=float(weight))
    return test.result()


def fixed_horizon(a: ArrayLike, b: ArrayLike, question: AbQuestion) -> AbResult:
    """Mann-Whitney (two-sided, ties and continuity corrected, normal approximation), win rate, d, interval.

    a, b: outcomes of each side, independent units. TOO_FEW below 30 a side, with p = 1. The interval is
    Welch's, of the difference of means. Raises ValueError for outcomes that are not on the scale.
    Source: Mann & Whitney (1947); Welch (1947). Check: scipy.stats.mannwhitneyu(b, a, method="asymptotic").
    """
    ya, yb = (np.asarray(side, dtype=np.float64) for side in (a, b))
    for value in np.concatenate((ya, yb)):
        question.check(float(value))
    a_moments, b_moments = _moments_of(ya), _moments_of(yb)
    (n_a, mean_a, _), (n_b, mean_b, _) = a_moments, b_moments
    win_rate, p_value, interval = None, 1.0, None
    verdict = AbVerdict.TOO_FEW
    if min(n_a, n_b) >= MIN_PER_SIDE:
        u, p_value = mann_whitney(ya, yb)
        win_rate = u / (n_a * n_b) if question.higher_is_better else 1 - u / (n_a * n_b)
        interval = _welch(a_moments, b_moments, alpha=question.alpha)
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
        "difference",
        win_rate,
        _cohens_d(a_moments, b_moments),
        p_value,
        question.alpha,
    )


def mann_whitney(a: Floats, b: Floats) -> tuple[float, float]:
    """U of b (pairs in which b is higher, ties half) and the two-sided p-value."""
    n_a, n_b = len(a), len(b)
    ordered = np.sort(a)
    u = float((np.searchsorted(ordered, b, "left") + np.searchsorted(ordered, b, "right")).sum()) / 2
    _, ties = np.unique(np.concatenate((a, b)), return_counts=True)
    n = n_a + n_b
    variance = n_a * n_b / 12 * (n + 1 - float((ties.astype(np.float64) ** 3 - ties).sum()) / (n * (n - 1)))
    if variance <= 0:
        return u, 1.0
    z = (abs(u - n_a * n_b / 2) - 0.5) / math.sqrt(variance)
    return u, min(1.0, math.erfc(z / math.sqrt(2)))


def _moments_of(y: Floats) -> _Moments:
    return (
        _Moments(len(y), float(y.mean()), float(((y - y.mean()) ** 2).sum())) if len(y) else _Moments(0, 0, 0)
    )


def _cohens_d(a: _Moments, b: _Moments) -> float | None:
    if min(a.n, b.n) < 2 or a.square + b.square <= 0:
        return None
    return (b.mean - a.mean) / math.sqrt((a.square + b.square) / (a.n + b.n - 2))


def _welch(a: _Moments, b: _Moments, *, alpha: float) -> tuple[float, float]:
    part_a, part_b = a.square / (a.n - 1) / a.n, b.square / (b.n - 1) / b.n
    difference = b.mean - a.mean
    if part_a + part_b == 0:
        return (difference, difference)
    freedom = (part_a + part_b) ** 2 / (part_a**2 / (a.n - 1) + part_b**2 / (b.n - 1))
    radius = t_quantile(1 - alpha / 2, freedom) * math.sqrt(part_a + part_b)
    return (difference - radius, difference + radius)


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile for at least 25 degrees of freedom, within 1e-4 for probabilities up to 0.9995.

    Source: Abramowitz & Stegun 26.7.5. Check: t_quantile(0.975, 30) = 2.04227.
    """
    z = NormalDist().inv_cdf(probability)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """One category's comparison; `adjusted_p` and `verdict` are corrected for the number of categories."""

    category: str
    result: AbResult
    adjusted_p: float
    verdict: AbVerdict


def correct_categories(results: Mapping[str, AbResult]) -> tuple[CategoryResult, ...]:
    """Holm's correction over categories: the probability of any wrong verdict is at most alpha.

    Valid at any time for sequential results, like their p-values. Raises ValueError beyond 64 categories.
    """
    if len(results) > MAX_CATEGORIES:
        raise ValueError(f"{len(results)} categories exceed {MAX_CATEGORIES}; group the rare ones")
    adjusted = holm([result.p_value for result in results.values()])
    out = []
    for (category, result), p in zip(results.items(), adjusted, strict=True):
        verdict = result.verdict
        if verdict in (AbVerdict.A_BETTER, AbVerdict.B_BETTER) and p > result.alpha:
            verdict = AbVerdict.NOT_SHOWN
        out.append(CategoryResult(category, result, p, verdict))
    return tuple(out)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given. Check: (0.01, 0.04, 0.03) gives (0.03, 0.06, 0.06)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return tuple(adjusted)
