"""Records log of one service: requests, copies, scores and verdicts in one order. Pure: time is a parameter.

Rules:
1. The log numbers its events without gaps. What is missing (a lost batch, a router that stopped reporting, an
   event that fell out of the ring) is reported as a span of time, of which both arms must be dropped.
2. Its low watermark is that of the slowest router that still reports; it never goes back.
3. Everything is bounded: the oldest events fall out of the ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

from serving.messages import Event, LostSpan, RecordBatch, RecordPage, RequestRecord, ScoreRecord

LOG_LIMIT = 200_000  # events
REPORTER_TIMEOUT_S = 5.0  # without a batch for this long, a router is no longer waited for


@dataclass(frozen=True, slots=True)
class _Reporter:
    number: int
    low_watermark_s: float
    last_batch_s: float  # boot clock


_Entry: TypeAlias = "Event | tuple[int, LostSpan]"  # with its sequence number


def _seq_of(entry: _Entry) -> int:
    return entry[0] if isinstance(entry, tuple) else entry.seq


def _at_s(entry: _Entry) -> float:
    return entry[1].until_s if isinstance(entry, tuple) else entry.at_s


class RecordLog:
    """Events of a service by sequence number, in a bounded ring."""

    def __init__(self, *, first_seq: int = 1, limit: int = LOG_LIMIT) -> None:
        """`first_seq`: above every number that an earlier log of this service may have used, as far as the
        wall clock was not set back since."""
        self._next_seq = first_seq
        self._ring: deque[_Entry] = deque(maxlen=limit)
        self._reporters: dict[str, _Reporter] = {}
        self._low_watermark_s = 0.0
        self._dropped_s: float | None = None  # None: no request has fallen out of the ring

    def append_batch(self, batch: RecordBatch, *, now_s: float, wall_s: float) -> bool:
        """Append a batch; False for a repeated one. `now_s`: boot clock, `wall_s`: wall clock."""
        before = self._reporters.get(batch.router)
        if before is not None and batch.number <= before.number:
            return False
        has_gap = before is not None and batch.number > before.number + 1
        if has_gap or batch.dropped:
            since_s = before.low_watermark_s if before else 0.0
            self._append((self._next_seq, LostSpan(batch.router, since_s, batch.low_watermark_s)))
        for record in batch.records:
            self._append(replace(record, seq=self._next_seq))
        for copied in batch.mirrored:
            self._append(replace(copied, seq=self._next_seq))
        self.append_scores(batch.scores)
        for verdict in batch.verdicts:
            self._append(replace(verdict, seq=self._next_seq))
        if batch.last:
            self._reporters.pop(batch.router, None)
        else:
            self._reporters[batch.router] = _Reporter(batch.number, batch.low_watermark_s, now_s)
        self._advance(now_s=now_s, wall_s=wall_s)
        return True

    def append_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Append scores, in this order."""
        for score in scores:
            self._append(replace(score, seq=self._next_seq))

    def read(self, after_seq: int, limit: int, *, now_s: float, wall_s: float) -> RecordPage:
        """Up to `limit` events after `after_seq`, and the spans lost among them. Raises ValueError.

        A number that this log has not given was read from an earlier one: the page begins at the oldest
        event, after a lost span, and its `next_seq` is lower than `after_seq`.
        """
        if limit < 1:
            raise ValueError(f"limit {limit} is below 1; request at least one event")
        self._advance(now_s=now_s, wall_s=wall_s)
        lost: list[LostSpan] = []
        oldest = _seq_of(self._ring[0]) if self._ring else self._next_seq
        is_of_another = after_seq >= self._next_seq
        # after_seq 0 is a new reader: it has lost nothing of what came before its first read.
        if after_seq and (after_seq < oldest - 1 or is_of_another):
            lost.append(LostSpan("", 0.0, _at_s(self._ring[0]) if self._ring else wall_s))
        start = oldest if is_of_another else max(after_seq + 1, oldest)
        end = min(start + limit, self._next_seq)
        entries = list(islice(self._ring, start - oldest, max(end, start) - oldest))
        lost += [entry[1] for entry in entries if isinstance(entry, tuple)]
        events = tuple(entry for entry in entries if not isinstance(entry, tuple))
        is_whole = end >= self._next_seq
        return RecordPage(
            events=events,
            next_seq=max(end, start) - 1,
            lost=tuple(lost),
            low_watermark_s=self._low_watermark_s if is_whole else 0.0,
            dropped_s=self._dropped_s,
        )

    def _advance(self, *, now_s: float, wall_s: float) -> None:
        """Drop routers that stopped reporting, then raise the low watermark to that of the slowest."""
        for name, reporter in list(self._reporters.items()):
            if now_s > reporter.last_batch_s + REPORTER_TIMEOUT_S:
                self._append((self._next_seq, LostSpan(name, reporter.low_watermark_s, wall_s)))
                del self._reporters[name]
        if self._reporters:
            slowest_s = min(reporter.low_watermark_s for reporter in self._reporters.values())
            self._low_watermark_s = max(self._low_watermark_s, slowest_s)

    def _append(self, entry: _Entry) -> None:
        if len(self._ring) == self._ring.maxlen and isinstance(dropped := self._ring[0], RequestRecord):
            self._dropped_s = max(dropped.at_s, self._dropped_s or dropped.at_s)
        self._ring.append(entry)
        self._next_seq += 1
