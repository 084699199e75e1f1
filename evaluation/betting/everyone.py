"""Everyone who was drawn, with whoever stayed away as the worst: later sessions by intention to treat.

Who comes back is chosen by what they got before. A canary that repairs failures keeps the users who had them,
and these may be slower and harder to please: its later sessions are worse though no request is. So later
sessions roll back only together with a second test, of all units that were drawn, whether they came back or
not. One that stayed away counts as the worst, on both arms. A canary that keeps more units has more outcomes,
each no worse than that.

A unit's harm is that of all rounds so far, one outcome, so its coin is bet once a look. (Of one round alone,
the noise of who happens to come drowns the harm: where 7 % come back in an hour, errors that went from 1 to
30 % in later sessions were promoted.)

Units of one class had the same P(canary) `p` and were drawn in the same round. With A the arm, h the harm in
a round, c the mean harm of the unit's class in it, and d the sum of h - c over the rounds since the unit was
drawn, the factor is `1 + lam (A - p) d`. If no h depends on the arm, d and lam are functions of the outcomes
alone, the coins are fair given them, and the product has mean 1: exact, without a past to learn from. So has
the one with d of the present round alone, which finds harm that begins late; the mean of both is used. A
canary that does less harm lowers it. It is looked at a few times a round, and each look has its own part of
alpha: what is absent at one look may be there at the next, so the product is no supermartingale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evaluation.betting.unit_block import Flags, Floats, Ints
from evaluation.betting.wealth import Decision

#: Bets, as multiples of the one that reaches the limit with the least difference, and their prior.
MULTIPLES, PRIOR = np.array([1.0, 2.0]), np.array([0.7, 0.3])
LOOKS = 6  # in a round: a session length apart
LAST_SHARE = 0.5  # of a round's alpha, for its last look, when all its sessions have closed
SAFETY = 0.9


@dataclass(frozen=True, slots=True)
class Everyone:
    """All units of a look. Arrays of equal length n, but `harm`: K x n, by way of measuring it.

    `group`: of the unit's class. `p`: P(canary) of its toss. `arm`: of that toss. `weight`: part of a whole
    unit's bet, in [0, 1]. `units`: how many are exactly like this. `before`: d of the closed rounds, K x n.
    """

    group: Ints
    p: Floats
    arm: Flags
    harm: Floats
    weight: Floats
    units: Floats
    before: Floats

    def means(self) -> Floats:
        """Mean harm of each group in this round, K x groups."""
        mass = self.weight * self.units
        size = np.maximum(np.bincount(self.group, weights=mass), 1e-12)
        return np.array([np.bincount(self.group, weights=mass * harm) / size for harm in self.harm])

    def excess(self, means: Floats) -> Floats:
        """Harm above the mean of the unit's class, summed over the rounds so far, K x n."""
        excess: Floats = self.before + self.weight * (self.harm - means[:, self.group])
        return excess


def log_wealth(of: Everyone, excess: Floats, limit: float) -> float:
    """Log of the mean product over the ways and the bets; these are sized for a log wealth of `limit`.
    excess: `Everyone.excess`.

    Check: two units of one class, p = 0.5, harm 1 on the canary and 0 on stable: each factor is
    1 + 0.25 lam, lam = min(MULTIPLES sqrt(2 limit / 0.125), 3.6).
    """
    if len(of.group) == 0:
        return 0.0
    terms = []
    variance, on_stable, on_canary = of.units * of.p * (1.0 - of.p), -(1.0 - of.p), of.p
    coin = of.arm - of.p
    for off in np.concatenate((excess, excess - of.before)):  # harm that begins late is in this round alone
        spread = float(np.sum(variance * off**2))
        worst = float(np.max(np.maximum(on_stable * off, on_canary * off)))  # on whichever arm it had been
        if spread <= 1e-12 or worst <= 0.0:
            terms.append(np.zeros(len(MULTIPLES)))
            continue
        lam = np.minimum(MULTIPLES * math.sqrt(2.0 * limit / spread), SAFETY / worst)
        terms.append(np.log1p(lam[:, None] * (coin * off)) @ of.units)
    logs = np.concatenate(terms)
    prior = np.tile(PRIOR, len(terms)) / len(terms)
    top = float(np.max(logs))
    return top + math.log(float(np.sum(prior * np.exp(logs - top))))


