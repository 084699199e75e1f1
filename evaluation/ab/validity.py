"""Can an A/B test's outcomes be trusted? Two tests of the experiment itself, at every look.

- The split: B's share of the units must be what the coin was set to. Where it is not, something after the
  coin removes units of one side, and no comparison of the rest means anything.
- The presence: outcomes must come, or stay away, alike on both sides. If B's worst answers are the ones that
  nobody grades, the graded ones make B look good.

Either makes the test INVALID: a healthy one is called so with probability at most `FALSE_ALARM`.

Invariant: an invalid test names no winner, whatever its evidence says.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from evaluation.betting.sample_ratio import ShareBet
from evaluation.betting.wealth import Block, Channel
from evaluation.units.missingness import MISSING_ALPHA, Presence

SPLIT_ALPHA = 0.001
FALSE_ALARM = SPLIT_ALPHA + 2 * MISSING_ALPHA


class AbValidity:
    """The two tests of one A/B test, fed with every unit once, in order of assignment."""

    def __init__(self) -> None:
        self._split = Channel(ShareBet(), limit=math.log(1 / SPLIT_ALPHA))
        # Which of the two is the rare one depends on who grades, so both are bet on.
        self._presence = tuple(Presence(on_present=rare, most_missing=1.0) for rare in (True, False))
        self._units = 0
        self._units_b = 0
        self._w_total = 0.0

    def add(self, is_b: ArrayLike, w: ArrayLike, has_outcome: ArrayLike) -> None:
        """Take units in order. w: P(B) at the draw, in (0, 1). The same answer however they are cut."""
        arm = np.asarray(is_b, dtype=np.bool_)
        chance = np.asarray(w, dtype=np.float64)
        if len(arm) == 0:
            return
        if not bool(((chance > 0) & (chance < 1)).all()):
            raise ValueError("w has values outside (0, 1); rows without a coin are no evidence")
        n = len(arm)
        seq = np.arange(self._units, self._units + n)
        block = Block(
            arm,
            chance,
            np.asarray(has_outcome, dtype=np.float64),
            np.ones(n),
            seq,
            self._units_b + np.cumsum(arm),
            seq.astype(np.float64),
            np.zeros(n, dtype=np.int64),
        )
        self._split.bet(block)
        for presence in self._presence:
            presence.feed(block)
        self._units += n
        self._units_b += int(arm.sum())
        self._w_total += float(chance.sum())

    def reason(self) -> str | None:
        """Why the test is INVALID, in one line; None: nothing speaks against it."""
        if self._split.decision.is_reached:
            share, meant = self._units_b / self._units, self._w_total / self._units
            return f"B has {share:.1%} of the units, the split says {meant:.1%}; units of one side are lost"
        if any(presence.channel.decision.is_reached for presence in self._presence):
            return "outcomes are missing more often on one side; grade both sides alike"
        return None

    def silence(self) -> str | None:
        """What has not come of late, in one line; None: outcomes come. Says nothing against the test."""
        if self._presence[0].channel.decision.is_reached:
            return None
        return self._presence[0].reason()
