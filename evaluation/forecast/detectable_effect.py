"""What harm a stage can find: the smallest that its evidence would, nine times in ten, roll back.

The gate's own bettors are asked what they expect to win per canary request under a harm, and how much that
varies; a random walk with that drift and variance crosses the gate's limit at a known time. No simulation, so
`plan` can ask it of every gate and stage.

Invariant: this describes power and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.latency import ShapeLoss
from evaluation.betting.rates import FirstEvents
from evaluation.betting.scores import ScoreLoss
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Bettor, Block
from evaluation.metrics import Kind
from evaluation.policy.alpha import channel_alphas, log_limit
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy

Floats = NDArray[np.float64]

GRID = 2000
WORST_RATIO = 1000.0
_Z90 = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What stable is like. Rates by metric; scores a mean and sd; values a spread of their logarithm."""

    rates: dict[str, float] = field(default_factory=lambda: {"error": 0.01, "hallucinated": 0.03})
    rate: float = 0.02  # of a rate that `rates` does not name
    score_mean: float = 0.8
    score_sd: float = 0.2
    log_sd: float = 0.5

    def __post_init__(self) -> None:
        for name, rate in (*self.rates.items(), ("rate", self.rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"baseline {name} {rate} is outside [0, 1); it is a share of requests")
        if not (0 < self.score_mean < 1 and 0 < self.score_sd**2 < self.score_mean * (1 - self.score_mean)):
            mean, sd = self.score_mean, self.score_sd
            raise ValueError(f"baseline score {mean} with sd {sd} is nothing within 0..1; use 0.8 and 0.2")
        if not (math.isfinite(self.log_sd) and self.log_sd > 0):
            raise ValueError(f"baseline log_sd {self.log_sd} is not above 0; use 0.5")

    def rate_of(self, metric: str) -> float:
        """Stable's rate of this metric."""
        return self.rates.get(metric, self.rate)

    def score_shape(self, mean: float) -> tuple[float, float]:
        """a and b of a Beta with this mean and the baseline's concentration."""
        weight = self.score_mean * (1 - self.score_mean) / self.score_sd**2 - 1
        return weight * mean, weight * (1 - mean)


@dataclass(frozen=True, slots=True)
class Finding:
    """The smallest harm of one gate found in nine runs of ten. None: not even the worst there is.

    In the gate's words: a ratio for rates (3.1: "3.1x stable's") and values, a loss for scores.
    """

    gate: str
    kind: Kind
    harm: float | None


def findings(
    policy: GatePolicy, *, w: float, canary_requests: float, unit_requests: float = 1.0, baseline: Baseline
) -> tuple[Finding, ...]:
    """For every gate that can roll back, the smallest harm that this many canary requests find.

    w: the stage's weight, in (0, 1). unit_requests: requests of one randomised unit, >= 1; a unit counts
    once.
    """
    units = canary_requests / unit_requests
    return tuple(
        Finding(gate.name, gate.kind, _smallest(policy, gate, w, units, unit_requests, baseline))
        for gate in policy.gates
        if gate.alpha_share > 0
    )


def finds_nothing(
    policy: GatePolicy, *, w: float, canary_requests: float, unit_requests: float = 1.0, baseline: Baseline
) -> bool:
    """True: so many canary requests show none of the gates even the worst harm there is. As `findings`."""
    units = canary_requests / unit_requests
    return all(
        units_to_find(
            policy, gate, _span(gate, baseline)[1], w=w, unit_requests=unit_requests, baseline=baseline
        )
        > units
        for gate in policy.gates
        if gate.alpha_share > 0
    )


def units_to_find(
    policy: GatePolicy, gate: Gate, harm: float, *, w: float, unit_requests: float, baseline: Baseline
) -> float:
    """Canary units after which nine runs in ten have found `harm`; inf when the gate tolerates it."""
    parts = channel_alphas(policy, gate, sticky=unit_requests > 1)
    walk = _walk(policy, gate, harm, w, unit_requests, baseline)
    limit = log_limit(parts.first)
    return min((_crossing(limit + math.log(1 / prior), g, v) for prior, g, v in walk), default=math.inf)


def _smallest(
    policy: GatePolicy, gate: Gate, w: float, units: float, unit_requests: float, baseline: Baseline
) -> float | None:
    low, high = _span(gate, baseline)

    def is_found(harm: float) -> bool:
        return units_to_find(policy, gate, harm, w=w, unit_requests=unit_requests, baseline=baseline) <= units

    if not is_found(high):
        return None
    for _ in range(18):
        middle = (low + high) / 2 if gate.kind is Kind.SCORE else math.sqrt(low * high)
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return high


def _span(gate: Gate, baseline: Baseline) -> tuple[float, float]:
    """The least and the worst harm that can be."""
    if gate.kind is Kind.SCORE:
        return gate.tolerance, baseline.score_mean * 0.98
    if gate.kind is Kind.RATE:
        rate = baseline.rate_of(gate.metric)
        return 1.0, 0.98 / rate if rate > 0 else WORST_RATIO
    return 1.0, 50.0


def _crossing(distance: float, gain: float, variance: float) -> float:
    """The 90th percentile of the time at which a walk has gone `distance`."""
    if gain <= 0:
        return math.inf
    return distance / gain + _Z90 * math.sqrt(distance * variance / gain**3)


def _walk(
    policy: GatePolicy, gate: Gate, harm: float, w: float, unit_requests: float, baseline: Baseline
) -> list[tuple[float, float, float]]:
    """(prior, drift, variance) per canary unit of each alternative's log wealth, under this harm."""
    many = min(unit_requests, policy.session_requests)
    bettor: Bettor
    if gate.kind is Kind.SCORE:
        bettor = ScoreLoss(tolerance=gate.tolerance)
        arms = tuple(_beta_grid(*baseline.score_shape(baseline.score_mean - loss)) for loss in (0.0, harm))
    elif gate.kind is Kind.SHAPE:
        bettor = ShapeLoss(tolerance=gate.tolerance)
        arms = tuple(_log_normal_grid(baseline.log_sd, scale) for scale in (1.0, harm))
    else:
        bettor = FirstEvents(tolerance=gate.tolerance if gate.kind is Kind.RATE else 0.0)
        arms = tuple(_events(rate, many) for rate in _rates(gate, harm, baseline))
    return _moments(bettor, arms[0], arms[1], w)


def _rates(gate: Gate, harm: float, baseline: Baseline) -> tuple[float, float]:
    if gate.kind is Kind.RATE:
        rate = baseline.rate_of(gate.metric)
        return rate, min(rate * harm, 0.99)
    assert gate.percentile is not None
    normal = NormalDist()
    z = normal.inv_cdf(gate.percentile)
    beyond = z - math.log(harm / (1 + gate.tolerance)) / baseline.log_sd
    return 1 - gate.percentile, 1 - normal.cdf(beyond)


def _events(rate: float, requests: float) -> tuple[Floats, Floats]:
    """0 and 1 with the chances that a unit of so many requests has no, or some, event."""
    none = (1 - rate) ** requests
    return np.array([0.0, 1.0]), np.array([none, 1 - none])


def _beta_grid(a: float, b: float) -> tuple[Floats, Floats]:
    y = (np.arange(GRID) + 0.5) / GRID
    log_density = (a - 1) * np.log(y) + (b - 1) * np.log1p(-y)
    # Scores that are right or wrong pile up in the end bins, whose middles say little of what they hold.
    log_density[0] += (a - 1) * math.log(2) - math.log(a)
    log_density[-1] += (b - 1) * math.log(2) - math.log(b)
    density = np.exp(log_density - log_density.max())
    return y, density / density.sum()


def _log_normal_grid(log_sd: float, scale: float) -> tuple[Floats, Floats]:
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / GRID) for i in range(GRID)])
    return 1000.0 * scale * np.exp(log_sd * z), np.full(GRID, 1 / GRID)


