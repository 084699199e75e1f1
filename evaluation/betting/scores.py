"""Bettors on bounded scores, higher is better: judged quality, acceptance, thumbs, mirrored pairs."""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bets, Block, Floats

#: Bets, as multiples of the optimal one for the harm to detect, and their prior.
LOSS_MULTIPLES, LOSS_PRIOR = np.array([0.42, 1.2, 3.0, 6.0]), np.array([0.42, 0.53, 0.04, 0.01])
#: As multiples of the optimal one for a canary as good as stable.
PROOF_MULTIPLES, PROOF_PRIOR = np.array([0.45, 1.0, 2.5]), np.array([0.3, 0.55, 0.15])
PAIR_LAMBDAS = np.array([0.15, 0.3, 0.6, 1.0, 1.6, 2.4])
USUAL_HARM = 0.05  # beyond the tolerance
FIRST_MEAN, FIRST_VARIANCE = 0.8, 0.04  # assumed of stable before the first epoch ends
SAFETY = 0.9


def best_bet(effect: float, variance: float) -> float:
    """The lambda with the highest growth of log1p(lambda x) when the harm is `effect` beyond the null.

    At any weight: x has mean w (1-w) effect and second moment w (1-w) (variance + effect^2 (1-w)) or less.
    Check: effect 0.05, variance 0.04 gives 1.17647.
    """
    return effect / (variance + effect * effect)


class ScoreLoss:
    """Rollback: bets that the canary's mean is more than `tolerance` below stable's.

    `log1p(lam x)`, `x = (1-w)(mu - y - delta0)` on the canary and `-w (mu - y)` on stable, has mean
    `lam w (1-w) (stable - canary - delta0)`, at most 0 under the null for every mu; mu only removes noise.
    """

    __state__ = ("mu", "bet")

    def __init__(self, *, tolerance: float, threshold: float | None = None) -> None:
        # threshold None: no harm to detect is given; the usual one is assumed
        self.prior: Floats = LOSS_PRIOR
        self._tolerance = tolerance
        self._effect = USUAL_HARM if threshold is None else threshold - tolerance
        self.mu = FIRST_MEAN
        self.bet = best_bet(self._effect, FIRST_VARIANCE)

    def bets(self, block: Block) -> Bets:
        """On every score, with a look after each of the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (self.mu - block.y - self._tolerance),
            -block.w * (self.mu - block.y),
        )
        worst = np.maximum((1.0 - block.w) * (1.0 + self._tolerance - self.mu), block.w * self.mu)
        lam = np.minimum(self.bet * LOSS_MULTIPLES[:, None], SAFETY / worst)
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by its variance."""
        self.mu = stable.mean(prior=FIRST_MEAN)
        self.bet = best_bet(self._effect, stable.variance(prior=FIRST_VARIANCE))


class ScoreProof:
    """Promotion: bets that the canary's mean is *above* stable's less `margin`."""

    __state__ = ("mu", "bet")

    def __init__(self, *, margin: float) -> None:
        self.prior: Floats = PROOF_PRIOR
        self._margin = margin
        self.mu = FIRST_MEAN
        self.bet = best_bet(margin, FIRST_VARIANCE)

    def bets(self, block: Block) -> Bets:
        """On every unit, with a look after each of the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (block.y - self.mu + self._margin),
            -block.w * (block.y - self.mu),
        )
        worst = np.maximum((1.0 - block.w) * (self.mu - self._margin), block.w * (1.0 - self.mu))
        lam = np.minimum(self.bet * PROOF_MULTIPLES[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by its variance."""
        self.mu = stable.mean(prior=FIRST_MEAN)
        self.bet = best_bet(self._margin, stable.variance(prior=FIRST_VARIANCE))


class PairLoss:
    """Rollback on mirrored pairs: `log1p(lam (d - delta0))`, d = stable's score less the canary's.

    d in [-1, 1]. Null: its mean is at most delta0. One pair a conversation, with its own part of alpha.
    """

    __state__ = ()

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(PAIR_LAMBDAS))
        self._tolerance = tolerance

    def bets(self, block: Block) -> Bets:
        """On every pair, with a look after each."""
        lam = np.minimum(PAIR_LAMBDAS[:, None], SAFETY / (1.0 + self._tolerance))
        rows = np.arange(len(block))
        return Bets(rows, np.log1p(lam * (block.y - self._tolerance)), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update: a pair is its own baseline."""
