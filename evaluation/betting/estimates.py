"""How large a difference is, for display: kept beside a stream's channels, valid at every look, deciding
nothing.

Invariant: an estimate never changes a verdict. Like the channels it gives the same bits however rows are
cut into blocks.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from evaluation.betting.intervals import EventCount, ratio_interval, ratio_log_e
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Block, Floats, Ints, distinct

ALPHA = 0.05
RATIO_GRID = np.array(
    [
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.75,
        0.8,
        0.85,
        0.9,
        0.95,
        1.0,
        1.05,
        1.1,
        1.15,
        1.2,
        1.3,
        1.5,
        1.75,
        2.0,
        3.0,
        5.0,
    ]
)
HALVES = np.array([1.03, 1.06, 1.12, 1.25, 1.5])  # about half of the values are above the median
MOST_WEIGHTS = 8  # distinct weights that are told apart; inverting the test costs 5 ms for each


class Estimate(Protocol):
    """Learns from blocks within one epoch; tables change in `turn`."""

    def learn(self, block: Block) -> None:
        """Take units in order."""

    def turn(self, stable: Stable) -> None:
        """An epoch of the stream has ended, of which stable's statistics are `stable`."""

    def interval(self) -> tuple[float, float] | None:
        """The interval now; None while there is nothing to say."""


def in_order(interval: tuple[float, float]) -> tuple[float, float] | None:
    """The interval; None where no size is left, because the arms do not fit the weights of their draws."""
    return interval if interval[0] <= interval[1] else None


class EventCounts:
    """Events of both arms by the weight of their draws: the interval of the ratio of two rates."""

    __state__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[float, tuple[int, int]] = {}  # w -> canary, stable
        self._shown: tuple[list[EventCount], tuple[float, float]] | None = None  # what was last asked for

    def learn(self, block: Block) -> None:
        """Count events; units beyond `MOST_WEIGHTS` weights are left out."""
        events = (block.y > 0.0) & (block.w > 0.0)
        if not events.any():
            return
        arm, w = block.arm[events], block.w[events]
        for weight in distinct(w)[0].tolist():
            if weight not in self.counts and len(self.counts) >= MOST_WEIGHTS:
                continue
            canary, stable = self.counts.get(weight, (0, 0))
            here = arm[w == weight]
            hit = int(np.count_nonzero(here))
            self.counts[weight] = (canary + hit, stable + len(here) - hit)

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen."""

    def interval(self) -> tuple[float, float] | None:
        """Of canary rate / stable rate."""
        if not self.counts:
            return None
        counts = [EventCount(w, canary, stable) for w, (canary, stable) in sorted(self.counts.items())]
        if self._shown is None or self._shown[0] != counts:
            self._shown = (counts, ratio_interval(counts, alpha=ALPHA))
        return in_order(self._shown[1])


class MedianRatio:
    """Of two medians, canary over stable, on a grid: which ratios the coin rules out, at every look.

    An event is a value above stable's past median, the canary's divided by a ratio of the grid first. At the
    true ratio both arms have it alike; where the canary has it more often, its median is higher than that
    ratio says. Counted by weight, so that neither drift nor a ramp can stand in for the version.
    """

    __state__ = ("median", "stable", "canary")

    def __init__(self) -> None:
        self.median = float("nan")
        self.stable: dict[float, tuple[int, int]] = {}  # w -> values above the median, values
        self.canary: dict[float, tuple[Ints, int]] = {}  # w -> values above it by ratio, values
        self._shown: tuple[int, tuple[float, float] | None] = (0, None)  # by the number of values

    def learn(self, block: Block) -> None:
        """Count values of both arms once there is a median; infinite ones are above everything."""
        if math.isnan(self.median):
            return
        weights, which = distinct(block.w)
        for at, weight in enumerate(weights.tolist()):
            if weight <= 0.0 or (weight not in self.stable and len(self.stable) >= MOST_WEIGHTS):
                continue
            part = block if len(weights) == 1 else block.pick(which == at)
            canary = part.y[part.arm]
            above, count = self.stable.get(weight, (0, 0))
            # Of all less the canary's: quicker than to gather stable's.
            hit = np.count_nonzero(part.y > self.median) - np.count_nonzero(canary > self.median)
            self.stable[weight] = (above + int(hit), count + len(part) - len(canary))
            hits, count = self.canary.get(weight, (np.zeros(len(RATIO_GRID), dtype=np.int64), 0))
            passed = np.searchsorted(self.median * RATIO_GRID, canary, side="left")
            over = np.bincount(passed, minlength=len(RATIO_GRID) + 1)[:0:-1].cumsum()[::-1]
            self.canary[weight] = (hits + over, count + len(canary))

    def turn(self, stable: Stable) -> None:
        """Take stable's median."""
        if stable.histogram is not None and stable.histogram.total:
            self.median = float(stable.histogram.upper_edges(np.array([0.5]))[0])

    def interval(self) -> tuple[float, float] | None:
        """Of the canary's median over stable's: from the highest ratio that is ruled out as too low to the
        lowest that is too high (0 and infinity where none is)."""
        values = sum(count for _, count in self.canary.values())
        if values == 0:
            return None
        if self._shown[0] != values:
            self._shown = (values, in_order((self._ruled_out(low=True), self._ruled_out(low=False))))
        return self._shown[1]

    def _ruled_out(self, *, low: bool) -> float:
        limit = math.log(2.0 / ALPHA)
        last = 0.0 if low else math.inf
        order = range(len(RATIO_GRID)) if low else range(len(RATIO_GRID) - 1, -1, -1)
        for at in order:
            counts = []
            for w, (above, values) in self.stable.items():
                hits, count = self.canary[w]
                over = int(hits[at])
                counts.append(
                    EventCount(w, over, above) if low else EventCount(w, count - over, values - above)
                )
            if ratio_log_e(counts, 1.0, ratios=HALVES, prior=np.ones(len(HALVES))) < limit:
                return last
            last = float(RATIO_GRID[at])
        return last


