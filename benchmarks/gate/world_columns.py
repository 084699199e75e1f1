"""Seeded traffic of users for the trials: habits, conversations of unequal length, missing and coarse values.

`columns_of(world, seed)` draws one run of a `World`, as columns for `evaluation.offline.backtest.run`. The
common baseline is that of `traffic.py`: errors 1 %, hallucination 3 %, latency lognormal (median 800 ms,
sigma 0.5), quality Beta (mean 0.75, sd 0.2), time to first token about a quarter of the latency. Sticky: a
user is a conversation with its own failure rate, speed and mean quality.

Invariant: nothing here imports the gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate.draws import upper_quantile
from benchmarks.gate.traffic import FRAILTY_SHAPE, MEDIAN_MS, QUALITY_WEIGHT, Floats, Ints, Rng
from benchmarks.gate.worlds import Batches, Differing, Drifting, Returning, World

Columns = dict[str, NDArray[np.generic]]

QUALITY_SD = 0.2
GAP_S = 20.0  # mean pause between two requests of one user
SLOWEST = 0.03  # of all requests, for `Arm.slowest`
REJECTED_MS = 5.0  # a 4xx is answered at once
REFUSED_MS = 20.0  # a 5xx, unless the request was among the slowest


def columns_of(world: World, seed: Sequence[int]) -> Columns:
    """One run: columns of equal length, rows in order of time."""
    rng = np.random.default_rng(list(seed))
    if isinstance(world, Returning) and world.people:
        rows = _closed(world, rng)
    else:
        rows = _sticky(world, rng) if world.sticky else _single(world, rng)
    if isinstance(world, Returning):
        rows = replace(rows, is_late=rows.is_late & (rows.turn >= world.from_turn))
    outcomes = _outcomes(world, rows, rng)
    if isinstance(world, Returning) and world.cold != 1.0:
        outcomes["latency_ms"] = outcomes["latency_ms"] * np.where(_moved(rows), world.cold, 1.0)
    if isinstance(world, Batches):
        outcomes["quality"] = np.where(rows.t_s % 3600.0 < 3600.0 * world.batch, outcomes["quality"], np.nan)
    if isinstance(world, Drifting):
        drifted = _drifted(world, rows, outcomes["latency_ms"].astype(np.float64))
        outcomes["latency_ms"] = drifted * _bursts(world, len(rows.t_s), rng)
    if isinstance(world, Differing):
        outcomes["latency_ms"] = _of_kinds(world, rows, outcomes["latency_ms"].astype(np.float64))
    t_s = rows.t_s
    if world.resolution_s > 0.0:
        t_s = np.floor(t_s / world.resolution_s) * world.resolution_s
    columns: Columns = {
        "t_s": t_s,
        "unit": rows.unit,
        "arm": rows.arm,
        "w": rows.w,
        "assigned_by": np.full(len(t_s), "sticky" if world.sticky else "request"),
        "request_id": np.arange(len(t_s)),
        **outcomes,
    }
    if world.stages > 1:
        columns["stage"] = rows.is_late.astype(np.int64)
    if world.resolution_s > 0.0:
        order = np.lexsort((rows.arm, t_s))
        columns = {name: column[order] for name, column in columns.items()}
    return columns


@dataclass(frozen=True, slots=True)
class _Rows:
    t_s: Floats
    unit: Ints  # 0, 1, ...: also the index of the unit's habits
    turn: Ints  # from 0
    arm: Ints
    w: Floats
    is_late: NDArray[np.bool_]  # the canary's own behaviour has begun
    units: int


def _single(world: World, rng: Rng) -> _Rows:
    drawn = math.ceil(world.canary_requests / world.w)
    n = world.stable_first + drawn
    w = np.where(np.arange(n) < world.stable_first, 0.0, world.w)
    arm = (rng.random(n) < w).astype(np.int64)
    t_s = np.cumsum(rng.exponential(1.0 / world.rate_per_s, n))
    is_late = np.cumsum(arm) > world.late if world.late else np.ones(n, dtype=np.bool_)
    return _Rows(t_s, np.arange(n), np.zeros(n, dtype=np.int64), arm, w, is_late, n)


def _drifted(world: Drifting, rows: _Rows, latency_ms: Floats) -> Floats:
    """The latencies with the drift, and with the canary's slower tail."""
    drawn = rows.w > 0.0
    spread = world.spread or world.sigma
    widened = MEDIAN_MS * (latency_ms / MEDIAN_MS) ** (spread / world.sigma)
    out = np.where(drawn, widened, latency_ms)
    slowest = MEDIAN_MS * math.exp(spread * NormalDist().inv_cdf(1.0 - world.slow))
    out = np.where((rows.arm == 1) & (out > slowest), out * world.tail, out)
    part = np.cumsum(drawn) / max(int(np.count_nonzero(drawn)), 1)
    drifted: Floats = out * np.where(drawn, world.step * (1.0 + (world.rise - 1.0) * part), 1.0)
    return drifted


