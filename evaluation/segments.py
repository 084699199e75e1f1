"""Segment alarms: harm to one tenant, category or prompt length, which hides in the mean.

Each segment is tested by the gate's own bet, at a level of its own that adds up to `alpha` over all segments
that can ever appear: the j-th to appear gets alpha / (j (j + 1)). So a new tenant needs no new correction,
and naming any healthy segment, at any look, has probability at most alpha.

Invariant: a segment alarm is shown and notified; it never decides a rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.betting.latency import ShapeLoss
from evaluation.betting.rates import FirstEvents
from evaluation.betting.scores import ScoreLoss
from evaluation.betting.wealth import Block, Channel
from evaluation.metrics import Kind
from evaluation.stream import Stream

MAX_SEGMENTS = 256
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class SegmentAlarm:
    """A segment in which the canary was shown to be worse than the tolerance allows."""

    segment: str
    log_e: float
    limit: float
    canary_requests: int  # of the whole rollout, at the alarm
    at_s: float


class SegmentAlarms:
    """One metric by segment, each unit once, in the order of settlement. At most 256 segments.

    Segments beyond that share one, `(others)`, so that a header with a random value cannot fill the memory.
    """

    __state__ = ("segments", "streams")

    def __init__(self, kind: Kind, *, tolerance: float, alpha: float = 0.01) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha} is outside (0, 1); use 0.01")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance {tolerance} is not a number of at least 0; use half the threshold")
        if kind is Kind.PERCENTILE:
            raise ValueError("segments take rate, score or shape; a percentile of few answers shows nothing")
        self._kind = kind
        self._tolerance = tolerance
        self._alpha = alpha
        self._places: dict[str, int] = {}
        self.streams: list[Stream] = []  # one a segment, in the order of appearance

    @property
    def segments(self) -> list[str]:
        """The segments in the order of appearance, which is that of their levels."""
        return list(self._places)

    @segments.setter
    def segments(self, names: list[str]) -> None:
        self._places, self.streams = {}, []
        for name in names:
            self._open(name)

    def feed(self, segment: str, block: Block) -> None:
        """Take settled units of one segment, in order; y as the metric's gate takes it."""
        if segment not in self._places and len(self._places) >= MAX_SEGMENTS:
            segment = OTHERS
        if segment not in self._places:
            self._open(segment)
        self.streams[self._places[segment]].feed(block)

    def _open(self, segment: str) -> None:
        place = len(self._places) + 1
        bettor: FirstEvents | ScoreLoss | ShapeLoss
        if self._kind is Kind.RATE:
            bettor = FirstEvents(tolerance=self._tolerance)
        elif self._kind is Kind.SCORE:
            bettor = ScoreLoss(tolerance=self._tolerance)
        else:
            bettor = ShapeLoss(tolerance=self._tolerance)
        channel = Channel(bettor, limit=math.log(place * (place + 1) / self._alpha))
        stream = Stream(with_histogram=self._kind is Kind.SHAPE)
        stream.channels.append(channel)
        self._places[segment] = place - 1
        self.streams.append(stream)

    def alarms(self) -> tuple[SegmentAlarm, ...]:
        """Every segment that has rung, in the order of appearance. An alarm stays."""
        decisions = {name: self.streams[at].channels[0].decision for name, at in self._places.items()}
        return tuple(
            SegmentAlarm(name, decided.peak, decided.limit, decided.canary, decided.at_s)
            for name, decided in decisions.items()
            if decided.is_reached
        )
