"""Catalogue of metrics: unit, direction, when a value arrives, and how each can be tested."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a metric is tested. Values of `rate` and `score` are within [0, 1], all others at least 0."""

    RATE = "rate"
    SCORE = "score"
    SHAPE = "shape"
    PERCENTILE = "percentile"
    MEAN = "mean"  # of values of an answer, capped (`units/capped.py`)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `arrives_later`: reported by a `Score` after the answer, not with the request."""

    name: str
    unit: str
    lower_is_better: bool
    arrives_later: bool
    what: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """How it can be tested: a rate counts events, which are harm; a score is better when it is higher."""
        if self.name in SIZES:
            return Kind.MEAN, Kind.SHAPE, Kind.PERCENTILE
        if self.name in VALUES:
            return Kind.SHAPE, Kind.PERCENTILE
        return (Kind.RATE,) if self.lower_is_better else (Kind.SCORE,)


CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("error", "share of requests", True, False, "the assigned version did not answer"),
        Metric("rejected", "share of requests", True, False, "the first attempt was refused: 4xx, not 429"),
        Metric("rate_limited", "share of requests", True, False, "its endpoint takes no more: 429, 529"),
        Metric("latency_ms", "ms", True, False, "what the user waited, a failed first attempt included"),
        Metric("ttft_ms", "ms", True, False, "time to the first token"),
        Metric("itl_ms", "ms", True, False, "mean time between tokens"),
        Metric("tokens", "tokens", True, False, "completion tokens of an answer"),
        Metric("cost", "money", True, False, "cost of an answer"),
        Metric("quality", "score 0..1", False, True, "judged, or known from the right answer"),
        Metric("thumbs", "score 0..1", False, True, "feedback of users"),
        Metric("accepted", "score 0..1", False, True, "the answer was used"),
        Metric("hallucinated", "share of answers", True, True, "judged to state what is not so"),
        Metric("flagged", "share of answers", True, True, "moderation objected"),
        Metric("refused", "share of answers", True, False, "the answer declines"),
        Metric("truncated", "share of answers", True, False, "stopped by max_tokens"),
        Metric("empty", "share of answers", True, False, "no text at all"),
        Metric("invalid", "share of answers", True, False, "schema or tool call does not parse"),
        Metric("leaked", "share of answers", True, False, "special tokens appear as text"),
        Metric("other_language", "share of answers", True, False, "not in the language of the question"),
        Metric("unusual_length", "share of answers", True, False, "outside stable's own 99 % range"),
        Metric("unusual_repetition", "share of answers", True, False, "outside stable's own 99 % range"),
        Metric("unusual_compression", "share of answers", True, False, "outside stable's own 99 % range"),
        Metric("cancelled", "share of requests", True, False, "the client went away"),
    )
}

#: Metrics of requests without an answer: no other metric of such a request has a value.
UNANSWERED = frozenset({"error", "rejected"})
#: Metrics that a request without an answer has, too.
OUTCOMES = UNANSWERED | {"rate_limited"}
#: Metrics that only a streamed answer has.
STREAMED = frozenset({"ttft_ms", "itl_ms"})
#: Times from the request on: one that its client left after a while would have taken longer.
WAITS = frozenset({"latency_ms", "ttft_ms"})
#: Metrics with unbounded values, for `shape` and `percentile` gates.
VALUES = frozenset({"latency_ms", "ttft_ms", "itl_ms", "tokens", "cost"})
#: Of these, what an answer is large by: a request without one has none, where one that waits is slowest.
SIZES = frozenset({"tokens", "cost"})
