"""Minimum detectable effect of a stage: the smallest harm that it rolls back in nine runs of ten.

The gate's own bettors give the mean and the variance of their log factors per canary request under a harm; a
random walk with that drift and variance crosses the gate's limit at a known time. No simulation, so `plan`
computes it for every gate and stage.

Invariant: this describes power and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.bettors import LossBettor, loss_bettor
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import UnitBlock
from evaluation.metrics import Kind
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy
from evaluation.units.capped import PERCENTILE, TIMES

Floats = NDArray[np.float64]

GRID = 2000
MAX_RATIO = 1000.0
_Z90 = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Statistics of stable: rates by metric, mean and sd of scores, sd of the logarithm of values."""

    rates: dict[str, float] = field(
        default_factory=lambda: {"error": 0.01, "hallucinated": 0.03, "rejected": 0.001}
    )
    rate: float = 0.02  # of metrics that `rates` does not name
    score_mean: float = 0.8
    score_sd: float = 0.2
    log_sd: float = 0.5

    def __post_init__(self) -> None:
        for name, rate in (*self.rates.items(), ("rate", self.rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"baseline {name} {rate} is outside [0, 1); it is a share of requests")
        if not (0 < self.score_mean < 1 and 0 < self.score_sd**2 < self.score_mean * (1 - self.score_mean)):
            mean, sd = self.score_mean, self.score_sd
            raise ValueError(f"baseline score {mean} with sd {sd} does not fit 0..1; use 0.8 and 0.2")
        if not (math.isfinite(self.log_sd) and self.log_sd > 0):
            raise ValueError(f"baseline log_sd {self.log_sd} is not above 0; use 0.5")

    def rate_of(self, metric: str) -> float:
        """Stable's rate of this metric."""
        return self.rates.get(metric, self.rate)

    def score_shape(self, mean: float) -> tuple[float, float]:
        """a and b of a Beta distribution with this mean and the baseline's concentration."""
        concentration = self.score_mean * (1 - self.score_mean) / self.score_sd**2 - 1
        return concentration * mean, concentration * (1 - mean)


@dataclass(frozen=True, slots=True)
class DetectableEffect:
    """Minimum detectable effect of one gate: a ratio for rates (3.1: "3.1x stable's") and values, a loss for
    scores."""

    gate: str
    kind: Kind
    harm: float | None  # None: not even the maximum harm is detected


def detectable_effects(
    policy: GatePolicy, *, w: float, canary_requests: float, unit_requests: float = 1.0, baseline: Baseline
) -> tuple[DetectableEffect, ...]:
    """The minimum detectable effect of every gate that can roll back, with this many canary requests.

    w: the stage's weight, in (0, 1). unit_requests: requests of one randomised unit, which counts once.
    """
    units = canary_requests / unit_requests
    return tuple(
        DetectableEffect(gate.name, gate.kind, _smallest(policy, gate, w, units, unit_requests, baseline))
        for gate in policy.gates
        if gate.alpha_share > 0
    )


def detects_nothing(
    policy: GatePolicy, *, w: float, canary_requests: float, unit_requests: float = 1.0, baseline: Baseline
) -> bool:
    """Whether no gate detects even the maximum harm. Parameters as for `detectable_effects`."""
    units = canary_requests / unit_requests

    def needed(gate: Gate) -> float:
        harm = _harm_range(gate, baseline)[1]
        return units_to_detect(policy, gate, harm, w=w, unit_requests=unit_requests, baseline=baseline)

    return all(needed(gate) > units for gate in policy.gates if gate.alpha_share > 0)


def units_to_detect(
    policy: GatePolicy, gate: Gate, harm: float, *, w: float, unit_requests: float, baseline: Baseline
) -> float:
    """Canary units after which nine runs in ten have detected `harm`; inf when the gate tolerates it."""
    limit = log_limit(channel_alphas(policy, gate, sticky=unit_requests > 1).first)
    walks = _walks(policy, gate, harm, w, baseline)
    return min((_crossing_p90(limit + math.log(1 / walk.prior), walk) for walk in walks), default=math.inf)


def _smallest(
    policy: GatePolicy, gate: Gate, w: float, units: float, unit_requests: float, baseline: Baseline
) -> float | None:
    low, high = _harm_range(gate, baseline)

    def is_detected(harm: float) -> bool:
        return (
            units_to_detect(policy, gate, harm, w=w, unit_requests=unit_requests, baseline=baseline) <= units
        )

    if not is_detected(high):
        return None
    for _ in range(18):
        middle = (low + high) / 2 if gate.kind is Kind.SCORE else math.sqrt(low * high)
        low, high = (low, middle) if is_detected(middle) else (middle, high)
    return high


def _harm_range(gate: Gate, baseline: Baseline) -> tuple[float, float]:
    """Minimum and maximum harm of a gate's metric."""
    if gate.kind is Kind.SCORE:
        return gate.tolerance, baseline.score_mean * 0.98
    if gate.kind is Kind.RATE:
        rate = baseline.rate_of(gate.metric)
        return 1.0, 0.98 / rate if rate > 0 else MAX_RATIO
    return 1.0, 50.0


class _Walk(NamedTuple):
    """Log wealth of one alternative as a random walk, per canary unit."""

    prior: float
    drift: float
    variance: float


def _crossing_p90(distance: float, walk: _Walk) -> float:
    """The 90th percentile of the time at which the walk crosses `distance`."""
    if walk.drift <= 0:
        return math.inf
    return distance / walk.drift + _Z90 * math.sqrt(distance * walk.variance / walk.drift**3)


def _walks(policy: GatePolicy, gate: Gate, harm: float, w: float, baseline: Baseline) -> list[_Walk]:
    """The walk of each alternative under this harm."""
    bettor = loss_bettor(
        gate.kind,
        tolerance=gate.tolerance,
        threshold=gate.threshold,
        failures=policy.tolerated_failures(),
    )
    if gate.kind is Kind.SCORE:
        arms = tuple(_beta_grid(*baseline.score_shape(baseline.score_mean - loss)) for loss in (0.0, harm))
    elif gate.kind is Kind.SHAPE:
        arms = tuple(_log_normal_grid(baseline.log_sd, scale) for scale in (1.0, harm))
    elif gate.kind is Kind.MEAN:  # sizes spread as times do, so far as is known
        arms = tuple(_capped_grid(baseline.log_sd, scale) for scale in (1.0, harm))
    else:
        arms = tuple(_events(rate) for rate in _rates(gate, harm, baseline))
    is_shape = gate.kind is Kind.SHAPE
    return _moments(bettor, arms[0], arms[1], w, with_histogram=is_shape)


def _rates(gate: Gate, harm: float, baseline: Baseline) -> tuple[float, float]:
    if gate.kind is Kind.RATE:
        rate = baseline.rate_of(gate.metric)
        return rate, min(rate * harm, 0.99)
    assert gate.percentile is not None
    normal = NormalDist()
    z = normal.inv_cdf(gate.percentile)
    beyond = z - math.log(harm / (1 + gate.tolerance)) / baseline.log_sd
    return 1 - gate.percentile, 1 - normal.cdf(beyond)


def _events(rate: float) -> tuple[Floats, Floats]:
    """0 and 1, and the probabilities that a unit's first request has no, or an, event."""
    return np.array([0.0, 1.0]), np.array([1 - rate, rate])


def _beta_grid(a: float, b: float) -> tuple[Floats, Floats]:
    y = (np.arange(GRID) + 0.5) / GRID
    log_density = (a - 1) * np.log(y) + (b - 1) * np.log1p(-y)
    # Scores of 0 and 1 concentrate in the end bins, whose midpoints represent them badly.
    log_density[0] += (a - 1) * math.log(2) - math.log(a)
    log_density[-1] += (b - 1) * math.log(2) - math.log(b)
    density = np.exp(log_density - log_density.max())
    return y, density / density.sum()


def _log_normal_grid(log_sd: float, scale: float) -> tuple[Floats, Floats]:
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / GRID) for i in range(GRID)])
    return 1000.0 * scale * np.exp(log_sd * z), np.full(GRID, 1 / GRID)


