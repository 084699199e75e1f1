"""Bettors on event rates: errors, hallucination, moderation, exceedance of a percentile. Lower is better.

A unit's outcome y is its share of requests with the event, in [0, 1]: 0 or 1 for a request of its own.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bets, NeedsCoin, Refitted

RATIOS = np.array([1.35, 1.8, 2.6, 4.2, 8.0, 20.0, 60.0])
RATIO_PRIOR = np.array([1.0, 1.0, 1.2, 1.2, 1.0, 0.8, 1.5])  # the last: for a baseline near zero
KNOWN_PRIOR = np.array([0.8, 1.2, 2.0, 3.5, 1.2, 0.1, 0.05])  # once stable's rate is known to be higher
KNOWN_UNITS = 400
NEAR_ZERO = 0.002
SHARE_LAMBDAS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
TRUE_PRIOR = np.array([0.1, 1.0, 5.0, 0.6, 0.3, 0.1])  # of the canary's true ratio
TAIL_TRUE_PARTS = np.array([0.15, 0.3, 0.45, 0.6, 0.75, 0.88])  # of the margin, where that is near 1
TAIL_PRIOR = np.array([0.7, 1.5, 1.5, 1.0, 0.7, 0.4])
FLOOR_LAMBDAS = np.array([0.1, 0.3, 0.6, 1.8])  # the last: as much as is safe, SAFETY / (1 - w)
FLOOR_PRIOR = np.full(4, 0.25)
RARE_PRIOR, RARE = (
    np.array([0.05, 0.05, 0.1, 0.8]),
    0.1,
)  # while stable's rate is below this part of the floor
FLOOR_SHARE = 0.3  # prior of the floor's family before stable's rate is known
FLOOR_SHARE_NEEDED, FLOOR_SHARE_SPARE = 0.8, 0.05  # and after: where only the floor can prove, and else
FIRST_SHARE = 0.05
FIRST_RATE = 0.02  # assumed of stable before the first epoch ends
SAFETY = 0.9


def event_log_factors(arm: Floats, w: Floats, tolerated: Floats, ratios: Floats) -> Floats:
    """K x n log factors of one event: `log(q0/q1) + (log rho if canary)`.

    Given an event, it is the canary's with probability at most `w r0 / (w r0 + 1 - w)` while its rate is at
    most r0 times stable's; the alternatives are r0 rho. Without an event nothing is bet: no baseline needed.
    Check: w=0.5, tolerated=1, rho=2 gives log(1/1.5) on stable and log(2/1.5) on the canary.
    """
    rho = ratios[:, None]
    null = w * tolerated + 1.0 - w
    log_factors: Floats = np.log(null / (w * tolerated * rho + 1.0 - w)) + arm * np.log(rho)
    return log_factors


def share_bets(block: UnitBlock, tolerated: Floats, ratios: Floats, missing_as: float = 0.0) -> Bets:
    """Bets on each unit with an event: `1 + y (f - 1)`, f the factor of one event. A look after each.

    The mean of its requests' factors, so that a unit counts once however many requests it has. missing_as:
    the part of an event that a request without a value counts.
    """
    outcome = block.outcome(missing_as)
    if block.weight is not None:
        outcome = block.weight * outcome
    rows = np.flatnonzero((outcome > 0.0) & (block.w > 0.0))
    looks = np.arange(len(rows))
    if len(rows) == 0:
        return Bets(rows, np.empty((len(ratios), 0)), looks)
    arm, y = block.arm[rows].astype(np.float64), outcome[rows]
    log_factors = event_log_factors(arm, block.w[rows], tolerated[rows], ratios)
    part = np.flatnonzero(y < 1.0)
    if len(part):
        log_factors[:, part] = np.log1p(y[part] * np.expm1(log_factors[:, part]))
    return Bets(rows, log_factors, looks)


class EventLoss(NeedsCoin):
    """Rollback on shares of events. Null: the canary's mean share is at most (1 + tolerance) times stable's.

    Where requests without an answer have no value, a rollback needs two of these, on two streams: one leaves
    such requests out, the other counts each as an event (`missing_as` 1), on both arms. So a canary that
    fails more has no blame for that, and one that answers more none for its additional answers, if each had
    the event.
    """

    __state__ = ("prior",)

    def __init__(self, *, tolerance: float, missing_as: float = 0.0) -> None:
        self.prior: Floats = RATIO_PRIOR
        self._tolerated = 1.0 + tolerance
        self._missing_as = missing_as

    def bets(self, block: UnitBlock) -> Bets:
        """On units with events alone, with a look after each."""
        return share_bets(block, np.full(len(block), self._tolerated), RATIOS, self._missing_as)

    def end_epoch(self, stable: Stable) -> None:
        """Only the prior depends on a baseline, and only before the first event (`Wealth.reset_prior`)."""
        events = stable.total + self._missing_as * float(stable.missing[0])
        if stable.count >= KNOWN_UNITS and events > NEAR_ZERO * stable.count:
            self.prior = KNOWN_PRIOR


class ShareLoss(Refitted):
    """Rollback on the shares of sessions: `log1p(lam (A - w)(z - mu))`, z = y / r0 on the canary.

    Null: the canary's mean share is at most r0 times stable's, r0 = 1 + tolerance; `missing_as` as for
    `EventLoss`. In a session of several requests events are frequent, so that one
    without any says something too: centred on stable's mean this finds the same harm with a third fewer
    sessions than `EventLoss`. Valid without a baseline: mu only removes noise.
    """

    __state__ = ("mu",)

    def __init__(self, *, tolerance: float, missing_as: float = 0.0) -> None:
        self.prior: Floats = np.ones(len(SHARE_LAMBDAS))
        self._tolerated = 1.0 + tolerance
        self._missing_as = missing_as
        self.mu = FIRST_SHARE

    def bets(self, block: UnitBlock) -> Bets:
        """On every session, with a look after each of the canary's."""
        y = block.outcome(self._missing_as)
        z = np.where(block.arm, y / self._tolerated, y)
        x = (block.arm - block.w) * (z - self.mu)
        if block.weight is not None:
            x = block.weight * x
        worst = np.maximum((1.0 - block.w) * self.mu, block.w * (1.0 - self.mu))
        lam = np.minimum(SHARE_LAMBDAS[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.log1p(lam * x), np.flatnonzero(block.arm))

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far."""
        self.mu = stable.mean(prior=FIRST_SHARE, missing_as=self._missing_as)


class RateProof:
    """Promotion: bets that the canary's mean rate is *below* `max(r0 * stable, stable + floor)`.

    Two families in one mixture, each valid under the whole null, so either can prove it: by ratio
    `log1p(lam y (-1 if canary else w r0 / (1-w)))`, and by floor `log1p(lam x)` with
    `x = (1-w)(mu + floor - y)` on the canary and `-w (mu - y)` on stable. y = events / requests of one unit,
    never first events or capped counts: those saturate, and "proved" a harmful canary in 56-100 % of runs.
    Where stable answers more (`UnitBlock.gap`), its additional answers could all have had the event: both
    margins shrink by that, but not by what two standard errors may explain: at the margin, with half of the
    events failing instead, 16 of 60 were proven.

    Answers without a value could hide events. `missing_as` 1 counts each as one, on both arms, and proves
    that the margin is kept even so, as `missing_as` 0 does without: the margin multiplies, or adds to,
    stable's known values alone. With m the missing part and z = y + m, the null is `E1[z] >= E0[r0 y + m]`,
    or `E1[z] >= E0[z + floor (1 - m)]`, and the bets are the above with `r0 y + m` for stable's `r0 y`, and
    with `mu - z + floor m` for its `mu - y`, mu the mean of z.
    """

    __state__: tuple[str, ...] = ("mu", "floor_share", "missing")

    def __init__(self, *, ratio: float, floor: float, missing_as: float = 0.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._missing_as = missing_as
        self._true_ratios, self._true_prior = true_ratios(ratio)
        self.mu = FIRST_RATE  # of known values
        self.missing = 0.0  # stable's mean part of missing values, where these count as events
        self.floor_share = FLOOR_SHARE if floor > 0.0 else 0.0

    @property
    def prior(self) -> Floats:
        """Of the family by ratio, then of the one by floor."""
        by_ratio = (1.0 - self.floor_share) * self._true_prior / float(self._true_prior.sum())
        if self._floor <= 0.0:
            return by_ratio
        is_rare = self.floor_share == FLOOR_SHARE_NEEDED and self.mu + self.missing < RARE * self._floor
        return np.concatenate((by_ratio, self.floor_share * (RARE_PRIOR if is_rare else FLOOR_PRIOR)))

    def bets(self, block: UnitBlock) -> Bets:
        """By floor on every unit, by ratio on those with events; looks after canary units and events."""
        z = block.outcome(self._missing_as)
        extra = z - block.y
        events = np.flatnonzero(z > 0.0)
        hidden = np.zeros(len(block)) if block.gap is None else np.maximum(-block.gap, 0.0)
        y, w, arm = block.y[events], block.w[events], block.arm[events]
        ratio = np.maximum(self._ratio * (1.0 - hidden[events] / self.mu), 0.0)
        rest = np.maximum(1.0 - w, 1e-12)
        of_stable = y * (w * ratio / rest) + extra[events] * (w / rest)
        of_events = np.log1p(self._lambdas(w) * np.where(arm, -z[events], of_stable))
        if self._floor <= 0.0:
            return Bets(events, of_events, np.arange(len(events)))
        by_ratio = np.zeros((len(of_events), len(block)))
        by_ratio[:, events] = of_events
        looks = np.flatnonzero(block.arm | (z > 0.0))
        floor = self._floor - hidden
        mu = self.mu * (1.0 - self.missing) + self.missing
        of_canary, of_stable = mu + floor - z, mu - z + floor * extra
        x = np.where(block.arm, (1.0 - block.w) * of_canary, -block.w * of_stable)
        worst = np.maximum((1.0 - block.w) * (1.0 - mu - floor), block.w * mu)
        lam = np.minimum(self._floor_lambdas(mu)[:, None], SAFETY / np.maximum(worst, 1e-12))
        return Bets(np.arange(len(block)), np.concatenate((by_ratio, np.log1p(lam * x))), looks)

    def end_epoch(self, stable: Stable) -> None:
        """Centre on stable's mean so far; once that is known, weight the floor by whether it is needed."""
        self.missing = self._missing_as * stable.missing_share
        self.mu = stable.mean(prior=FIRST_RATE) / max(1.0 - self.missing, 1e-3)
        if self._floor > 0.0 and stable.count >= KNOWN_UNITS:
            is_needed = self.mu * (self._ratio - 1.0) < self._floor
            self.floor_share = FLOOR_SHARE_NEEDED if is_needed else FLOOR_SHARE_SPARE

    def _lambdas(self, w: Floats) -> Floats:
        """K x n optimal bets for each true ratio: 1 - lam is the event's probability over the null's."""
        true, ratio = self._true_ratios[:, None], self._ratio
        if self.missing > 0.0:  # they are events on both arms, and bring the ratios nearer to 1
            events = self.mu * (1.0 - self.missing)
            true = (true * events + self.missing) / (events + self.missing)
            ratio = (ratio * events + self.missing) / (events + self.missing)
            return np.clip(_optimal(true, ratio, w), 0.001, 0.97)
        return np.clip(_optimal(true, ratio, w), 0.02, 0.97)

    def _floor_lambdas(self, mu: float) -> Floats:
        """The bets of the floor's family; smaller where missing values add noise. mu: mean with these."""
        if self.missing == 0.0:
            return FLOOR_LAMBDAS
        of_known = self.mu * (1.0 - self.mu) * (1.0 - self.missing)
        return FLOOR_LAMBDAS * (of_known / max(mu * (1.0 - mu), 1e-12))


def _optimal(true: Floats, ratio: float, w: Floats) -> Floats:
    """K x n bets: 1 - lam is the event's probability on the canary over the null's."""
    return 1.0 - true / ratio * (w * ratio + 1.0 - w) / (w * true + 1.0 - w)


def true_ratios(ratio: float) -> tuple[Floats, Floats]:
    """Candidate true ratios of the canary, all below `ratio`, and their prior: mostly "as good as stable"."""
    if ratio <= 1.2:
        return TAIL_TRUE_PARTS * ratio, TAIL_PRIOR
    return np.array([0.5, 0.8, 1.0, ratio**0.2, ratio**0.45, ratio**0.7]), TRUE_PRIOR
