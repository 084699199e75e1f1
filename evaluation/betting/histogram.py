"""Log-histogram at 1 % relative bin width: quantiles and tail shares in bounded memory; recorded steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.ticks import MOST_APART, clusters, next_tick_up, slow_clusters

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

WIDTH = math.log(1.01)
BINS = 640  # at first; where values lie outside, more are added
BELOW = 200  # of these, below the median of the first values: a factor of 7.3; above it a factor of 79
PIECE = 64  # bins that are added at a time
MORE_BELOW, MORE_ABOVE = 15 * PIECE, 12 * PIECE  # at most: a factor of 10^5 to each side of the median
SMALLEST = 1e-9  # values up to it count as zero
ZERO_BIN = math.floor(math.log(SMALLEST) / WIDTH)
FIRST = 32  # values whose median centres the range, so that one outlier cannot
SAME = 1e-5  # relative: closer values are one, as differences of time stamps are not exact
UNPROVABLE = "cannot be proven by such values"
STEP_SHARE = 0.1  # of the values that are repeats of their bin's step: fewer are chance
MIN_REPEATS = 10.0  # ... unless so many are one value, or so many in all
EXACT_SHARE = 0.05  # of all values that are on no step: more are said to be exact


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps in which values are recorded, where a value on one stands for all between two steps. Others,
    as of a second router that records exactly, are what they are.

    points: ascending. is_mixed: whether there are exact values beside them. lows: where values come at ticks
    and a little later, the beginnings of the clusters, whose ends are the points; empty: they do not.
    """

    points: Floats
    is_mixed: bool
    lows: Floats = field(default_factory=lambda: np.empty(0))

    def divided(self, values: Floats, divisor: float) -> Floats:
        """How values divided by `divisor` would have been recorded at most: as the next step up, and where
        there are exact ones, only those on a step.

        Check: steps 500 and 1000, divisor 1.2: 1000 stays 1000, as 833 would have been recorded so.
        """
        if len(self.points) == 0:
            return values / divisor
        if len(self.lows):
            ticks = next_tick_up(values, divisor, self.lows, self.points, tolerance=math.expm1(WIDTH))
            own = np.maximum(np.searchsorted(self.lows, values, side="right") - 1, 0)
            is_at_tick = (self.lows[own] <= values) & (values <= self.points[own])
            return np.where(is_at_tick | (not self.is_mixed), ticks, values / divisor)
        smaller = values / divisor
        index = np.searchsorted(self.points, smaller * (1.0 - 2.0 * SAME), side="left")
        is_within = index < len(self.points)
        index = np.minimum(index, len(self.points) - 1)
        nearest = np.minimum(np.searchsorted(self.points, values * (1.0 - SAME)), len(self.points) - 1)
        is_on_step = np.abs(values - self.points[nearest]) <= SAME * self.points[nearest]
        out: Floats = np.where(is_within & (is_on_step | (not self.is_mixed)), self.points[index], smaller)
        return out

    def text(self, divisor: float) -> str:
        """What the steps are, and what they mean for a proof of `divisor`; empty: there are none."""
        if len(self.points) == 0:
            return ""
        points = self.lows if len(self.lows) else self.points
        apart = points[1:] / np.maximum(points[:-1], SMALLEST)
        count = len(points)
        what = f"recorded in steps ({count} distinct values)" if count > 1 else "the same for all requests"
        if len(self.lows):
            clustered = "1 cluster" if count == 1 else f"{count} clusters"
            what = f"{'partly ' * self.is_mixed}recorded at ticks ({clustered} of values)"
        elif self.is_mixed:
            repeating = "1 value that repeats" if count == 1 else f"{count} values that repeat"
            what = f"partly recorded in steps ({repeating})"
        is_narrow = apart * (1.0 - 2.0 * SAME) < divisor
        if not (is_narrow.any() or self.is_mixed):
            return f"{what}: {divisor:g}x {UNPROVABLE}"
        return f"{what}: a canary's value counts as the next {'tick' if len(self.lows) else 'step'} up"


NO_STEPS = Steps(np.empty(0), is_mixed=False)


class StepsNow:
    """The steps of the values so far, frozen for an epoch, as state of a bettor."""

    __state__ = ("points", "is_mixed", "lows")

    def __init__(self) -> None:
        self.set(NO_STEPS)

    def set(self, steps: Steps) -> None:
        """Replace them."""
        self.points, self.is_mixed, self.lows = steps.points, steps.is_mixed, steps.lows

    def get(self) -> Steps:
        """The steps."""
        return Steps(self.points, self.is_mixed, self.lows)


