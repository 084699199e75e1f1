"""Log-histogram at 1 % relative bin width: quantiles and tail shares in bounded memory; recorded steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = math.log(1.01)
BINS = 640
BELOW = 200  # bins below the median of the first values: a factor of 7.3; above it a factor of 79
SMALLEST = 1e-9
FIRST = 32  # values whose median centres the range, so that one outlier cannot
SAME = 1e-5  # relative: closer values are one, as differences of time stamps are not exact
UNPROVABLE = "cannot be proven by such values"
STEP_SHARE = 0.1  # of all values that are repeats of their bin's step: fewer are chance
EXACT_SHARE = 0.05  # of all values that are on no step: more are said to be exact


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps in which values are recorded, where a value on one stands for all between two steps. Others,
    as of a second router that records exactly, are what they are.

    points: ascending. is_mixed: whether there are exact values beside them.
    """

    points: Floats
    is_mixed: bool

    def divided(self, values: Floats, divisor: float) -> Floats:
        """How values divided by `divisor` would have been recorded at most: as the next step up, and where
        there are exact ones, only those on a step.

        Check: steps 500 and 1000, divisor 1.2: 1000 stays 1000, as 833 would have been recorded so.
        """
        if len(self.points) == 0:
            return values / divisor
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
        apart = self.points[1:] / np.maximum(self.points[:-1], SMALLEST)
        count = len(self.points)
        what = f"recorded in steps ({count} distinct values)" if count > 1 else "the same for all requests"
        if self.is_mixed:
            what = f"partly recorded in steps ({count} values that repeat)"
        is_narrow = apart * (1.0 - 2.0 * SAME) < divisor
        if not (is_narrow.any() or self.is_mixed):
            return f"{what}: {divisor:g}x {UNPROVABLE}"
        return f"{what}: a canary's value counts as the next step up"


NO_STEPS = Steps(np.empty(0), is_mixed=False)


class LogHistogram:
    """Counts of values by logarithm. The range is centred on the first values, which are buffered until there
    are enough; values outside it are counted in the end bins. The counts do not depend on the blocks.

    with_steps: count how many of a bin's values are the same, by the majority vote of Boyer and Moore: it
    shows whether values are recorded in steps, also where they are only from some time on.
    """

    def __init__(self, *, with_steps: bool = False) -> None:
        self.counts: NDArray[np.uint32] = np.zeros(BINS, dtype=np.uint32)
        self.first_bin = 0
        self.total = 0  # counted; without the buffered ones
        self.waiting: Ints = np.empty(0, dtype=np.int64)  # bins of the first values
        self._with_steps = with_steps
        self.first_values: Floats = np.empty(0)  # the same values
        size = BINS if with_steps else 0
        # The value that leads the vote of each bin; NaN: none.
        self.step: NDArray[np.float32] = np.full(size, np.nan, dtype=np.float32)
        self.repeats: NDArray[np.uint32] = np.zeros(size, dtype=np.uint32)  # values the same since it leads
        self.votes: NDArray[np.uint32] = np.zeros(size, dtype=np.uint32)  # how far it leads

    @property
    def __state__(self) -> tuple[str, ...]:
        kept = ("counts", "first_bin", "total", "waiting")
        return (*kept, "first_values", "step", "repeats", "votes") if self._with_steps else kept

    def add(self, values: Floats) -> None:
        """Count finite values of at least 0; the unit is the caller's."""
        if len(values) == 0:
            return
        bins = np.floor(np.log(np.maximum(values, SMALLEST)) / WIDTH).astype(np.int64)
        if self.total == 0:
            bins = np.concatenate((self.waiting, bins))
            self.waiting = bins if len(bins) < FIRST else np.empty(0, dtype=np.int64)
            if self._with_steps:
                values = np.concatenate((self.first_values, values))
                self.first_values = values if len(bins) < FIRST else np.empty(0)
            if len(bins) < FIRST:
                return
            self.first_bin = int(np.sort(bins[:FIRST])[FIRST // 2]) - BELOW
        index = np.clip(bins - self.first_bin, 0, BINS - 1)
        self.counts += np.bincount(index, minlength=BINS).astype(np.uint32)
        self.total += len(bins)
        if self._with_steps:
            self._vote(np.maximum(values, SMALLEST), index)

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

    def steps(self) -> Steps:
        """The steps in which values are recorded: what half of a bin's values are, and twice as many as
        are in the bins beside it, which are 1 % wide. `NO_STEPS` unless they are `STEP_SHARE` of all values.
        """
        if not self._with_steps or self.total == 0:
            return NO_STEPS
        counts, repeats = self.counts.astype(np.int64), self.repeats.astype(np.int64)
        beside = np.maximum(np.append(counts[1:], 0), np.append(0, counts[:-1]))
        is_step = (repeats > 1) & (2 * repeats >= counts) & (repeats >= 2 * beside)
        repeated = int(self.repeats[is_step].sum(dtype=np.int64))
        if repeated < STEP_SHARE * self.total:
            return NO_STEPS
        points = np.sort(self.step[is_step].astype(np.float64))
        return Steps(points, is_mixed=repeated < (1.0 - EXACT_SHARE) * self.total)

    def occupied(self) -> tuple[Floats, Floats]:
        """The midpoints of the occupied bins, ascending, and the share of all values in each."""
        index = np.flatnonzero(self.counts)
        middles = np.exp((index + self.first_bin + 0.5) * WIDTH)
        return middles, self.counts[index] / max(self.total, 1)

    def upper_edges(self, shares: Floats) -> Floats:
        """For each share q, the smallest bin edge with at least q of the values below it. NaN when empty."""
        if self.total == 0:
            return np.full(len(shares), np.nan)
        below = np.cumsum(self.counts, dtype=np.int64)
        index: Ints = np.searchsorted(below, np.ceil(shares * self.total), side="left").astype(np.int64)
        edges: Floats = np.exp((np.minimum(index, BINS - 1) + self.first_bin + 1) * WIDTH)
        return edges

    def share_above(self, value: float) -> float:
        """The share of values in bins above that of `value`. NaN when empty."""
        bin_of_value = int(np.floor(np.log(max(value, SMALLEST)) / WIDTH))
        if self.total == 0:
            return float(np.mean(self.waiting > bin_of_value)) if len(self.waiting) else float("nan")
        index = bin_of_value - self.first_bin
        if index < 0:
            return 1.0
        return float(self.counts[index + 1 :].sum(dtype=np.int64)) / self.total
