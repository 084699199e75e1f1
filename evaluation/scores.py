"""Bounded scores, higher is better: judged quality, acceptance, thumbs, win/tie/loss, paired differences."""

from __future__ import annotations

import numpy as np

from evaluation.betting import Block, Floats, Ints
from evaluation.stable import Stable

LAMBDAS = np.array([0.15, 0.3, 0.6, 1.0, 1.6, 2.4, 3.4, 5.0, 8.0])
LAMBDA_PRIOR = np.array([0.3, 1.5, 2.0, 1.5, 1.0, 0.6, 0.5, 0.4, 0.2])  # most harms are small
PROOF_LAMBDAS = np.array([0.3, 0.6, 1.0, 1.6, 2.4, 3.4, 5.0])
PROOF_PRIOR = np.array([0.3, 1.5, 2.0, 1.7, 1.0, 0.5, 0.3])
SAFETY = 0.9


class ScoreLoss:
    """Rollback: bets that the canary's mean is more than `tolerance` below stable's.

    `log1p(lam x)`, `x = (1-w)(mu - y - delta0)` on the canary and `-w (mu - y)` on stable, has mean
    `lam w (1-w) (stable - canary - delta0)`, at most 0 under the null whatever mu is; mu only takes out
    noise.
    """

    __state__ = ("mu",)

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = LAMBDA_PRIOR
        self._tolerance = tolerance
        self.mu = 0.8

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every score counts; looks at the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (self.mu - block.y - self._tolerance),
            -block.w * (self.mu - block.y),
        )
        worst = np.maximum((1.0 - block.w) * (1.0 + self._tolerance - self.mu), block.w * self.mu)
        lam = np.minimum(LAMBDAS[:, None], SAFETY / worst)
        return np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far."""
        self.mu = stable.mean(before=0.8)


class ScoreProof:
    """Promotion: bets that the canary's mean is *above* stable's less `margin`."""

    __state__ = ("mu",)

    def __init__(self, *, margin: float) -> None:
        self.prior: Floats = PROOF_PRIOR
        self._margin = margin
        self.mu = 0.8

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every unit counts; looks at the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (block.y - self.mu + self._margin),
            -block.w * (block.y - self.mu),
        )
        worst = np.maximum((1.0 - block.w) * (self.mu - self._margin), block.w * (1.0 - self.mu))
        lam = np.minimum(PROOF_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far."""
        self.mu = stable.mean(before=0.8)


class PairLoss:
    """Rollback on mirrored pairs: `log1p(lam (d - delta0))`, d = stable's score less the canary's, in [-1,
    1].

    Null: the mean of d is at most delta0. One pair a conversation. A channel of its own, with its own part
    of alpha.
    """

    __state__ = ()

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(LAMBDAS))
        self._tolerance = tolerance

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every pair counts and is looked at."""
        lam = np.minimum(LAMBDAS[:, None], SAFETY / (1.0 + self._tolerance))
        rows = np.arange(len(block))
        return rows, np.log1p(lam * (block.y - self._tolerance)), rows

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen: a pair is its own baseline."""