def _bursts(world: Drifting, n: int, rng: Rng) -> Floats:
    """The factor of each request while latency goes up and down, beginning anywhere in a period."""
    if world.burst == 1.0:
        return np.ones(n)
    at = (np.arange(n) / world.period + rng.random()) % 1.0
    high = 0.5 - 0.5 * np.cos(2.0 * np.pi * at) if world.is_wave else (at >= 0.5).astype(np.float64)
    factor: Floats = world.burst**high
    return factor


def _of_kinds(world: Differing, rows: _Rows, latency_ms: Floats) -> Floats:
    """The latencies by kind of user, and with the canary's slower tail."""
    asks_once = np.bincount(rows.unit, minlength=rows.units)[rows.unit] == 1
    out = latency_ms * np.where(asks_once, world.once, 1.0)
    is_slow = (rows.arm == 1) & (out > np.quantile(out[rows.arm == 0], 0.98))
    return np.where(is_slow, out * world.tail, out)


def _moved(rows: _Rows) -> NDArray[np.bool_]:
    """Which requests are a user's first on the canary, after earlier ones to stable."""
    moved = np.zeros(len(rows.t_s), dtype=np.bool_)
    canary = np.flatnonzero(rows.arm == 1)
    firsts = canary[np.unique(rows.unit[canary], return_index=True)[1]]
    moved[firsts[rows.turn[firsts] > 0]] = True
    return moved


def _closed(world: Returning, rng: Rng) -> _Rows:
    """The same people ask all the time, in any order; each keeps the arm of the only draw."""
    n = world.stable_first + math.ceil(world.canary_requests / world.w)
    w = np.where(np.arange(n) < world.stable_first, 0.0, world.w)
    user = rng.integers(0, world.people, n)
    arm = ((rng.random(world.people) < world.w)[user] & (w > 0.0)).astype(np.int64)
    t_s = np.cumsum(rng.exponential(1.0 / world.rate_per_s, n))
    order = np.argsort(user, kind="stable")
    first = np.concatenate(([True], np.diff(user[order]) > 0))
    turn = np.empty(n, dtype=np.int64)
    turn[order] = np.arange(n) - np.maximum.accumulate(np.where(first, np.arange(n), 0))
    is_late = np.cumsum(arm) > world.late if world.late else np.ones(n, dtype=np.bool_)
    return _Rows(t_s, user, turn, arm, w, is_late, world.people)


