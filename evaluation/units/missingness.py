"""Missing values of a metric: too many, or more on one arm, make it INVALID, with a reason."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bets, Block, Channel, Floats, by_weight, ratio_table

MISSING_ALPHA = 0.01  # a false INVALID only holds; an unnoticed bias rolls back or promotes
RATIOS = np.array([0.1, 0.3, 0.6, 1.6, 3.0, 10.0])
MIN_ROWS = 100  # before a share of missing values is reported
WINDOW = 200  # rows


class PresenceBet:
    """Two-sided: bets that values are missing (or present) more often on one arm than its coin explains.

    It bets on the rarer of the two: missing values of a metric that every request should have, present values
    of one that few have (sampled, or given by users). `w` is then P(canary) given that the value is present.
    """

    __state__ = ()

    def __init__(self, *, on_present: bool) -> None:
        self.prior: Floats = np.ones(len(RATIOS))
        self._on_present = on_present

    def bets(self, block: Block) -> Bets:
        """On present or on missing values, with a look after each."""
        rows = np.flatnonzero((block.y > 0.0) == self._on_present)
        if len(rows) == 0:
            return Bets(rows, np.empty((len(RATIOS), 0)), rows)
        factors = by_weight(block.pick(rows), np.zeros(len(rows), dtype=np.int64), _table)
        return Bets(rows, factors, np.arange(len(rows)))

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


def _table(w: float) -> Floats:
    return ratio_table(w, RATIOS[:, None], np.log(RATIOS)[:, None])


class Presence:
    """Counts of present and missing values of one metric, and the test that both arms miss equally many."""

    __state__ = ("channel", "rows", "present", "window_rows", "window_present", "before_present")

    def __init__(self, *, on_present: bool, max_missing: float) -> None:
        self._max_missing = max_missing  # share; 1: any (sampled on purpose)
        self.channel = Channel(PresenceBet(on_present=on_present), limit=math.log(1.0 / MISSING_ALPHA))
        self.rows = 0
        self.present = 0
        self.window_rows = 0
        self.window_present = 0
        self.before_present = -1  # of the previous window; -1: there was none

    def feed(self, block: Block) -> None:
        """Count rows in order; `y` is 1 where there is a value, else 0."""
        if len(block) == 0:
            return
        self.channel.bet(block)
        self.rows += len(block)
        self.present += int(np.count_nonzero(block.y))
        self._count_windows(block.y > 0.0)

    @property
    def never_arrived(self) -> bool:
        """Whether no value has arrived yet, on either arm."""
        return self.present == 0

    def reason(self) -> str | None:
        """Why the metric is INVALID now; None: it is not."""
        if self.channel.decision.is_reached:
            return "values are missing differently by arm"
        if self.rows < MIN_ROWS:
            return None
        if self.present == 0:
            return f"no value in {self.rows} requests"
        if self.before_present == 0 and self.window_present == 0:
            return f"stopped arriving: no value in the last {WINDOW + self.window_rows} requests"
        rows, present = self._recent()
        missing = 1.0 - present / rows
        if missing > self._max_missing:
            return (
                f"{missing:.0%} of values missing in the last {rows} requests, limit {self._max_missing:.0%}"
            )
        return None

    def _recent(self) -> tuple[int, int]:
        """Requests of the current and the previous window, and how many had a value.

        After an outage of the grader that affected both arms, the metric is valid again: what came before
        and after is evidence.
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