def bins_of(values: Floats) -> Ints:
    """The number of each value's bin, floor(log(value) / WIDTH); `ZERO_BIN` for zeros."""
    bins: Ints = np.floor(np.log(np.maximum(values, SMALLEST)) / WIDTH).astype(np.int64)
    return bins


class BinRange:
    """The bins that an array of counts has: at index 0 the zeros, at i > 0 the values from
    exp((first_bin + i - 1) * WIDTH) on, below exp((first_bin + i) * WIDTH).

    At first `BINS` around the median of the first values above 0. Values outside add bins, in pieces, up to
    10^5 times that median to each side; what lies beyond is counted in the end bins. No edge ever moves, and
    the range depends on the smallest and the largest value alone, not on the blocks. The last bin is empty,
    unless there are values beyond.
    """

    __state__ = ("start", "first_bin", "size")

    def __init__(self) -> None:
        self.start = ZERO_BIN  # the first bin before any was added; ZERO_BIN: no value above 0 is known
        self.first_bin = 0
        self.size = BINS  # without the zeros' bin

    def centre(self, bins: Ints) -> None:
        """Set the range by the bins of the first values."""
        positive = bins[bins > ZERO_BIN]
        if len(positive):
            self.start = max(int(np.sort(positive)[len(positive) // 2]) - BELOW, ZERO_BIN + 1)
            self.first_bin = self.start

    def place(self, bins: Ints) -> tuple[Ints, int, int]:
        """The index of each value by its bin, and how many bins were added below and above."""
        if self.start == ZERO_BIN:
            self.centre(bins[bins > ZERO_BIN][:1])
            if self.start == ZERO_BIN:
                return np.zeros(len(bins), dtype=np.int64), 0, 0
        index = bins - (self.first_bin - 1)
        if index.min() >= 1 and index.max() < self.size:
            return index, 0, 0
        below, above = self._grow(bins[bins > ZERO_BIN])
        index = np.clip(bins - (self.first_bin - 1), 1, self.size)
        index[bins <= ZERO_BIN] = 0
        return index, below, above

    def _grow(self, bins: Ints) -> tuple[int, int]:
        if len(bins) == 0:
            return 0, 0
        end = self.first_bin + self.size
        below = min(_pieces(self.first_bin - int(bins.min())), self.first_bin - self._lowest)
        above = min(_pieces(int(bins.max()) + 2 - end), self._end - end)
        self.first_bin -= below
        self.size += below + above
        return below, above

    @property
    def _lowest(self) -> int:
        return max(self.start - MORE_BELOW, ZERO_BIN + 1)

    @property
    def _end(self) -> int:
        return self.start + BINS + MORE_ABOVE

    def indices_from(self, bin_: int) -> tuple[int, int]:
        """The first index of values in a bin, of `bins_of`, or above, and the first of those above it."""
        if bin_ <= ZERO_BIN:
            return 0, 1
        inside = min(max(bin_, self._lowest), self._end - 1)
        index = inside - self.first_bin + 1
        return max(index, 1), max(index + 1, 1)

    def upper_edges(self, index: Ints) -> Floats:
        """The upper edges of bins; 0 of the zeros'."""
        edges: Floats = np.where(index == 0, 0.0, np.exp((index + self.first_bin) * WIDTH))
        return edges

    def edges_of(self, index: int) -> tuple[float, float]:
        """A bin's lower and upper edge."""
        if index == 0:
            return 0.0, 0.0
        lower, upper = (float(np.exp((index + self.first_bin + edge) * WIDTH)) for edge in (-1, 0))
        return lower, upper


def _pieces(bins: int) -> int:
    """At least so many bins, in whole pieces; 0 for none and less."""
    return -(-max(bins, 0) // PIECE) * PIECE


def widened(counts: NDArray[Any], below: int, above: int, fill: float = 0) -> NDArray[Any]:
    """Counts by bin along the last axis, with so many bins added below (after the zeros') and above."""
    low, high = (np.full((*counts.shape[:-1], more), fill, dtype=counts.dtype) for more in (below, above))
    return np.concatenate((counts[..., :1], low, counts[..., 1:], high), axis=-1)


class LogHistogram:
    """Counts of values of at least 0 by logarithm, in the bins of a `BinRange`. It is centred on the first
    values, which are buffered until there are enough. The counts do not depend on the blocks.

    with_steps: count how many of a bin's values are the same, by the majority vote of Boyer and Moore: it
    shows whether values are recorded in steps, also where they are only from some time on.
    """

    def __init__(self, *, with_steps: bool = False) -> None:
        self.range = BinRange()
        self.counts: NDArray[np.uint32] = np.zeros(1 + BINS, dtype=np.uint32)
        self.total = 0  # counted; without the buffered ones
        self.waiting: Ints = np.empty(0, dtype=np.int64)  # bins of the first values
        self._with_steps = with_steps
        self.first_values: Floats = np.empty(0)  # the same values
        size = 1 + BINS if with_steps else 0
        # The value that leads the vote of each bin; NaN: none.
        self.step: NDArray[np.float32] = np.full(size, np.nan, dtype=np.float32)
        self.repeats: NDArray[np.uint32] = np.zeros(size, dtype=np.uint32)  # values the same since it leads
        self.votes: NDArray[np.uint32] = np.zeros(size, dtype=np.uint32)  # how far it leads

    @property
    def __state__(self) -> tuple[str, ...]:
        kept = ("range", "counts", "total", "waiting")
        return (*kept, "first_values", "step", "repeats", "votes") if self._with_steps else kept

    def add(self, values: Floats) -> None:
        """Count finite values of at least 0; the unit is the caller's."""
        if len(values) == 0:
            return
        bins = bins_of(values)
        if self.total == 0:
            bins = np.concatenate((self.waiting, bins))
            self.waiting = bins if len(bins) < FIRST else np.empty(0, dtype=np.int64)
            if self._with_steps:
                values = np.concatenate((self.first_values, values))
                self.first_values = values if len(bins) < FIRST else np.empty(0)
            if len(bins) < FIRST:
                return
            self.range.centre(bins[:FIRST])
        index, below, above = self.range.place(bins)
        if below or above:
            self._widen(below, above)
        self.counts += np.bincount(index, minlength=len(self.counts)).astype(np.uint32)
        self.total += len(bins)
        if self._with_steps:
            self._vote(values, index)

    def _widen(self, below: int, above: int) -> None:
        self.counts = widened(self.counts, below, above)
        if self._with_steps:
            self.step = widened(self.step, below, above, np.nan)
            self.repeats, self.votes = (widened(of, below, above) for of in (self.repeats, self.votes))

    def _vote(self, values: Floats, index: Ints) -> None:
        """Let each value vote in its bin: for the leading value if it is the same, else against it; where the
        lead is used up, the next value leads. What more than half of a bin's values are leads in the end.
        """
        used, place = np.unique(index, return_inverse=True)
        steps, votes, repeats = (of[used].tolist() for of in (self.step, self.votes, self.repeats))
        stored = values.astype(np.float32).tolist()  # as it is kept, so that no cut between blocks matters
        for value, lead, bin_ in zip(values.tolist(), stored, place.tolist(), strict=True):
            step = steps[bin_]
            if votes[bin_] == 0:
                steps[bin_], votes[bin_], repeats[bin_] = lead, 1, 1
            elif abs(value - step) <= SAME * step:
                votes[bin_] += 1
                repeats[bin_] += 1
            elif votes[bin_] > 1:
                votes[bin_] -= 1
            else:
                steps[bin_], votes[bin_], repeats[bin_] = math.nan, 0, 0
        self.step[used], self.votes[used], self.repeats[used] = steps, votes, repeats

    def steps(self, above: float = math.inf) -> Steps:
        """The steps in which values are recorded: what half of a bin's values are, and twice as many as
        are in the bins beside it, which are 1 % wide. Where they are less than `STEP_SHARE` of all values:
        the ticks at which values come; else the steps from `above` on alone (slow answers that are polled,
        beside quick ones that are exact), if those are frequent there, or the ticks there, if these hold
        more. `NO_STEPS` where nothing is found.

        above: from where on a proof looks at the values; infinite: it looks at all of them alike.
        """
        if not self._with_steps or self.total == 0:
            return NO_STEPS
        counts, repeats = self.counts.astype(np.int64), self.repeats.astype(np.int64)
        zeros, counts[0], repeats[0] = int(counts[0]), 0, 0  # a zero is exact, unless others are in steps
        beside = np.maximum(np.append(counts[1:], 0), np.append(0, counts[:-1]))
        is_step = (repeats > 1) & (2 * repeats >= counts) & (repeats >= 2 * beside)
        others = self.total - zeros
        if others > 0 and repeats[is_step].sum() < max(STEP_SHARE * others, 1.0):
            if len((ticks := self._ticks()).points):
                return ticks
            is_step, zeros = is_step & self._is_frequent(is_step, above), 0
            ticks, held = self._slow_ticks(above)
            if held > 2 * int(repeats[is_step].sum()):
                return ticks
            if not is_step.any():
                return NO_STEPS
        points = np.append(np.zeros(min(zeros, 1)), np.sort(self.step[is_step].astype(np.float64)))
        return Steps(points, is_mixed=int(repeats[is_step].sum()) < (1.0 - EXACT_SHARE) * others)

    def _is_frequent(self, is_step: Flags, above: float) -> Flags:
        """Which bins' steps count where few of all values are on one: from `above` on, those of
        `MIN_REPEATS`, and all if they are `STEP_SHARE` of the values there. Of exact values hardly two are
        the same, and of whole milliseconds a few in the thin end of a tail."""
        if math.isinf(above):
            return np.zeros_like(is_step)
        bin_ = int(bins_of(np.array([above]))[0])
        is_there = np.arange(len(is_step)) >= self.range.indices_from(bin_)[0]
        repeated, there = int(self.repeats[is_step & is_there].sum()), int(self.counts[is_there].sum())
        if repeated >= max(STEP_SHARE * there, MIN_REPEATS):
            return is_there
        enough: Flags = is_there & (self.repeats >= MIN_REPEATS)
        return enough

    def _ticks(self) -> Steps:
        firsts, lasts = clusters(self.counts[1:].astype(np.int64))
        if len(firsts) == 0:
            return NO_STEPS
        return self._ticks_of(firsts, lasts, is_mixed=False)

    def _slow_ticks(self, above: float) -> tuple[Steps, int]:
        """The ticks from `above` on alone, or from a third of it where it lies between two; and how many
        values are at them."""
        if math.isinf(above):
            return NO_STEPS, 0
        counts = self.counts[1:].astype(np.int64)
        begin = max(self.range.indices_from(int(bins_of(np.array([above]))[0]))[0] - 1, 0)
        firsts, lasts = slow_clusters(counts, begin)
        for start in (begin, max(begin - MOST_APART, 0)):
            if len(firsts) == 0:
                firsts, lasts = (found + start for found in clusters(counts[start:]))
        if len(firsts) == 0:
            return NO_STEPS, 0
        held = sum(int(counts[first : last + 1].sum()) for first, last in zip(firsts, lasts, strict=True))
        is_mixed = held < (1.0 - EXACT_SHARE) * int(counts.sum())
        return self._ticks_of(firsts, lasts, is_mixed=is_mixed), held

    def _ticks_of(self, firsts: Ints, lasts: Ints, *, is_mixed: bool) -> Steps:
        lows, points = self.range.upper_edges(firsts), self.range.upper_edges(lasts + 1)
        lows[0] = self.range.edges_of(int(firsts[0]) + 1)[0]  # not 0
        return Steps(points, is_mixed=is_mixed, lows=lows)

    def occupied(self) -> tuple[Floats, Floats]:
        """The midpoints of the occupied bins, ascending, of the zeros' 0, and the share of all values in
        each."""
        index = np.flatnonzero(self.counts)
        middles = np.where(index == 0, 0.0, np.exp((index + self.range.first_bin - 0.5) * WIDTH))
        return middles, self.counts[index] / max(self.total, 1)

    def upper_edges(self, shares: Floats) -> Floats:
        """For each share q, the smallest bin edge with at least q of the values at or below it. NaN when
        empty."""
        if self.total == 0:
            return np.full(len(shares), np.nan)
        below = np.cumsum(self.counts, dtype=np.int64)
        index: Ints = np.searchsorted(below, np.ceil(shares * self.total), side="left").astype(np.int64)
        return self.range.upper_edges(np.minimum(index, len(self.counts) - 1))

    def share_above(self, value: float) -> float:
        """The share of values in bins above that of `value`. NaN when empty."""
        return self._shares_from(value)[1]

    def mid_share_above(self, value: float) -> float:
        """The share of values in bins above that of `value`, and half of those in its own. NaN when empty."""
        return sum(self._shares_from(value)) / 2.0

    def _shares_from(self, value: float) -> tuple[float, float]:
        """The shares of values in the bin of `value` and above, and above it."""
        bin_ = int(bins_of(np.array([value]))[0])
        if self.total == 0:
            if len(self.waiting) == 0:
                return float("nan"), float("nan")
            return float(np.mean(self.waiting >= bin_)), float(np.mean(self.waiting > bin_))
        own, above = self.range.indices_from(bin_)
        at_or_above, only_above = (
            float(self.counts[index:].sum(dtype=np.int64)) / self.total for index in (own, above)
        )
        return at_or_above, only_above

    def fitted(self, counts: Floats, first_bin: int) -> Floats:
        """Counts by bin, of an earlier range of this histogram that began at `first_bin`, by its bins now."""
        if len(counts) == len(self.counts) and first_bin == self.range.first_bin:
            return counts
        if not counts[1:].any():
            return np.append(counts[0], np.zeros(len(self.counts) - 1))
        below = first_bin - self.range.first_bin
        return widened(counts, below, len(self.counts) - len(counts) - below)