def _sticky(world: World, rng: Rng) -> _Rows:
    """Users arrive one after another; each has one conversation, on the arm of its only draw."""
    before = math.ceil(world.stable_first / world.stable.turns)
    drawn = math.ceil(world.canary_requests / (world.w * world.canary.turns))
    users = before + drawn
    w = np.where(np.arange(users) < before, 0.0, world.w)
    arm = (rng.random(users) < w).astype(np.int64)
    late_user = np.ones(users, dtype=np.bool_)
    if world.late:
        late_user = np.cumsum(arm) > world.late / world.stable.turns
    is_other = (arm == 1) & late_user
    turns = 1 + rng.poisson(np.where(is_other, world.canary.turns, world.stable.turns) - 1.0)
    if isinstance(world, Differing):
        turns = np.where(rng.random(users) < 0.5, 1, turns)
    start_s = np.cumsum(rng.exponential(world.stable.turns / world.rate_per_s, users))
    user = np.repeat(np.arange(users), turns)
    first = np.concatenate(([0], np.cumsum(turns)[:-1]))
    turn = np.arange(len(user)) - np.repeat(first, turns)
    gaps = np.where(turn == 0, 0.0, rng.exponential(GAP_S, len(user)))
    waited = np.cumsum(gaps)
    t_s = start_s[user] + waited - waited[first][user]
    order = np.argsort(t_s, kind="stable")
    user, turn = user[order], turn[order]
    return _Rows(t_s[order], user, turn, arm[user], w[user], late_user[user], users)


