"""Tests of the split: the sample ratio (SRM), the canary's fallback rate, and the length of conversations.

With a sample ratio mismatch the logged weights are wrong, and so is every statistic that bets on them:
promotion and statistical rollback freeze; guards, people and deadlines do not. Units are counted, never
requests: counting requests reported a mismatch in 100 of 100 healthy runs with sticky users.

Source: Lindon & Malek, Anytime-Valid Inference for Multinomial Count Data (2022), with a mixture over a grid.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.betting.wealth import Bets, by_weight, ratio_table

ODDS = np.array([0.1, 0.4, 0.7, 0.85, 1.18, 1.4, 2.2, 5.0, 20.0])  # ratios of the odds w / (1 - w)
TURN_TILTS = np.array([-0.8, -0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4, 0.8])  # of the log odds, a turn
MIN_SESSIONS = 30  # of stable, before turns are bet on
FALLBACK_LAMBDAS = np.array([0.03, 0.1, 0.3, 0.8])


class SampleRatioBet:
    """Null: each unit's arm is canary with probability w. Two-sided, over ratios of the odds."""

    __state__ = ()

    def __init__(self) -> None:
        self.prior: Floats = np.ones(len(ODDS))

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit, with a look after each."""
        rows = np.arange(len(block))
        column = np.zeros(len(block), dtype=np.int64)
        return Bets(rows, by_weight(block, column, _table), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


def _table(w: float) -> Floats:
    """K x 2 x 1 log factors of a unit, by alternative odds and arm."""
    return ratio_table(w, ODDS[:, None], np.log(ODDS)[:, None])


class FallbackBet:
    """Null: stable serves at most `max_rate` of the requests of a canary unit, in the mean over units.

    `y`: the share of a unit's requests that stable had to serve.
    """

    __state__ = ()

    def __init__(self, *, max_rate: float) -> None:
        self.prior: Floats = np.ones(len(FALLBACK_LAMBDAS))
        self._max_rate = max_rate

    def bets(self, block: UnitBlock) -> Bets:
        """On the canary's units, with a look after each."""
        rows = np.flatnonzero(block.arm)
        bet = 0.9 / self._max_rate * FALLBACK_LAMBDAS[:, None]
        return Bets(rows, np.log1p(bet * (block.y[rows] - self._max_rate)), np.arange(len(rows)))

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""


class TurnsBet:
    """Two-sided: bets that conversations are longer, or shorter, on the canary. Null: equally distributed.

    Ratios `exp(tilt * turns)`, divided by their mean over stable's past sessions. Where the number of turns
    differs, a session's mean says nothing of an answer if outcomes change with depth.
    """

    __state__ = ("norm", "counts", "is_known")

    def __init__(self, *, max_turns: int) -> None:
        self.prior: Floats = np.ones(len(TURN_TILTS))
        self._powers: Floats = TURN_TILTS[:, None] * np.arange(max_turns + 1)
        self.counts: Ints = np.zeros(max_turns + 1, dtype=np.int64)  # stable's sessions by turns
        self.norm: Floats = np.ones(len(TURN_TILTS))
        self.is_known = False

    def bets(self, block: UnitBlock) -> Bets:
        """On every session once stable's are known to differ in length, with a look after each."""
        turns = np.minimum(block.n.astype(np.int64), len(self.counts) - 1)
        self.counts = self.counts + np.bincount(turns[~block.arm], minlength=len(self.counts))
        if not self.is_known:
            none = np.empty(0, dtype=np.int64)
            return Bets(none, np.empty((len(TURN_TILTS), 0)), none)
        log_ratios = self._powers - np.log(self.norm)[:, None]
        ratios = np.exp(log_ratios)
        rows = np.arange(len(block))
        return Bets(rows, by_weight(block, turns, lambda w: ratio_table(w, ratios, log_ratios)), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Set the norm to the mean of the ratios over stable's sessions so far."""
        total = int(self.counts.sum())
        self.is_known = total >= MIN_SESSIONS and total > int(self.counts[1])
        if self.is_known:
            self.norm = np.add.accumulate(np.exp(self._powers) * (self.counts / total), axis=1)[:, -1]
