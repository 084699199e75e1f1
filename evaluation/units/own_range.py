"""Do stable's own answers still lie in the range that was learned of them? Of the `unusual_` metrics.

Such a range holds what stable answered before the rollout, less about 1 %. Where the rollout's traffic is
other traffic, both arms are outside of it all the time, and a ratio of the two shares says nothing: of 86 %
nothing is three times as many. So nothing is proven while more than MOST of stable's units are outside, and
the metric is INVALID once that is no chance, over the whole rollout or over the last units.

A rollback stays: the coin tells that the canary is outside more often, by a ratio that takes a larger change
where stable itself is outside often. A range that is wider than today's answers is not noticed here: stable
is never outside of the range of one-word answers either, which is as sharp as a range can be.

Invariant: counts alone, so the result does not depend on how rows are cut into blocks. Each unit counts once,
by the first request of its draw.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.units.missingness import MISSING_ALPHA, excess_log_e
from evaluation.units.sessions import Rows

OWN_RANGE = frozenset({"unusual_length", "unusual_repetition", "unusual_compression"})
BUILT_FOR = 0.01  # share of stable's later answers that are outside
MOST = 0.05  # of a range learned of 200 answers, 1.8 % are outside in the median, and over 5 % once in 100
WINDOW = 500  # units


class OwnRange:
    """Stable's units with a value, and those of them that are outside: in all, and in the last windows."""

    __state__ = ("whole", "window", "before")

    def __init__(self) -> None:
        self.whole: Ints = np.zeros(2, dtype=np.int64)  # units, units outside
        self.window: Ints = np.zeros(2, dtype=np.int64)
        self.before: Ints = np.zeros(2, dtype=np.int64)  # of the window before it

    def count(self, rows: Rows, raw: Floats, present: NDArray[np.bool_]) -> None:
        """Count requests in order. raw: 1 for an answer that is outside."""
        outside = raw[~rows.arm & rows.firsts & present & (rows.w > 0.0)] > 0.0
        while len(outside):
            part = outside[: WINDOW - int(self.window[0])]
            outside = outside[len(part) :]
            added = np.array((len(part), np.count_nonzero(part)), dtype=np.int64)
            self.whole, self.window = self.whole + added, self.window + added
            if self.window[0] == WINDOW:
                self.before, self.window = self.window, np.zeros(2, dtype=np.int64)

    def invalid_reason(self) -> str | None:
        """Why the range says nothing of this traffic; None: it fits, or too little is known.

        At a share of MOST, all looks of a rollout together call it too large with at most MISSING_ALPHA: half
        of it over the whole rollout, half over the windows, of which the pair from k on has 1 / (k (k + 1)).
        """
        k = (int(self.whole[0]) - 1) // WINDOW + 1
        of_all, of_last = math.log(2.0 / MISSING_ALPHA), math.log(2.0 * k * (k + 1) / MISSING_ALPHA)
        for counts, limit in ((self.whole, of_all), (self.before + self.window, of_last)):
            units, outside = counts.tolist()
            if units and outside > MOST * units and excess_log_e(outside / units, units, MOST) >= limit:
                return _text(outside / units)
        return None

    def doubt(self) -> str | None:
        """Why nothing is proven now, though it may be chance; None: no reason."""
        units, outside = self.whole.tolist()
        return _text(outside / units) if outside > MOST * units else None


def _text(share: float) -> str:
    return (
        f"the range was learned from other traffic: {share:.0%} of stable's own are outside it, not about "
        f"{BUILT_FOR:.0%}; a new rollout learns it from stable's present answers"
    )