def _outcomes(world: World, rows: _Rows, rng: Rng) -> Columns:
    n = len(rows.t_s)
    canary = (rows.arm == 1) & rows.is_late

    def of_arm(name: str) -> Floats:
        return np.where(canary, float(getattr(world.canary, name)), float(getattr(world.stable, name)))

    rate, speed, within, liking = _habits(world, rows, rng)
    z = speed + within * rng.standard_normal(n)
    is_hard = rng.random(n) < world.hard
    too_slow = z > upper_quantile(of_arm("fails_slowest"))
    failed = (rng.random(n) < of_arm("error") * rate) | too_slow | (is_hard & (of_arm("fails_hard") > 0))
    failed |= _has(world.users_failing, rows, rng)
    mean = np.clip(of_arm("quality") + liking - 0.25 * is_hard, 0.02, 0.98)
    weight, body_bytes = QUALITY_WEIGHT, None
    if world.explained > 0.0:
        length = rng.standard_normal(n)
        body_bytes = np.round(np.exp(7.0 + length))
        mean = np.clip(mean - math.sqrt(world.explained) * QUALITY_SD * length, 0.02, 0.98)
        weight = max((QUALITY_WEIGHT + 1.0) / (1.0 - world.explained) - 1.0, 1.0)  # the sd stays about 0.2
    quality = rng.beta(weight * mean, weight * (1 - mean))
    failed |= quality < of_arm("fails_below")
    rejected = ~failed & (rng.random(n) < of_arm("rejected") * rate)
    slower = 1.0 if world.worst_hard else np.where(is_hard, 2.0, 1.0)
    scale = of_arm("latency_scale") * slower * (1.0 + of_arm("deeper")) ** rows.turn
    whole_ms = MEDIAN_MS * np.exp(world.sigma * z) * scale
    latency_ms = whole_ms * (0.25 + 0.75 * of_arm("after_first_token"))
    first_ms = 0.25 * whole_ms * np.exp(0.2 * rng.standard_normal(n)) * of_arm("first_token")
    is_slowest = z > NormalDist().inv_cdf(1.0 - SLOWEST)
    latency_ms = np.where(is_slowest, latency_ms * of_arm("slowest"), latency_ms)
    ttft_ms = np.minimum(first_ms, latency_ms)
    latency_ms = np.where(failed & ~too_slow, REFUSED_MS, latency_ms)
    latency_ms = np.where(rejected, REJECTED_MS, latency_ms)
    if world.step_ms > 0.0:
        # Before the scale, unless `rounded`: so the canary's recorded latencies are slower throughout.
        factor = 1.0 if world.rounded else of_arm("latency_scale")
        latency_ms = np.maximum(np.round(latency_ms / factor / world.step_ms), 1.0) * world.step_ms * factor
    unanswered = failed | rejected
    if world.score_step > 0.0:
        # Rounded at random, which keeps the mean.
        quality = np.floor(quality / world.score_step + rng.random(n)) * world.score_step
        quality = np.minimum(quality, 1.0)
    is_judged = _has(world.users_judged, rows, rng) & (rng.random(n) < world.judged)
    if world.one_score:
        turns = np.bincount(rows.unit, minlength=rows.units)
        is_judged &= rows.turn == (0 if world.one_score == "first" else turns[rows.unit] - 1)
    no_score = unanswered | ~is_judged
    no_stream = unanswered | _has(world.users_without_stream, rows, rng)
    hallucinated = (rng.random(n) < of_arm("hallucinated") * rate).astype(np.float64)
    if world.worst_hard:
        quality, hallucinated = np.where(is_hard, 0.0, quality), np.where(is_hard, 1.0, hallucinated)
    is_hidden = (hallucinated == 1.0) & (of_arm("unscored_events") > 0.0)
    if is_hidden.any():
        is_hidden &= rng.random(n) < of_arm("unscored_events")
    fell_back = (rows.arm == 1) & (
        _has(world.users_falling_back, rows, rng) | (rng.random(n) < of_arm("falls_back"))
    )
    if world.lost > 0.0:
        latency_ms = np.where(rng.random(n) < world.lost, np.nan, latency_ms)
    gone = np.zeros(n, dtype=np.bool_)
    if world.patience_s > 0.0:
        hangs = rng.random(n) < of_arm("hangs")
        gone = hangs | (1000.0 * rng.exponential(world.patience_s, n) < latency_ms)
        failed, rejected, no_score = failed & ~gone, rejected & ~gone, no_score | gone
        latency_ms, ttft_ms = np.where(gone, np.nan, latency_ms), np.where(gone, np.nan, ttft_ms)
    left_ms = np.minimum(
        np.where(ttft_ms > 1000.0 * world.first_token_within_s, 1000.0 * world.first_token_within_s, np.inf),
        np.where(latency_ms > 1000.0 * world.answer_within_s, 1000.0 * world.answer_within_s, np.inf),
    )
    if has_limits := min(world.first_token_within_s, world.answer_within_s) < math.inf:
        gone |= left_ms < latency_ms
        failed, rejected, no_score = failed & ~gone, rejected & ~gone, no_score | gone
        latency_ms = np.where(gone, left_ms, latency_ms)
        ttft_ms = np.where(gone & (ttft_ms > left_ms), np.nan, ttft_ms)
    every: Columns = {
        "error": failed.astype(np.float64),
        "rejected": rejected.astype(np.float64),
        "latency_ms": latency_ms,
        "ttft_ms": np.where(no_stream, np.nan, ttft_ms),
        "quality": np.where(no_score | (quality < of_arm("unscored_below")), np.nan, quality),
        "hallucinated": np.where(no_score | is_hidden, np.nan, hallucinated),
        "fell_back": fell_back.astype(np.float64),
    }
    chosen = {name: every[name] for name in world.metrics}
    if world.patience_s > 0.0 or has_limits:
        chosen["cancelled"] = gone.astype(np.float64)
    return chosen if body_bytes is None else {**chosen, "body_bytes": body_bytes}


def _habits(world: World, rows: _Rows, rng: Rng) -> tuple[Floats, Floats, float, Floats]:
    """Factor of the rates, latency in sigmas, spread within a unit, and shift of the quality, of each row."""
    n = len(rows.t_s)
    if not world.sticky:
        return np.ones(n), np.zeros(n), 1.0, np.zeros(n)
    rate = rng.gamma(FRAILTY_SHAPE, 1 / FRAILTY_SHAPE, rows.units)
    speed = rng.normal(0.0, 0.5, rows.units)
    return rate[rows.unit], speed[rows.unit], math.sqrt(0.75), rng.normal(0.0, 0.08, rows.units)[rows.unit]


def _has(share: float, rows: _Rows, rng: Rng) -> NDArray[np.bool_]:
    """Whether each row's unit has a property that this share of the units has."""
    if share in (0.0, 1.0):
        return np.full(len(rows.t_s), share == 1.0)
    return (rng.random(rows.units) < share)[rows.unit]
