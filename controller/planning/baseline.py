"""What a service's own stable version is like, as its traffic showed: the ground that a forecast stands on.

Invariant: a figure from too few requests is not used; the typical one is, and the lines say so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from evaluation.forecast.detectable_effect import Baseline

ENOUGH_REQUESTS = 200
ENOUGH_SCORES = 100
NEARLY_ALL = 0.995  # of the answers: a few lost scores change no forecast
MOST_SPREAD = 0.98  # of what scores of 0 and 1 would spread: a Beta has less than that


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of one metric. `judged_ratio`: share of the answers that got one; None: too early to say."""

    count: int
    mean: float
    sd: float
    judged_ratio: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """Stable's newest requests. `events`: how many were so, by metric that settles with the request."""

    requests: int
    events: Mapping[str, int] = field(default_factory=dict)
    latency_p50_ms: float | None = None  # None: none was answered whole
    latency_p99_ms: float | None = None
    latency_log_sd: float | None = None
    scores: Mapping[str, Scored] = field(default_factory=dict)
    unit_requests: float = 1.0  # mean requests of a unit within a session

    @property
    def is_enough(self) -> bool:
        """True: a forecast may stand on it."""
        return self.requests >= ENOUGH_REQUESTS

    def score(self, metric: str) -> Scored | None:
        """The metric's scores; None: too few."""
        found = self.scores.get(metric)
        return found if found is not None and found.count >= ENOUGH_SCORES else None

    def baseline(self, metrics: Collection[str]) -> Baseline:
        """For these metrics; typical where too little was seen."""
        usual = Baseline()
        if not self.is_enough:
            return usual
        # Half an event more: none in 500 requests is not yet a rate of zero.
        rates = {name: (count + 0.5) / (self.requests + 1) for name, count in self.events.items()}
        for name, found in self.scores.items():
            if found.count >= ENOUGH_SCORES:
                rates[name] = (found.mean * found.count + 0.5) / (found.count + 1)
        mean, sd = usual.score_mean, usual.score_sd
        if (main := self._main_score(metrics)) is not None:
            mean = min(max(main.mean, 0.01), 0.99)
            sd = min(max(main.sd, 0.01), math.sqrt(MOST_SPREAD * mean * (1 - mean)))
        return Baseline(
            rates={**usual.rates, **{name: min(rate, 0.98) for name, rate in rates.items()}},
            score_mean=mean,
            score_sd=sd,
            log_sd=max(self.latency_log_sd, 0.05) if self.latency_log_sd is not None else usual.log_sd,
        )

    def judged(self) -> dict[str, float]:
        """Share of answers with a score, by metric, where it is known."""
        if not self.is_enough:
            return {}
        known = {name: found.judged_ratio for name, found in self.scores.items()}
        return {
            name: ratio if ratio < NEARLY_ALL else 1.0
            for name, ratio in known.items()
            if ratio is not None and ratio > 0
        }

    def lines(self, gated: Collection[str]) -> tuple[str, ...]:
        """What was measured of the gated metrics, and what was not and is taken as typical."""
        usual = Baseline()
        if not self.is_enough:
            return (
                f"measured over {self.requests:,} requests, {ENOUGH_REQUESTS} are needed: "
                f"taken as typical (errors 1 %, hallucination 3 %, quality {usual.score_mean:g})",
            )
        parts = [f"errors {_percent(self.events.get('error', 0) / self.requests)}"]
        if self.latency_p50_ms is not None and self.latency_p99_ms is not None:
            parts.append(f"latency p50 {_ms(self.latency_p50_ms)}, p99 {_ms(self.latency_p99_ms)}")
        others = sorted(set(gated) & set(self.events) - {"error"})
        parts += [f"{name} {_percent(self.events[name] / self.requests)}" for name in others]
        lines = [f"measured over {self.requests:,} requests: {', '.join(parts)}"]
        for name in sorted(set(gated) & {"quality", "thumbs", "accepted", "hallucinated", "flagged"}):
            lines.append(self._score_line(name, usual))
        return tuple(lines)

    def _main_score(self, metrics: Collection[str]) -> Scored | None:
        """Of the scores that are no rates, the one with most: a forecast knows one spread of scores."""
        known = [self.score(name) for name in ("quality", "thumbs", "accepted") if name in metrics]
        return max((one for one in known if one is not None), key=lambda one: one.count, default=None)

    def _score_line(self, name: str, usual: Baseline) -> str:
        found, is_rate = self.score(name), name in ("hallucinated", "flagged")
        if found is None:
            typical = _percent(usual.rate_of(name)) if is_rate else f"{usual.score_mean:g}"
            few = self.scores[name].count if name in self.scores else 0
            return (
                f"{name}: {few} scores, {ENOUGH_SCORES} are needed: taken as {typical}, every answer scored"
            )
        value = _percent(found.mean) if is_rate else f"{found.mean:.3g} (spread {found.sd:.2g})"
        share = "" if found.judged_ratio is None else f", of {_percent(found.judged_ratio)} of the answers"
        return f"{name} {value} over {found.count:,} scores{share}"


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.2g} %" if ratio < 0.995 else "100 %"


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.2g} s"
