"""Sample ratio test (SRM): units against the weights of their draws; and the canary's fallback rate.

With a sample ratio mismatch the logged weights are wrong, and so is every statistic that bets on them:
promotion and statistical rollback freeze; guards, people and deadlines do not. Units are counted, never
requests: counting requests reported a mismatch in 100 of 100 healthy runs with sticky users.

Source: Lindon & Malek, Anytime-Valid Inference for Multinomial Count Data (2022), with a mixture over a grid.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bets, Block, Floats, by_weight, ratio_table

ODDS = np.array([0.1, 0.4, 0.7, 0.85, 1.18, 1.4, 2.2, 5.0, 20.0])  # ratios of the odds w / (1 - w)
FALLBACK_LAMBDAS = np.array([0.03, 0.1, 0.3, 0.8])


class SampleRatioBet:
    """Null: each unit's arm is canary with probability w. Two-sided, over ratios of the odds."""

    __state__ = ()

    def __init__(self) -> None:
        self.prior: Floats = np.ones(len(ODDS))

    def bets(self, block: Block) -> Bets:
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
    """Null: stable serves at most `max_rate` of the canary's requests. `y`: 1 where stable had to."""

    __state__ = ()

    def __init__(self, *, max_rate: float) -> None:
        self.prior: Floats = np.ones(len(FALLBACK_LAMBDAS))
        self._max_rate = max_rate

    def bets(self, block: Block) -> Bets:
        """On the canary's requests, with a look after each."""
        rows = np.flatnonzero(block.arm)
        bet = 0.9 / self._max_rate * FALLBACK_LAMBDAS[:, None]
        return Bets(rows, np.log1p(bet * (block.y[rows] - self._max_rate)), np.arange(len(rows)))

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update."""
