"""Point estimates of both arms over the same traffic: for display, and for `promote_if_point_ok`.

Each of the canary's requests counts 1 - w and each of stable's w, w being P(canary) of its draw: of
requests that were drawn with one w, both arms' count w (1 - w) in the mean. So a drift during a ramp, or
clients with a weight of their own, move both arms' estimates alike. (Pooled, identical versions differed: of
two stages, the canary had most of its requests in the second.) At a constant w they are the means themselves.
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.histogram import BINS, FIRST, WIDTH, ZERO_BIN, BinRange, bins_of, widened
from evaluation.betting.unit_block import Flags, Floats

COARSE = 2.0**-20  # weights of a histogram are multiples of it, so that sums are exact and in any order alike


class Points:
    """Weighted means of both arms, and for values their weighted percentiles."""

    def __init__(self, *, with_histogram: bool) -> None:
        self.sums: Floats = np.zeros((2, 2))  # by arm: of weights, of weights times values
        self.range = BinRange()
        self.masses: Floats = np.zeros((2, 1 + BINS if with_histogram else 0))  # by arm and bin
        self.waiting: Floats = np.zeros((3, 0))  # the first values, which centre the range: arm, weight, bin
        self._with_histogram = with_histogram

    @property
    def __state__(self) -> tuple[str, ...]:
        return ("range", "masses", "waiting") if self._with_histogram else ("sums",)

    def add(self, arm: Flags, w: Floats, values: Floats) -> None:
        """Add requests in order; those without a value (NaN) or with an infinite one do not count."""
        kept = np.isfinite(values) & (w > 0.0) & (w < 1.0)
        arm, w, values = arm[kept], w[kept], values[kept]
        weights = np.where(arm, 1.0 - w, w)
        if self._with_histogram:
            self._count(arm, np.maximum(np.round(weights / COARSE), 1.0) * COARSE, values)
            return
        terms = np.stack((weights, weights * values))
        for side in (0, 1):
            path = np.concatenate((self.sums[side][:, None], terms[:, arm == bool(side)]), axis=1)
            self.sums[side] = np.add.accumulate(path, axis=1)[:, -1]

    def means(self) -> tuple[float | None, float | None]:
        """Stable's mean and the canary's; None: no values."""
        stable, canary = (total / mass if mass > 0.0 else None for mass, total in self.sums.tolist())
        return stable, canary

    def ratio(self) -> float | None:
        """The canary's mean over stable's; None: an arm has no values, or stable's are 0."""
        stable, canary = self.means()
        return canary / stable if stable and canary is not None else None

    def percentiles(
        self, share: float, unanswered: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[float | None, float | None]:
        """Stable's percentile and the canary's of all requests, share in (0, 1): upper edges of bins of 1 %.

        unanswered: shares of both arms' requests without a value, which are the largest; a percentile among
        them is infinite. None: no values of an arm, or fewer than `FIRST` of both.
        """
        stable, canary = (
            self._edge(mass, share / (1.0 - missing) if missing < 1.0 else math.inf)
            for mass, missing in zip(self.masses, unanswered, strict=True)
        )
        return stable, canary

    def first_percentiles(
        self, share: float, unanswered: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[float | None, float | None]:
        """`percentiles` of the first values, before there are `FIRST`: for the reason of a rollback that so
        few have shown, and for no decision."""
        found: list[float | None] = []
        arms, weights, bins = self.waiting
        for side, missing in enumerate(unanswered):
            of_arm = arms == side
            if not of_arm.any():
                found.append(None)
                continue
            order = np.argsort(bins[of_arm], kind="stable")
            below = np.add.accumulate(weights[of_arm][order])
            of_all = share / (1.0 - missing) if missing < 1.0 else math.inf
            index = int(np.searchsorted(below, of_all * below[-1] * (1.0 - 1e-12), side="left"))
            is_none = of_all > 1.0
            found.append(math.inf if is_none else _upper(bins[of_arm][order][min(index, len(below) - 1)]))
        stable, canary = found
        return stable, canary

    def _edge(self, mass: Floats, share: float) -> float | None:
        below = np.add.accumulate(mass)
        if below[-1] <= 0.0:
            return None
        if share > 1.0:
            return math.inf
        index = int(np.searchsorted(below, share * below[-1] * (1.0 - 1e-12), side="left"))
        return self.range.edges_of(min(index, len(mass) - 1))[1]

    def _count(self, arm: Flags, weights: Floats, values: Floats) -> None:
        rows = np.stack((arm.astype(np.float64), weights, bins_of(values).astype(np.float64)))
        if not self.masses.any():
            rows = np.concatenate((self.waiting, rows), axis=1)
            if rows.shape[1] < FIRST:
                self.waiting = rows
                return
            self.waiting = np.zeros((3, 0))
            self.range.centre(rows[2, :FIRST].astype(np.int64))
        if rows.shape[1] == 0:
            return
        index, below, above = self.range.place(rows[2].astype(np.int64))
        if below or above:
            self.masses = widened(self.masses, below, above)
        for side in (0, 1):
            of_arm = rows[0] == side
            self.masses[side] += np.bincount(
                index[of_arm], weights=rows[1, of_arm], minlength=len(self.masses[side])
            )


def _upper(number: float) -> float:
    """Upper edge of a bin of `bins_of`."""
    return 0.0 if number == ZERO_BIN else float(np.exp((number + 1.0) * WIDTH))
