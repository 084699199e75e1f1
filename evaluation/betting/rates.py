"""Shares of bad answers: errors, hallucination, moderation, exceedance of a percentile. Lower is better."""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Block, Floats, Ints, by_weight

RATIOS = np.array([1.35, 1.8, 2.6, 4.2, 8.0, 20.0, 60.0])
RATIO_PRIOR = np.array([1.0, 1.0, 1.2, 1.2, 1.0, 0.8, 1.5])  # the last: a baseline near zero
KNOWN_PRIOR = np.array([0.8, 1.2, 2.0, 3.5, 1.2, 0.1, 0.05])  # once stable is known to fail now and then
KNOWN_UNITS = 400
NEAR_ZERO = 0.002
SESSION_RATIOS = np.array([1.4, 2.0, 3.0, 5.0])
TOLERANT_LAMBDAS = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
TRUE_PRIOR = np.array([0.1, 1.0, 5.0, 0.6, 0.3, 0.1])  # of what the canary's ratio may really be
TAIL_TRUTHS = np.array([0.15, 0.3, 0.45, 0.6, 0.75, 0.88])
TAIL_PRIOR = np.array([0.7, 1.5, 1.5, 1.0, 0.7, 0.4])
FLOOR_LAMBDAS = np.array([0.1, 0.3, 0.6, 0.9])
FLOOR_SHARE = (
    0.3  # of the floor's family before stable is known, and after: where it can and cannot carry the proof
)
FLOOR_SHARE_NEEDED, FLOOR_SHARE_SPARE = 0.8, 0.05
SAFETY = 0.9


def event_table(w: float, tolerated: float) -> Floats:
    """K x 2 x 1 log factors of one event, by alternative and arm: `log(q0/q1) + (log rho if canary)`.

    Given an event, the canary's part is at most `w r0 / (w r0 + 1 - w)` while its rate is at most r0 times
    stable's; that is tested against ratios r0 rho. Without an event nothing is bet, so no baseline is needed.
    Check: w=0.5, tolerated=1, rho=2 gives log(1/1.5) on stable and log(2/1.5) on the canary.
    """
    held = w * tolerated + 1.0 - w
    worse = w * tolerated * RATIOS + 1.0 - w
    on_stable = np.log(held / worse)
    return np.stack((on_stable, on_stable + np.log(RATIOS)), axis=1)[:, :, None]


class FirstEvents:
    """Rollback on first events. Null: the canary's rate is at most (1 + tolerance) times stable's, at every
    moment."""

    __state__ = ()

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = RATIO_PRIOR
        self._tolerated = 1.0 + tolerance

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Only events count, and each is looked at."""
        rows = np.flatnonzero((block.y > 0.0) & (block.w > 0.0))
        events = block.pick(rows)
        looks = np.arange(len(rows))
        if len(rows) == 0:
            return rows, np.empty((len(self.prior), 0)), looks
        column = np.zeros(len(rows), dtype=np.int64)
        return rows, by_weight(events, column, lambda w: event_table(w, self._tolerated)), looks

    def turn(self, stable: Stable) -> None:
        """The bet knows no baseline; only its prior does, and only before the first event
        (`Wealth.take_prior`)."""
        if stable.count >= KNOWN_UNITS and stable.total > NEAR_ZERO * stable.count:
            self.prior = KNOWN_PRIOR


class SessionCounts:
    """Rollback on the events of a session, without tolerance: `r = rho ** count`, over stable's mean of it.

    Null: a canary session's count is stochastically at most stable's.
    """

    __state__ = ("norm", "counts", "seen")

    def __init__(self, *, most: int) -> None:
        self.prior: Floats = np.ones(len(SESSION_RATIOS))
        self._most = most
        self.counts: Ints = np.zeros(most + 1, dtype=np.int64)  # stable sessions, by events (rounded)
        self.seen = 0
        self.norm: Floats = np.ones(len(SESSION_RATIOS))

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every session counts; looks at the canary's, and at stable's with an event."""
        count = np.minimum(np.rint(block.y * block.n).astype(np.int64), self._most)
        powers = SESSION_RATIOS[:, None] ** np.arange(self._most + 1) / self.norm[:, None]

        def table(w: float) -> Floats:
            both = np.log(w * powers + 1.0 - w)
            return np.stack((-both, np.log(powers) - both), axis=1)

        steps = by_weight(block, count, table)
        stable = count[~block.arm]
        self.counts = self.counts + np.bincount(stable, minlength=self._most + 1)
        self.seen += len(stable)
        return np.arange(len(block)), steps, np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Take the mean of rho ** count over stable's sessions."""
        shares = (self.counts + np.where(np.arange(self._most + 1) == 0, 1.0, 0.0)) / (self.seen + 1.0)
        terms = SESSION_RATIOS[:, None] ** np.arange(self._most + 1) * shares
        self.norm = np.add.accumulate(terms, axis=1)[:, -1]