class HarmSoFar:
    """Excess harm of each unit over its closed rounds (`Everyone.excess`), for units of the present weight.

    Kept: `base`, K x origins, the sum of a unit of this origin that never came back; and of each unit that
    did, how much its own sum is above that: `unit` (hashes, ascending), `origin`, and `above`, K x units.
    """

    __state__ = ("unit", "origin", "above", "base")

    def __init__(self) -> None:
        self.unit: Ints = np.zeros(0, dtype=np.int64)
        self.origin: Ints = np.zeros(0, dtype=np.int64)
        self.above: Floats = np.zeros((0, 0))
        self.base: Floats = np.zeros((0, 0))

    @property
    def is_untouched(self) -> bool:
        """Whether no round has closed: nothing to store."""
        return self.base.size == 0

    def without(self, units: Ints) -> Flags:
        """Which of the units here are none of these."""
        rest = np.ones(len(self.unit), dtype=np.bool_)
        if len(rest) and len(units):
            place = np.minimum(np.searchsorted(self.unit, units), len(rest) - 1)
            rest[place[self.unit[place] == units]] = False
        return rest

    def base_of(self, ways: int, origins: int) -> Floats:
        """The base for so many origins, ways x origins."""
        base = np.zeros((ways, origins))
        base[: self.base.shape[0], : self.base.shape[1]] = self.base
        return base

    def above_of(self, unit: Ints, origin: Ints, ways: int) -> Floats:
        """How much the sums of these units are above the base, ways x units; 0 of those that never came."""
        above = np.zeros((ways, len(unit)))
        if len(self.unit) and len(unit):
            place = np.minimum(np.searchsorted(self.unit, unit), len(self.unit) - 1)
            known = (self.unit[place] == unit) & (self.origin[place] == origin)
            above[:, known] = self.above[:, place[known]]
        return above

    def keep(self, unit: Ints, origin: Ints, excess: Floats, base: Floats) -> None:
        """Keep the sums through a round that has closed. excess: of these units, K x n; a unit that is there
        twice has been drawn again since, and its first entry counts."""
        self.unit, first = np.unique(unit, return_index=True)
        self.origin, self.base = origin[first], base
        self.above = excess[:, first] - base[:, self.origin]


class EveryoneChannel:
    """The test of all units, look by look. It spends `alpha / (k (k + 1))` in the k-th round."""

    __state__ = ("decision", "so_far")

    def __init__(self) -> None:
        self.so_far = HarmSoFar()
        self.decision = Decision(math.inf)
        self.is_idle = False

    @property
    def is_decided(self) -> bool:
        """True when further looks change nothing."""
        return self.is_idle or self.decision.is_reached or math.isinf(self.decision.limit)

    def wanted(self, round_: int, look: int) -> float:
        """The log wealth at which a look decides. look: of the round, from 1 to LOOKS."""
        share = LAST_SHARE if look == LOOKS else (1.0 - LAST_SHARE) / (LOOKS - 1)
        return self.decision.limit + math.log(round_ * (round_ + 1.0) / share)

    def look(self, log_e: float, wanted: float, *, seq: int, canary: int, at_s: float) -> None:
        """Note a look's log wealth; the peak is less what the round and the look have cost."""
        decision = self.decision
        decision.log_e = log_e - (wanted - decision.limit)
        decision.peak = max(decision.peak, decision.log_e)
        if not decision.is_reached and log_e >= wanted:
            decision.seq, decision.canary, decision.at_s = seq, canary, at_s
