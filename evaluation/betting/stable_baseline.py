"""Running statistics of stable in one stream: mean, variance, and a histogram of heavy-tailed values."""

from __future__ import annotations

import numpy as np

from evaluation.betting.covariates import CovariateFit
from evaluation.betting.histogram import Floats, LogHistogram

FIRST_EPOCH = 64  # rows
LONGEST_EPOCH = 4096
MIN_FOR_VARIANCE = 30


_STATE = ("total", "squares", "count", "infinite", "histogram")


def epoch_after(rows: int) -> int:
    """Rows of the next epoch, after `rows` in all: a fifth of them, within 64..4096."""
    return min(max(rows // 5, FIRST_EPOCH), LONGEST_EPOCH)


class Stable:
    """Statistics of stable's units, updated after they were bet on, so that every bet is predictable."""

    def __init__(self, *, with_histogram: bool, covariates: int = 0) -> None:
        self.total = 0.0
        self.squares = 0.0
        self.count = 0
        self.infinite = 0  # unanswered, or censored
        self.histogram = LogHistogram() if with_histogram else None  # None: outcomes are in [0, 1]
        self.covariates = CovariateFit(covariates) if covariates else None  # None: no gate has any

    @property
    def __state__(self) -> tuple[str, ...]:
        return _STATE if self.covariates is None else (*_STATE, "covariates")

    def learn(self, y: Floats) -> None:
        """Add stable's outcomes in order; infinite ones (unanswered, censored) are only counted."""
        if len(y) == 0:
            return
        self.count += len(y)
        if self.histogram is None:
            self.total = float(np.add.accumulate(np.concatenate(([self.total], y)))[-1])
            self.squares = float(np.add.accumulate(np.concatenate(([self.squares], y * y)))[-1])
        else:
            finite = y[np.isfinite(y)]
            self.infinite += len(y) - len(finite)
            self.histogram.add(finite)

    @property
    def unanswered(self) -> float:
        """Share of infinite values."""
        return self.infinite / max(self.count, 1)

    def mean(self, *, prior: float) -> float:
        """The mean, shrunk towards `prior` with the weight of one unit."""
        return (self.total + prior) / (self.count + 1)

    def variance(self, *, prior: float) -> float:
        """The variance; `prior` until thirty units are known, and at least a hundredth of that."""
        if self.count < MIN_FOR_VARIANCE:
            return prior
        mean = self.total / self.count
        return max(self.squares / self.count - mean * mean, prior / 100.0)

    def residual_variance(self, *, prior: float) -> float:
        """The variance that the covariates do not explain; without any, the variance."""
        variance = self.variance(prior=prior)
        if self.covariates is None:
            return variance
        return max(variance * (1.0 - self.covariates.explained), prior / 100.0)
