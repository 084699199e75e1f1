"""Values of an answer as bounded losses: its parts of two caps that are taken from stable's own values.

One answer that runs on to its limit may cost a hundred usual ones, and a mean of such values proves nothing
in a hundred thousand. So a proof counts a value up to `cap`, TIMES stable's 99th percentile. A rollback may
not: where stable's rare long answers are most of what a canary saves, it is cheaper, and dearer below the cap
(14 of 20 canaries at 0.90x were rolled back). It counts up to `wide`, a little more than stable's second
largest value so far.

Both are known once stable has WINDOW values, or before the rollout where they were learned then, and follow
the traffic: where more of stable's newest values are at the cap than chance explains, most of what is
compared is the cap itself, and a canary twice as dear looks equal (17 of 20 were proven below 1.3x after a
start of short answers). Then values are missing, on both arms alike, until the cap is learned anew at the
window's end. It never falls.

Invariant: a value's caps depend on stable's values before it alone, in order, so that the result does not
depend on how rows are cut into blocks, and both arms are held to the same ones.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.unit_block import Flags, Floats, Ints
from evaluation.units.missingness import Lacking
from evaluation.units.points import Points
from evaluation.units.sessions import Rows

WINDOW = 200  # values of stable
PERCENTILE, TIMES = 0.99, 2.0
FEW_AT_CAP = 0.01  # of a window: with more, the cap is learned anew
MANY_AT_CAP = 0.04  # of a window: with more, nothing is compared until its end
ROOM = 1.25  # above stable's second largest value; one alone may be an error of its engine's count
WIDEST = 32.0  # times `cap`


class Capped:
    """The caps of one metric. `cap`, `wide`: in the metric's unit; NaN: not known yet. `points`: means of
    both arms' values as they are; `parts_points`: of their parts of `cap`. `at_cap`: how many are at it."""

    __state__ = (
        "cap", "wide", "is_fit", "window", "above", "largest", "points", "parts_points", "at_cap",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cap = float("nan")
        self.wide = float("nan")
        self.is_fit = False  # whether values can be compared under the cap
        self.window: Floats = np.zeros(0)  # stable's values since it was looked at last
        self.above = 0  # of these, at the cap
        self.largest: Floats = np.zeros(2)  # of stable's values so far, the two largest, ascending
        self.points = Points(with_histogram=False)
        self.parts_points = Points(with_histogram=False)
        self.at_cap = Lacking()

    def seed(self, values: Floats) -> None:
        """Learn stable's own values from before the rollout."""
        if len(values) >= WINDOW:
            self._learn(values)

    def parts(self, raw: Floats, arm: Flags) -> Floats:
        """Each value's part of `cap` and of `wide` (2 x n), in [0, 1]; NaN where it is missing, or not
        compared."""
        out = np.full((2, len(raw)), np.nan)
        stable = np.flatnonzero(~arm & ~np.isnan(raw))
        start = used = 0
        while True:
            taken = stable[used : used + WINDOW - len(self.window)]
            is_whole = len(self.window) + len(taken) == WINDOW
            stop = int(taken[-1]) + 1 if is_whole else len(raw)
            self._fill(out, raw, slice(start, stop), taken)
            self.window = np.concatenate((self.window, raw[taken]))
            if not is_whole:
                return out
            if not self.is_fit or self.above > FEW_AT_CAP * WINDOW:
                self._learn(self.window)
            else:
                self._widen(self.window)
            self.window, self.above = np.zeros(0), 0
            start, used = stop, used + len(taken)

    def columns(self, rows: Rows, w: Floats, raw: Floats) -> Floats:
        """The parts (2 x n) of requests in order, of which those of draws are counted. w: P(canary)."""
        parts = self.parts(raw, rows.arm)
        self._count(rows, w, raw, parts[0])
        return parts

    def _count(self, rows: Rows, w: Floats, raw: Floats, parts: Floats) -> None:
        own = rows.of_draws
        rows, w, raw, parts = rows.pick(own), w[own], raw[own], parts[own]
        self.points.add(rows.arm, w, raw)
        self.parts_points.add(rows.arm, w, parts)
        known = ~np.isnan(parts) & (rows.w > 0.0)
        self.at_cap.count(rows.arm[known], rows.stage[known], parts[known] < 1.0)

    def _fill(self, out: Floats, raw: Floats, rows: slice, taken: Ints) -> None:
        """Set the parts of some rows, of which `taken` are stable's, until too many of those are at the
        cap."""
        if not self.is_fit:
            return
        above = self.above + np.cumsum(raw[taken] >= self.cap)
        many = np.flatnonzero(above > MANY_AT_CAP * WINDOW)
        if len(many):
            rows, self.is_fit = slice(rows.start, int(taken[many[0]]) + 1), False
        if len(above):
            self.above = int(above[-1])
        out[0, rows] = np.minimum(raw[rows] / self.cap, 1.0)
        out[1, rows] = np.minimum(raw[rows] / self.wide, 1.0)

    def _learn(self, values: Floats) -> None:
        """Set the caps; of values that are nearly all 0 there is none."""
        high = TIMES * float(np.quantile(values, PERCENTILE, method="inverted_cdf"))
        self.cap = high if np.isnan(self.cap) else max(self.cap, high)
        self.is_fit = self.cap > 0.0
        if not self.is_fit:
            self.cap = float("nan")
        self._widen(values)

    def _widen(self, values: Floats) -> None:
        self.largest = np.sort(np.concatenate((self.largest, values)))[-2:]
        if self.is_fit:
            wide = min(max(ROOM * float(self.largest[0]), self.cap), WIDEST * self.cap)
            self.wide = wide if np.isnan(self.wide) else max(self.wide, wide)
