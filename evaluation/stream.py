"""Stream: one column of settled units in order, cut into epochs, and the channels that bet on it."""

from __future__ import annotations

import numpy as np

from evaluation.betting.estimates import Estimate
from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import NO_ROWS, Channel, restarts_in


class Stream:
    """Feeds channels block by block; what they bet with changes only where an epoch ends.

    Epochs are counted in the stream's own units and grow by a fifth, so the result does not depend on how
    the units were cut into blocks: a live rollout and a file yield the same bits.
    """

    __state__ = ("stable", "channels", "staged", "estimate", "rows", "canary", "until", "stage")

    def __init__(
        self, *, with_histogram: bool, estimate: Estimate | None = None, covariates: int = 0
    ) -> None:
        self.estimate = estimate  # None: no interval is displayed
        self.channels: list[Channel] = []
        self.staged: list[Channel] = []  # reset with each stage
        self.stable = Stable(with_histogram=with_histogram, covariates=covariates)
        self.rows = 0
        self.canary = 0
        self.until = FIRST_EPOCH
        self.stage = 0

    def seed(self, values: Floats) -> None:
        """Learn stable's values from before the rollout."""
        self.stable.learn(values)
        self._end_epoch()

    def feed(self, block: UnitBlock) -> None:
        """Bet on settled units, in order."""
        start = 0
        while start < len(block):
            stop = min(len(block), start + self.until - self.rows)
            later = np.flatnonzero(block.stage[start:stop] != self.stage)
            if len(later) and later[0] == 0:
                self.stage = int(block.stage[start])
                for channel in self.staged:
                    channel.reset()
                later = np.flatnonzero(block.stage[start:stop] != self.stage)
            if len(later):
                stop = start + int(later[0])
            self._bet(block.pick(slice(start, stop)))
            start = stop

    def _bet(self, part: UnitBlock) -> None:
        due = restarts_in(part, self.canary) if self.channels else NO_ROWS
        fit = self.stable.covariates
        if fit is not None and part.covariates is not None:
            part = part.with_adjustment(fit.adjustment(part.covariates))
        for channel in self.channels:
            channel.bet(part, due)
        for channel in self.staged:
            channel.bet(part)
        if self.estimate is not None:
            self.estimate.learn(part)
        self.stable.learn(part.stable_values())
        if fit is not None and part.covariates is not None:
            fit.learn(part.covariates[~part.arm], part.y[~part.arm])
        self.rows += len(part)
        self.canary += int(np.count_nonzero(part.arm))
        if self.rows == self.until:
            self._end_epoch()
            self.until += epoch_after(self.rows)

    def _end_epoch(self) -> None:
        if self.stable.covariates is not None:
            self.stable.covariates.end_epoch()
        for channel in (*self.channels, *self.staged):
            channel.end_epoch(self.stable)
        if self.estimate is not None:
            self.estimate.end_epoch(self.stable)
