"""What stable has shown so far in one stream: its mean, and a histogram where values have heavy tails."""

from __future__ import annotations

import numpy as np

from evaluation.betting.histogram import Floats, LogHistogram

FIRST_EPOCH = 64
LONGEST_EPOCH = 4096
FEW = 30


def epoch_after(rows: int) -> int:
    """How many rows the next epoch has, after `rows`: a fifth more, within 64..4096. Tables are frozen
    that long."""
    return min(max(rows // 5, FIRST_EPOCH), LONGEST_EPOCH)


class Stable:
    """Statistics of stable's units, learned after they were bet on, so that every bet is predictable."""

    __state__ = ("total", "squares", "count", "histogram")

    def __init__(self, *, with_histogram: bool) -> None:
        self.total = 0.0
        self.squares = 0.0
        self.count = 0
        self.histogram = (
            LogHistogram() if with_histogram else None
        )  # None: bounded in [0, 1], the mean is enough

    def learn(self, y: Floats) -> None:
        """Take stable's outcomes in order. Infinite ones (censored, failed) are counted and stay out of the
        histogram."""
        if len(y) == 0:
            return
        self.count += len(y)
        if self.histogram is None:
            self.total = float(np.add.accumulate(np.concatenate(([self.total], y)))[-1])
            self.squares = float(np.add.accumulate(np.concatenate(([self.squares], y * y)))[-1])
        else:
            self.histogram.add(y[np.isfinite(y)])

    def mean(self, *, before: float) -> float:
        """The mean, shrunk to `before` by the weight of one unit."""
        return (self.total + before) / (self.count + 1)

    def variance(self, *, before: float) -> float:
        """The variance, `before` until thirty units are known; at least a hundredth of that."""
        if self.count < FEW:
            return before
        mean = self.total / self.count
        return max(self.squares / self.count - mean * mean, before / 100.0)
