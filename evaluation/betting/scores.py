"""Bettors on bounded scores, higher is better: judged quality, acceptance, thumbs, mirrored pairs."""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bets, Refitted

#: Bets, as multiples of the optimal one for the harm to detect, and their prior.
LOSS_MULTIPLES, LOSS_PRIOR = np.array([0.42, 1.2, 3.0, 6.0]), np.array([0.42, 0.53, 0.04, 0.01])
#: As multiples of the optimal one for a canary as good as stable.
PROOF_MULTIPLES, PROOF_PRIOR = np.array([0.45, 1.0, 2.5]), np.array([0.3, 0.55, 0.15])
PAIR_LAMBDAS = np.array([0.15, 0.3, 0.6, 1.0, 1.6, 2.4])
USUAL_HARM = 0.05  # beyond the tolerance
FIRST_MEAN, FIRST_VARIANCE = 0.8, 0.04  # assumed of stable before the first epoch ends
SAFETY = 0.9
MEAN_ERRORS = 3.0  # standard errors above stable's mean score: what it would count for is not overstated


def best_bet(effect: float, variance: float) -> float:
    """The lambda with the highest growth of log1p(lambda x) when the harm is `effect` beyond the null.

    At any weight: x has mean w (1-w) effect and second moment w (1-w) (variance + effect^2 (1-w)) or less.
    Check: effect 0.05, variance 0.04 gives 1.17647.
    """
    return effect / (variance + effect * effect)


class Centre(Refitted):
    """What a score bettor takes off every score: `mu`, stable's past mean, and what a unit's covariates add.

    `reach`: of the covariates' part. `low`, `high`: bounds of the sum for all units alike, by which bets are
    capped. Without covariates the reach is 0, and all three are mu.
    """

    def __init__(self, *, covariates: bool) -> None:
        self.mu = FIRST_MEAN
        self.reach = 0.0
        self.bet = 0.0
        self._covariates = covariates

    @property
    def __state__(self) -> tuple[str, ...]:
        return ("mu", "bet", "reach") if self._covariates else ("mu", "bet")

    @property
    def low(self) -> float:
        """The least centre of a unit."""
        return max(self.mu - self.reach, 0.0)

    @property
    def high(self) -> float:
        """The greatest centre of a unit."""
        return min(self.mu + self.reach, 1.0)

    def centre(self, block: UnitBlock) -> Floats | float:
        """The centre of each unit, in [low, high]."""
        if block.adjustment is None:
            return self.mu
        return np.clip(self.mu + block.adjustment, self.low, self.high)

    def _learn(self, stable: Stable, effect: float, missing_as: float = 0.0) -> None:
        """Centre on stable's mean so far, and bet by the variance that is left."""
        self.mu = stable.mean(prior=FIRST_MEAN, missing_as=missing_as)
        self.reach = 0.0 if stable.covariates is None else stable.covariates.reach
        variance = stable.residual_variance(prior=FIRST_VARIANCE, missing_as=missing_as)
        self.bet = best_bet(effect, variance)


