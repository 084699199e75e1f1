"""Values with heavy tails (latency, TTFT, inter-token time, tokens, cost): the `shape` gate and percentile
exceedance.

`shape` says "slower beyond m0 somewhere in the distribution". It never stands for a percentile: +200 ms on
every answer trips it while the p99 moves 8 %. A percentile is tested by its exceedance rate, with the
machinery of `rates.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.wealth import Block, Floats, Ints, by_weight

QUANTILES = np.array([0.25, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99, 0.995, 0.999])
SCALES = (1.04, 1.08, 1.15, 1.25, 1.4, 1.7, 2.2, 3.0, 4.0)
SCALE_PRIOR = (0.5, 2.0, 2.0, 2.0, 1.5, 0.7, 0.5, 0.4, 0.4)  # most on what is soon found, and often meant
TAILS = ((0.99, 1.6), (0.99, 2.5), (0.99, 5.0), (0.97, 1.5), (0.97, 2.2), (0.93, 1.5))
TAIL_PRIOR = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
STRETCHES = (1.2, 1.4, 1.8, 2.6)
STRETCH_PRIOR = (0.8, 1.2, 1.0, 0.6)
LEAST_VALUES = 50  # of stable, before there are tables
LEAST_RATIO, MOST_RATIO = 0.02, 60.0
SMOOTHING = 1e-4


def ratios_of(moved: Floats, shares: Floats, edges: Floats) -> Floats:
    """K x C likelihood ratios by column of values `moved` (K x n) against where they came from, each made
    monotone.

    `shares`: the share of stable's values at each of the n places; the last row of `moved` is stable's own.
    """
    columns = len(edges) + 1
    index = np.searchsorted(edges, moved, side="left")
    flat = (np.arange(len(moved))[:, None] * columns + index).ravel()
    counted = np.bincount(flat, weights=np.tile(shares, len(moved)), minlength=len(moved) * columns)
    mass = counted.astype(np.float64).reshape(len(moved), columns) + SMOOTHING / columns
    ratios: Floats = mass[:-1] / mass[-1]
    return ratios


def stretched(values: Floats, start: float, end: float, factor: float) -> Floats:
    """Values below `start` as they are, at `end` and above times `factor`, between them in proportion of
    the logarithm."""
    part = np.clip(np.log(np.maximum(values, start) / start) / np.log(end / start), 0.0, 1.0)
    moved: Floats = values * factor**part
    return moved


def below_the_cut(longest: float, times: float) -> float:
    """The highest bound that a canary's value can pass which was cut off at `longest` and divided by `times`.

    Above it stable's value would count as slower than the canary's, though both were cut off alike.
    """
    return longest / times * 0.999


class ShapeLoss:
    """Rollback: bets that canary values / m0 lie higher, in bins at stable's percentiles.

    Null: a canary value divided by m0 is stochastically at most a stable value.
    """

    __state__ = ("edges", "log_ratios")

    def __init__(self, *, tolerance: float, longest: float = np.inf) -> None:
        """`longest`: where values were cut off, of both arms; infinite: nowhere."""
        self._m0 = 1.0 + tolerance
        self._last_edge = below_the_cut(longest, self._m0)
        self.prior: Floats = np.array((*SCALE_PRIOR, *STRETCH_PRIOR, *TAIL_PRIOR))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.prior), 1))

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every value counts once there are tables; looks at the canary's. A failed unit (infinite) is
        slowest."""
        return shape_steps(block, self.edges, self.log_ratios, self._m0)

    def turn(self, stable: Stable) -> None:
        """Take the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < LEAST_VALUES:
            return
        values, shares = histogram.occupied()
        self.edges = np.unique(np.minimum(histogram.upper_edges(QUANTILES), self._last_edge))
        p95, p99 = histogram.upper_edges(np.array([0.95, 0.99]))
        moved = [values * scale for scale in SCALES]
        moved += [stretched(values, p95, max(p99, p95 * 1.01), factor) for factor in STRETCHES]
        ratios = ratios_of(np.stack([*moved, values]), shares, self.edges)
        middles = np.append(self.edges, np.inf)
        for quantile, times in TAILS:
            start = histogram.upper_edges(np.array([quantile]))[0]
            above = max(histogram.share_above(start / 1.005), SMOOTHING)
            rest = max((1.0 - times * above) / (1.0 - above), LEAST_RATIO)
            ratios = np.vstack((ratios, np.where(middles > start, times, rest)))
        ratios = np.maximum.accumulate(np.clip(ratios, LEAST_RATIO, MOST_RATIO), axis=1)
        self.log_ratios = np.log(ratios)


class ShapeProof:
    """Promotion: bets that canary values / margin lie *lower* than stable's, so that it is not slower
    throughout.

    Null: a canary value divided by the margin is stochastically at least a stable value.
    """

    __state__ = ("edges", "log_ratios")

    POWERS = (0.4, 0.7, 1.0, 1.4)

    def __init__(self, *, margin: float) -> None:
        self._margin = margin
        self.prior: Floats = np.ones(len(self.POWERS))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.POWERS), 1))

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every unit counts once there are tables; looks at the canary's. A failed unit (infinite) counts
        as slowest."""
        return shape_steps(block, self.edges, self.log_ratios, self._margin)

    def turn(self, stable: Stable) -> None:
        """Take the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < LEAST_VALUES:
            return
        values, shares = histogram.occupied()
        self.edges = np.unique(histogram.upper_edges(QUANTILES))
        moved = [values * self._margin**-power for power in self.POWERS]
        ratios = ratios_of(np.stack([*moved, values]), shares, self.edges)
        self.log_ratios = np.log(np.minimum.accumulate(np.clip(ratios, LEAST_RATIO, MOST_RATIO), axis=1))


def shape_steps(block: Block, edges: Floats, log_ratios: Floats, divisor: float) -> tuple[Ints, Floats, Ints]:
    """Rows, K x n log factors and looks of a block of values, by the column in which each falls."""
    if len(edges) == 0:
        none = np.empty(0, dtype=np.int64)
        return none, np.empty((len(log_ratios), 0)), none
    ratios = np.exp(log_ratios)

    def table(w: float) -> Floats:
        both = np.log(w * ratios + 1.0 - w)
        return np.stack((-both, log_ratios - both), axis=1)

    column = np.searchsorted(edges, np.where(block.arm, block.y / divisor, block.y), side="left")
    return np.arange(len(block)), by_weight(block, column.astype(np.int64), table), np.flatnonzero(block.arm)


class Exceedance:
    """Turns values into 0/1: above stable's past percentile, the canary's divided by `times` first.

    The threshold is frozen for an epoch of the rows seen here, and seeded from stable's traffic before the
    rollout. NaN before there is one.
    """

    __state__ = ("threshold", "stable", "rows", "until")

    def __init__(self, *, percentile: float, highest: float = np.inf) -> None:
        """`highest`: the threshold never passes it."""
        self._percentile = percentile
        self._highest = highest
        self.threshold = float("nan")
        self.stable = Stable(with_histogram=True)
        self.rows = 0
        self.until = FIRST_EPOCH

    def seed(self, values: Floats) -> None:
        """Stable's values from before the rollout."""
        self.stable.learn(values)
        self._turn()

    def of(self, waited: Floats, slowest: Floats, arm: NDArray[np.bool_], times: tuple[float, ...]) -> Floats:
        """len(times) x n indicators; NaN where the value is missing.

        The first is of `waited` (failed units missing), the others of `slowest` (failed units infinite).
        """
        threshold = np.full(len(waited), np.nan)
        present = np.flatnonzero(~np.isnan(slowest))
        start = 0
        while start < len(present):
            stop = min(len(present), start + self.until - self.rows)
            rows = present[start:stop]
            threshold[rows] = self.threshold
            stable = waited[rows][~arm[rows]]
            self.stable.learn(stable[~np.isnan(stable)])
            self.rows += stop - start
            if self.rows == self.until:
                self._turn()
                self.until += epoch_after(self.rows)
            start = stop
        out = np.empty((len(times), len(waited)))
        for index, factor in enumerate(times):
            values = waited if index == 0 else slowest
            out[index] = np.where(arm, values / factor, values) > threshold
            out[index, np.isnan(threshold) | np.isnan(values)] = np.nan
        return out

    def _turn(self) -> None:
        histogram = self.stable.histogram
        if histogram is not None and histogram.total >= LEAST_VALUES:
            at = float(histogram.upper_edges(np.array([self._percentile]))[0])
            self.threshold = min(at, self._highest)
