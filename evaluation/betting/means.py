"""Bettors on the ratio of both arms' means, of a value in [0, 1] of which less is better: a capped cost.

With r the ratio of the null and z = y / r on the canary, y on stable, `x = (A - w)(z - mu)` has the mean
`w (1 - w) (E1[y] / r - E0[y])`: at most 0 while the canary's mean is at most r times stable's, for any mu.
A rollback bets on x, a proof on -x. Source: as the bounded scores of `scores.py`. The bets are small enough
that no unit can ruin them.

Where one arm answers more (`UnitBlock.gap`), its additional answers can have been the dearest there are: a
rollback takes that part off the canary's value, a proof adds to it what the canary left out.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bets, Refitted

LAMBDAS = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
FIRST_MEAN = 0.1  # assumed of stable before the first epoch ends
SAFETY = 0.9


class MeanLoss(Refitted):
    """Rollback. Null: the canary's mean is at most (1 + tolerance) times stable's."""

    __state__ = ("mu",)

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(LAMBDAS))
        self._ratio = 1.0 + tolerance
        self.mu = FIRST_MEAN

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit, with a look after each of the canary's."""
        more = 0.0 if block.gap is None else np.maximum(block.gap, 0.0)
        z = np.where(block.arm, np.maximum(block.y - more, 0.0) / self._ratio, block.y)
        x = (block.arm - block.w) * (z - self.mu)
        worst = np.maximum((1.0 - block.w) * self.mu, block.w * (1.0 - self.mu))
        return _bets(block, x, worst)

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, which only removes noise."""
        self.mu = stable.mean(prior=FIRST_MEAN)


class MeanProof(Refitted):
    """Promotion. Null: the canary's mean is at least `ratio` times stable's."""

    __state__ = ("mu",)

    def __init__(self, *, ratio: float) -> None:
        self.prior: Floats = np.ones(len(LAMBDAS))
        self._ratio = ratio
        self.mu = FIRST_MEAN

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit, with a look after each of the canary's."""
        hidden = np.zeros(len(block)) if block.gap is None else np.maximum(-block.gap, 0.0)
        z = np.where(block.arm, (block.y + hidden) / self._ratio, block.y)
        x = (block.w - block.arm) * (z - self.mu)
        dearest = (1.0 + hidden) / self._ratio - self.mu
        worst = np.maximum((1.0 - block.w) * np.maximum(dearest, 0.0), block.w * self.mu)
        return _bets(block, x, worst)

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, which only removes noise."""
        self.mu = stable.mean(prior=FIRST_MEAN)


def _bets(block: UnitBlock, x: Floats, worst: Floats) -> Bets:
    """worst: what x can lose at most, for each unit."""
    if block.weight is not None:
        x = block.weight * x
    lam = np.minimum(LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
    return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))
