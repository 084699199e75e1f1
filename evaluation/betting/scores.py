"""Bounded scores, higher is better: judged quality, acceptance, thumbs, win/tie/loss, paired differences."""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Block, Floats, Ints

#: Bets, as multiples of the one that is best for the harm that must be found, and how much each gets.
LOSS_MULTIPLES, LOSS_PRIOR = np.array([0.42, 1.2, 3.0, 6.0]), np.array([0.42, 0.53, 0.04, 0.01])
#: Of the one that is best for a canary as good as stable.
PROOF_MULTIPLES, PROOF_PRIOR = np.array([0.45, 1.0, 2.5]), np.array([0.3, 0.55, 0.15])
PAIR_LAMBDAS = np.array([0.15, 0.3, 0.6, 1.0, 1.6, 2.4])
USUAL_HARM = 0.05  # beyond the tolerance
FIRST_MEAN, FIRST_VARIANCE = 0.8, 0.04  # of stable, before it is known
SAFETY = 0.9


def best_bet(effect: float, variance: float) -> float:
    """The lambda that grows log1p(lambda x) fastest when the arms differ by `effect` beyond the null, at
    any weight.

    x has mean w (1-w) effect and second moment w (1-w) (variance + effect^2 (1-w)) or less.
    Check: effect 0.05, variance 0.04 gives 1.17647.
    """
    return effect / (variance + effect * effect)


class ScoreLoss:
    """Rollback: bets that the canary's mean is more than `tolerance` below stable's.

    `log1p(lam x)`, `x = (1-w)(mu - y - delta0)` on the canary and `-w (mu - y)` on stable, has mean
    `lam w (1-w) (stable - canary - delta0)`, at most 0 under the null whatever mu is; mu only takes out
    noise.
    """

    __state__ = ("mu", "bet")

    def __init__(self, *, tolerance: float, threshold: float | None = None) -> None:
        # threshold None: no harm is named that must be found; the usual one is taken
        self.prior: Floats = LOSS_PRIOR
        self._tolerance = tolerance
        self._effect = USUAL_HARM if threshold is None else threshold - tolerance
        self.mu = FIRST_MEAN
        self.bet = best_bet(self._effect, FIRST_VARIANCE)

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every score counts; looks at the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (self.mu - block.y - self._tolerance),
            -block.w * (self.mu - block.y),
        )
        worst = np.maximum((1.0 - block.w) * (1.0 + self._tolerance - self.mu), block.w * self.mu)
        lam = np.minimum(self.bet * LOSS_MULTIPLES[:, None], SAFETY / worst)
        return np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by its spread."""
        self.mu = stable.mean(before=FIRST_MEAN)
        self.bet = best_bet(self._effect, stable.variance(before=FIRST_VARIANCE))


class ScoreProof:
    """Promotion: bets that the canary's mean is *above* stable's less `margin`."""

    __state__ = ("mu", "bet")

    def __init__(self, *, margin: float) -> None:
        self.prior: Floats = PROOF_PRIOR
        self._margin = margin
        self.mu = FIRST_MEAN
        self.bet = best_bet(margin, FIRST_VARIANCE)

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every unit counts; looks at the canary's."""
        x = np.where(
            block.arm,
            (1.0 - block.w) * (block.y - self.mu + self._margin),
            -block.w * (block.y - self.mu),
        )
        worst = np.maximum((1.0 - block.w) * (self.mu - self._margin), block.w * (1.0 - self.mu))
        lam = np.minimum(self.bet * PROOF_MULTIPLES[:, None], SAFETY / np.maximum(worst, 1e-12))
        return np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by its spread."""
        self.mu = stable.mean(before=FIRST_MEAN)
        self.bet = best_bet(self._margin, stable.variance(before=FIRST_VARIANCE))


class PairLoss:
    """Rollback on mirrored pairs: `log1p(lam (d - delta0))`, d = stable's score less the canary's, in [-1,
    1].

    Null: the mean of d is at most delta0. One pair a conversation. A channel of its own, with its own part
    of alpha.
    """

    __state__ = ()

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(PAIR_LAMBDAS))
        self._tolerance = tolerance

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every pair counts and is looked at."""
        lam = np.minimum(PAIR_LAMBDAS[:, None], SAFETY / (1.0 + self._tolerance))
        rows = np.arange(len(block))
        return rows, np.log1p(lam * (block.y - self._tolerance)), rows

    def turn(self, stable: Stable) -> None:
        """Nothing is frozen: a pair is its own baseline."""
