"""Intervals that hold at every look, for display: what a gate's evidence says about the size of a difference.

Three kinds, each a test turned round (the interval is what the test would not reject):
- `ratio_interval`: the ratio of two rates, by inversion of the gate's own bet on the coin (`rates.py`). Only
  events count, so that shared drift cancels here as it does in the gate.
- `MeanDifference`: the difference of two bounded means, an empirical-Bernstein confidence sequence on the
  inverse-probability-weighted difference.
  `RatioDisplay` and `DifferenceDisplay` keep the two for a running gate, block by block.
- `normal_mixture_radius`: the radius of a sub-Gaussian sum, for whoever knows a variance.

Invariant: an interval decides nothing; verdicts come from the processes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evaluation.betting import Block, Floats
from evaluation.rates import RATIO_PRIOR, RATIOS
from evaluation.stable import FIRST_EPOCH, epoch_after


class EventCount(NamedTuple):
    """Events of both arms drawn at one weight. w: P(canary) at these draws, in (0, 1)."""

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
    alternatives (`ratios` > 1, and how much each gets) are the gate's own. The mean of its exponential is at
    most one under the null, at any stopping time.
    Raises ValueError for a w outside (0, 1), a negative count or a null_ratio outside (0, inf).
    Check: 8 canary events and 0 of stable at w = 0.05, null 1, give 19.861944 nats.
    """
    if not (math.isfinite(null_ratio) and null_ratio > 0):
        raise ValueError(f"null_ratio {null_ratio} is not a number above 0; 1 means no difference")
    steps = ratios if worse else 1 / ratios
    total = np.log(prior / prior.sum())
    for w, canary, stable in counts:
        if not 0 < w < 1:
            raise ValueError(f"w {w} is outside (0, 1); rows without a coin are no evidence")
        if canary < 0 or stable < 0:
            raise ValueError(f"counts {canary}, {stable} are below 0; a counter was reset, start again")
        q0 = w * null_ratio + 1 - w
        q1 = w * null_ratio * steps + 1 - w
        total = total + (canary + stable) * np.log(q0 / q1) + canary * np.log(steps)
    return float(np.logaddexp.reduce(total))


def ratio_interval(counts: Iterable[EventCount], *, alpha: float) -> tuple[float, float]:
    """Interval of canary rate / stable rate, valid at every look at once with probability >= 1 - alpha.

    (0, inf) while there is nothing to say. The ends are where `ratio_log_e` crosses log(2 / alpha).
    Raises ValueError for an alpha outside (0, 1), and as `ratio_log_e`.
    """
    _check_alpha(alpha)
    seen = [count for count in counts if count.canary + count.stable]
    limit = math.log(2 / alpha)
    # Log wealth against "at most r" falls as r grows, against "at least r" it rises: bisection on log r.
    low = _crossing(lambda r: ratio_log_e(seen, r) - limit)
    high = 1 / _crossing(lambda r: ratio_log_e(seen, 1 / r, worse=False) - limit)
    return (low if low > 1 / _RATIO_LIMIT else 0.0, high if high < _RATIO_LIMIT else math.inf)


def _crossing(excess_at: Callable[[float], float]) -> float:
    """Largest r in [1e-4, 1e4] at which the falling `excess_at` is still >= 0; 1e-4 if there is none."""
    low, high = -math.log(_RATIO_LIMIT), math.log(_RATIO_LIMIT)
    if excess_at(math.exp(low)) < 0:
        return 1 / _RATIO_LIMIT
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess_at(math.exp(middle)) >= 0 else (low, middle)
    return math.exp(low)


class RatioDisplay:
    """A running `ratio_interval` of one stream of 0/1 units, fed by the block; counts for each weight.

    A rollout has few weights (one a stage, and one for each pair of stages for users who return); beyond 64
    new ones are left out, which widens the interval and breaks nothing.
    """

    __state__ = ("weights", "canary", "stable")

    MOST_WEIGHTS = 64

    def __init__(self) -> None:
        self.weights: list[float] = []
        self.canary: list[int] = []
        self.stable: list[int] = []

    def feed(self, block: Block) -> None:
        """Take units in order; `y` is 1 where the event happened."""
        events = block.pick(np.flatnonzero((block.y > 0.0) & (block.w > 0.0) & (block.w < 1.0)))
        for w in np.unique(events.w).tolist():
            if w not in self.weights:
                if len(self.weights) == self.MOST_WEIGHTS:
                    continue
                self.weights.append(w)
                self.canary.append(0)
                self.stable.append(0)
            place, rows = self.weights.index(w), events.w == w
            on_canary = int(np.count_nonzero(events.arm & rows))
            self.canary[place] += on_canary
            self.stable[place] += int(np.count_nonzero(rows)) - on_canary

    def interval(self, *, alpha: float) -> tuple[float, float]:
        """Of canary rate / stable rate, at every look."""
        counts = zip(self.weights, self.canary, self.stable, strict=True)
        return ratio_interval([EventCount(*count) for count in counts], alpha=alpha)


