"""Bettors on event rates: errors, hallucination, moderation, exceedance of a percentile. Lower is better."""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bets, Block, Floats, Ints, by_weight, ratio_table

RATIOS = np.array([1.35, 1.8, 2.6, 4.2, 8.0, 20.0, 60.0])
RATIO_PRIOR = np.array([1.0, 1.0, 1.2, 1.2, 1.0, 0.8, 1.5])  # the last: for a baseline near zero
KNOWN_PRIOR = np.array([0.8, 1.2, 2.0, 3.5, 1.2, 0.1, 0.05])  # once stable's rate is known to be higher
KNOWN_UNITS = 400
NEAR_ZERO = 0.002
SESSION_RATIOS = np.array([1.4, 2.0, 3.0, 5.0])
TOLERANT_LAMBDAS = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
TRUE_PRIOR = np.array([0.1, 1.0, 5.0, 0.6, 0.3, 0.1])  # of the canary's true ratio
TAIL_TRUE_PARTS = np.array([0.15, 0.3, 0.45, 0.6, 0.75, 0.88])  # of the margin, where that is near 1
TAIL_PRIOR = np.array([0.7, 1.5, 1.5, 1.0, 0.7, 0.4])
FLOOR_LAMBDAS = np.array([0.1, 0.3, 0.6, 0.9])
FLOOR_SHARE = 0.3  # prior of the floor's family before stable's rate is known
FLOOR_SHARE_NEEDED, FLOOR_SHARE_SPARE = 0.8, 0.05  # and after: where only the floor can prove, and else
SAFETY = 0.9


def event_table(w: float, tolerated: float) -> Floats:
    """K x 2 x 1 log factors of one event, by alternative and arm: `log(q0/q1) + (log rho if canary)`.

    Given an event, it is the canary's with probability at most `w r0 / (w r0 + 1 - w)` while its rate is at
    most r0 times stable's; the alternatives are r0 rho. Without an event nothing is bet: no baseline needed.
    Check: w=0.5, tolerated=1, rho=2 gives log(1/1.5) on stable and log(2/1.5) on the canary.
    """
    null = w * tolerated + 1.0 - w
    worse = w * tolerated * RATIOS + 1.0 - w
    on_stable = np.log(null / worse)
    return np.stack((on_stable, on_stable + np.log(RATIOS)), axis=1)[:, :, None]


class FirstEvents:
    """Rollback on first events. Null: the canary's rate is at most (1 + tolerance) times stable's, at every
    moment."""

    __state__ = ()

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = RATIO_PRIOR
        self._tolerated = 1.0 + tolerance

    def bets(self, block: Block) -> Bets:
        """On events alone, with a look after each."""
        rows = np.flatnonzero((block.y > 0.0) & (block.w > 0.0))
        looks = np.arange(len(rows))
        if len(rows) == 0:
            return Bets(rows, np.empty((len(self.prior), 0)), looks)
        column = np.zeros(len(rows), dtype=np.int64)
        factors = by_weight(block.pick(rows), column, lambda w: event_table(w, self._tolerated))
        return Bets(rows, factors, looks)

    def end_epoch(self, stable: Stable) -> None:
        """Only the prior depends on a baseline, and only before the first event (`Wealth.reset_prior`)."""
        if stable.count >= KNOWN_UNITS and stable.total > NEAR_ZERO * stable.count:
            self.prior = KNOWN_PRIOR


