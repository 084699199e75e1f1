"""Sample size of a fixed-horizon A/B test, by the two-sample formula.

Results print everything that they assume, because a sample size without its assumed standard deviation,
alpha and power means nothing. What a *rollout* needs depends on its policy, traffic and units, and is
simulated: `forecast/stages.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

MAX_SD_RATIO = 1e7  # of z sd / effect; more would need over 1e14 units
EFFECTS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.10, 0.15, 0.20)


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Units each side needs to detect `effect` (absolute, in the outcome's unit), and what that assumes."""

    n_a: int
    n_b: int
    effect: float
    sd: float
    alpha: float
    power: float
    split: float  # share of the units that B gets
    two_sided: bool

    def __str__(self) -> str:
        sides = "two-sided" if self.two_sided else "one-sided"
        return (
            f"{self.n_a} + {self.n_b} units to find a difference of {self.effect:g} "
            f"(assumed sd {self.sd:g}, alpha {self.alpha:g} {sides}, power {self.power:g}, "
            f"B gets {self.split:.0%})"
        )


def required_sample_size(
    effect: float,
    *,
    sd: float,
    alpha: float = 0.05,
    power: float = 0.8,
    split: float = 0.5,
    two_sided: bool = True,
) -> SampleSize:
    """Units for a fixed-horizon comparison of two means: N = (z_a + z_b)^2 sd^2 / (effect^2 s (1 - s)).

    effect: minimum detectable absolute difference, > 0; sd: of one unit's outcome, same unit, > 0 (for a
    rate p: sqrt(p (1 - p))). split s: share of B, in (0, 1). Raises ValueError outside those ranges.
    Source: the two-sample z formula, e.g. Cohen (1988), ch. 2.
    Check: effect 0.5, sd 1 gives 63 a side (Cohen's table, with t: 64).
    """
    for name, value in (("effect", effect), ("sd", sd)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} {value} is not above 0; give it in the outcome's own unit")
    for name, value in (("alpha", alpha), ("power", power), ("split", split)):
        if not 0 < value < 1:
            raise ValueError(f"{name} {value} is outside (0, 1); it is a probability, as 0.05, 0.8 or 0.5")
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2 if two_sided else 1 - alpha) + normal.inv_cdf(power)
    if z <= 0:
        raise ValueError(f"alpha {alpha} and power {power} need no data; lower alpha or raise power")
    if not z * (sd / effect) < MAX_SD_RATIO:
        raise ValueError(f"effect {effect} is too small beside sd {sd} for any traffic; give a larger one")
    total = (z * sd / effect) ** 2 / (split * (1 - split))
    n_a, n_b = math.ceil(total * (1 - split)), math.ceil(total * split)
    return SampleSize(n_a, n_b, effect, sd, alpha, power, split, two_sided)


def effect_table(
    baseline: float,
    *,
    sd: float,
    effects: Sequence[float] = EFFECTS,
    alpha: float = 0.05,
    power: float = 0.8,
    split: float = 0.5,
) -> tuple[SampleSize, ...]:
    """Sample sizes for relative effects (0.01 = 1 %) on a mean of `baseline` > 0."""
    if not (math.isfinite(baseline) and baseline > 0):
        raise ValueError(f"baseline {baseline} is not above 0; relative effects need a mean to relate to")
    return tuple(
        required_sample_size(baseline * e, sd=sd, alpha=alpha, power=power, split=split) for e in effects
    )
