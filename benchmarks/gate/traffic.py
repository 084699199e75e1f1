"""Seeded traffic for the gate, as columns for `evaluation.offline.backtest.run`.

A case is a traffic model (users, randomised units, drift) and a harm (the behaviour of the canary).
`simulate(case, rep)` is a pure function of the case's name and the repetition, so all methods see the same
events. All cases share one baseline: errors 1 %, hallucination 3 %, latency lognormal (median
800 ms, sigma 0.5), quality Beta (mean 0.75, sd 0.2). Rows come in order of time; the first `STABLE_FIRST`
have `w = 0` and are the baseline of stable.

Invariant: nothing here imports the gate, so that an error of the gate cannot hide in the traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Strings = NDArray[np.str_]
Columns = Mapping[str, NDArray[np.generic]]
Rng = np.random.Generator
WeightAt = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Units = Literal["request", "sticky", "tenants", "returning", "held", "fallback"]
Kind = Literal["no_harm", "rollback", "promotion", "boundary"]

STABLE_FIRST = 4000  # rows served by stable alone before the first canary draw
DAY_S = 86_400.0
RAMP = (0.02, 0.05, 0.10, 0.25, 0.50)
FRAILTY_SHAPE = 2.0  # users' own rates are Gamma(2)/2 times the mean
SESSION_GAP_S = 20.0  # mean pause between two requests of one user
MEDIAN_MS = 800.0
SIGMA = 0.5
Z95, Z99 = 1.6448536269514722, 2.3263478740408408  # of the standard normal
QUALITY_WEIGHT = 0.75 * 0.25 / 0.2**2 - 1  # a + b of the Beta: mean 0.75, sd 0.2
SLOWEST = 0.05  # share of canary requests that stable takes over in the fallback model


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Behaviour of one arm: rates in [0, 1], factor of the median latency, mean quality in (0, 1)."""

    error: float = 0.01
    hallucinated: float = 0.03
    latency_scale: float = 1.0
    p99_scale: float = 1.0  # > 1 stretches only values above p95, so that p99 grows by this factor
    quality: float = 0.75


@dataclass(frozen=True, slots=True)
class Traffic:
    """Users and randomised units. `drift`: amplitude of the daily wave shared by both arms."""

    units: Units = "request"
    per_unit: int = 10  # requests of one sticky unit
    w: float = 0.05
    ramp: bool = False
    drift: float = 0.0
    held_ratio: float = 0.0  # of the second stage's units: hold a token drawn at the first's w
    rate_per_s: float = 1.0


