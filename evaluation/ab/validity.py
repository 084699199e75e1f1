"""Validity of an A/B test: two tests of the experiment itself, at every look.

- Sample ratio: B's share of the units must fit the split. A mismatch (SRM) means that something after the
  coin removes units of one side, and no comparison of the rest means anything.
- Missing outcomes: they must be missing equally on both sides. If B's worst answers are never graded, the
  graded ones make B look good.

Either makes the test INVALID. A healthy test is called invalid with probability at most `FALSE_ALARM`.

Invariant: an invalid test has no winner, whatever its evidence.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from evaluation.betting.sample_ratio import SampleRatioBet
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Channel
from evaluation.units.missingness import MISSING_ALPHA, Presence

SPLIT_ALPHA = 0.001
FALSE_ALARM = SPLIT_ALPHA + 2 * MISSING_ALPHA


class AbValidity:
    """The two validity tests of one A/B test."""

    def __init__(self, among: int = 1) -> None:
        """among: how many categories are tested beside each other; the split's alpha is for all of them."""
        self._split = Channel(SampleRatioBet(), limit=math.log(among / SPLIT_ALPHA))
        # Whether missing or present outcomes are the rarer depends on who grades, so both are tested.
        self._presence = tuple(
            Presence(on_present=present, max_missing=1.0, restart_share=0.0, is_judged=True)
            for present in (True, False)
        )
        self._units = 0
        self._units_b = 0
        self._w_total = 0.0

    def add(self, is_b: ArrayLike, w: ArrayLike, has_outcome: ArrayLike) -> None:
        """Add units, each once, in order of assignment. w: P(B) at the draw, in (0, 1). The result does not
        depend on the blocks."""
        arm = np.asarray(is_b, dtype=np.bool_)
        probability = np.asarray(w, dtype=np.float64)
        if len(arm) == 0:
            return
        if not bool(((probability > 0) & (probability < 1)).all()):
            raise ValueError("w has values outside (0, 1); rows without a coin are not evidence")
        n = len(arm)
        seq = np.arange(self._units, self._units + n)
        present = np.asarray(has_outcome, dtype=np.float64) > 0.0
        units_b, at_s = self._units_b + np.cumsum(arm), seq.astype(np.float64)
        every, stage = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)

        def block(y: Floats) -> UnitBlock:
            return UnitBlock(seq, arm, probability, y, np.ones(n), seq, units_b, at_s, stage)

        self._split.bet(block(present.astype(np.float64)))
        for presence in self._presence:
            presence.count(present, every, every, at_s)
            presence.stream.feed(block(presence.indicator(present, every)))
        self._units += n
        self._units_b += int(arm.sum())
        self._w_total += float(probability.sum())

    def split_reason(self) -> str | None:
        """Why B's share of the units does not fit the split, in one line; None: it fits so far."""
        if not self._split.decision.is_reached:
            return None
        share, split = self._units_b / self._units, self._w_total / self._units
        return f"B has {share:.1%} of the units, the split is {split:.1%}"

    def reason(self) -> str | None:
        """Why the test is INVALID, in one line; None: it is valid so far."""
        if (why := self.split_reason()) is not None:
            return f"{why}; units of one side are lost"
        if any(presence.channel.decision.is_reached for presence in self._presence):
            return (
                "outcomes are missing more often on one side; grade both sides alike, or, where it fails "
                "more often, compare the metric error"
            )
        return None

    def missing_outcomes(self) -> str | None:
        """Which outcomes do not arrive, in one line; None: they arrive. Does not make the test INVALID."""
        if self._presence[0].channel.decision.is_reached:
            return None
        return self._presence[0].reason()
