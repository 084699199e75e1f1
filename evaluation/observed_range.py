"""Gate "observed range": the canary's p50, p90 and p95 inside what stable showed between two dates.

The range is what stable's own windows (an hour each, say) spanned in that time. The canary's percentile p is
above the range's end h exactly when more than 1 - p of its answers exceed h, so each side is a test of an
exceedance rate, valid at every look.

Invariant: stable's past and the canary's present are different times, so shared drift does *not* cancel
here. It answers "is this still what we are used to?", and is an alarm unless a policy gates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.gate import Verdict

PERCENTILES = (0.50, 0.90, 0.95)
MIN_WINDOWS = 3
MIN_IN_WINDOW = 50
_BETS = np.array([0.1, 0.2, 0.4, 0.6, 0.8, 0.95])


@dataclass(frozen=True, slots=True)
class PercentileRange:
    """Lowest and highest value that stable's percentile took, in the metric's unit."""

    percentile: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ObservedRange:
    """What stable showed from `since_s` to `until_s`, over `windows` windows of at least 50 answers."""

    since_s: float
    until_s: float
    windows: int
    ranges: tuple[PercentileRange, ...]


def observe_range(
    t_s: ArrayLike,
    values: ArrayLike,
    *,
    since_s: float,
    until_s: float,
    window_s: float = 3600.0,
    percentiles: Sequence[float] = PERCENTILES,
) -> ObservedRange:
    """The range of each percentile over stable's windows in [since_s, until_s).

    t_s: seconds since the epoch; values: the metric's own unit, same length, finite and >= 0.
    Raises ValueError for bad values, and where fewer than three windows hold 50 answers each.
    """
    at = np.asarray(t_s, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    if at.shape != y.shape:
        raise ValueError(f"{len(at)} times for {len(y)} values; give one time for each value")
    if not (math.isfinite(since_s) and math.isfinite(until_s) and since_s < until_s and window_s > 0):
        raise ValueError(
            f"dates {since_s} to {until_s} by {window_s} s span nothing; give an earlier --since"
        )
    if not (np.isfinite(at).all() and np.isfinite(y).all() and (y >= 0).all()):
        raise ValueError("times and values must be finite and values at least 0; leave out what is unknown")
    inside = (at >= since_s) & (at < until_s)
    window = ((at[inside] - since_s) // window_s).astype(np.int64)
    y = y[inside]
    full = [y[window == w] for w in np.unique(window)]
    full = [part for part in full if len(part) >= MIN_IN_WINDOW]
    if len(full) < MIN_WINDOWS:
        raise ValueError(
            f"{len(full)} windows of {window_s:g} s hold {MIN_IN_WINDOW} answers, needed {MIN_WINDOWS}; "
            "choose dates further apart, or shorter windows"
        )
    seen = np.array([np.quantile(part, percentiles) for part in full])
    ranges = tuple(
        PercentileRange(p, float(seen[:, i].min()), float(seen[:, i].max()))
        for i, p in enumerate(percentiles)
    )
    return ObservedRange(since_s, until_s, len(full), ranges)


@dataclass(frozen=True, slots=True)
class RangeReport:
    """One percentile's verdict. `canary` is its point estimate of the share above the range's high end."""

    percentile: float
    verdict: Verdict
    reason: str
    log_e: float
    n_canary: int


@dataclass(slots=True)
class _Exceedance:
    """Two bets on one stream of yes/no: that its rate is above `rate`, and that it is below; O(1) state."""

    rate: float
    above: NDArray[np.float64] = field(default_factory=lambda: np.full(len(_BETS), -math.log(len(_BETS))))
    below: NDArray[np.float64] = field(default_factory=lambda: np.full(len(_BETS), -math.log(len(_BETS))))
    max_above: float = 0.0
    max_below: float = 0.0

    def add(self, exceeds: bool) -> None:
        x = float(exceeds) - self.rate
        # 1 + lambda x with lambda below 1/worst: never at or below zero, mean one at the boundary.
        self.above += np.log1p(_BETS / self.rate * x)
        self.below += np.log1p(-_BETS / (1 - self.rate) * x)
        self.max_above = max(self.max_above, float(np.logaddexp.reduce(self.above)))
        self.max_below = max(self.max_below, float(np.logaddexp.reduce(self.below)))


@dataclass(slots=True)
class ObservedRangeGate:
    """Reads the canary's values one by one, says at every look whether each percentile is inside.

    FAIL: the percentile is above the range (with `both_sides`, also below it), wrongly with probability at
    most alpha over all looks and percentiles. PASS: shown to be at or below its high end. Else UNDECIDED.
    """

    observed: ObservedRange
    alpha: float = 0.01
    both_sides: bool = False
    n_canary: int = 0
    _high: list[_Exceedance] = field(default_factory=list)
    _low: list[_Exceedance] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha {self.alpha} is outside (0, 1); use 0.01")
        self._high = [_Exceedance(1 - r.percentile) for r in self.observed.ranges]
        self._low = [_Exceedance(1 - r.percentile) for r in self.observed.ranges]

    def add(self, value: float) -> None:
        """Take one canary value. Raises ValueError unless finite and >= 0; nothing has changed."""
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"value {value} is not a number of at least 0; leave out what is unknown")
        self.n_canary += 1
        for r, high, low in zip(self.observed.ranges, self._high, self._low, strict=True):
            high.add(value > r.high)
            low.add(value > r.low)

    def report(self) -> tuple[RangeReport, ...]:
        """The verdict of each percentile now."""
        sides = 2 if self.both_sides else 1
        limit = math.log(len(self.observed.ranges) * sides / self.alpha)
        return tuple(self._one(i, limit) for i in range(len(self.observed.ranges)))

    def _one(self, i: int, limit: float) -> RangeReport:
        r, high, low = self.observed.ranges[i], self._high[i], self._low[i]
        name, seen = f"p{r.percentile * 100:g}", f"[{r.low:g}, {r.high:g}] seen on stable"
        if high.max_above >= limit:
            return RangeReport(
                r.percentile, Verdict.FAIL, f"{name} is above {seen}", high.max_above, self.n_canary
            )
        if self.both_sides and low.max_below >= limit:
            return RangeReport(
                r.percentile, Verdict.FAIL, f"{name} is below {seen}", low.max_below, self.n_canary
            )
        inside = high.max_below >= limit and (not self.both_sides or low.max_above >= limit)
        if inside:
            return RangeReport(
                r.percentile, Verdict.PASS, f"{name} is inside {seen}", high.max_below, self.n_canary
            )
        return RangeReport(
            r.percentile, Verdict.UNDECIDED, f"{name} against {seen}", high.max_above, self.n_canary
        )
