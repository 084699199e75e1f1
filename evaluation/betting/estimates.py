"""Running confidence intervals of an effect, for display: updated with a stream, valid at every look.

Invariant: an estimate never changes a verdict. Like the channels, it returns the same bits however rows are
cut into blocks.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from evaluation.betting.intervals import EventCount, ratio_interval, ratio_log_e
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.betting.wealth import distinct

ALPHA = 0.05
RATIO_GRID = np.array(
    (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 1.75, 2, 3, 5)
)
MEDIAN_RATIOS = np.array([1.03, 1.06, 1.12, 1.25, 1.5])  # alternatives where about half exceed the median
MAX_WEIGHTS = 8  # distinct weights that are counted; inverting the test costs 5 ms for each


class Estimate(Protocol):
    """A running estimate; what it conditions on is frozen within an epoch."""

    def learn(self, block: UnitBlock) -> None:
        """Add units in order; the block lies within one epoch."""

    def end_epoch(self, stable: Stable) -> None:
        """Update what the next epoch conditions on. stable: statistics of stable's units so far."""

    def interval(self) -> tuple[float, float] | None:
        """The current interval; None before there is evidence."""


def nonempty(interval: tuple[float, float]) -> tuple[float, float] | None:
    """The interval; None where every size is rejected, because the arms do not fit their weights."""
    return interval if interval[0] <= interval[1] else None


class EventCounts:
    """Events of both arms by the weight of their draws: the interval of the ratio of two rates."""

    __state__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[float, tuple[int, int]] = {}  # w -> canary, stable
        self._cached: tuple[list[EventCount], tuple[float, float]] | None = None

    def learn(self, block: UnitBlock) -> None:
        """Count events; those at further weights than the first `MAX_WEIGHTS` are left out."""
        events = (block.y > 0.0) & (block.w > 0.0)
        if not events.any():
            return
        arm, w = block.arm[events], block.w[events]
        for weight in distinct(w)[0].tolist():
            if weight not in self.counts and len(self.counts) >= MAX_WEIGHTS:
                continue
            canary, stable = self.counts.get(weight, (0, 0))
            arms = arm[w == weight]
            hits = int(np.count_nonzero(arms))
            self.counts[weight] = (canary + hits, stable + len(arms) - hits)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""

    def interval(self) -> tuple[float, float] | None:
        """The interval of canary rate / stable rate."""
        if not self.counts:
            return None
        counts = [EventCount(w, canary, stable) for w, (canary, stable) in sorted(self.counts.items())]
        if self._cached is None or self._cached[0] != counts:
            self._cached = (counts, ratio_interval(counts, alpha=ALPHA))
        return nonempty(self._cached[1])


