"""Gate "observed range": the canary's p50, p90 and p95 inside what stable showed between two dates.

The range is what stable's own windows (an hour each, say) spanned in that time. The canary's percentile p is
above the range's end h exactly when more than 1 - p of its answers exceed h, so each side is a test of a
rate, valid at every look: a canary inside trips with probability at most the gate's alpha, shared evenly by
its percentiles and sides. Each unit counts once, by the first request of its draw, because a heavy user's
answers are no independent ones.

Invariant: stable's past and the canary's present are different times, so shared drift does *not* cancel
here. It answers "is this still what we are used to?", which is why it holds unless a policy says otherwise.
Invariant: what is bet depends on counts alone, so the answer is the same however rows come in blocks.

Source: Wald (1945), a mixture of likelihood ratios of a rate; Ville (1939) for every look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.betting.histogram import BINS, WIDTH, LogHistogram
from evaluation.betting.wealth import Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.policy.alpha import log_limit
from evaluation.policy.observed_ranges import PercentileRange, RangeGate
from evaluation.report import GateReport, Side, Verdict
from evaluation.units.sessions import Rows

PERCENTILES = (0.50, 0.90, 0.95)
MIN_WINDOWS = 3
MIN_IN_WINDOW = 50
#: How much larger the odds of an event are than at the end of the range, by alternative.
ODDS = np.array([1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 2.7, 4.0, 7.0, 15.0, 50.0])
LARGEST = 1e300  # a value that did not end counts as this


@dataclass(frozen=True, slots=True)
class ObservedRange:
    """What stable showed from `since_s` to `until_s`, over `windows` windows of enough answers each."""

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
    at = np.asarray(t_s, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    if at.shape != y.shape:
        raise ValueError(f"{len(at)} times for {len(y)} values; give one time for each value")
    if not (math.isfinite(since_s) and math.isfinite(until_s) and since_s < until_s and window_s > 0):
        raise ValueError(
            f"dates {since_s} to {until_s} by {window_s} s span nothing; give an earlier --since"
        )
    if not (np.isfinite(at).all() and np.isfinite(y).all() and (y >= 0).all()):
        raise ValueError("times and values must be finite and values at least 0; leave out what is unknown")
    least = max(MIN_IN_WINDOW, math.ceil(2.5 / (1 - max(percentiles)) - 1e-9))
    inside = (at >= since_s) & (at < until_s)
    window = ((at[inside] - since_s) // window_s).astype(np.int64)
    y = y[inside]
    order = np.argsort(window, kind="stable")
    _, starts = np.unique(window[order], return_index=True)
    full = [part for part in np.split(y[order], starts[1:]) if len(part) >= least]
    if len(full) < MIN_WINDOWS:
        raise ValueError(
            f"{len(full)} windows of {window_s:g} s hold {least} answers, needed {MIN_WINDOWS}; "
            "choose dates further apart, or shorter windows"
        )
    seen = np.array([np.quantile(part, percentiles) for part in full])
    ranges = tuple(
        PercentileRange(p, float(seen[:, i].min()), float(seen[:, i].max()))
        for i, p in enumerate(percentiles)
    )
    return ObservedRange(since_s, until_s, len(full), ranges)


def log_wealth(hits: Ints, n: Ints, rate: float, *, more: bool) -> Floats:
    """Log wealth of a bet that an event is more (or less) frequent than `rate`, after `hits` in `n`.

    Worth at most one in the mean while, given the past, the event's probability is at most (least) `rate`.
    Check: `log_wealth(4, 4, 0.05, more=True)` is 8.45.
    """
    odds = (ODDS if more else 1.0 / ODDS) * rate / (1.0 - rate)
    theta = odds / (1.0 + odds)
    terms = np.log(theta / rate)[:, None] * hits + np.log((1.0 - theta) / (1.0 - rate))[:, None] * (n - hits)
    top = np.maximum.reduce(terms, axis=0)
    # A sum in the order of the alternatives: the same bits however many rows are looked up at once.
    total: Floats = top + np.log(np.add.accumulate(np.exp(terms - top), axis=0)[-1] / len(ODDS))
    return total


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one percentile of the canary is: `low` to `high` at the gate's own level, valid at every look.

    FAIL: wholly outside the range. PASS: shown to be inside. Else UNDECIDED.
    """

    range: PercentileRange
    verdict: Verdict
    low: float
    high: float
    log_e: float  # that it is outside, now

    def text(self, unit: str) -> str:
        """'p95 612..660 ms'; 'p95 above 612 ms' where nothing bounds it from above."""
        if self.low == 0.0 and math.isinf(self.high):
            return f"{self.range.name} not known yet"
        if math.isinf(self.high):
            return f"{self.range.name} above {self.low:.4g} {unit}"
        if self.low == 0.0:
            return f"{self.range.name} below {self.high:.4g} {unit}"
        return f"{self.range.name} {self.low:.4g}..{self.high:.4g} {unit}"