class ScoreLoss(Centre):
    """Rollback: bets that the canary's mean is more than `tolerance` below stable's.

    A request without an answer has no score. A rollback needs two of these, on two streams: one leaves such
    requests out, the other counts them 0 on both arms. Where the canary fails more, it is not blamed for
    that, by the first; where it answers more, its additional answers are worth no less than stable's
    failures, by the second. (A tolerance that grows by an estimated difference of answered shares rolled
    back 11 to 65 % of canaries whose additional answers score 0: the estimate is known later.)

    `log1p(lam x)`, `x = (1-w)(mu - y - delta0)` on the canary and `-w (mu - y)` on stable, has mean
    `lam w (1-w) (stable - canary - delta0)`, at most 0 under the null for every mu; mu only removes noise. So
    does the unit's own centre in place of mu, where a gate has covariates (`covariates.py`).
    """

    def __init__(self, *, tolerance: float, threshold: float | None = None, covariates: bool = False) -> None:
        # threshold None: no harm to detect is given; the usual one is assumed
        super().__init__(covariates=covariates)
        self.prior: Floats = LOSS_PRIOR
        self._tolerance = tolerance
        self._effect = USUAL_HARM if threshold is None else threshold - tolerance
        self.bet = best_bet(self._effect, FIRST_VARIANCE)

    def bets(self, block: UnitBlock) -> Bets:
        """On every score, with a look after each of the canary's."""
        loss = self.centre(block) - block.y
        x = np.where(block.arm, (1.0 - block.w) * (loss - self._tolerance), -block.w * loss)
        if block.weight is not None:
            x = block.weight * x
        worst = np.maximum((1.0 - block.w) * (1.0 + self._tolerance - self.low), block.w * self.high)
        lam = np.minimum(self.bet * LOSS_MULTIPLES[:, None], SAFETY / worst)
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by the variance that is left."""
        self._learn(stable, self._effect)


class ScoreProof(Centre):
    """Promotion: bets that the canary's mean is *above* stable's less `margin`.

    A request without a score counts `missing_as`, on both arms. A margin is proven when it is both for 0 and
    for stable's mean: where the canary has fewer scores, 0 counts those that it lacks as its worst answers;
    where it has more, the mean gives it neither credit nor blame for them. (A margin that shrinks by an
    estimated difference of answered shares proved 12 to 38 % of canaries at the margin whose worst 2 or 5 %
    fail: the estimate is known later than the proof. With 1 in place of the mean, stable has credit for its
    failures, and a canary that fixes many could never be proven.)

    With s the share of requests that have a score, the null is `E1[s y + (1-s) m] <= E0[s (y - margin) +
    (1-s) m]`, m = `missing_as`: the margin is one of scores, so it counts for stable's requests that have one
    (`UnitBlock.counted`). `log1p(lam x)`, `x = (1-w)(z - c)` on the canary and `-w (z - margin s - c)` on
    stable, z the outcome, has mean `lam w (1-w)` times the difference of the sides, at most 0 under the null
    for every predictable c and m. c is the centre less the margin; the mean is an upper limit of stable's
    past one.
    """

    def __init__(self, *, margin: float, as_mean: bool = False, covariates: bool = False) -> None:
        super().__init__(covariates=covariates)
        self._as_mean = as_mean
        self.missing_as = 1.0 if as_mean else 0.0
        self.prior: Floats = PROOF_PRIOR
        self._margin = margin
        self.bet = best_bet(margin, FIRST_VARIANCE)

    @property
    def __state__(self) -> tuple[str, ...]:
        return (*super().__state__, "missing_as")

    def bets(self, block: UnitBlock) -> Bets:
        """On every unit, with a look after each of the canary's."""
        gain = block.outcome(self.missing_as) - self.centre(block)
        of_stable = gain if block.counted is None else gain + self._margin * (1.0 - block.counted)
        x = np.where(block.arm, (1.0 - block.w) * (gain + self._margin), -block.w * of_stable)
        if block.weight is not None:
            x = block.weight * x
        most = max(1.0, self.missing_as + self._margin) if self._as_mean else 1.0
        worst = np.maximum((1.0 - block.w) * (self.high - self._margin), block.w * (most - self.low))
        lam = np.minimum(self.bet * PROOF_MULTIPLES[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far, and bet by the variance that is left."""
        if self._as_mean:
            self.missing_as = stable.highest_mean(errors=MEAN_ERRORS)
        self._learn(stable, self._margin * stable.counted_share, self.missing_as)


class PairLoss:
    """Rollback on mirrored pairs: `log1p(lam (d - delta0))`, d the canary's harm in one pair.

    Null: the mean of d is at most delta0. One pair a conversation, with its own part of alpha. For a score d
    is stable's less the canary's, and delta0 the tolerance; for a rate, whose tolerance is relative, d is the
    canary's event less (1 + tolerance) times stable's, and delta0 is 0 (`pair_harm`).
    """

    __state__ = ()

    def __init__(self, *, tolerance: float, lower_is_better: bool) -> None:
        self.prior: Floats = np.ones(len(PAIR_LAMBDAS))
        self._tolerance = 0.0 if lower_is_better else tolerance
        self._least = -(1.0 + tolerance)  # of d - delta0

    def bets(self, block: UnitBlock) -> Bets:
        """On every pair, with a look after each."""
        lam = np.minimum(PAIR_LAMBDAS[:, None], SAFETY / -self._least)
        rows = np.arange(len(block))
        return Bets(rows, np.log1p(lam * (block.y - self._tolerance)), rows)

    def end_epoch(self, stable: Stable) -> None:
        """Nothing to update: a pair is its own baseline."""


def pair_harm(stable: float, canary: float, *, tolerance: float, lower_is_better: bool) -> float:
    """The harm of one pair that `PairLoss` bets on. Scores of both arms in [0, 1]; a tolerance is relative
    where lower is better. Check: (0, 1), tolerance 0.25, lower is better gives 1; (1, 0) gives -1.25."""
    return canary - (1.0 + tolerance) * stable if lower_is_better else stable - canary
