"""Other methods on the same events, for comparison with the gate in `make bench-gate`.

Each returns the canary requests at its first alarm, read every `LOOK` canary requests, or None. They use all
rows drawn while the canary had a share, as such tools do.
- thresholds: error +50 %, hallucination +50 %, p99 +20 %, quality -0.05 on cumulative estimates, from 50
  samples on
- Mann-Whitney at every look: one-sided, tie-corrected, normal approximation, alpha_metric each time
- fixed horizon: the same test once, at `FIXED_N` canary requests
- Wald: the sequential likelihood ratio of the coin with both arms known exactly, at alpha_metric
- Wald, tolerance: the same against the worst canary that `default` tolerates: the limit of any method that
  must not roll that one back
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from benchmarks.gate.traffic import (
    FRAILTY_SHAPE,
    MEDIAN_MS,
    QUALITY_WEIGHT,
    SIGMA,
    Z95,
    Behaviour,
    Events,
    Floats,
    tail_power,
)

Column = NDArray[np.generic]

LOOK = 20  # canary requests between two looks
MIN_SAMPLES = 50
FIXED_N = 4000
BINS = 400
RATE_TOLERATED, SCALE_TOLERATED, QUALITY_TOLERATED = 1.25, 1.1, 0.025
HIGHER_IS_WORSE = {"error": True, "latency_ms": True, "quality": False, "hallucinated": True}


@dataclass(frozen=True, slots=True)
class Alarms:
    """Canary requests at each method's first alarm; None: no alarm within the events."""

    thresholds: int | None
    mann_whitney: int | None
    fixed_horizon: int | None
    wald: int | None
    wald_tolerated: int | None