class MedianRatio:
    """Ratio of two medians, canary over stable: which ratios of a grid the coin rejects, at every look.

    An event is a value above stable's past median, the canary's divided by a ratio of the grid first. At the
    true ratio both arms have equally many events; more on the canary reject the ratio as too low. Counted by
    weight, so that neither drift nor a ramp looks like an effect of the version.
    """

    __state__ = ("median", "stable", "canary")

    def __init__(self) -> None:
        self.median = float("nan")
        self.stable: dict[float, tuple[int, int]] = {}  # w -> values above the median, values
        self.canary: dict[float, tuple[Ints, int]] = {}  # w -> values above it by ratio, values
        self._cached: tuple[int, tuple[float, float] | None] = (0, None)  # number of values, interval

    def learn(self, block: UnitBlock) -> None:
        """Count values of both arms once the median is known; infinite ones are above it."""
        if math.isnan(self.median):
            return
        weights, which = distinct(block.w)
        for index, weight in enumerate(weights.tolist()):
            if weight <= 0.0 or (weight not in self.stable and len(self.stable) >= MAX_WEIGHTS):
                continue
            of_weight = which == index
            y, canary = block.y[of_weight], block.y[of_weight & block.arm]
            above, count = self.stable.get(weight, (0, 0))
            # All less the canary's: faster than picking stable's.
            more = np.count_nonzero(y > self.median) - np.count_nonzero(canary > self.median)
            self.stable[weight] = (above + int(more), count + len(y) - len(canary))
            hits, count = self.canary.get(weight, (np.zeros(len(RATIO_GRID), dtype=np.int64), 0))
            passed = np.searchsorted(self.median * RATIO_GRID, canary, side="left")
            over = np.bincount(passed, minlength=len(RATIO_GRID) + 1)[:0:-1].cumsum()[::-1]
            self.canary[weight] = (hits + over, count + len(canary))

    def end_epoch(self, stable: Stable) -> None:
        """Update stable's median."""
        if stable.histogram is not None and stable.histogram.total:
            median = float(stable.histogram.upper_edges(np.array([0.5]))[0])
            self.median = median if median > 0.0 else math.nan  # of zeros there is no ratio

    def interval(self) -> tuple[float, float] | None:
        """The interval of canary median / stable median: from the highest ratio rejected as too low to the
        lowest rejected as too high; 0 and infinity where none is."""
        if not any(count for _, count in self.canary.values()):
            return None
        values = sum(count for arm in (self.stable, self.canary) for _, count in arm.values())
        if self._cached[0] != values:
            self._cached = (values, nonempty((self._last_rejected(low=True), self._last_rejected(low=False))))
        return self._cached[1]

    def _last_rejected(self, *, low: bool) -> float:
        limit = math.log(2.0 / ALPHA)
        last = 0.0 if low else math.inf
        order = range(len(RATIO_GRID)) if low else range(len(RATIO_GRID) - 1, -1, -1)
        for index in order:
            counts = []
            for w, (above, values) in self.stable.items():
                hits, count = self.canary[w]
                over = int(hits[index])
                counts.append(
                    EventCount(w, over, above) if low else EventCount(w, count - over, values - above)
                )
            if ratio_log_e(counts, 1.0, ratios=MEDIAN_RATIOS, prior=np.ones(len(MEDIAN_RATIOS))) < limit:
                return last
            last = float(RATIO_GRID[index])
        return last


class MeanGap:
    """Difference of two bounded means, canary less stable: an empirical-Bernstein confidence sequence.

    For each unit, z = (y - m) / w on the canary and -(y - m) / (1 - w) on stable has the difference as its
    mean, for every m. The size of the bets, m and the centre are frozen for an epoch.
    Source: Waudby-Smith & Ramdas (2023), theorem 2. Check: `intervals.MeanDifference` gives it row by row.
    """

    __state__ = ("rows", "sums", "centre_y", "centre_z", "bet")

    def __init__(self) -> None:
        self.rows = 0
        self.sums: Floats = np.zeros(6)  # of y, z, z^2, bet, bet z, cost
        self.centre_y = 0.5
        self.centre_z = 0.0
        self.bet = 0.0  # the variance is unknown in the first epoch

    def learn(self, block: UnitBlock) -> None:
        """Add units in order."""
        drawn = block.w > 0.0
        y, w, arm = block.y[drawn], block.w[drawn], block.arm[drawn]
        if len(y) == 0:
            return
        z = np.where(arm, (y - self.centre_y) / w, (self.centre_y - y) / (1.0 - w))
        span = 2.0 / np.minimum(w, 1.0 - w)
        bet = np.minimum(self.bet, 0.5 / span)
        scaled = bet * span
        cost = (z - self.centre_z) ** 2 * (-np.log1p(-scaled) - scaled) / span**2
        terms = np.stack((y, z, z * z, bet, bet * z, cost))
        path = np.add.accumulate(np.concatenate((self.sums[:, None], terms), axis=1), axis=1)
        self.sums = path[:, -1].copy()
        self.rows += len(y)

    def end_epoch(self, stable: Stable) -> None:
        """Update the centres and the size of the bets from the units so far."""
        if self.rows == 0:
            return
        y, z, square = (float(total) / self.rows for total in self.sums[:3])
        self.centre_y = y
        self.centre_z = min(max(z, -1.0), 1.0)
        variance = max(square - z * z, 1e-6)
        self.bet = math.sqrt(2.0 * math.log(2.0 / ALPHA) / (variance * self.rows * math.log1p(self.rows)))

    def interval(self) -> tuple[float, float] | None:
        """The interval of the difference, within [-1, 1]."""
        weight, weighted, cost = (float(total) for total in self.sums[3:])
        if weight == 0.0:
            return None
        radius = (math.log(2.0 / ALPHA) + cost) / weight
        return nonempty((max(-1.0, weighted / weight - radius), min(1.0, weighted / weight + radius)))