STABLE = Behaviour()


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table. `target`: figure to reach, by policy or quantile; None: no target."""

    name: str
    kind: Kind
    canary: Behaviour = STABLE
    stable: Behaviour = STABLE
    traffic: Traffic = field(default_factory=Traffic)
    canary_requests: int = 10_000  # horizon: the run ends undecided here
    metrics: tuple[str, ...] = ("error", "latency", "quality", "hallucinated")
    target: Mapping[str, float | None] = field(default_factory=dict)
    proofs: Mapping[str, float] = field(default_factory=dict)  # margin by gate, for cases of promotion
    floor: float = 0.01
    seeded_as: str = ""  # case whose seeds it uses, for comparison run by run; empty: its own


@dataclass(frozen=True, slots=True)
class Events:
    """Columns by name, rows in order of time."""

    case: Case
    columns: Columns


def simulate(case: Case, rep: int) -> Events:
    """Events of one repetition, determined by the name of the seeds and `rep`."""
    rng = np.random.default_rng([crc32((case.seeded_as or case.name).encode()), rep])
    draws = _draw_units(case, rng)
    outcomes = _draw_outcomes(case, draws, rng)
    columns: dict[str, NDArray[np.generic]] = {
        "t_s": draws.t_s,
        "unit": draws.unit,
        "arm": draws.arm,
        "w": draws.w,
        "assigned_by": draws.assigned_by,
    }
    if draws.stage is not None:
        columns["stage"] = draws.stage
    for metric in case.metrics:
        columns |= {_COLUMN[metric]: outcomes[metric]}
    return Events(case, columns)


_COLUMN = {"error": "error", "latency": "latency_ms", "quality": "quality", "hallucinated": "hallucinated"}


@dataclass(frozen=True, slots=True)
class _Draws:
    t_s: Floats
    unit: Ints
    arm: Ints
    w: Floats  # of the row's draw: under a token, the w at which the token was drawn
    assigned_by: Strings
    frailty: Ints  # index of the person or tenant whose habits the row has; -1: none
    stage: Ints | None = None  # None: all rows are of one stage


def _draw_units(case: Case, rng: Rng) -> _Draws:
    traffic = case.traffic
    mean_w = float(np.mean(RAMP)) if traffic.ramp else traffic.w
    n = STABLE_FIRST + math.ceil(case.canary_requests / mean_w)
    opened_s = STABLE_FIRST / traffic.rate_per_s
    span_s = n / traffic.rate_per_s

    def weight_at(t_s: Floats) -> Floats:
        weights = np.asarray(RAMP if traffic.ramp else (traffic.w,))
        stage = ((t_s - opened_s) / (span_s - opened_s) * len(weights)).astype(np.int64)
        return np.where(t_s < opened_s, 0.0, weights[np.clip(stage, 0, len(weights) - 1)])

    if traffic.units == "returning":
        return _returning(n, span_s, weight_at, rng)
    if traffic.units == "held":
        return _held(case, n, opened_s, span_s, rng)
    if traffic.units == "sticky":
        return _sticky(n, traffic.per_unit, span_s, weight_at, rng)
    if traffic.units == "tenants":
        return _tenants(n, traffic.per_unit, span_s, weight_at, rng)
    t_s = np.sort(rng.uniform(0.0, span_s, n))
    w = weight_at(t_s)
    arm = (rng.random(n) < w).astype(np.int64)
    return _Draws(t_s, np.arange(n), arm, w, _labels(n, "request"), np.full(n, -1))


def _labels(n: int, word: str) -> Strings:
    return np.full(n, word, dtype="<U8")


def _sessions(people: int, per_unit: int, span_s: float, rng: Rng) -> tuple[Ints, Floats]:
    """Person and time of each request, by time; a person makes `per_unit` requests in one session."""
    start_s = rng.uniform(0.0, span_s, people)
    gaps = rng.exponential(SESSION_GAP_S, (people, per_unit))
    gaps[:, 0] = 0.0
    t_s = (start_s[:, None] + np.cumsum(gaps, axis=1)).ravel()
    order = np.argsort(t_s, kind="stable")
    return np.repeat(np.arange(people), per_unit)[order], t_s[order]


def _first_times(person: Ints, t_s: Floats, people: int) -> Floats:
    first = np.full(people, np.inf)
    np.minimum.at(first, person, t_s)
    return first


def _sticky(n: int, per_unit: int, span_s: float, weight_at: WeightAt, rng: Rng) -> _Draws:
    people = math.ceil(n / per_unit)
    person, t_s = _sessions(people, per_unit, span_s, rng)
    w = weight_at(_first_times(person, t_s, people))[person]
    arm = (rng.random(people)[person] < w).astype(np.int64)
    return _Draws(t_s, person, arm, w, _labels(len(t_s), "sticky"), person)


def _tenants(n: int, per_unit: int, span_s: float, weight_at: WeightAt, rng: Rng) -> _Draws:
    """Five tenants make half of the traffic: heavy keys, whose requests are randomised one by one."""
    people = math.ceil(n / 2 / per_unit)
    person, person_t_s = _sessions(people, per_unit, span_s, rng)
    tenant_t_s = np.sort(rng.uniform(0.0, span_s, n // 2))
    tenant = people + rng.integers(0, 5, n // 2)
    sticky_w = weight_at(_first_times(person, person_t_s, people))[person]
    sticky_arm = rng.random(people)[person] < sticky_w
    tenant_w = weight_at(tenant_t_s)
    tenant_arm = rng.random(n // 2) < tenant_w
    t_s = np.concatenate([person_t_s, tenant_t_s])
    order = np.argsort(t_s, kind="stable")
    unit = np.concatenate([person, people + np.arange(n // 2)])  # a heavy key's request is its own unit
    labels = np.concatenate([_labels(len(person), "sticky"), _labels(n // 2, "request")])
    arm = np.concatenate([sticky_arm, tenant_arm]).astype(np.int64)
    w = np.concatenate([sticky_w, tenant_w])
    return _Draws(
        t_s[order], unit[order], arm[order], w[order], labels[order], np.concatenate([person, tenant])[order]
    )


def _returning(n: int, span_s: float, weight_at: WeightAt, rng: Rng) -> _Draws:
    """People who return all day, so that a ramp meets them again; no tokens, only their bucket."""
    people = max(50, n // 20)
    activity = rng.pareto(2.5, people) + 0.2
    person = rng.choice(people, n, p=activity / activity.sum())
    t_s = np.sort(rng.uniform(0.0, span_s, n))
    w = weight_at(t_s)
    arm = (rng.random(people)[person] < w).astype(np.int64)
    return _Draws(t_s, person, arm, w, _labels(n, "sticky"), person)


def _held(case: Case, n: int, opened_s: float, span_s: float, rng: Rng) -> _Draws:
    """Two stages, w/2 then w. In the second, `held_ratio` of the units hold a token drawn in the first.

    A holder draws with its first request, in the first stage; its later rows are `pin` and carry that w.
    """
    traffic = case.traffic
    people = math.ceil(n / traffic.per_unit)
    person, t_s = _sessions(people, traffic.per_unit, span_s, rng)
    change_s = opened_s + (span_s - opened_s) * 0.3
    holder = (_first_times(person, t_s, people) >= change_s) & (rng.random(people) < traffic.held_ratio)
    _, first_row = np.unique(person, return_index=True)
    t_s[first_row[holder]] = rng.uniform(opened_s, change_s, int(holder.sum()))
    first_s = t_s[first_row]
    unit_w = np.where(first_s < opened_s, 0.0, np.where(first_s < change_s, traffic.w / 2, traffic.w))
    arm = (rng.random(people) < unit_w).astype(np.int64)
    pinned = holder[person] & (t_s >= change_s)
    order = np.argsort(t_s, kind="stable")
    person, labels = person[order], np.where(pinned, "pin", "sticky").astype("<U8")[order]
    stage = (t_s[order] >= change_s).astype(np.int64)
    return _Draws(t_s[order], person, arm[person], unit_w[person], labels, person, stage)


def _draw_outcomes(case: Case, draws: _Draws, rng: Rng) -> dict[str, Floats]:
    wave = np.sin(2 * np.pi * (draws.t_s / DAY_S + rng.random())) * case.traffic.drift
    canary = draws.arm == 1
    habits = _Habits.of(draws.frailty, rng)
    n = len(wave)
    outcomes: dict[str, Floats] = {}
    if "error" in case.metrics:
        rate = np.where(canary, case.canary.error, case.stable.error) * np.exp(wave) * habits.rate
        outcomes["error"] = (rng.random(n) < rate).astype(np.float64)
    if "hallucinated" in case.metrics:
        rate = np.where(canary, case.canary.hallucinated, case.stable.hallucinated)
        outcomes["hallucinated"] = (rng.random(n) < rate * np.exp(wave) * habits.rate).astype(np.float64)
    if "latency" in case.metrics:
        z = habits.within * rng.standard_normal(n) + habits.latency
        log_ms = math.log(MEDIAN_MS) + SIGMA * z
        for chosen, behaviour in ((canary, case.canary), (~canary, case.stable)):
            _harm_latency(log_ms, chosen, behaviour)
        latency_ms = np.exp(log_ms + 0.4 * wave)
        if case.traffic.units == "fallback":
            _take_over_slowest(draws, latency_ms)
        outcomes["latency"] = latency_ms
    if "quality" in case.metrics:
        mean = np.where(canary, case.canary.quality, case.stable.quality) - 0.05 * wave + habits.quality
        np.clip(mean, 0.02, 0.98, out=mean)
        outcomes["quality"] = rng.beta(QUALITY_WEIGHT * mean, QUALITY_WEIGHT * (1 - mean))
    return outcomes


def tail_power(p99_scale: float) -> float:
    """Exponent g of y -> p95 (y/p95)^g that multiplies the p99 of the common latency by `p99_scale`."""
    return 1 + math.log(p99_scale) / (SIGMA * (Z99 - Z95))


def _harm_latency(log_ms: Floats, chosen: NDArray[np.bool_], behaviour: Behaviour) -> None:
    if behaviour.p99_scale != 1.0:
        log_p95 = math.log(MEDIAN_MS) + SIGMA * Z95
        beyond = chosen & (log_ms > log_p95)
        log_ms[beyond] = log_p95 + (log_ms[beyond] - log_p95) * tail_power(behaviour.p99_scale)
    if behaviour.latency_scale != 1.0:
        log_ms[chosen] += math.log(behaviour.latency_scale)


def _take_over_slowest(draws: _Draws, latency_ms: Floats) -> None:
    """Label the requests that stable took over; their assigned arm and latency stay."""
    canary = draws.arm == 1
    if canary.any():
        draws.assigned_by[canary & (latency_ms > np.quantile(latency_ms[canary], 1 - SLOWEST))] = "fallback"


@dataclass(frozen=True, slots=True)
class _Habits:
    """Effects of a row's person on its outcomes; neutral without persons."""

    rate: Floats
    latency: Floats  # in sigmas
    within: float
    quality: Floats

    @classmethod
    def of(cls, person: Ints, rng: Rng) -> _Habits:
        n = len(person)
        if person[0] < 0:
            return cls(np.ones(n), np.zeros(n), 1.0, np.zeros(n))
        people = int(person.max()) + 1
        rate = rng.gamma(FRAILTY_SHAPE, 1 / FRAILTY_SHAPE, people)
        latency = rng.normal(0.0, 0.5, people)
        return cls(rate[person], latency[person], math.sqrt(0.75), rng.normal(0.0, 0.08, people)[person])
