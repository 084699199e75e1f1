"""Segment alarms: harm to one tenant, category or prompt length that the mean hides.

Each segment is tested by the gate's own bet, at its own level: alpha / (j (j + 1)) for the j-th to appear,
which adds up to alpha over all segments that can ever appear. So a new tenant needs no new correction, and
an alarm for any healthy segment, at any look, has probability at most alpha.

Invariant: a segment alarm is displayed and notified; it never decides a rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.betting.bettors import loss_bettor
from evaluation.betting.unit_block import UnitBlock
from evaluation.betting.wealth import Channel
from evaluation.metrics import Kind
from evaluation.stream import Stream

MAX_SEGMENTS = 256
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class SegmentAlarm:
    """A segment in which the canary was shown to be worse than tolerated."""

    segment: str
    log_e: float
    limit: float
    canary_requests: int  # of the whole rollout, at the alarm
    at_s: float


class SegmentAlarms:
    """Tests of one metric by segment. At most 256 segments.

    Segments beyond that share one, `(others)`, so that a header with random values cannot fill the memory.
    """

    __state__ = ("segments", "streams")

    def __init__(
        self, kind: Kind, *, tolerance: float, threshold: float | None = None, alpha: float = 0.01
    ) -> None:
        """tolerance, threshold: of the gate; threshold None: the usual harm."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha} is outside (0, 1); use 0.01")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance {tolerance} is not a number of at least 0; use half the threshold")
        if kind in (Kind.PERCENTILE, Kind.MEAN):
            raise ValueError(f"segments need rate, score or shape; a {kind} of few answers shows nothing")
        self._kind = kind
        self._tolerance = tolerance
        self._threshold = threshold
        self._alpha = alpha
        self._positions: dict[str, int] = {}
        self.streams: list[Stream] = []  # one a segment, in the order of appearance

    @property
    def segments(self) -> list[str]:
        """The segments in order of appearance, which is that of their levels."""
        return list(self._positions)

    @segments.setter
    def segments(self, names: list[str]) -> None:
        self._positions, self.streams = {}, []
        for name in names:
            self._open(name)

    def feed(self, segment: str, block: UnitBlock) -> None:
        """Add settled units of one segment, each once, in order; y: as for the metric's gate."""
        if segment not in self._positions and len(self._positions) >= MAX_SEGMENTS:
            segment = OTHERS
        if segment not in self._positions:
            self._open(segment)
        self.streams[self._positions[segment]].feed(block)

    def _open(self, segment: str) -> None:
        rank = len(self._positions) + 1
        bettor = loss_bettor(self._kind, tolerance=self._tolerance, threshold=self._threshold)
        channel = Channel(bettor, limit=math.log(rank * (rank + 1) / self._alpha))
        stream = Stream(with_histogram=self._kind is Kind.SHAPE)
        stream.channels.append(channel)
        self._positions[segment] = len(self.streams)
        self.streams.append(stream)

    def alarms(self) -> tuple[SegmentAlarm, ...]:
        """The alarms so far, in order of appearance of their segments. An alarm stays."""
        decisions = {name: self.streams[i].channels[0].decision for name, i in self._positions.items()}
        return tuple(
            SegmentAlarm(name, decision.peak, decision.limit, decision.canary, decision.at_s)
            for name, decision in decisions.items()
            if decision.is_reached
        )
