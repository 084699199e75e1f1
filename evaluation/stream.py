"""Stream: one column of settled units in order, cut into epochs, and the channels that bet on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.betting.estimates import Estimate
from evaluation.betting.stable_baseline import FIRST_EPOCH, Stable, epoch_after
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import NO_ROWS, Channel, NeedsCoin, Refitted, restarts_in


class Stream:
    """Feeds channels block by block; what they bet with changes only where an epoch ends.

    Epochs are counted in the stream's own units and grow by a fifth, so the result does not depend on how
    the units were cut into blocks: a live rollout and a file yield the same bits.
    """

    __state__ = ("stable", "channels", "staged", "estimate", "rows", "canary", "until", "stage")

    def __init__(
        self,
        *,
        with_histogram: bool,
        estimate: Estimate | None = None,
        covariates: int = 0,
        with_missing: bool = False,
        with_steps: bool = False,
    ) -> None:
        self._is_idle = False
        self.estimate = estimate  # None: no interval is displayed
        self.channels: list[Channel] = []
        self.staged: list[Channel] = []  # reset with each later stage
        self.stable = Stable(
            with_histogram=with_histogram,
            covariates=covariates,
            with_missing=with_missing,
            with_steps=with_steps,
        )
        self.rows = 0
        self.canary = 0
        self.until = FIRST_EPOCH
        self.stage = 0

    @property
    def is_untouched(self) -> bool:
        """Whether it has had no values yet: nothing has changed since it was made."""
        return self.rows == 0 and self.stable.count == 0

    def seed(self, values: Floats) -> None:
        """Learn stable's values from before the rollout."""
        self.stable.learn(values)
        self._end_epoch()

    def feed(self, block: UnitBlock) -> None:
        """Bet on settled units, in order."""
        if self._is_idle:
            self.rows += len(block)
            return
        start = self._without_coin(block)
        if start:
            self._learn_only(block.pick(slice(0, start)))
        while start < len(block):
            stop = min(len(block), start + self.until - self.rows)
            stage = int(block.stage[start])
            other = np.flatnonzero(block.stage[start:stop] != stage)
            if len(other):
                stop = start + int(other[0])
            if stage > self.stage:
                self.stage = stage
                for channel in self.staged:
                    channel.reset()
            # A late unit of an earlier stage is evidence, but not of this stage.
            self._bet(block.pick(slice(start, stop)), self.staged if stage == self.stage else ())
            start = stop

    def fix_idle(self) -> None:
        """Note whether anything will ever bet on it or be displayed, once that is known: else its statistics
        have no reader, and it only counts."""
        channels = (*self.channels, *self.staged)
        self._is_idle = self.estimate is None and all(channel.is_idle for channel in channels)

    def wake(self, opened: Sequence[Channel]) -> None:
        """Let channels bet from here on that were idle so far; those of other streams are passed over."""
        self.fix_idle()
        while self.until <= self.rows:  # while it was idle, no epoch ended
            self.until += epoch_after(self.until)
        own = [one for one in (*self.channels, *self.staged) if any(one is other for other in opened)]
        for channel in own if self.stable.count else ():
            channel.end_epoch(self.stable)

    def _without_coin(self, block: UnitBlock) -> int:
        """How many of the first units are stable's from before the canary: no bet has a factor but 1."""
        if len(block) == 0 or block.w[0] > 0.0:
            return 0
        other = (block.w > 0.0) | block.arm | (block.stage != self.stage)
        first = int(np.argmax(other))
        return first if other[first] else len(block)

    def _learn_only(self, block: UnitBlock) -> None:
        """Learn units without a coin, with the bits of `_bet`: most bettors are called where the block's last
        epoch ends, and no sooner."""
        channels = (*self.channels, *self.staged)
        betting = [channel for channel in channels if not channel.can_skip(NeedsCoin)]
        ending = [channel for channel in channels if not channel.can_skip(Refitted)]
        for channel in channels:
            if channel.can_skip(NeedsCoin):
                channel.skip(block)
        end = self._last_end(len(block))
        start = 0
        while start < len(block):
            stop = end if not ending and start < end else min(len(block), start + self.until - self.rows)
            part = block.pick(slice(start, stop))
            for channel in betting:
                channel.bet(part)
            self._learn(part)
            start = stop
            while self.until < self.rows:
                self.until += epoch_after(self.until)
            if self.rows == self.until:
                if start == end:
                    self._end_epoch()
                else:
                    for channel in ending:
                        channel.end_epoch(self.stable)
                self.until += epoch_after(self.rows)

    def _last_end(self, units: int) -> int:
        """Which of the next so many units completes the last epoch that ends in them; 0: none ends."""
        end, until = 0, self.until
        while until <= self.rows + units:
            end = until - self.rows
            until += epoch_after(until)
        return end

    def _bet(self, part: UnitBlock, staged: Sequence[Channel]) -> None:
        due = restarts_in(part, self.canary) if self.channels else NO_ROWS
        fit = self.stable.covariates
        if fit is not None and part.covariates is not None:
            part = part.with_adjustment(fit.adjustment(part.covariates))
        for channel in self.channels:
            channel.bet(part, due)
        for channel in staged:
            channel.bet(part)
        if self.estimate is not None:
            self.estimate.learn(part)
        self._learn(part)
        self.canary += int(np.count_nonzero(part.arm))
        if self.rows == self.until:
            self._end_epoch()
            self.until += epoch_after(self.rows)

    def _learn(self, part: UnitBlock) -> None:
        """Add units to stable's statistics."""
        fit = self.stable.covariates
        self.stable.learn(part.stable_values())
        if (missing := part.stable_missing()) is not None:
            self.stable.learn_missing(*missing)
        if fit is not None and part.covariates is not None:
            stable = part.whole_stable
            fit.learn(part.covariates[stable], part.y[stable])
        self.rows += len(part)

    def _end_epoch(self) -> None:
        if self.stable.covariates is not None:
            self.stable.covariates.end_epoch()
        for channel in (*self.channels, *self.staged):
            channel.end_epoch(self.stable)
        if self.estimate is not None:
            self.estimate.end_epoch(self.stable)