class MeanGap:
    """The difference of two bounded means, canary less stable: an empirical-Bernstein confidence sequence.

    Each unit gives z = (y - m) / w on the canary and -(y - m) / (1 - w) on stable, whose mean is the
    difference whatever m is. The size of the bets, m and the centre are frozen for an epoch.
    Source: Waudby-Smith & Ramdas (2023), theorem 2. Check: `intervals.MeanDifference` gives it row by row.
    """

    __state__ = ("rows", "sums", "centre_y", "centre_z", "bet")

    def __init__(self) -> None:
        self.rows = 0
        self.sums: Floats = np.zeros(6)  # of y, z, z^2, bet, bet z, cost
        self.centre_y = 0.5
        self.centre_z = 0.0
        self.bet = 0.0  # nothing is known of the spread in the first epoch

    def learn(self, block: Block) -> None:
        """Take units in order."""
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
        self.sums = np.add.accumulate(np.concatenate((self.sums[:, None], terms), axis=1), axis=1)[
            :, -1
        ].copy()
        self.rows += len(y)

    def turn(self, stable: Stable) -> None:
        """Take the centre and the size of the bets from what was seen."""
        if self.rows == 0:
            return
        y, z, square = (float(total) / self.rows for total in self.sums[:3])
        self.centre_y = y
        self.centre_z = min(max(z, -1.0), 1.0)
        spread = max(square - z * z, 1e-6)
        self.bet = math.sqrt(2.0 * math.log(2.0 / ALPHA) / (spread * self.rows * math.log1p(self.rows)))

    def interval(self) -> tuple[float, float] | None:
        """Of the difference, within [-1, 1]."""
        weight, weighted, cost = (float(total) for total in self.sums[3:])
        if weight == 0.0:
            return None
        radius = (math.log(2.0 / ALPHA) + cost) / weight
        return in_order((max(-1.0, weighted / weight - radius), min(1.0, weighted / weight + radius)))
