"""Measured baseline of stable: error rates, latency and scores of its newest requests, input of a forecast.

Invariant: a figure from too few requests is not used; a typical one replaces it, and `summary` says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from evaluation.forecast.detectable_effect import Baseline
from evaluation.metrics import CATALOGUE

JUDGED = frozenset(name for name, metric in CATALOGUE.items() if metric.arrives_later)
JUDGED_SCORES = tuple(name for name in CATALOGUE if name in JUDGED and not CATALOGUE[name].lower_is_better)
MIN_REQUESTS = 200
MIN_SCORES = 100
ALL_JUDGED_RATIO = 0.995  # above it every answer counts as judged: a few lost scores change no forecast
MAX_VARIANCE_RATIO = 0.98  # of mean * (1 - mean), the variance of scores 0 and 1: a Beta's is below that


@dataclass(frozen=True, slots=True)
class ScoreStats:
    """Scores of one metric. `judged_ratio`: share of the answers that got one; None: too early to tell."""

    count: int
    mean: float
    sd: float
    judged_ratio: float | None


@dataclass(frozen=True, slots=True)
class MeasuredBaseline:
    """Stable's newest requests. `events`: number of requests with the event, by metric."""

    requests: int
    events: Mapping[str, int] = field(default_factory=dict)
    latency_p50_ms: float | None = None  # None: no complete answer
    latency_p99_ms: float | None = None
    latency_log_sd: float | None = None
    scores: Mapping[str, ScoreStats] = field(default_factory=dict)
    unit_requests: float = 1.0  # mean requests of a unit within a session
    keyed_share: float = 0.0  # of the requests whose unit is a key: a user, a conversation
    values: Mapping[str, int] = field(default_factory=dict)  # requests with a value, by metric: ttft_ms, ...
    settled: int = 0  # answers so old that a score would have come

    def could_carry(self, metric: str) -> int:
        """Number of stable's requests that would have shown the metric by now."""
        return self.settled if metric in JUDGED else self.requests

    def carried(self, metric: str) -> bool:
        """True: at least one request had the metric, whether a value, a score or a flag, be it false."""
        if metric in JUDGED:
            return metric in self.scores and self.scores[metric].count > 0
        return metric in self.events or self.values.get(metric, 0) > 0

    @property
    def is_enough(self) -> bool:
        """True: enough requests to base a forecast on."""
        return self.requests >= MIN_REQUESTS

    def score(self, metric: str) -> ScoreStats | None:
        """The metric's scores; None: too few."""
        stats = self.scores.get(metric)
        return stats if stats is not None and stats.count >= MIN_SCORES else None

    def baseline(self, metrics: Collection[str]) -> Baseline:
        """The simulation's baseline for these metrics; typical figures where too little was measured."""
        typical = Baseline()
        if not self.is_enough:
            return typical
        # Half an event more: none in 500 requests is not yet a rate of zero.
        rates = {name: (count + 0.5) / (self.requests + 1) for name, count in self.events.items()}
        for name in self.scores:
            if (stats := self.score(name)) is not None:
                rates[name] = (stats.mean * stats.count + 0.5) / (stats.count + 1)
        mean, sd = typical.score_mean, typical.score_sd
        if (main := self._main_score(metrics)) is not None:
            mean = min(max(main.mean, 0.01), 0.99)
            sd = min(max(main.sd, 0.01), math.sqrt(MAX_VARIANCE_RATIO * mean * (1 - mean)))
        return Baseline(
            rates={**typical.rates, **{name: min(rate, 0.98) for name, rate in rates.items()}},
            score_mean=mean,
            score_sd=sd,
            log_sd=max(self.latency_log_sd, 0.05) if self.latency_log_sd is not None else typical.log_sd,
        )

    def judged_ratios(self) -> dict[str, float]:
        """Share of answers with a score, by metric, where it is known."""
        if not self.is_enough:
            return {}
        known = {name: stats.judged_ratio for name, stats in self.scores.items()}
        return {
            name: ratio if ratio < ALL_JUDGED_RATIO else 1.0
            for name, ratio in known.items()
            if ratio is not None and ratio > 0
        }

    def summary(self, gated: Collection[str]) -> tuple[str, ...]:
        """Lines for people: which figures of the gated metrics were measured, which are typical ones."""
        typical = Baseline()
        if not self.is_enough:
            known = {
                "error": "errors 1 %",
                "rejected": "rejected 0.1 %",
                "hallucinated": "hallucination 3 %",
                "quality": f"quality {typical.score_mean:g}",
            }
            figures = ", ".join(text for name, text in known.items() if name in gated)
            line = (
                f"measured over {self.requests:,} requests, {MIN_REQUESTS} are needed: typical figures are "
                f"used{f' ({figures})' if figures else ''}"
            )
            silent = [name for name in sorted(set(gated) & JUDGED) if self._never_came(name)]
            return (line, *(f"{name}: no scores in the last {self.settled:,} requests" for name in silent))
        parts = [f"errors {_percent(self.events.get('error', 0) / self.requests)}"]
        if self.latency_p50_ms is not None and self.latency_p99_ms is not None:
            parts.append(f"latency p50 {_ms(self.latency_p50_ms)}, p99 {_ms(self.latency_p99_ms)}")
        others = sorted(set(gated) & set(self.events) - {"error"})
        parts += [f"{name} {_percent(self.events[name] / self.requests)}" for name in others]
        lines = [f"measured over {self.requests:,} requests: {', '.join(parts)}"]
        for name in sorted(set(gated) & JUDGED):
            lines.append(self._score_line(name, typical))
        return tuple(lines)

    def _never_came(self, metric: str) -> bool:
        """True: there are answers that a score would have reached by now, and none has come."""
        return self.settled > 0 and not self.carried(metric)

    def _main_score(self, metrics: Collection[str]) -> ScoreStats | None:
        """The score metric, rates excluded, with the most scores: a forecast has one score distribution."""
        known = [self.score(name) for name in JUDGED_SCORES if name in metrics]
        return max((one for one in known if one is not None), key=lambda one: one.count, default=None)

    def _score_line(self, name: str, typical: Baseline) -> str:
        stats, is_rate = self.score(name), name not in JUDGED_SCORES
        if stats is None:
            figure = _percent(typical.rate_of(name)) if is_rate else f"{typical.score_mean:g}"
            count = self.scores[name].count if name in self.scores else 0
            if self._never_came(name):
                return (
                    f"{name}: no scores in the last {self.settled:,} requests: the typical {figure} is used, "
                    "as if every answer were scored"
                )
            return (
                f"{name}: {count} scores, {MIN_SCORES} are needed: the typical {figure} is used, with every "
                "answer scored"
            )
        value = _percent(stats.mean) if is_rate else f"{stats.mean:.3g} (sd {stats.sd:.2g})"
        share = "" if stats.judged_ratio is None else f", of {_percent(stats.judged_ratio)} of the answers"
        return f"{name} {value} over {stats.count:,} scores{share}"


def with_costs(measured: MeasuredBaseline, prices: object | None) -> MeasuredBaseline:
    """The baseline in which each request with tokens has a cost. prices: of the service; None: none."""
    if prices is None or "tokens" not in measured.values:
        return measured
    return replace(measured, values={**measured.values, "cost": measured.values["tokens"]})


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.2g} %" if ratio < 0.995 else "100 %"


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2g} s"
