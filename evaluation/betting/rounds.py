"""Rounds: the same coins bet again, in a new process each time, each with its own part of alpha.

A sticky unit tossed one coin, and what it asks days later is evidence of the same toss. The product of two
bets on one coin is no supermartingale; but two processes that each bet it once are, each for itself, and by
the union bound some round is wrong with probability at most the sum of their alphas: `alpha / (k (k + 1))`
for the k-th, which is alpha in all. So harm that begins when every unit has been seen is found, in the round
in which it begins or the next.
"""

from __future__ import annotations

import math

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Ints, UnitBlock
from evaluation.betting.wealth import NO_ROWS, Bettor, Channel

MIN_STABLE = 30  # outcomes of stable before anything is bet: the first bets must not rest on an assumed mean


class RoundChannel(Channel):
    """A channel that begins anew with each round (`Stream.staged`); its decision stays once it is reached."""

    __state__ = ("wealth", "decision", "bettor", "canary", "last_draw", "rounds", "is_known")

    def __init__(self, bettor: Bettor, *, limit: float = math.inf, min_stable: int = MIN_STABLE) -> None:
        """limit: the log wealth for the alpha of all rounds."""
        super().__init__(bettor, limit=limit)
        self._whole_limit = limit
        self._min_stable = min_stable
        self.rounds = 0  # begun so far
        self.is_known = min_stable == 0

    def set_limit(self, limit: float) -> None:
        """Set the log wealth for the alpha of all rounds."""
        self._whole_limit = limit
        self.decision.limit = limit + math.log(max(self.rounds, 1) * (max(self.rounds, 1) + 1.0))

    def bet(self, block: UnitBlock, due: Ints = NO_ROWS) -> None:
        """Bet on a block that lies within one epoch and one round, until harm is shown."""
        if self.is_known and not self.decision.is_reached:
            super().bet(block, due)

    def end_epoch(self, stable: Stable) -> None:
        """Update what the bettor bets with."""
        self.is_known = self.is_known or stable.count >= self._min_stable
        super().end_epoch(stable)

    def reset(self) -> None:
        """Begin the next round."""
        reached = self.decision
        super().reset()
        if reached.is_reached:
            self.decision = reached
        self.rounds += 1
        self.set_limit(self._whole_limit)