class DifferenceDisplay:
    """A running `MeanDifference` of one stream of scores, fed by the block; bets change where an epoch ends.

    Epochs are counted in the stream's own units, so the answer does not depend on how they were cut.
    """

    __state__ = ("rows", "until", "total", "mean", "bet", "guess", "sums")

    def __init__(self, *, alpha: float) -> None:
        _check_alpha(alpha)
        self.alpha = alpha
        self.rows = 0
        self.until = FIRST_EPOCH
        self.total = 0.0  # of y, over both arms
        self.mean, self.bet, self.guess = 0.5, 0.0, 0.0  # frozen for an epoch; bet 0: the first one's
        self.sums: Floats = np.zeros(5)  # of bet, bet * z, price, z, z * z

    def feed(self, block: Block) -> None:
        """Take units in order; `y` in [0, 1]."""
        known = block.pick(np.flatnonzero((block.w > 0.0) & (block.w < 1.0)))
        start = 0
        while start < len(known):
            stop = min(len(known), start + self.until - self.rows)
            self._bet(known.pick(slice(start, stop)))
            start = stop

    def _bet(self, part: Block) -> None:
        side = np.where(part.arm, part.w, part.w - 1.0)  # the sign and the chance of the arm that was drawn
        z = (part.y - self.mean) / side
        span = 2.0 / np.minimum(part.w, 1.0 - part.w)  # each row has its own range, known before its y
        bet = np.minimum(self.bet, 0.5 / span) if self.bet > 0.0 else 0.05 / span
        scaled = bet * span
        price = (-np.log1p(-scaled) - scaled) / span**2 * (z - self.guess) ** 2
        steps = np.stack((bet, bet * z, price, z, z * z))
        self.sums = np.add.accumulate(np.concatenate((self.sums[:, None], steps), axis=1), axis=1)[:, -1]
        self.total = float(np.add.accumulate(np.concatenate(([self.total], part.y)))[-1])
        self.rows += len(part)
        if self.rows == self.until:
            self._turn()

    def _turn(self) -> None:
        self.mean = self.total / self.rows
        self.guess = min(max(float(self.sums[3]) / self.rows, -1.0), 1.0)
        variance = max(float(self.sums[4]) / self.rows - (float(self.sums[3]) / self.rows) ** 2, 1e-6)
        horizon = self.rows * math.log1p(self.rows)
        self.bet = math.sqrt(2 * math.log(2 / self.alpha) / (variance * horizon))
        self.until += epoch_after(self.rows)

    def interval(self) -> tuple[float, float]:
        """Of mean(canary) - mean(stable), at every look; (-1, 1) before the first unit."""
        weight, weighted, cost = (float(total) for total in self.sums[:3])
        if weight == 0.0:
            return (-1.0, 1.0)
        centre, radius = weighted / weight, (math.log(2 / self.alpha) + cost) / weight
        return (max(-1.0, centre - radius), min(1.0, centre + radius))


@dataclass(slots=True)
class MeanDifference:
    """Confidence sequence of mean(canary) - mean(stable) for outcomes in [0, 1]; O(1) time and state.

    Each row gives z = +(y - m)/w on the canary and -(y - m)/(1 - w) on stable (m: past mean of all rows),
    whose mean is the difference whatever the drift, and whose bets are predictable.
    Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, theorem 2.
    """

    alpha: float = 0.05
    rows: int = 0
    total: float = 0.0  # of y, over both arms
    weight: float = 0.0  # sum of the bets
    weighted: float = 0.0  # sum of bet * z
    cost: float = 0.0  # sum of the bets' prices
    square: float = 0.0  # sum of squared deviations of z, for the size of the next bet
    centre: float = 0.0  # running mean of z

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def add(self, y: float, *, canary: bool, w: float) -> None:
        """Take one unit. Raises ValueError unless y is in [0, 1] and w in (0, 1); nothing has changed."""
        if not 0 <= y <= 1:
            raise ValueError(f"outcome {y} is outside 0..1; rescale it")
        if not 0 < w < 1:
            raise ValueError(f"w {w} is outside (0, 1); rows without a coin are no evidence")
        mean = (self.total + 0.5) / (self.rows + 1)
        z = (y - mean) / w if canary else -(y - mean) / (1 - w)
        span = 2 / min(w, 1 - w)  # z and its past mean lie within half of this of zero
        self.rows += 1
        self.total += y
        variance = (self.square + (span / 4) ** 2) / self.rows
        bet = min(0.5 / span, math.sqrt(2 * math.log(2 / self.alpha) / (variance * self._horizon())))
        # psi_E of the theorem, which is stated for outcomes in [0, 1]: z = span * x, bet = lambda / span.
        scaled = bet * span
        price = (-math.log1p(-scaled) - scaled) / span**2
        guess = min(max(self.centre, -1.0), 1.0)
        self.cost += (z - guess) ** 2 * price
        self.weight += bet
        self.weighted += bet * z
        step = z - self.centre
        self.centre += step / self.rows
        self.square += step * (z - self.centre)

    def _horizon(self) -> float:
        return self.rows * math.log1p(self.rows)

    def interval(self) -> tuple[float, float]:
        """The interval now, within [-1, 1]; (-1, 1) before the first unit."""
        if self.weight == 0:
            return (-1.0, 1.0)
        centre = self.weighted / self.weight
        radius = (math.log(2 / self.alpha) + self.cost) / self.weight
        return (max(-1.0, centre - radius), min(1.0, centre + radius))


def normal_mixture_radius(variance: float, *, alpha: float, rho: float) -> float:
    """Radius that |S_t| stays within at every t at once, with probability >= 1 - alpha.

    variance: running variance process V_t, (unit of S)**2, >= 0.
    alpha: error budget, in (0, 1).   rho: tuning, unit of variance, > 0.
    Returns a radius in the unit of S. Raises ValueError outside those ranges.
    Source: Howard, Ramdas, McAuliffe, Sekhon (2021), two-sided normal mixture.
    Check: variance=100, alpha=0.05, rho=12.60056 gives 30.35209.
    """
    _check_alpha(alpha)
    if not (variance >= 0 and rho > 0 and math.isfinite(variance + rho)):
        raise ValueError(f"variance {variance} and rho {rho} must be finite, >= 0 and > 0")
    return math.sqrt((variance + rho) * (math.log((variance + rho) / rho) - 2 * math.log(alpha)))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is outside (0, 1); it is a probability of error, as 0.05")