class RangeWatch:
    """The canary's values against one observed range, in bounded state."""

    __state__ = ("n", "above", "below", "peak", "seq", "canary", "at_s", "values")

    def __init__(self, gate: RangeGate, *, alpha: float) -> None:
        """`alpha`: of the gate itself, in (0, 1)."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha} is outside (0, 1); use 0.01")
        self.gate = gate
        sides = 2 if gate.sides == "both" else 1
        self.limit = log_limit(alpha / (len(gate.ranges) * sides))
        self.n = 0
        self.above: Ints = np.zeros(len(gate.ranges), dtype=np.int64)  # values above the high ends
        self.below: Ints = np.zeros(len(gate.ranges), dtype=np.int64)  # and below the low ones
        self.peak = 0.0
        self.seq = -1  # of the row that first showed a percentile outside; -1: none has
        self.canary = -1
        self.at_s = float("nan")
        self.values = LogHistogram()

    def take(self, rows: Rows, values: Floats) -> None:
        """Take settled requests in order of assignment; `values`: NaN where there is none to compare."""
        chosen = np.flatnonzero(rows.arm & (rows.place == 1) & (rows.w > 0.0) & ~np.isnan(values))
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
        """Take values of the canary without rows, each of its own unit. Raises ValueError unless all are
        numbers of at least 0; nothing has changed."""
        if not bool((values >= 0).all()):
            raise ValueError("a value is not a number of at least 0; leave out what is unknown")
        self.peak = max(self.peak, float(self._bet(values).max(initial=0.0)))

    def _bet(self, values: Floats) -> Floats:
        """Count values; after each, the largest log wealth that some percentile is outside."""
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

    def standings(self) -> tuple[Standing, ...]:
        """Each percentile now."""
        return tuple(self._standing(i) for i in range(len(self.gate.ranges)))

    def _standing(self, i: int) -> Standing:
        r, both = self.gate.ranges[i], self.gate.sides == "both"
        over, under = 1.0 - r.percentile, r.percentile
        is_above = self._wealth(self.above[i], over, more=True)
        is_below = self._wealth(self.below[i], under, more=True) if both else -math.inf
        low, high = self._interval(r.percentile)
        log_e = max(is_above, is_below)
        # The ends of the range are tested exactly, the interval by bins of 1 %: the exact one counts.
        if is_above >= self.limit:
            return Standing(r, Verdict.FAIL, max(low, r.high), max(high, r.high), log_e)
        if is_below >= self.limit:
            return Standing(r, Verdict.FAIL, min(low, r.low), min(high, r.low), log_e)
        low, high = min(low, r.high), max(high, r.low) if both else high
        not_above = self._wealth(self.above[i], over, more=False) >= self.limit
        not_below = not both or self._wealth(self.below[i], under, more=False) >= self.limit
        return Standing(r, Verdict.PASS if not_above and not_below else Verdict.UNDECIDED, low, high, log_e)

    def _wealth(self, hits: np.int64, rate: float, *, more: bool) -> float:
        return float(log_wealth(np.array([hits]), np.array([self.n]), rate, more=more)[0])

    def _interval(self, percentile: float) -> tuple[float, float]:
        """From the highest bin edge that the percentile was shown to be above to the lowest that it is below;
        0 and infinity where there is none. The outer bins hold what lies outside, so theirs are no edges."""
        if self.values.total == 0:
            return 0.0, math.inf
        below = np.cumsum(self.values.counts, dtype=np.int64)[:-1]
        edges = np.exp((np.arange(1, BINS) + self.values.first_bin) * WIDTH)
        total = np.full(len(below), self.values.total)
        is_above = log_wealth(total - below, total, 1.0 - percentile, more=True) >= self.limit
        is_below = log_wealth(below, total, percentile, more=True) >= self.limit
        low = float(edges[is_above][-1]) if is_above.any() else 0.0
        return low, float(edges[is_below][0]) if is_below.any() else math.inf

    def report(self, *, n_stable: int, void_from: float, lacking: str | None) -> GateReport:
        """What the gate says now. `void_from`: rows from there on show nothing, because the split does not
        fit; `lacking`: why the metric is no evidence, None where it is."""
        standings = self.standings()
        outside = [one for one in standings if one.verdict is Verdict.FAIL]
        was_shown = 0 <= self.seq < void_from
        side: Side = "rollback" if self.gate.on_outside == "rollback" else "guard"
        verdict, reason = Verdict.UNDECIDED, self._beside(max(standings, key=lambda one: one.log_e))
        if side == "rollback" and was_shown:
            verdict = Verdict.FAIL
            reason = "; ".join(map(self._beside, outside)) or f"it was outside, now {reason}"
        elif lacking is not None:
            # What holds a stage is of the promotion's side, as with the served rate.
            side = "rollback" if side == "rollback" else "promotion"
            verdict, reason = Verdict.INVALID, lacking
        elif side == "guard" and outside:
            side, verdict = "promotion", Verdict.INVALID
            reason = "; ".join(map(self._beside, outside))
        elif side == "guard" and all(one.verdict is Verdict.PASS for one in standings):
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

    def _beside(self, one: Standing) -> str:
        """'p95 612..660 ms, stable showed 300..420 ms between 2026-05-01 and 2026-05-02'."""
        unit, gate = CATALOGUE[self.gate.metric].unit, self.gate
        when = ""
        if gate.since is not None and gate.until is not None:
            when = f" between {gate.since} and {gate.until}"
        return f"{one.text(unit)}, stable showed {one.range.low:.4g}..{one.range.high:.4g} {unit}{when}"


def watches(gates: Sequence[RangeGate], metrics: Sequence[str], *, alpha: float) -> list[RangeWatch]:
    """A watch for each range of these metrics; `alpha`: of the whole rollout."""
    return [RangeWatch(gate, alpha=alpha * gate.alpha_share) for gate in gates if gate.metric in metrics]


def compared(values: Floats, failed: NDArray[np.bool_]) -> Floats:
    """The values that say how long an answer took: failing fast must not look fast."""
    return np.where(failed, np.nan, values) if failed.any() else values
