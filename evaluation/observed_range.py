"""Observed-range gate: are the canary's p50, p90 and p95 within the range of stable's between two dates?

The range spans the percentile over stable's windows (of one hour, by default) in that time. A window's
percentile is known from its own answers alone, so where windows are few each end is widened to an order
statistic such that all of them are short of stable's true percentile with probability SHORT at most; from 14
windows on the ends are the percentiles themselves. The canary's
percentile p is above the end h exactly when more than 1 - p of its answers exceed h, so each side is a test
of a rate, valid at every look: a canary inside the range is reported outside with probability at most the
gate's alpha, split evenly over its percentiles and sides. Each unit counts once, by the first request of its
draw, because the answers of one heavy user are not independent.

Invariant: stable's past and the canary's present are different times, so shared drift does *not* cancel
here. The gate tests for the unusual, which is why it holds unless the policy rolls back.
Invariant: bets depend on counts alone, so the result does not depend on how rows are cut into blocks.

Source: Wald (1945), a mixture of likelihood ratios of a rate; Ville (1939) for every look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, bdtrc

from evaluation.betting.histogram import LogHistogram
from evaluation.betting.unit_block import Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.policy.alpha_split import log_limit
from evaluation.policy.observed_ranges import PercentileRange, RangeGate
from evaluation.report import GateReport, Side, Verdict
from evaluation.units.sessions import Rows

PERCENTILES = (0.50, 0.90, 0.95)
MIN_WINDOWS = 3
MIN_IN_WINDOW = 50
SHORT = 1e-4  # probability that an end leaves out a percentile that was the same in every window
EXACT_FROM = 14  # windows: then SHORT ** (1 / windows) is above one half, and no end is widened
#: Alternatives: ratio of the odds of an event to those at the end of the range.
ODDS = np.array([1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 2.7, 4.0, 7.0, 15.0, 50.0])
LARGEST = 1e300  # replaces infinite values


@dataclass(frozen=True, slots=True)
class ObservedRange:
    """Ranges of stable's percentiles from `since_s` to `until_s`; `windows`: number with enough answers."""

    since_s: float
    until_s: float
    windows: int
    ranges: tuple[PercentileRange, ...]


