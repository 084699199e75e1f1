"""Is a metric's evidence there, on both arms alike? What is not makes the metric INVALID, with a reason."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Block, Channel, Floats, Ints, by_weight

MISSING_ALPHA = 0.01  # INVALID by mistake holds; a bias that is not seen rolls back or promotes
RATIOS = np.array([0.1, 0.3, 0.6, 1.6, 3.0, 10.0])
ENOUGH = 100
WINDOW = 200


class PresenceBet:
    """Two-sided: bets that values come, or stay away, more often on one arm than its coin explains.

    Of the two it bets on the rarer by nature: missing values of a metric that every request should have,
    present values of one that few have (sampled, or given by users). `w` is then P(canary) given that the
    value is present.
    """

    __state__ = ()

    def __init__(self, *, on_present: bool) -> None:
        self.prior: Floats = np.ones(len(RATIOS))
        self._on_present = on_present

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Only the chosen rows count, and each is looked at."""
        rows = np.flatnonzero((block.y > 0.0) == self._on_present)
        if len(rows) == 0:
            return rows, np.empty((len(RATIOS), 0)), rows
        return (
            rows,
            by_weight(block.pick(rows), np.zeros(len(rows), dtype=np.int64), _odds_table),
            np.arange(len(rows)),
        )

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen."""


def _odds_table(w: float) -> Floats:
    both = np.log(w * RATIOS + 1.0 - w)
    return np.stack((-both, np.log(RATIOS) - both), axis=1)[:, :, None]


class Presence:
    """Counts of present and missing values of one metric, and the test that both arms miss them alike."""

    __state__ = ("channel", "rows", "present", "window_rows", "window_present", "before_present")

    def __init__(self, *, on_present: bool, most_missing: float) -> None:
        self._most_missing = most_missing  # 1: any share may be missing (sampled on purpose)
        self.channel = Channel(PresenceBet(on_present=on_present), limit=math.log(1.0 / MISSING_ALPHA))
        self.rows = 0
        self.present = 0
        self.window_rows = 0
        self.window_present = 0
        self.before_present = -1  # of the window before; -1: there was none

    def feed(self, block: Block) -> None:
        """Take rows in order; `y` is 1 where there is a value, else 0."""
        if len(block) == 0:
            return
        self.channel.bet(block)
        self.rows += len(block)
        self.present += int(np.count_nonzero(block.y))
        self._count_windows(block.y > 0.0)

    @property
    def never_arrived(self) -> bool:
        """Whether no value has come yet, on either arm."""
        return self.present == 0

    def reason(self) -> str | None:
        """Why the metric is INVALID now, or None."""
        if self.channel.decision.is_reached:
            return "values are missing differently by arm"
        if self.rows < ENOUGH:
            return None
        if self.present == 0:
            return f"no value in {self.rows} requests"
        if self.before_present == 0 and self.window_present == 0:
            return f"stopped arriving: no value in the last {WINDOW + self.window_rows} requests"
        rows, present = self._recent()
        missing = 1.0 - present / rows
        if missing > self._most_missing:
            return (
                f"{missing:.0%} of values missing in the last {rows} requests, limit {self._most_missing:.0%}"
            )
        return None

    def _recent(self) -> tuple[int, int]:
        """Requests of this window and the one before, and how many had a value.

        An outage of the grader that both arms lived through is over when it is over: what came before and
        after is evidence as ever.
        """
        if self.before_present < 0:
            return self.window_rows, self.window_present
        return WINDOW + self.window_rows, self.before_present + self.window_present

    def _count_windows(self, present: NDArray[np.bool_]) -> None:
        start = 0
        while start < len(present):
            stop = min(len(present), start + WINDOW - self.window_rows)
            self.window_rows += stop - start
            self.window_present += int(np.count_nonzero(present[start:stop]))
            if self.window_rows == WINDOW:
                self.before_present, self.window_rows, self.window_present = self.window_present, 0, 0
            start = stop
