"""Columns of a metric as its bettors see them: waits, who is above a percentile, missing events."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evaluation.betting.left import Left
from evaluation.betting.unit_block import Flags, Floats
from evaluation.metrics import OUTCOMES, VALUES
from evaluation.units.gate_channels import GateChannels
from evaluation.units.sessions import Rows


class ValueSettings(NamedTuple):
    """What a metric's columns depend on. longest: where values are censored. failures: how many times as many
    requests without an answer the canary may have. is_wait: its clients wait for it. is_of_all: every answer
    has one."""

    bets: GateChannels
    longest: float
    failures: float
    is_wait: bool
    is_of_all: bool


def without_answer(metric: str, raw: Floats, unanswered: Flags, cancelled: Flags) -> Flags:
    """Which requests have no value because there was no answer: of the cancelled ones not those with one,
    such as a time to the first token that was known when the client left."""
    if not cancelled.any():
        return unanswered
    if metric == "cancelled":
        return unanswered & ~cancelled
    return unanswered & ~(cancelled & ~np.isnan(raw)) if metric in VALUES else unanswered


def comparable(metric: str, raw: Floats, unanswered: Flags, rows: Rows) -> Floats:
    """The raw values that can be compared: no latency of cold rows, and none of an unanswered request."""
    if metric in VALUES:
        raw = np.where(rows.cold, np.nan, raw) if rows.cold.any() else raw
    if metric in OUTCOMES or not unanswered.any():
        return raw
    return np.where(unanswered, np.nan, raw)


def value_columns(
    settings: ValueSettings,
    raw: Floats,
    unanswered: Flags,
    cancelled: Flags,
    rows: Rows,
    left_ms: Floats | None,
    apart: Flags | None,
) -> Floats:
    """The columns (C x n); the values as in `MetricEvidence.values`. apart: requests that no proof and no
    percentile is of (`offered.py`); None: there are none."""
    # Failing fast must not look fast: an unanswered request is slowest, on both arms. Rollback uses the
    # wait of others censored on both arms, before the tolerance divides it: infinite on both would make a
    # tolerable canary worse where the limit lies among stable's values. A proof counts censored values as
    # slowest, or the canary's, divided by the margin, would look fast.
    slowest = np.where(unanswered & ~rows.cold, np.inf, raw)
    waited = slowest
    if settings.longest < math.inf:
        waited = np.where(np.isinf(slowest), slowest, np.minimum(slowest, settings.longest))
        slowest = np.where(raw >= settings.longest, np.inf, slowest)
    out = _of_shape(waited, slowest, rows, apart) if settings.bets.has_shape_columns else []
    left = None
    is_lacking = np.isnan(raw) & ~unanswered & ~rows.cold & settings.is_of_all
    is_left = unanswered & cancelled & ~rows.cold
    if settings.bets.exceedances and (is_left | is_lacking).any():
        # A limit is of those who waited: where 9 % leave, its tail would hold little but them.
        waited, slowest = (np.where(is_left, np.nan, values) for values in (waited, slowest))
        is_wait = left_ms is not None and settings.is_wait
        after = (
            np.where(is_left, left_ms, np.nan)
            if is_wait and left_ms is not None
            else np.full(len(raw), np.nan)
        )
        # An answer whose time was not recorded hides it as one that was left nobody knows when does.
        left = Left(is_left | is_lacking, after)
    for exceedance, divisors in zip(settings.bets.exceedances, settings.bets.divisors, strict=True):
        known, second, *of_proofs = exceedance.of_channels(
            waited, slowest, rows.arm, divisors, rows.of_draws, left, apart, rows.order
        )
        second[0][is_lacking] = np.nan  # a rollback leaves them out, on both arms
        if settings.failures > 1.0:
            excused = np.isinf(waited) & rows.arm & ~np.isnan(known[0])
            known[0][excused] = second[0][excused] = exceedance.discounted(settings.failures)
        out += [known[0], second[0]]
        for of_proof in zip(*(channel[1:] for channel in (known, second, *of_proofs)), strict=True):
            out.extend(of_proof)
    return np.stack(out) if out else np.empty((0, len(raw)))


def with_worst(raw: Floats, unanswered: Flags, arm: Flags) -> Floats:
    """Events (0 or 1), and the same for proofs: one that is missing is one on the canary, and none on stable.

    Not where the request is known to be unanswered otherwise. Counted alike on both arms, 6 % of failures
    among 6 % of unknown outcomes were proven below 3x in 30 of 30 runs.
    """
    is_unknown = np.isnan(raw) & ~unanswered
    return np.stack((raw, np.where(is_unknown, arm.astype(np.float64), raw)))


def _of_shape(waited: Floats, slowest: Floats, rows: Rows, apart: Flags | None) -> list[Floats]:
    """The columns of a shape, for rollback and for proofs. Those apart that have no coin would only blur
    stable's bins of the others."""
    if apart is None:
        return [waited, slowest]
    return [np.where(apart & (rows.w == 0.0), np.nan, waited), np.where(apart, np.nan, slowest)]
