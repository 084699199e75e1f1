"""Values of an answer as a bounded loss: its part of a cap that is taken from stable's own first values.

One answer that runs on to its limit may cost a hundred usual ones, and a mean of such values proves nothing
in a hundred thousand. So a value counts up to TIMES stable's 99th percentile: what is beyond it counts as
that. The cap is known once stable has FIRST values, or before the rollout where they were learned then, and
is never changed: both arms are held to the same one. Values before it are missing, on both arms alike.

Invariant: values alone, in order, so the result does not depend on how rows are cut into blocks.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.unit_block import Flags, Floats
from evaluation.units.points import Points

FIRST = 200  # values of stable
PERCENTILE, TIMES = 0.99, 2.0


class Capped:
    """The cap of one metric. `cap`: in the metric's unit; NaN: not known yet. `points`: means of both arms'
    values as they are, to be shown."""

    __state__ = ("cap", "first", "points")

    def __init__(self) -> None:
        self.cap = float("nan")
        self.first: Floats = np.zeros(0)  # of stable, while there is no cap
        self.points = Points(with_histogram=False)

    def seed(self, values: Floats) -> None:
        """Learn stable's own values from before the rollout."""
        if len(values) >= FIRST:
            self._learn(values)

    def parts(self, raw: Floats, arm: Flags) -> Floats:
        """Each value's part of the cap, in [0, 1]; NaN where it is missing, or the cap is not known yet."""
        out = np.full(len(raw), np.nan)
        start = 0
        while np.isnan(self.cap) and start < len(raw):
            stable = start + np.flatnonzero(~arm[start:] & ~np.isnan(raw[start:]))
            taken = stable[: FIRST - len(self.first)]
            self.first = np.concatenate((self.first, raw[taken]))
            if len(self.first) < FIRST:
                return out
            start = int(taken[-1]) + 1
            self._learn(self.first)
        out[start:] = np.minimum(raw[start:] / self.cap, 1.0)
        return out

    def _learn(self, values: Floats) -> None:
        """Set the cap; of values that are nearly all 0 there is none."""
        high = float(np.quantile(values, PERCENTILE, method="inverted_cdf"))
        self.first = np.zeros(0)
        if high > 0.0:
            self.cap = TIMES * high
