"""Counts of one router since its start, for Prometheus: plain numbers, added to once a record. Pure.

Invariant: every key is a word of ours (an arm, an outcome, an error code): nothing that a client sends makes
another series.
"""

from __future__ import annotations

from bisect import bisect_left

from serving.judge_messages import JudgeRecord
from serving.messages import CANARY, STABLE, RequestRecord

ARM_NAMES = {STABLE: "stable", CANARY: "canary"}
COPY_OUTCOMES = ("ok", "failed", "withheld", "dropped")
# Upper bounds, in seconds.
LATENCY_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FIRST_EVENT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Histogram:
    """Counts of values by upper bound; the last count is of those above every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Counts by arm (0 stable, 1 canary) and by fixed words. An arm is always the assigned one."""

    def __init__(self) -> None:
        self.requests: dict[tuple[int, str, str], int] = {}  # by (arm, outcome, assigned_by)
        self.errors = [0, 0]  # first attempts that failed
        self.retries = [0, 0]  # attempts after the first
        self.fallbacks = 0  # answered by stable in place of the canary
        self.takeovers = 0  # of these, streams that stable continued
        self.latency = (Histogram(LATENCY_S), Histogram(LATENCY_S))
        self.first_event = (Histogram(FIRST_EVENT_S), Histogram(FIRST_EVENT_S))
        self.refusals: dict[str, int] = {}  # the router's own errors, by code
        self.mirrored: dict[str, int] = {}  # copies to a mirrored canary, by outcome; dropped: not sent
        self.judged: dict[
            tuple[str, str], int
        ] = {}  # questions, by (answer, anchor or pair, verdict or cause)
        self.judge_tokens = 0  # of questions to the judge and its answers
        self.lag = Histogram(LAG_S)  # by which the event loop was late, four times a second

    def on_record(self, record: RequestRecord) -> None:
        """Count a request that has ended, or is given up as open."""
        arm = record.arm
        key = (arm, record.outcome, record.assigned_by)
        self.requests[key] = self.requests.get(key, 0) + 1
        if record.error:
            self.errors[arm] += 1
        if record.retries:
            self.retries[arm] += record.retries
        if record.outcome == "fallback":
            self.fallbacks += 1
            if record.taken_over_by is not None:
                self.takeovers += 1
        if record.latency_ms is not None:
            self.latency[arm].add(record.latency_ms / 1000)
        if record.ttft_ms is not None:
            self.first_event[arm].add(record.ttft_ms / 1000)

    def on_copy(self, outcome: str) -> None:
        """Count a copy that has ended, or was not sent."""
        self.mirrored[outcome] = self.mirrored.get(outcome, 0) + 1

    def on_verdict(self, record: JudgeRecord) -> None:
        """Count what came of a question to the judge."""
        of = "anchor" if record.label is not None else "answer" if record.pair is None else "pair"
        key = of, record.cause or "verdict"
        self.judged[key] = self.judged.get(key, 0) + 1
        self.judge_tokens += record.tokens

    def on_refusal(self, code: str) -> None:
        """Count an error that the router itself answered."""
        self.refusals[code] = self.refusals.get(code, 0) + 1