def alarms(events: Events, *, alpha_metric: float) -> Alarms:
    """First alarm of each method on these events. alpha_metric: level of one metric's test, in (0, 1)."""
    columns = events.columns
    rows = np.asarray(columns["w"], dtype=np.float64) > 0
    arm = np.asarray(columns["arm"], dtype=np.int64)[rows]
    seen = np.cumsum(arm)
    look = np.maximum(0, (seen - 1) // LOOK) + (arm == 0) * ((seen % LOOK == 0) & (seen > 0))
    looks = int(arm.sum()) // LOOK
    if looks == 0:
        return Alarms(None, None, None, _wald(events, alpha_metric), None)
    threshold_alarms = np.zeros(looks, dtype=np.bool_)
    test_alarms = np.zeros(looks, dtype=np.bool_)
    critical = NormalDist().inv_cdf(1 - alpha_metric)
    for name, worse_up in HIGHER_IS_WORSE.items():
        if name in columns:
            table = _histograms(np.asarray(columns[name], dtype=np.float64)[rows], arm, look, looks, name)
            threshold_alarms |= _over_threshold(name, table)
            test_alarms |= _mann_whitney_z(table, worse_up) > critical
    last = min(looks, FIXED_N // LOOK) - 1
    return Alarms(
        _first(threshold_alarms),
        _first(test_alarms),
        (last + 1) * LOOK if test_alarms[last] else None,
        _wald(events, alpha_metric),
        _wald(events, alpha_metric, tolerated(events.case.canary, events.case.stable)),
    )


def tolerated(canary: Behaviour, stable: Behaviour) -> Behaviour:
    """The canary, as far as `default` tolerates its harm: half of each threshold.

    A longer tail is tolerated up to 1.1x of stable's percentiles: see `_log_ratio`.
    """
    return Behaviour(
        error=min(canary.error, RATE_TOLERATED * stable.error),
        hallucinated=min(canary.hallucinated, RATE_TOLERATED * stable.hallucinated),
        latency_scale=min(canary.latency_scale, SCALE_TOLERATED),
        p99_scale=canary.p99_scale,
        quality=max(canary.quality, stable.quality - QUALITY_TOLERATED),
    )


@dataclass(frozen=True, slots=True)
class _Histograms:
    """Cumulative counts, shape (looks, bins), and each bin's representative value."""

    stable: Floats
    canary: Floats
    value: Floats


def _histograms(y: Floats, arm: Column, look: NDArray[np.int64], looks: int, name: str) -> _Histograms:
    if name == "latency_ms":
        low, high = np.log(y.min()), np.log(y.max()) + 1e-9
        bins = ((np.log(y) - low) / (high - low) * BINS).astype(np.int64)
        value = np.exp(low + (np.arange(BINS) + 0.5) / BINS * (high - low))
        count = BINS
    elif name == "quality":
        bins = np.minimum((y * BINS).astype(np.int64), BINS - 1)
        value = (np.arange(BINS) + 0.5) / BINS
        count = BINS
    else:
        bins, value, count = y.astype(np.int64), np.array([0.0, 1.0]), 2

    def cumulative(which: int) -> Floats:
        chosen = (arm == which) & (look < looks)
        flat = np.bincount(look[chosen] * count + bins[chosen], minlength=looks * count)
        return np.cumsum(flat.reshape(looks, count), axis=0).astype(np.float64)

    return _Histograms(cumulative(0), cumulative(1), value)


def _over_threshold(name: str, table: _Histograms) -> NDArray[np.bool_]:
    n0, n1 = table.stable.sum(axis=1), table.canary.sum(axis=1)
    enough = (n0 >= MIN_SAMPLES) & (n1 >= MIN_SAMPLES)
    if name == "latency_ms":
        p99 = [table.value[np.argmax(np.cumsum(c, axis=1) >= 0.99 * n[:, None], axis=1)]
               for c, n in ((table.stable, n0), (table.canary, n1))]  # fmt: skip
        return np.asarray(enough & (p99[1] > 1.2 * p99[0]))
    mean0 = table.stable @ table.value / np.maximum(n0, 1)
    mean1 = table.canary @ table.value / np.maximum(n1, 1)
    if name == "quality":
        return np.asarray(enough & (mean1 < mean0 - 0.05))
    return np.asarray(enough & (mean1 > 1.5 * mean0))


def _mann_whitney_z(table: _Histograms, worse_up: bool) -> Floats:
    """Tie-corrected z of U at each look, positive when the canary is worse; 0 while an arm is empty."""
    stable, canary = table.stable, table.canary
    n0, n1 = stable.sum(axis=1), canary.sum(axis=1)
    below = np.cumsum(stable, axis=1) - stable
    u = (canary * (below + stable / 2)).sum(axis=1)  # pairs in which the canary's value is the higher
    n = n0 + n1
    ties = ((stable + canary) ** 3 - (stable + canary)).sum(axis=1)
    variance = n0 * n1 / 12 * (n + 1 - ties / np.maximum(n * (n - 1), 1))
    z = np.where(variance > 0, (u - n0 * n1 / 2) / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    return z if worse_up else -z


def _first(is_alarm: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(is_alarm) + 1) * LOOK if is_alarm.any() else None


def _wald(events: Events, alpha_metric: float, null: Behaviour | None = None) -> int | None:
    """`null`: the worst canary that must stay; None: one like stable."""
    case = events.case
    if case.kind != "rollback" or (null == case.canary and case.canary.p99_scale == 1.0):
        return None  # no harm, or all of it tolerated
    arm, w = (
        np.asarray(events.columns["arm"], dtype=np.int64),
        np.asarray(events.columns["w"], dtype=np.float64),
    )
    crossed = np.flatnonzero(np.cumsum(_oracle(events, arm == 1, w, null)) >= np.log(1 / alpha_metric))
    return int(arm[: crossed[0] + 1][w[: crossed[0] + 1] > 0].sum()) if len(crossed) else None


def _oracle(events: Events, canary: NDArray[np.bool_], w: Floats, null: Behaviour | None) -> Floats:
    """Log likelihood ratio of each row's coin given its outcomes, with both arms known exactly.

    Sticky units count at their last request, by the counts of their sessions; drift is ignored, as in the
    target.
    """
    case = events.case
    evidence = w > 0
    if case.traffic.units == "sticky":
        last, ratio = _session_log_ratio(events, case.canary)
        tolerated_ratio = _session_log_ratio(events, null)[1] if null is not None else np.zeros(len(w))
        evidence &= last
    else:
        ratio, tolerated_ratio = np.zeros(len(w)), np.zeros(len(w))
        for column in HIGHER_IS_WORSE:
            if column in events.columns:
                y = np.asarray(events.columns[column], dtype=np.float64)
                ratio += _log_ratio(column, y, case.canary, case.stable)
                if null is not None:
                    tolerated_ratio += _log_ratio(column, y, null, case.stable, at_most=SCALE_TOLERATED)
    gain = _gain(ratio, canary, w) - _gain(tolerated_ratio, canary, w)
    return np.where(evidence, gain, 0.0)


def _gain(log_ratio: Floats, canary: NDArray[np.bool_], w: Floats) -> Floats:
    """Log of P(the arm given the outcome) over P(the arm), where the canary's outcomes have this ratio."""
    gain: Floats = np.where(canary, log_ratio, 0.0) - np.log1p(w * np.expm1(log_ratio))
    return gain


def _log_ratio(
    column: str, y: Floats, canary: Behaviour, stable: Behaviour, *, at_most: float = math.inf
) -> Floats:
    """Log density of the canary's outcomes over stable's. `at_most`: a tail is stretched up to this factor,
    and all beyond it by the factor itself."""
    if column in ("error", "hallucinated"):
        p1, p0 = getattr(canary, column), getattr(stable, column)
        if p1 == p0:
            return np.zeros(len(y))
        seen = math.log(p1 / p0) if p0 > 0 else math.inf
        # A first event where stable has none is proof by itself; 30 nats keep the sum finite.
        return np.where(y > 0, min(seen, 30.0), math.log((1 - p1) / (1 - p0)))
    if column == "quality":
        a1, a0 = QUALITY_WEIGHT * canary.quality, QUALITY_WEIGHT * stable.quality
        b1, b0 = QUALITY_WEIGHT - a1, QUALITY_WEIGHT - a0
        y = np.clip(y, 1e-12, 1 - 1e-12)
        constant = float(betaln(a0, b0) - betaln(a1, b1))
        return (a1 - a0) * np.log(y) + (b1 - b0) * np.log1p(-y) + constant
    z = (np.log(y) - math.log(MEDIAN_MS)) / SIGMA
    if canary.p99_scale != 1.0:
        g = tail_power(canary.p99_scale)
        back = np.where(z > Z95, Z95 + (z - Z95) / g, z)
        stretched = np.where(z > Z95, (z**2 - back**2) / 2 - math.log(g), 0.0)
        if math.isinf(at_most):
            return stretched
        shift = math.log(at_most) / SIGMA
        return np.where(z - back > shift, z * shift - shift**2 / 2, stretched)
    shift = math.log(canary.latency_scale) / SIGMA
    return z * shift - shift**2 / 2


def _session_log_ratio(events: Events, canary: Behaviour) -> tuple[NDArray[np.bool_], Floats]:
    """Each unit's last row, and the ratio of its Gamma-Poisson counts of hallucinations at that row."""
    case = events.case
    unit = np.asarray(events.columns["unit"], dtype=np.int64)
    y = np.asarray(events.columns["hallucinated"], dtype=np.float64)
    people = int(unit.max()) + 1
    count = np.bincount(unit, weights=y, minlength=people)
    m1, m0 = (case.traffic.per_unit * arm.hallucinated for arm in (canary, case.stable))
    spread = math.log((FRAILTY_SHAPE + m0) / (FRAILTY_SHAPE + m1))
    last = np.zeros(people, dtype=np.int64)
    np.maximum.at(last, unit, np.arange(len(y)))
    is_last = np.zeros(len(y), dtype=np.bool_)
    is_last[last] = True
    ratio = np.zeros(len(y))
    ratio[last] = count * math.log(m1 / m0) + (count + FRAILTY_SHAPE) * spread
    return is_last, ratio


def summary(times: Sequence[int | None]) -> Mapping[str, float | None]:
    """Share of runs with an alarm; median and p90 in canary requests, None where fewer had one."""
    rang = sorted(t for t in times if t is not None)
    n = len(times)
    if n == 0:
        return {"rang": 0.0, "median": None, "p90": None}

    def quantile(q: float) -> float | None:
        index = int(np.ceil(q * n)) - 1
        return float(rang[index]) if index < len(rang) else None

    return {"rang": len(rang) / n, "median": quantile(0.5), "p90": quantile(0.9)}
