"""Running statistics of stable in one stream: mean, variance, and a histogram of heavy-tailed values."""

from __future__ import annotations

import math

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

    def __init__(
        self,
        *,
        with_histogram: bool,
        covariates: int = 0,
        with_missing: bool = False,
        with_steps: bool = False,
    ) -> None:
        """with_steps: find out whether values are recorded in steps."""
        self.total = 0.0
        self.squares = 0.0
        self.count = 0
        self.infinite = 0  # unanswered, or censored
        self.histogram: LogHistogram | None = None  # None: outcomes are in [0, 1]
        if with_histogram:
            self.histogram = LogHistogram(with_steps=with_steps)
        self.covariates = CovariateFit(covariates) if covariates else None  # None: no gate has any
        self._with_missing = with_missing
        self.missing: Floats = np.zeros(4)  # sums of m, y m, m m and 1 - c: parts missing, and counted

    @property
    def __state__(self) -> tuple[str, ...]:
        more = () if self.covariates is None else ("covariates",)
        return (*_STATE, *more, "missing") if self._with_missing else (*_STATE, *more)

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

    def learn_missing(self, y: Floats, missing: Floats, counted: Floats) -> None:
        """Add what is missing of units whose outcomes were learnt: see `UnitBlock`."""
        parts = np.stack((missing, y * missing, missing * missing, 1.0 - counted))
        self.missing = np.add.accumulate(np.concatenate((self.missing[:, None], parts), axis=1), axis=1)[
            :, -1
        ]

    @property
    def missing_share(self) -> float:
        """Mean part of a unit's requests without a value."""
        return float(self.missing[0]) / max(self.count, 1)

    @property
    def counted_share(self) -> float:
        """Mean part of a unit's requests for which a margin counts."""
        return 1.0 - float(self.missing[3]) / max(self.count, 1)

    def highest_mean(self, *, errors: float) -> float:
        """Upper limit of the mean over requests that have a value, so many standard errors up; at most 1."""
        count = self.count - float(self.missing[0])
        if count < MIN_FOR_VARIANCE:
            return 1.0
        mean = self.total / count
        variance = max(self.squares / count - mean * mean, 0.0)
        return min(float(mean + errors * math.sqrt(variance / count)), 1.0)

    @property
    def unanswered(self) -> float:
        """Share of infinite values."""
        return self.infinite / max(self.count, 1)

    def mean(self, *, prior: float, missing_as: float = 0.0) -> float:
        """The mean, shrunk towards `prior` with the weight of one unit. missing_as: of missing values."""
        return (self.total + missing_as * float(self.missing[0]) + prior) / (self.count + 1)

    def variance(self, *, prior: float, missing_as: float = 0.0) -> float:
        """The variance; `prior` until thirty units are known, and at least a hundredth of that."""
        if self.count < MIN_FOR_VARIANCE:
            return prior
        m, ym, mm = (float(part) for part in self.missing[:3])
        mean = (self.total + missing_as * m) / self.count
        squares = self.squares + missing_as * (2.0 * ym + missing_as * mm)
        return max(squares / self.count - mean * mean, prior / 100.0)

    def residual_variance(self, *, prior: float, missing_as: float = 0.0) -> float:
        """The variance that the covariates do not explain; without any, the variance."""
        variance = self.variance(prior=prior, missing_as=missing_as)
        if self.covariates is None:
            return variance
        return max(variance * (1.0 - self.covariates.explained), prior / 100.0)
