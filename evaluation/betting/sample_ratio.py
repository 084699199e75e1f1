"""Is the split what it says? Units at their draw against the draw's w, and the requests that the canary
really served.

If the share does not fit, the coin is not the coin, and every statistic that bets on it stops: promotion
and statistical rollback freeze; guards, people and deadlines do not. Units are counted, never requests:
counting requests "found" a mismatch in 100 of 100 healthy runs with sticky users.

Source: Lindon & Malek, Anytime-Valid Inference for Multinomial Count Data (2022), with a mixture over a grid.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Block, Floats, Ints, by_weight

ODDS = np.array([0.1, 0.4, 0.7, 0.85, 1.18, 1.4, 2.2, 5.0, 20.0])
FALLBACK_LAMBDAS = np.array([0.03, 0.1, 0.3, 0.8])


class ShareBet:
    """Null: each unit's arm is canary with probability w. Two-sided, over ratios of the odds."""

    __state__ = ()

    def __init__(self) -> None:
        self.prior: Floats = np.ones(len(ODDS))

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every unit counts, once, and is looked at."""
        rows = np.arange(len(block))
        return rows, by_weight(block, np.zeros(len(block), dtype=np.int64), self._table), rows

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen."""

    def _table(self, w: float) -> Floats:
        both = np.log(w * ODDS + 1.0 - w)
        return np.stack((-both, np.log(ODDS) - both), axis=1)[:, :, None]


class FallbackBet:
    """Null: at most `most` of the canary's requests are served by stable. `y` is 1 where stable had to."""

    __state__ = ()

    def __init__(self, *, most: float) -> None:
        self.prior: Floats = np.ones(len(FALLBACK_LAMBDAS))
        self._most = most

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """The canary's requests count and are looked at."""
        rows = np.flatnonzero(block.arm)
        steps = np.log1p(0.9 / self._most * FALLBACK_LAMBDAS[:, None] * (block.y[rows] - self._most))
        return rows, steps, np.arange(len(rows))

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen."""
