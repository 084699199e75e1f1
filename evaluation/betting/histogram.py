"""Log-histogram at 1 % relative bin width: quantiles and tail shares in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = math.log(1.01)
BINS = 640
BELOW = 200  # bins below the median of the first values: a factor of 7.3; above it a factor of 79
SMALLEST = 1e-9
FIRST = 32  # values whose median centres the range, so that one outlier cannot


class LogHistogram:
    """Counts of values by logarithm. The range is centred on the first values, which are buffered until there
    are enough; values outside it are counted in the end bins. The counts do not depend on the blocks."""

    __state__ = ("counts", "first_bin", "total", "waiting")

    def __init__(self) -> None:
        self.counts: NDArray[np.uint32] = np.zeros(BINS, dtype=np.uint32)
        self.first_bin = 0
        self.total = 0  # counted; without the buffered ones
        self.waiting: Ints = np.empty(0, dtype=np.int64)  # bins of the first values

    def add(self, values: Floats) -> None:
        """Count finite values of at least 0; the unit is the caller's."""
        if len(values) == 0:
            return
        bins = np.floor(np.log(np.maximum(values, SMALLEST)) / WIDTH).astype(np.int64)
        if self.total == 0:
            bins = np.concatenate((self.waiting, bins))
            self.waiting = bins if len(bins) < FIRST else np.empty(0, dtype=np.int64)
            if len(bins) < FIRST:
                return
            self.first_bin = int(np.sort(bins[:FIRST])[FIRST // 2]) - BELOW
        index = np.clip(bins - self.first_bin, 0, BINS - 1)
        self.counts += np.bincount(index, minlength=BINS).astype(np.uint32)
        self.total += len(bins)

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
