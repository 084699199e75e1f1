"""Heavy-tailed values (latency, TTFT, inter-token time, tokens, cost): the bettors of `shape`.

`shape` tests "slower by more than m0 somewhere in the distribution". It is no test of a percentile: +200 ms
on every answer trips it while the p99 moves 8 %. A percentile is tested by its exceedance rate
(`exceedance.py`).

A request without an answer (infinite) counts as slowest, on both arms: its mass lies in the last bin. So a
canary that answers what stable fails is not slower, and one that fails fast is not faster. The claim reads
"wait, failures as slowest".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluation.betting.histogram import NO_STEPS, SMALLEST, Steps, StepsNow
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bets, Refitted, by_weight, ratio_table

QUANTILES = np.array([0.25, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99, 0.995, 0.999])
STEPS_FROM = 1  # the quantile from which on, over the margin, slow answers alone may be in steps
SCALES = (1.04, 1.08, 1.15, 1.25, 1.4, 1.7, 2.2, 3.0, 4.0)
SCALE_PRIOR = (0.3, 4.0, 2.2, 2.0, 1.3, 0.5, 0.3, 0.2, 0.2)  # mostly on frequent harms
TAILS = ((0.99, 1.6), (0.99, 2.5), (0.99, 5.0), (0.97, 1.5), (0.97, 2.2), (0.93, 1.5))
TAIL_PRIOR = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
FITTED_AT = np.array([*QUANTILES, 0.95, 0.99, *(quantile for quantile, _ in TAILS)])
STRETCHES = (1.2, 1.4, 1.8, 2.6)
STRETCH_PRIOR = (0.8, 1.2, 1.0, 0.6)
MIN_VALUES = 50  # of stable, before anything is bet
MIN_RATIO, MAX_RATIO = 0.02, 60.0
SMOOTHING = 1e-4


def ratios_of(moved: Floats, shares: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """K x C likelihood ratios, by bin, of moved values against stable's own, and the C masses of stable's.

    moved: (K + 1) x n values, the last row stable's own. shares: of stable's values at each of the n.
    """
    columns = len(edges) + 1
    index = np.searchsorted(edges, moved, side="left")
    flat = (np.arange(len(moved))[:, None] * columns + index).ravel()
    counted = np.bincount(flat, weights=np.tile(shares, len(moved)), minlength=len(moved) * columns)
    mass = counted.astype(np.float64).reshape(len(moved), columns) + SMOOTHING / columns
    ratios: Floats = mass[:-1] / mass[-1]
    return ratios, mass[-1] / np.add.accumulate(mass[-1])[-1]


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


def monotone(ratios: Floats, mass: Floats) -> Floats:
    """K x C rising ratios nearest to `ratios` in the sense of isotonic regression (PAVA), weighted by `mass`.

    By the min-max formula, so that there is no loop over bins: the largest over starts of the smallest over
    ends of the weighted mean between. Check: ratios (1, 3, 1) at masses (2, 1, 1) give (1, 2, 2).
    """
    zero = np.zeros((len(ratios), 1))
    sums = np.concatenate((zero, np.add.accumulate(ratios * mass, axis=1)), axis=1)
    masses = np.concatenate(([0.0], np.add.accumulate(mass)))
    width = ratios.shape[1]
    start, end = np.arange(width)[:, None], np.arange(1, width + 1)[None, :]
    is_span = end > start
    span = np.where(is_span, masses[end] - masses[start], 1.0)
    means = np.where(is_span, (sums[:, end] - sums[:, start]) / span, np.inf)  # K x start x end
    lowest = np.minimum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]
    fitted = np.where(start <= end - 1, lowest, -np.inf).max(axis=1)
    rising: Floats = np.maximum.accumulate(fitted, axis=1)  # against rounding
    return rising


class ShapeLoss(Refitted):
    """Rollback: bets that canary values / m0 lie higher, in bins at stable's percentiles.

    Null: a canary value divided by m0 is stochastically at most a stable value, unanswered requests as the
    slowest. The canary may leave `failures` times as many requests unanswered as stable (what its own gates
    tolerate): for an unanswered one, `h = hbar + (h_top - hbar) / failures`, hbar the mean of h over stable's
    answers.
    """

    __state__ = ("edges", "log_ratios", "answered")

    def __init__(self, *, tolerance: float, longest: float = np.inf, failures: float = 1.0) -> None:
        """longest: where values of both arms are censored; infinite: nowhere."""
        self._m0 = 1.0 + tolerance
        self._last_edge = below_the_cut(longest, self._m0)
        self._failures = failures
        self.prior: Floats = np.array((*SCALE_PRIOR, *STRETCH_PRIOR, *TAIL_PRIOR))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.prior), 1))
        self.answered: Floats = np.ones(1)  # shares of stable's answers by bin

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit once stable's bins are known, with a look after each of the canary's."""
        return shape_bets(block, self.edges, self.log_ratios, self._m0, self._table)

    def end_epoch(self, stable: Stable) -> None:
        """Recompute the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < MIN_VALUES:
            return
        values, shares = histogram.occupied()
        points = histogram.upper_edges(FITTED_AT)
        self.edges = np.unique(np.minimum(points[: len(QUANTILES)], self._last_edge))
        p95, p99, *starts = points[len(QUANTILES) :]
        p95 = max(p95, SMALLEST)  # where nearly all values are 0
        moved = [values * scale for scale in SCALES]
        moved += [stretched(values, p95, max(p99, p95 * 1.01), factor) for factor in STRETCHES]
        ratios, self.answered = ratios_of(np.stack([*moved, values]), shares, self.edges)
        middles = np.append(self.edges, np.inf)
        tails = []
        for (_, times), start in zip(TAILS, starts, strict=True):
            above = max(histogram.share_above(start / 1.005), SMOOTHING)
            rest = max((1.0 - times * above) / (1.0 - above), MIN_RATIO)
            tails.append(np.where(middles > start, times, rest))
        ratios = np.clip(np.concatenate((ratios, tails)), MIN_RATIO, MAX_RATIO)
        self.log_ratios = np.log(monotone(*with_failures(ratios, self.answered, stable.unanswered)))

    def _table(self, w: float) -> Floats:
        """K x 2 x (C + 1) log factors; the last column is an unanswered request."""
        ratios = np.exp(self.log_ratios)
        table = ratio_table(w, ratios, self.log_ratios)
        unanswered = table[:, :, -1:].copy()
        if self._failures > 1.0:
            h = np.exp(table[:, 1])
            mean = np.add.accumulate(h * self.answered, axis=1)[:, -1]
            unanswered[:, 1, 0] = np.log(mean + (h[:, -1] - mean) / self._failures)
        return np.concatenate((table, unanswered), axis=2)


class ShapeProof(Refitted):
    """Promotion: bets that canary values / margin lie *lower* than stable's: it is not slower throughout.

    Null: a canary value divided by the margin is stochastically at least a stable value, unanswered requests
    as the slowest.

    Where values are recorded in steps (the ends of buckets, whole seconds), a canary's is compared as its
    quotient would have been recorded. Else a canary 1.3x slower that falls into the same buckets as stable
    would lie below stable's by the margin, and be proven.
    """

    __state__ = ("edges", "log_ratios", "steps")

    POWERS = (0.4, 0.7, 1.0, 1.4)

    def __init__(self, *, margin: float) -> None:
        self._margin = margin
        self.prior: Floats = np.ones(len(self.POWERS))
        self.edges: Floats = np.empty(0)
        self.log_ratios: Floats = np.zeros((len(self.POWERS), 1))
        self.steps = StepsNow()

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit once stable's bins are known, with a look after each of the canary's."""
        return shape_bets(block, self.edges, self.log_ratios, self._margin, self._table, self.steps.get())

    def end_epoch(self, stable: Stable) -> None:
        """Recompute the bins and the ratios from stable's histogram so far."""
        histogram = stable.histogram
        if histogram is None or histogram.total < MIN_VALUES:
            return
        values, shares = histogram.occupied()
        edges = histogram.upper_edges(QUANTILES)
        steps = histogram.steps(float(edges[STEPS_FROM]) / self._margin)
        self.steps.set(steps)
        # Below it lie many of a faster canary's, and a twin's divided by the margin where they are few.
        self.edges = np.unique(np.append(edges, edges[edges > 0.0][:1] / np.sqrt(self._margin)))
        if len(steps.points):
            moved = [steps.divided(values, self._margin**power) for power in self.POWERS]
        else:
            moved = [values * self._margin**-power for power in self.POWERS]
        ratios, mass = ratios_of(np.stack([*moved, values]), shares, self.edges)
        ratios, mass = with_failures(np.clip(ratios, MIN_RATIO, MAX_RATIO), mass, stable.unanswered)
        self.log_ratios = np.log(monotone(ratios[:, ::-1], mass[::-1])[:, ::-1])

    def _table(self, w: float) -> Floats:
        table = ratio_table(w, np.exp(self.log_ratios), self.log_ratios)
        return np.concatenate((table, table[:, :, -1:]), axis=2)