def _capped_grid(log_sd: float, scale: float) -> tuple[Floats, Floats]:
    """Values as parts of the cap that stable's have (`capped.py`)."""
    values, probabilities = _log_normal_grid(log_sd, scale)
    high = 1000.0 * math.exp(log_sd * NormalDist().inv_cdf(PERCENTILE))
    return np.minimum(values / (TIMES * high), 1.0), probabilities


def _moments(
    bettor: LossBettor,
    stable: tuple[Floats, Floats],
    canary: tuple[Floats, Floats],
    w: float,
    *,
    with_histogram: bool,
) -> list[_Walk]:
    (y0, p0), (y1, p1) = stable, canary
    past = Stable(with_histogram=with_histogram)
    # The bettor learns stable from a sample in the proportions of the grid.
    past.learn(np.repeat(y0, np.round(p0 * GRID * 5).astype(np.int64)))
    bettor.end_epoch(past)
    n = len(y0) + len(y1)
    seq = np.arange(n, dtype=np.int64)
    zeros = np.zeros(n, dtype=np.int64)
    y = np.concatenate((y0, y1))
    block = UnitBlock(seq, seq >= len(y0), w * np.ones(n), y, np.ones(n), seq, zeros, np.zeros(n), zeros)
    rows, log_factors, _ = bettor.bets(block)
    probability = np.concatenate(((1 - w) * p0, w * p1))[rows]
    # Each canary unit comes with (1 - w) / w stable units, so the moments are those of any unit over w.
    drifts = log_factors @ probability / w
    variances = (log_factors**2) @ probability / w
    prior = bettor.prior / bettor.prior.sum()
    return [_Walk(*row) for row in zip(prior.tolist(), drifts.tolist(), variances.tolist(), strict=True)]