class SessionMeans:
    """Rollback on session means with a tolerance r0 > 1: `log1p(lam (A - w)(z - mu))`, z = y/r0 on the
    canary.

    Null: the canary's mean of y = events / requests is at most r0 times stable's. Needs no baseline to be
    right.
    """

    __state__ = ("mu",)

    def __init__(self, *, tolerance: float) -> None:
        self.prior: Floats = np.ones(len(TOLERANT_LAMBDAS))
        self._tolerated = 1.0 + tolerance
        self.mu = 0.05

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every session counts; looks at the canary's."""
        z = np.where(block.arm, block.y / self._tolerated, block.y)
        x = (block.arm - block.w) * (z - self.mu)
        worst = np.maximum((1.0 - block.w) * self.mu, block.w * (1.0 - self.mu))
        lam = np.minimum(TOLERANT_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm)

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far."""
        self.mu = stable.mean(before=0.05)


class RateProof:
    """Promotion: bets that the canary's mean rate is *below* `max(r0 * stable, stable + floor)`.

    Two families in one mixture, each right under the whole null, so either can carry the proof: by ratio
    `log1p(lam y (-1 if canary else w r0 / (1-w)))`, and by floor `log1p(lam x)` with
    `x = (1-w)(mu + floor - y)` on the canary and `-w (mu - y)` on stable. y = events / requests of one
    unit, never first events or capped counts: those saturate, and "proved" a harmful canary in 56-100 % of
    runs.
    """

    __state__ = ("mu", "floor_share")

    def __init__(self, *, ratio: float, floor: float) -> None:
        self._ratio = ratio
        self._floor = floor
        self._truths, self._truth_prior = _truths(ratio)
        self.mu = 0.02
        self.floor_share = FLOOR_SHARE if floor > 0.0 else 0.0

    @property
    def prior(self) -> Floats:
        """By ratio, then by floor."""
        by_ratio = (1.0 - self.floor_share) * self._truth_prior / float(self._truth_prior.sum())
        if self._floor <= 0.0:
            return by_ratio
        return np.concatenate((by_ratio, np.full(len(FLOOR_LAMBDAS), self.floor_share / len(FLOOR_LAMBDAS))))

    def steps(self, block: Block) -> tuple[Ints, Floats, Ints]:
        """Every unit counts by the floor, those with events by ratio; looks at canary units and at events."""
        events = np.flatnonzero(block.y > 0.0)
        y, w, arm = block.y[events], block.w[events], block.arm[events]
        odds = w * self._ratio / np.maximum(1.0 - w, 1e-12)
        of_events = np.log1p(self._lambdas(w) * np.where(arm, -y, y * odds))
        if self._floor <= 0.0:
            return events, of_events, np.arange(len(events))
        rows = np.arange(len(block))
        by_ratio = np.zeros((len(of_events), len(block)))
        by_ratio[:, events] = of_events
        looks = np.flatnonzero(block.arm | (block.y > 0.0))
        x = np.where(
            block.arm, (1.0 - block.w) * (self.mu + self._floor - block.y), -block.w * (self.mu - block.y)
        )
        worst = np.maximum((1.0 - block.w) * (1.0 - self.mu - self._floor), block.w * self.mu)
        lam = np.minimum(FLOOR_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return rows, np.concatenate((by_ratio, np.log1p(lam * x))), looks

    def turn(self, stable: Stable) -> None:
        """Centre on stable's mean so far; once it is known, give the floor what it can use."""
        self.mu = stable.mean(before=0.02)
        if self._floor > 0.0 and stable.count >= KNOWN_UNITS:
            is_needed = self.mu * (self._ratio - 1.0) < self._floor
            self.floor_share = FLOOR_SHARE_NEEDED if is_needed else FLOOR_SHARE_SPARE

    def _lambdas(self, w: Floats) -> Floats:
        """K x n bets that are best if the canary's ratio is `truths`: 1 - lam is the event's odds against
        the null's."""
        truths = self._truths[:, None]
        lam = 1.0 - truths / self._ratio * (w * self._ratio + 1.0 - w) / (w * truths + 1.0 - w)
        return np.clip(lam, 0.02, 0.97)


def _truths(ratio: float) -> tuple[Floats, Floats]:
    """Ratios that the canary may really have, all below `ratio`, and their prior: most of it on "as good as
    stable"."""
    if ratio <= 1.2:
        return TAIL_TRUTHS * ratio, TAIL_PRIOR
    return np.array([0.5, 0.8, 1.0, ratio**0.2, ratio**0.45, ratio**0.7]), TRUE_PRIOR
