"""Heavy-tailed values (latency, TTFT, inter-token time, tokens, cost): bettors of `shape`, and exceedance.

`shape` tests "slower by more than m0 somewhere in the distribution". It is no test of a percentile: +200 ms
on every answer trips it while the p99 moves 8 %. A percentile is tested by its exceedance rate, with the
bettors of `rates.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.wealth import Bets, Block, Floats, by_weight, ratio_table

QUANTILES = np.array([0.25, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99, 0.995, 0.999])
SCALES = (1.04, 1.08, 1.15, 1.25, 1.4, 1.7, 2.2, 3.0, 4.0)
SCALE_PRIOR = (0.5, 2.0, 2.0, 2.0, 1.5, 0.7, 0.5, 0.4, 0.4)  # mostly on frequent harms
TAILS = ((0.99, 1.6), (0.99, 2.5), (0.99, 5.0), (0.97, 1.5), (0.97, 2.2), (0.93, 1.5))
TAIL_PRIOR = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
STRETCHES = (1.2, 1.4, 1.8, 2.6)
STRETCH_PRIOR = (0.8, 1.2, 1.0, 0.6)
MIN_VALUES = 50  # of stable, before anything is bet
MIN_RATIO, MAX_RATIO = 0.02, 60.0
SMOOTHING = 1e-4


def ratios_of(moved: Floats, shares: Floats, edges: Floats) -> Floats:
    """K x C likelihood ratios, by bin, of moved values against stable's own.

    moved: (K + 1) x n values, the last row stable's own. shares: of stable's values at each of the n.
    """
    columns = len(edges) + 1
    index = np.searchsorted(edges, moved, side="left")
    flat = (np.arange(len(moved))[:, None] * columns + index).ravel()
    counted = np.bincount(flat, weights=np.tile(shares, len(moved)), minlength=len(moved) * columns)
    mass = counted.astype(np.float64).reshape(len(moved), columns) + SMOOTHING / columns
    ratios: Floats = mass[:-1] / mass[-1]
    return ratios


def stretched(values: Floats, start: float, end: float, factor: float) -> Floats:
    """Values below `start` unchanged, from `end` on times `factor`, interpolated in between by logarithm."""
    part = np.clip(np.log(np.maximum(values, start) / start) / np.log(end / start), 0.0, 1.0)
    moved: Floats = values * factor**part
    return moved


def below_the_cut(longest: float, times: float) -> float:
    """The highest threshold that a canary value censored at `longest` and divided by `times` still exceeds.

    Above it stable's value would count as slower than the canary's, though both were censored alike.
    """
    return longest / times * 0.999


class ShapeLoss:
    """Rollback: bets that canary values / m0 lie higher, in bins at stable's percentiles.

    Null: a canary value divided by m0 is stochastically at most a stable value.
    """

    __state__ = ("edges", "log_ratios")

    def __init__(self, *, tolerance: float, longest: float = np.inf) -> None:
        """longest: where values of both arms are censored; infinite: nowhere."""
        self._m0 = 1.0 + tolerance
        self._last_edge = below_the_cut(longest, self._m0)
        self.prior: Floats = np.array((*SCALE_PRIOR, *STRETCH_PRIOR, *TAIL_PRIOR))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.prior), 1))

    def bets(self, block: Block) -> Bets:
        """On every value once stable's bins are known; a failed unit (infinite) is in the slowest."""
        return shape_bets(block, self.edges, self.log_ratios, self._m0)

    def end_epoch(self, stable: Stable) -> None:
        """Recompute the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < MIN_VALUES:
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
            rest = max((1.0 - times * above) / (1.0 - above), MIN_RATIO)
            ratios = np.vstack((ratios, np.where(middles > start, times, rest)))
        ratios = np.maximum.accumulate(np.clip(ratios, MIN_RATIO, MAX_RATIO), axis=1)
        self.log_ratios = np.log(ratios)


class ShapeProof:
    """Promotion: bets that canary values / margin lie *lower* than stable's: it is not slower throughout.

    Null: a canary value divided by the margin is stochastically at least a stable value.
    """

    __state__ = ("edges", "log_ratios")

    POWERS = (0.4, 0.7, 1.0, 1.4)

    def __init__(self, *, margin: float) -> None:
        self._margin = margin
        self.prior: Floats = np.ones(len(self.POWERS))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.POWERS), 1))

    def bets(self, block: Block) -> Bets:
        """On every value once stable's bins are known; a failed unit (infinite) is in the slowest."""
        return shape_bets(block, self.edges, self.log_ratios, self._margin)

    def end_epoch(self, stable: Stable) -> None:
        """Recompute the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < MIN_VALUES:
            return
        values, shares = histogram.occupied()
        self.edges = np.unique(histogram.upper_edges(QUANTILES))
        moved = [values * self._margin**-power for power in self.POWERS]
        ratios = ratios_of(np.stack([*moved, values]), shares, self.edges)
        self.log_ratios = np.log(np.minimum.accumulate(np.clip(ratios, MIN_RATIO, MAX_RATIO), axis=1))


def shape_bets(block: Block, edges: Floats, log_ratios: Floats, divisor: float) -> Bets:
    """Bets on values by the bin of each, the canary's divided first; a look after each of the canary's."""
    if len(edges) == 0:
        none = np.empty(0, dtype=np.int64)
        return Bets(none, np.empty((len(log_ratios), 0)), none)
    ratios = np.exp(log_ratios)
    column = np.searchsorted(edges, np.where(block.arm, block.y / divisor, block.y), side="left")
    factors = by_weight(block, column.astype(np.int64), lambda w: ratio_table(w, ratios, log_ratios))
    return Bets(np.arange(len(block)), factors, np.flatnonzero(block.arm))


class Exceedance:
    """Indicator of values above stable's past percentile; the canary's are divided by a factor first.

    The threshold is frozen for an epoch of the rows counted here, and seeded from stable's traffic before the
    rollout; NaN until it is known.
    """

    __state__ = ("threshold", "stable", "rows", "until")

    def __init__(self, *, percentile: float, highest: float = np.inf) -> None:
        """highest: upper bound of the threshold."""
        self._percentile = percentile
        self._highest = highest
        self.threshold = float("nan")
        self.stable = Stable(with_histogram=True)
        self.rows = 0
        self.until = FIRST_EPOCH

    def seed(self, values: Floats) -> None:
        """Learn stable's values from before the rollout."""
        self.stable.learn(values)
        self._end_epoch()

    def of(self, waited: Floats, slowest: Floats, arm: NDArray[np.bool_], times: tuple[float, ...]) -> Floats:
        """len(times) x n indicators, by divisor of the canary's values; NaN where the value is missing.

        The first row uses `waited` (failed units missing), the others `slowest` (failed units infinite).
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
                self._end_epoch()
                self.until += epoch_after(self.rows)
            start = stop
        out = np.empty((len(times), len(waited)))
        for index, factor in enumerate(times):
            values = waited if index == 0 else slowest
            out[index] = np.where(arm, values / factor, values) > threshold
            out[index, np.isnan(threshold) | np.isnan(values)] = np.nan
        return out

    def _end_epoch(self) -> None:
        histogram = self.stable.histogram
        if histogram is not None and histogram.total >= MIN_VALUES:
            percentile = float(histogram.upper_edges(np.array([self._percentile]))[0])
            self.threshold = min(percentile, self._highest)