def observe_range(
    t_s: ArrayLike,
    values: ArrayLike,
    *,
    since_s: float,
    until_s: float,
    window_s: float = 3600.0,
    percentiles: Sequence[float] = PERCENTILES,
) -> ObservedRange:
    """The range of each percentile over stable's windows in [since_s, until_s).

    t_s: seconds since the epoch; values: the metric's own unit, same length, finite and >= 0.
    Raises ValueError for bad values, and where fewer than three windows hold enough answers: 50, and more
    for a percentile above the 95th.
    """
    times = np.asarray(t_s, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    if times.shape != y.shape:
        raise ValueError(f"{len(times)} times for {len(y)} values; give one time for each value")
    if not (math.isfinite(since_s) and math.isfinite(until_s) and since_s < until_s and window_s > 0):
        raise ValueError(
            f"dates {since_s} to {until_s} by {window_s} s are not a span; give an earlier --since"
        )
    if not (np.isfinite(times).all() and np.isfinite(y).all() and (y >= 0).all()):
        raise ValueError("times and values must be finite and values at least 0; leave out what is unknown")
    min_answers = max(MIN_IN_WINDOW, math.ceil(2.5 / (1 - max(percentiles)) - 1e-9))
    inside = (times >= since_s) & (times < until_s)
    window = ((times[inside] - since_s) // window_s).astype(np.int64)
    y = y[inside]
    order = np.argsort(window, kind="stable")
    _, starts = np.unique(window[order], return_index=True)
    windows = [part for part in np.split(y[order], starts[1:]) if len(part) >= min_answers]
    if len(windows) < MIN_WINDOWS:
        raise ValueError(
            f"windows of {window_s:g} s that hold {min_answers} answers: {len(windows)}, needed "
            f"{MIN_WINDOWS}; choose dates further apart, or shorter windows"
        )
    share = SHORT ** (1.0 / len(windows))
    ends = np.array([[_ends(np.sort(part), p, share) for p in percentiles] for part in windows])
    lows, highs = ends[:, :, 0].min(axis=0).tolist(), ends[:, :, 1].max(axis=0).tolist()
    ranges = tuple(map(PercentileRange, percentiles, lows, highs))
    return ObservedRange(since_s, until_s, len(windows), ranges)


def _ends(ascending: Floats, percentile: float, short: float) -> tuple[float, float]:
    """The lowest and the highest value of a window's percentile, each short of the true one with probability
    `short` at most, where the window has that many answers; its estimate lies within.

    Check: of 1..100, the median at 0.025 is 40 to 61.
    """
    n = len(ascending)
    below = np.arange(n)  # so many values below the one at this place
    estimate = float(np.quantile(ascending, percentile))
    low = int(np.count_nonzero(bdtr(below.astype(np.float64), n, percentile) <= short)) - 1
    high = int(np.count_nonzero(bdtrc(below.astype(np.float64), n, percentile) > short))
    return (
        min(estimate, float(ascending[max(low, 0)])),
        max(estimate, float(ascending[min(high, n - 1)])),
    )


def log_wealth(hits: Ints, n: Ints, rate: float, *, more: bool) -> Floats:
    """Log wealth of the bet that an event is more (or less) frequent than `rate`, after `hits` in `n` trials.

    Its exponential has mean at most one while the event's probability, given the past, is at most (at least)
    `rate`.
    Check: `log_wealth(4, 4, 0.05, more=True)` is 8.45.
    """
    odds = (ODDS if more else 1.0 / ODDS) * rate / (1.0 - rate)
    theta = odds / (1.0 + odds)
    terms = np.log(theta / rate)[:, None] * hits + np.log((1.0 - theta) / (1.0 - rate))[:, None] * (n - hits)
    top = np.maximum.reduce(terms, axis=0)
    # Sum in the order of the alternatives: the same bits however many rows are computed at once.
    total: Floats = top + np.log(np.add.accumulate(np.exp(terms - top), axis=0)[-1] / len(ODDS))
    return total


@dataclass(frozen=True, slots=True)
class PercentileEstimate:
    """Interval `low` to `high` of one percentile of the canary, at the gate's level, valid at every look.

    FAIL: shown to be outside the range. PASS: shown to be inside. Else UNDECIDED.
    """

    range: PercentileRange
    verdict: Verdict
    low: float
    high: float
    log_e: float  # current log wealth of "outside"

    def text(self, unit: str) -> str:
        """'p95 612..660 ms', or 'p95 above 612 ms' without an upper bound."""
        if self.low == 0.0 and math.isinf(self.high):
            return f"{self.range.name} not known yet"
        if math.isinf(self.high):
            return f"{self.range.name} above {self.low:.4g} {unit}"
        if self.low == 0.0:
            return f"{self.range.name} below {self.high:.4g} {unit}"
        return f"{self.range.name} {self.low:.4g}..{self.high:.4g} {unit}"


class RangeMonitor:
    """Test of the canary's values against one observed range, in bounded state."""

    __state__ = ("n", "above", "below", "peak", "seq", "canary", "at_s", "values")

    def __init__(self, gate: RangeGate, *, alpha: float) -> None:
        """alpha: of this gate, in (0, 1)."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha} is outside (0, 1); use 0.01")
        self.gate = gate
        sides = 2 if gate.sides == "both" else 1
        self.limit = log_limit(alpha / (len(gate.ranges) * sides))
        self.n = 0
        self.above: Ints = np.zeros(len(gate.ranges), dtype=np.int64)  # values above the high ends
        self.below: Ints = np.zeros(len(gate.ranges), dtype=np.int64)  # and below the low ones
        self.peak = 0.0
        self.seq = -1  # of the first row that showed a percentile outside; -1: none has
        self.canary = -1
        self.at_s = float("nan")
        self.values = LogHistogram()

    def feed(self, rows: Rows, values: Floats) -> None:
        """Add settled requests in order of assignment; values: NaN where missing or not comparable."""
        chosen = np.flatnonzero(rows.arm & (rows.position == 1) & (rows.w > 0.0) & ~np.isnan(values))
        log_e = self._bet(values[chosen])
        if len(chosen) == 0:
            return
        self.peak = max(self.peak, float(log_e.max()))
        if self.seq < 0 and self.peak >= self.limit:
            row = chosen[int(np.argmax(log_e >= self.limit))]
            self.seq, self.canary, self.at_s = (
                int(rows.seq[row]),
                int(rows.canary[row]),
                float(rows.at_s[row]),
            )

    def add(self, values: Floats) -> None:
        """Add values of the canary without rows, each of its own unit. Raises ValueError, changing nothing,
        unless all are numbers of at least 0."""
        if not bool((values >= 0).all()):
            raise ValueError("a value is not a number of at least 0; leave out what is unknown")
        self.peak = max(self.peak, float(self._bet(values).max(initial=0.0)))

    def _bet(self, values: Floats) -> Floats:
        """Count values; the maximum log wealth over percentiles and sides after each."""
        n = self.n + np.arange(1, len(values) + 1)
        log_e = np.full(len(values), -np.inf)
        for i, r in enumerate(self.gate.ranges):
            above = self.above[i] + np.cumsum(values > r.high)
            log_e = np.maximum(log_e, log_wealth(above, n, 1.0 - r.percentile, more=True))
            below = self.below[i] + np.cumsum(values < r.low)
            if self.gate.sides == "both":
                log_e = np.maximum(log_e, log_wealth(below, n, r.percentile, more=True))
            if len(values):
                self.above[i], self.below[i] = above[-1], below[-1]
        self.n += len(values)
        self.values.add(np.minimum(values, LARGEST))
        return log_e

    def estimates(self) -> tuple[PercentileEstimate, ...]:
        """The current estimate of each percentile."""
        return tuple(self._estimate(i) for i in range(len(self.gate.ranges)))

    def _estimate(self, i: int) -> PercentileEstimate:
        r, both = self.gate.ranges[i], self.gate.sides == "both"
        over, under = 1.0 - r.percentile, r.percentile
        is_above = self._wealth(self.above[i], over, more=True)
        is_below = self._wealth(self.below[i], under, more=True) if both else -math.inf
        low, high = self._interval(r.percentile)
        log_e = max(is_above, is_below)
        # The ends of the range are tested exactly, the interval by bins of 1 %: the exact test decides.
        if is_above >= self.limit:
            return PercentileEstimate(r, Verdict.FAIL, max(low, r.high), max(high, r.high), log_e)
        if is_below >= self.limit:
            return PercentileEstimate(r, Verdict.FAIL, min(low, r.low), min(high, r.low), log_e)
        low, high = min(low, r.high), max(high, r.low) if both else high
        not_above = self._wealth(self.above[i], over, more=False) >= self.limit
        not_below = not both or self._wealth(self.below[i], under, more=False) >= self.limit
        return PercentileEstimate(
            r, Verdict.PASS if not_above and not_below else Verdict.UNDECIDED, low, high, log_e
        )

    def _wealth(self, hits: np.int64, rate: float, *, more: bool) -> float:
        return float(log_wealth(np.array([hits]), np.array([self.n]), rate, more=more)[0])

    def _interval(self, percentile: float) -> tuple[float, float]:
        """From the highest bin edge shown to be below the percentile to the lowest shown to be above; 0 and
        infinity without one. The last edge does not count: the last bin holds all values beyond."""
        if self.values.total == 0:
            return 0.0, math.inf
        below = np.cumsum(self.values.counts, dtype=np.int64)[:-1]
        edges = self.values.range.upper_edges(np.arange(len(below)))
        total = np.full(len(below), self.values.total)
        is_above = log_wealth(total - below, total, 1.0 - percentile, more=True) >= self.limit
        is_below = log_wealth(below, total, percentile, more=True) >= self.limit
        low = float(edges[is_above][-1]) if is_above.any() else 0.0
        return low, float(edges[is_below][0]) if is_below.any() else math.inf

    def report(self, *, n_stable: int, void_from: float, invalid_reason: str | None) -> GateReport:
        """The gate's report. void_from: sequence number from which rows are void, because the split is
        invalid; invalid_reason: why the metric's values are unusable, None: they are usable."""
        estimates = self.estimates()
        outside = [estimate for estimate in estimates if estimate.verdict is Verdict.FAIL]
        was_shown = 0 <= self.seq < void_from
        side: Side = "rollback" if self.gate.on_outside == "rollback" else "guard"
        verdict, reason = Verdict.UNDECIDED, self._describe(max(estimates, key=lambda e: e.log_e))
        if side == "rollback" and was_shown:
            verdict = Verdict.FAIL
            reason = "; ".join(map(self._describe, outside)) or f"it was outside, now {reason}"
        elif invalid_reason is not None:
            # A report that holds a stage has the side promotion, as for the served rate.
            side = "rollback" if side == "rollback" else "promotion"
            verdict, reason = Verdict.INVALID, invalid_reason
        elif side == "guard" and outside:
            side, verdict = "promotion", Verdict.INVALID
            reason = "; ".join(map(self._describe, outside))
        elif side == "guard" and all(estimate.verdict is Verdict.PASS for estimate in estimates):
            verdict = Verdict.PASS
        is_decided = verdict is Verdict.FAIL or (bool(outside) and verdict is Verdict.INVALID)
        return GateReport(
            gate=self.gate.name,
            metric=self.gate.metric,
            side=side,
            verdict=verdict,
            log_e=self.peak,
            limit=self.limit,
            reason=reason,
            n_canary=self.n,
            n_stable=n_stable,
            effective_units=float(self.n),
            decided_at_s=self.at_s if is_decided else None,
            decided_canary=self.canary if is_decided else None,
        )

    def _describe(self, estimate: PercentileEstimate) -> str:
        """'p95 612..660 ms, stable showed 300..420 ms between 2026-05-01 and 2026-05-02'."""
        unit, gate = CATALOGUE[self.gate.metric].unit, self.gate
        when = ""
        if gate.since is not None and gate.until is not None:
            when = f" between {gate.since} and {gate.until}"
        observed = estimate.range
        return f"{estimate.text(unit)}, stable showed {observed.low:.4g}..{observed.high:.4g} {unit}{when}"


def range_monitors(gates: Sequence[RangeGate], metrics: Sequence[str], *, alpha: float) -> list[RangeMonitor]:
    """A monitor for each range of these metrics. alpha: of the whole rollout."""
    return [RangeMonitor(gate, alpha=alpha * gate.alpha_share) for gate in gates if gate.metric in metrics]