def with_failures(ratios: Floats, mass: Floats, unanswered: float) -> tuple[Floats, Floats]:
    """Ratios and masses with stable's share of unanswered requests in the last bin, whose mass no
    alternative moves."""
    ratios, mass = ratios.copy(), mass * (1.0 - unanswered)
    last = mass[-1] + unanswered
    if unanswered > 0.0:
        ratios[:, -1] = (ratios[:, -1] * mass[-1] + unanswered) / last
    mass[-1] = last
    return ratios, mass


def shape_bets(
    block: UnitBlock,
    edges: Floats,
    log_ratios: Floats,
    divisor: float,
    table: Callable[[float], Floats],
    steps: Steps = NO_STEPS,
) -> Bets:
    """Bets on values by the bin of each, the canary's divided first; a look after each of the canary's.

    An unanswered request (infinite) has the column after the last bin.
    """
    if len(edges) == 0:
        none = np.empty(0, dtype=np.int64)
        return Bets(none, np.empty((len(log_ratios), 0)), none)
    values, arm = (block.y, block.arm) if block.values is None else (block.values, block.arm[block.owner])
    column = np.searchsorted(edges, np.where(arm, steps.divided(values, divisor), values), side="left")
    column = np.where(np.isinf(values), len(edges) + 1, column).astype(np.int64)
    return Bets(np.arange(len(block)), by_weight(block, column, table), np.flatnonzero(block.arm))
