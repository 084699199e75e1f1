"""Everyone who was drawn, with whoever stayed away as the worst: later sessions by intention to treat.

Who comes back is chosen by what they got before. A canary that repairs failures keeps the users who had them,
and these may be slower and harder to please: its later sessions are worse though no request is. So later
sessions roll back only together with a second test, of all units that were drawn, whether they came back or
not. One that stayed away counts as the worst, on both arms. A canary that keeps more units has more outcomes,
each no worse than that.

A unit's harm is that of all rounds so far, one outcome, so its coin counts once a look. (Of one round alone,
the noise of who happens to come drowns the harm: where 7 % come back in an hour, errors that went from 1 to
30 % in later sessions were promoted.)

Units of one class had the same P(canary) `p` and were drawn in the same round. With A the arm, h the harm in
a round, c the mean harm of the unit's class in it, and d the sum of h - c over the rounds since the unit was
drawn, the statistic is the sum of (A - p) d. The null is Fisher's sharp one: no unit's h, nor whether it
comes back, depends on its arm. Then d is a function of the outcomes alone, given which the coins are fair and
independent, and the p-value is P(this sum or more) over the coins, without a model of outcomes or a past to
learn from. Its value is Chernoff's bound, which holds exactly, or where many coins matter the saddlepoint
approximation: Lugannani and Rice's, with Daniels' correction for sums on a lattice as wide as the largest
|d|. (Against full enumeration it was at most 0.4 % below the exact tail, and mostly above.) Harm that is
equal only in the mean is not of the null: a canary that is much better for few and a little worse for most
can be found worse. So it only guards: no rollback follows from it alone.

The same is asked of d of the present round alone, which finds harm that begins late; the smallest p-value
counts times their number. It is looked at a few times a round, and each look has its own part of alpha, so
that no look needs to be valid together with another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evaluation.betting.unit_block import Flags, Floats, Ints
from evaluation.betting.wealth import Decision

LOOKS = 6  # in a round: a session length apart
LAST_SHARE = 0.5  # of a round's alpha, for its last look, when all its sessions have closed
MAX_TILT = 30.0  # over the largest |d|: beyond it the bound is that of the worst coins to 1e-13
STEPS = 30  # of Newton's method, safeguarded by bisection
MIN_VARIANCE = 1.0  # of the tilted sum, in squares of the largest |d|: with less, Chernoff's bound is used


@dataclass(frozen=True, slots=True)
class Everyone:
    """All units of a look. Arrays of equal length n, but `harm`: K x n, by way of measuring it.

    `group`: of the unit's class. `p`: P(canary) of its toss. `arm`: of that toss. `weight`: part of a whole
    unit, in [0, 1]. `units`: how many are exactly like this. `before`: d of the closed rounds, K x n.
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


def surprise(of: Everyone, excess: Floats) -> float:
    """-log of the p-value: how rarely fair coins put so much harm on the canary; at least 0.
    excess: `Everyone.excess`.

    Check: two units of one class, p = 0.5, harm 1 on the canary and 0 on stable: log 4.
    """
    if len(of.group) == 0:
        return 0.0
    offs = np.concatenate((excess, excess - of.before)) if np.any(np.abs(of.before) > 1e-9) else excess
    sums = offs @ (of.units * (of.arm - of.p))
    variances = (offs * offs) @ (of.units * of.p * (1.0 - of.p))
    # Below one standard deviation nothing is said: such a p-value, times the ways, decides no look.
    told = np.flatnonzero((sums > 0.0) & (variances > 1e-12) & (sums * sums >= variances))
    rarest = min(
        (_log_tail(of, offs[way], float(sums[way]), float(variances[way])) for way in told), default=0.0
    )
    return max(0.0, -rarest - math.log(len(offs)))


def _log_tail(of: Everyone, off: Floats, total: float, variance: float) -> float:
    """Log of P(the sum of (A - p) d over fair coins >= total), or of a bound on it. off: d of each row.

    Source: Lugannani & Rice (1980); Daniels, Tail probability approximations (1987), for the lattice.
    """
    p, units, width = of.p, of.units, float(np.max(np.abs(off)))
    mean = float((units * p) @ off)
    low, cap = 0.0, MAX_TILT / width
    high, tilt, slope, tilted_variance = cap, min(total / variance, cap), math.inf, 0.0
    for _ in range(STEPS):
        odds = p * np.exp(tilt * off)
        chance = odds / (1.0 - p + odds)
        slope = float((units * chance) @ off) - mean - total
        tilted_variance = float((units * chance * (1.0 - chance)) @ (off * off))
        if abs(slope) <= 1e-10 * math.sqrt(variance) or (slope < 0.0 and tilt == cap):
            break
        low, high = (low, min(tilt, math.nextafter(cap, 0.0))) if slope > 0.0 else (tilt, high)
        step = tilt - slope / max(tilted_variance, 1e-300)
        tilt = step if low < step < high else cap if step >= high == cap else (low + high) / 2.0
    bound = float(units @ np.log1p(p * np.expm1(tilt * off))) - tilt * (mean + total)
    is_found = abs(slope) <= 1e-6 * math.sqrt(variance)
    if not is_found or tilted_variance < MIN_VARIANCE * width * width or bound >= -0.05:
        return bound
    root = math.sqrt(-2.0 * bound)
    lattice = -math.expm1(-tilt * width) / width * math.sqrt(tilted_variance)
    factor = _mills_less_inverse(root) + 1.0 / lattice
    return min(bound, bound - 0.5 * math.log(2.0 * math.pi) + math.log(factor)) if factor > 0.0 else bound


def _mills_less_inverse(z: float) -> float:
    """(1 - Phi(z)) / phi(z) - 1 / z. Check: -0.344320 at 1."""
    if z < 25.0:
        return math.sqrt(math.pi / 2.0) * math.erfc(z / math.sqrt(2.0)) * math.exp(z * z / 2.0) - 1.0 / z
    return -(z**-3) + 3.0 * z**-5


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
        """The `surprise` at which a look decides. look: of the round, from 1 to LOOKS."""
        share = LAST_SHARE if look == LOOKS else (1.0 - LAST_SHARE) / (LOOKS - 1)
        return self.decision.limit + math.log(round_ * (round_ + 1.0) / share)

    def look(self, log_e: float, wanted: float, *, seq: int, canary: int, at_s: float) -> None:
        """Note a look's -log p as its log_e; the peak is less what the round and the look have cost."""
        decision = self.decision
        decision.log_e = log_e - (wanted - decision.limit)
        decision.peak = max(decision.peak, decision.log_e)
        if not decision.is_reached and log_e >= wanted:
            decision.seq, decision.canary, decision.at_s = seq, canary, at_s