class SessionCounts:
    """Rollback on the events of a session, without tolerance: `r = rho ** count`, divided by stable's mean.

    Null: a canary session's count is stochastically at most stable's.
    """

    __state__ = ("norm", "counts", "seen")

    def __init__(self, *, max_events: int) -> None:
        self.prior: Floats = np.ones(len(SESSION_RATIOS))
        self._max_events = max_events
        self.counts: Ints = np.zeros(max_events + 1, dtype=np.int64)  # stable sessions by events (rounded)
        self.seen = 0
        self.norm: Floats = np.ones(len(SESSION_RATIOS))

    def bets(self, block: Block) -> Bets:
        """On every session, with a look after each of the canary's. Counts stable's for the next epoch."""
        count = np.minimum(np.rint(block.y * block.n).astype(np.int64), self._max_events)
        ratios = SESSION_RATIOS[:, None] ** np.arange(self._max_events + 1) / self.norm[:, None]
        log_ratios = np.log(ratios)
        factors = by_weight(block, count, lambda w: ratio_table(w, ratios, log_ratios))
        stable = count[~block.arm]
        self.counts = self.counts + np.bincount(stable, minlength=self._max_events + 1)
        self.seen += len(stable)
        return Bets(np.arange(len(block)), factors, np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Set the norm to the mean of rho ** count over stable's sessions, and one without an event."""
        events = np.arange(self._max_events + 1)
        shares = (self.counts + np.where(events == 0, 1.0, 0.0)) / (self.seen + 1.0)
        terms = SESSION_RATIOS[:, None] ** events * shares
        self.norm = np.add.accumulate(terms, axis=1)[:, -1]


class SessionMeans:
    """Rollback on session means with a tolerance r0 > 1: `log1p(lam (A - w)(z - mu))`, z = y/r0 on the
    canary.

    Null: the canary's mean of y = events / requests is at most r0 times stable's. Valid without a baseline.
    """

    __state__ = ("mu",)

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(TOLERANT_LAMBDAS))
        self._tolerated = 1.0 + tolerance
        self.mu = 0.05

    def bets(self, block: Block) -> Bets:
        """On every session, with a look after each of the canary's."""
        z = np.where(block.arm, block.y / self._tolerated, block.y)
        x = (block.arm - block.w) * (z - self.mu)
        worst = np.maximum((1.0 - block.w) * self.mu, block.w * (1.0 - self.mu))
        lam = np.minimum(TOLERANT_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far."""
        self.mu = stable.mean(prior=0.05)


class RateProof:
    """Promotion: bets that the canary's mean rate is *below* `max(r0 * stable, stable + floor)`.

    Two families in one mixture, each valid under the whole null, so either can prove it: by ratio
    `log1p(lam y (-1 if canary else w r0 / (1-w)))`, and by floor `log1p(lam x)` with
    `x = (1-w)(mu + floor - y)` on the canary and `-w (mu - y)` on stable. y = events / requests of one unit,
    never first events or capped counts: those saturate, and "proved" a harmful canary in 56-100 % of runs.
    """

    __state__ = ("mu", "floor_share")

    def __init__(self, *, ratio: float, floor: float) -> None:
        self._ratio = ratio
        self._floor = floor
        self._true_ratios, self._true_prior = true_ratios(ratio)
        self.mu = 0.02
        self.floor_share = FLOOR_SHARE if floor > 0.0 else 0.0

    @property
    def prior(self) -> Floats:
        """Of the family by ratio, then of the one by floor."""
        by_ratio = (1.0 - self.floor_share) * self._true_prior / float(self._true_prior.sum())
        if self._floor <= 0.0:
            return by_ratio
        return np.concatenate((by_ratio, np.full(len(FLOOR_LAMBDAS), self.floor_share / len(FLOOR_LAMBDAS))))

    def bets(self, block: Block) -> Bets:
        """By floor on every unit, by ratio on those with events; looks after canary units and events."""
        events = np.flatnonzero(block.y > 0.0)
        y, w, arm = block.y[events], block.w[events], block.arm[events]
        odds = w * self._ratio / np.maximum(1.0 - w, 1e-12)
        of_events = np.log1p(self._lambdas(w) * np.where(arm, -y, y * odds))
        if self._floor <= 0.0:
            return Bets(events, of_events, np.arange(len(events)))
        by_ratio = np.zeros((len(of_events), len(block)))
        by_ratio[:, events] = of_events
        looks = np.flatnonzero(block.arm | (block.y > 0.0))
        x = np.where(
            block.arm, (1.0 - block.w) * (self.mu + self._floor - block.y), -block.w * (self.mu - block.y)
        )
        worst = np.maximum((1.0 - block.w) * (1.0 - self.mu - self._floor), block.w * self.mu)
        lam = np.minimum(FLOOR_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.concatenate((by_ratio, np.log1p(lam * x))), looks)

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far; once that is known, weight the floor by whether it is needed."""
        self.mu = stable.mean(prior=0.02)
        if self._floor > 0.0 and stable.count >= KNOWN_UNITS:
            is_needed = self.mu * (self._ratio - 1.0) < self._floor
            self.floor_share = FLOOR_SHARE_NEEDED if is_needed else FLOOR_SHARE_SPARE

    def _lambdas(self, w: Floats) -> Floats:
        """K x n optimal bets for each true ratio: 1 - lam is the event's probability over the null's."""
        true = self._true_ratios[:, None]
        lam = 1.0 - true / self._ratio * (w * self._ratio + 1.0 - w) / (w * true + 1.0 - w)
        return np.clip(lam, 0.02, 0.97)


def true_ratios(ratio: float) -> tuple[Floats, Floats]:
    """Candidate true ratios of the canary, all below `ratio`, and their prior: mostly "as good as stable"."""
    if ratio <= 1.2:
        return TAIL_TRUE_PARTS * ratio, TAIL_PRIOR
    return np.array([0.5, 0.8, 1.0, ratio**0.2, ratio**0.45, ratio**0.7]), TRUE_PRIOR