def _moments(
    bettor: Bettor, stable: tuple[Floats, Floats], canary: tuple[Floats, Floats], w: float
) -> list[tuple[float, float, float]]:
    (y0, p0), (y1, p1) = stable, canary
    known = Stable(with_histogram=isinstance(bettor, ShapeLoss))
    # The bettor learns stable from a sample in the grid's own proportions.
    known.learn(np.repeat(y0, np.round(p0 * GRID * 5).astype(np.int64)))
    bettor.turn(known)
    n0, n1 = len(y0), len(y1)
    n = n0 + n1
    places = np.arange(n, dtype=np.int64)
    arm = places >= n0
    zeros = np.zeros(n, dtype=np.int64)
    y = np.concatenate((y0, y1))
    block = Block(arm, w * np.ones(n), y, np.ones(n), places, zeros, np.zeros(n), zeros)
    rows, steps, _ = bettor.steps(block)
    chance = np.concatenate(((1 - w) * p0, w * p1))[rows]
    # Per canary unit: (1 - w) / w stable units come with each, so all moments are those of one unit over w.
    gains = steps @ chance / w
    variances = (steps**2) @ chance / w
    prior = bettor.prior / bettor.prior.sum()
    return [(float(p), float(g), float(v)) for p, g, v in zip(prior, gains, variances, strict=True)]
