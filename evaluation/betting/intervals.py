"""Anytime-valid confidence intervals of an effect, for display.

- `ratio_interval`: ratio of two rates, by inversion of the gate's own bet on the coin (`rates.py`). Only
  events count, so that shared drift cancels here as it does in the gate.
- `MeanDifference`: difference of two bounded means, an empirical-Bernstein confidence sequence on the
  inverse-probability-weighted difference.
`estimates.py` updates the same quantities for a running gate, block by block.

Invariant: an interval decides nothing; verdicts come from the wealth processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evaluation.betting.rates import RATIO_PRIOR, RATIOS
from evaluation.betting.unit_block import Floats


class EventCount(NamedTuple):
    """Events of both arms at one weight. w: P(canary) at these draws, in (0, 1)."""

    w: float
    canary: int
    stable: int


_RATIO_LIMIT = 1e4


def ratio_log_e(
    counts: Iterable[EventCount],
    null_ratio: float,
    *,
    worse: bool = True,
    ratios: Floats = RATIOS,
    prior: Floats = RATIO_PRIOR,
) -> float:
    """Log evidence against "rate of the canary / rate of stable is at most `null_ratio`" (nats).

    With `worse` False, against "at least". counts: all events so far, by the weight of their draws. The
    alternatives (`ratios` > 1) and their prior are the gate's own by default. The mean of its exponential is
    at most one under the null, at any stopping time.
    Raises ValueError for a w outside (0, 1), a negative count or a null_ratio outside (0, inf).
    Check: 8 canary events and 0 of stable at w = 0.05, null 1, give 19.861944 nats.
    """
    if not (math.isfinite(null_ratio) and null_ratio > 0):
        raise ValueError(f"null_ratio {null_ratio} is not a number above 0; 1 means no difference")
    alternatives = ratios if worse else 1 / ratios
    total = np.log(prior / prior.sum())
    for w, canary, stable in counts:
        if not 0 < w < 1:
            raise ValueError(f"w {w} is outside (0, 1); rows without a coin are not evidence")
        if canary < 0 or stable < 0:
            raise ValueError(f"counts {canary}, {stable} are below 0; a counter was reset, start again")
        q0 = w * null_ratio + 1 - w
        q1 = w * null_ratio * alternatives + 1 - w
        total = total + (canary + stable) * np.log(q0 / q1) + canary * np.log(alternatives)
    return float(np.logaddexp.reduce(total))


def ratio_interval(counts: Iterable[EventCount], *, alpha: float) -> tuple[float, float]:
    """Interval of canary rate / stable rate, valid at all looks together with probability >= 1 - alpha.

    (0, inf) without events. The ends are where `ratio_log_e` crosses log(2 / alpha).
    Raises ValueError for an alpha outside (0, 1), and as `ratio_log_e`.
    """
    _check_alpha(alpha)
    counts = [count for count in counts if count.canary + count.stable]
    limit = math.log(2 / alpha)
    # Log wealth against "at most r" falls as r grows, against "at least r" it rises: bisection on log r.
    low = _crossing(lambda r: ratio_log_e(counts, r) - limit)
    high = 1 / _crossing(lambda r: ratio_log_e(counts, 1 / r, worse=False) - limit)
    return (low if low > 1 / _RATIO_LIMIT else 0.0, high if high < _RATIO_LIMIT else math.inf)


def _crossing(excess_at: Callable[[float], float]) -> float:
    """Largest r in [1e-4, 1e4] at which the decreasing `excess_at` is >= 0; 1e-4 if there is none."""
    low, high = -math.log(_RATIO_LIMIT), math.log(_RATIO_LIMIT)
    if excess_at(math.exp(low)) < 0:
        return 1 / _RATIO_LIMIT
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess_at(math.exp(middle)) >= 0 else (low, middle)
    return math.exp(low)


@dataclass(slots=True)
class MeanDifference:
    """Confidence sequence of mean(canary) - mean(stable) for outcomes in [0, 1]; O(1) time and state.

    For each row, z = +(y - m)/w on the canary and -(y - m)/(1 - w) on stable (m: past mean of all rows) has
    the difference as its mean under any drift; the bets are predictable.
    Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, theorem 2.
    """

    alpha: float = 0.05
    rows: int = 0
    total: float = 0.0  # of y, over both arms
    weight: float = 0.0  # sum of the bets
    weighted: float = 0.0  # sum of bet * z
    cost: float = 0.0  # sum of the variance terms
    square: float = 0.0  # sum of squared deviations of z, for the size of the next bet
    centre: float = 0.0  # running mean of z

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def add(self, y: float, *, canary: bool, w: float) -> None:
        """Add one unit. Raises ValueError, changing nothing, unless y is in [0, 1] and w in (0, 1)."""
        if not 0 <= y <= 1:
            raise ValueError(f"outcome {y} is outside 0..1; rescale it")
        if not 0 < w < 1:
            raise ValueError(f"w {w} is outside (0, 1); rows without a coin are not evidence")
        mean = (self.total + 0.5) / (self.rows + 1)
        z = (y - mean) / w if canary else -(y - mean) / (1 - w)
        span = 2 / min(w, 1 - w)  # z and its past mean lie within half of this of zero
        self.rows += 1
        self.total += y
        variance = (self.square + (span / 4) ** 2) / self.rows
        horizon = self.rows * math.log1p(self.rows)
        bet = min(0.5 / span, math.sqrt(2 * math.log(2 / self.alpha) / (variance * horizon)))
        # psi_E of the theorem, which is stated for outcomes in [0, 1]: z = span * x, bet = lambda / span.
        scaled = bet * span
        psi = (-math.log1p(-scaled) - scaled) / span**2
        self.cost += (z - min(max(self.centre, -1.0), 1.0)) ** 2 * psi
        self.weight += bet
        self.weighted += bet * z
        step = z - self.centre
        self.centre += step / self.rows
        self.square += step * (z - self.centre)

    def interval(self) -> tuple[float, float]:
        """The current interval, within [-1, 1]; (-1, 1) before the first unit."""
        if self.weight == 0:
            return (-1.0, 1.0)
        centre = self.weighted / self.weight
        radius = (math.log(2 / self.alpha) + self.cost) / self.weight
        return (max(-1.0, centre - radius), min(1.0, centre + radius))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is outside (0, 1); it is a probability of error, as 0.05")
