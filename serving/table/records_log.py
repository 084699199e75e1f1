"""How records travel: a router's outbox and the service's log, both pure (time comes in as a value).

Rules:
1. A router tells each request once, in numbered batches: when it has ended, or as it stands when it has been
   open for SETTLE_S, so that no stream without an end holds back what came after it. Each batch has a low
   watermark: every request that this router assigned before it has been told.
2. A draw counts only when a poll sent after it found its table's canary still published. Until then its
   record waits; if the canary was withdrawn instead, or no poll confirmed the draw within SETTLE_S of it, the
   record is marked 'fenced'. This looks at no outcome and at no arm, so it leaves out both arms alike.
3. The log numbers its events without holes. What is missing (a lost batch, a silent router, an event that
   fell out of the ring) is told as a span of time: both arms of it are to be dropped.
4. Everything is bounded: a router that cannot reach the log gives up its oldest records and says so.

Invariant: nothing here waits for anything; a slow or dead log never delays a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

from serving.messages import Event, LostSpan, RecordBatch, RecordPage, RequestRecord, ScoreRecord

OUTBOX_LIMIT = 20_000  # records
BATCH_LIMIT = 2_000
CONFIRMED_LIMIT = 8  # canaries whose last confirmation is remembered for requests still open
LOG_LIMIT = 200_000  # events
SETTLE_S = 60.0  # EVALUATION.md, "Order": longer than that, no request is waited for
SILENT_S = 5.0  # a router that has not reported for so long is given up


Canary: TypeAlias = tuple[str, str]  # (rollout, version)


@dataclass(slots=True)
class _Waiting:
    record: RequestRecord
    drawn_s: float  # boot clock
    canary: Canary


class Outbox:
    """One router's records on their way to the log."""

    def __init__(self, router: str) -> None:
        self._router = router
        self._number = 0
        self._open: dict[str, float] = {}  # request id -> at_s, in order of assignment
        self._waiting: deque[_Waiting] = deque()  # told, not confirmed yet
        self._confirmed: dict[Canary, float] = {}  # when a poll was sent that found it published
        self._ready: deque[RequestRecord] = deque()
        self._dropped = 0
        self._unsent: RecordBatch | None = None

    def opened(self, request_id: str, at_s: float) -> None:
        """A request has been assigned."""
        self._open[request_id] = at_s

    def ended(self, record: RequestRecord, *, drawn_s: float, canary: Canary | None) -> None:
        """Its record, when it has ended or as it stands.

        `drawn_s`: boot clock. `canary`: the one it could have gone to; None: not drawn.
        """
        self._open.pop(record.request_id, None)
        if canary is None or drawn_s <= self._confirmed.get(canary, 0.0):
            self._ready.append(record)
        else:
            self._waiting.append(_Waiting(record, drawn_s, canary))
        while len(self._ready) + len(self._waiting) > OUTBOX_LIMIT:
            (self._ready or self._waiting).popleft()
            self._dropped += 1

    def confirm(self, sent_s: float, canary: Canary | None) -> None:
        """A poll sent at `sent_s` (boot clock) found this canary published; None: none."""
        if canary is not None:
            self._confirmed.pop(canary, None)
            self._confirmed[canary] = sent_s
            while len(self._confirmed) > CONFIRMED_LIMIT:
                del self._confirmed[next(iter(self._confirmed))]
        still: deque[_Waiting] = deque()
        for one in self._waiting:
            if one.drawn_s <= self._confirmed.get(one.canary, 0.0):
                self._ready.append(one.record)
            elif one.canary != canary:
                self._ready.append(replace(one.record, assigned_by="fenced"))
            else:
                still.append(one)
        self._waiting = still

    def give_up(self, drawn_s: float) -> None:
        """No poll has confirmed what was drawn by `drawn_s` (boot clock), and none is waited for any more."""
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if one.drawn_s <= drawn_s:
                self._ready.append(replace(one.record, assigned_by="fenced"))
            else:
                self._waiting.append(one)

    def take(self, *, now_s: float, last: bool = False) -> RecordBatch:
        """The next batch, or again the one whose `sent` has not been said. `now_s`: wall clock."""
        if self._unsent is None:
            records = tuple(self._ready.popleft() for _ in range(min(len(self._ready), BATCH_LIMIT)))
            self._number += 1
            mark = self._low_watermark_s(now_s)
            self._unsent = RecordBatch(self._router, self._number, records, mark, self._dropped, last)
            self._dropped = 0
        return self._unsent

    def sent(self) -> None:
        """The log has taken the batch."""
        self._unsent = None

    def _low_watermark_s(self, now_s: float) -> float:
        mark = next(iter(self._open.values()), now_s)
        for one in self._waiting:
            mark = min(mark, one.record.at_s)
        for record in self._ready:
            mark = min(mark, record.at_s)
        return mark


@dataclass(frozen=True, slots=True)
class _Reporter:
    number: int
    low_watermark_s: float
    heard_s: float  # boot clock


_Entry: TypeAlias = "Event | tuple[int, LostSpan]"


def _seq_of(entry: _Entry) -> int:
    return entry[0] if isinstance(entry, tuple) else entry.seq


class RecordLog:
    """The one ordered stream of a service: requests and scores by sequence number, in a bounded ring."""

    def __init__(self, *, first_seq: int = 1, limit: int = LOG_LIMIT) -> None:
        """`first_seq`: above every number that an earlier log of this service may have given out."""
        self._first_seq = first_seq
        self._next_seq = first_seq
        self._ring: deque[_Entry] = deque(maxlen=limit)
        self._reporters: dict[str, _Reporter] = {}
        self._low_watermark_s = 0.0

    def append_batch(self, batch: RecordBatch, *, now_s: float, wall_s: float) -> bool:
        """Takes a batch once; False for one taken before. `now_s`: boot clock, `wall_s`: wall clock."""
        before = self._reporters.get(batch.router)
        if before is not None and batch.number <= before.number:
            return False
        lost = batch.dropped > 0 or (before is not None and batch.number > before.number + 1)
        if lost:
            since_s = before.low_watermark_s if before else 0.0
            self._append_lost(LostSpan(batch.router, since_s, batch.low_watermark_s))
        for record in batch.records:
            self._append(replace(record, seq=self._next_seq))
        if batch.last:
            self._reporters.pop(batch.router, None)
        else:
            self._reporters[batch.router] = _Reporter(batch.number, batch.low_watermark_s, now_s)
        self._advance(now_s=now_s, wall_s=wall_s)
        return True

    def append_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Takes scores, in this order, behind all that came before."""
        for score in scores:
            self._append(replace(score, seq=self._next_seq))

    def read(self, after_seq: int, limit: int, *, now_s: float, wall_s: float) -> RecordPage:
        """Up to `limit` events after `after_seq`, and what was lost among them. Raises ValueError."""
        if limit < 1:
            raise ValueError(f"limit {limit} is below 1; ask for at least one event")
        self._advance(now_s=now_s, wall_s=wall_s)
        lost: list[LostSpan] = []
        oldest = _seq_of(self._ring[0]) if self._ring else self._next_seq
        # after_seq 0 is a first reader: what was before it asked was not lost to it.
        if after_seq and after_seq < oldest - 1:
            until_s = self._at_s(self._ring[0]) if self._ring else wall_s
            lost.append(LostSpan("", 0.0, until_s))
        start = max(after_seq + 1, oldest)
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
        )

    def _advance(self, *, now_s: float, wall_s: float) -> None:
        """Gives up silent routers, then raises the low watermark to that of the slowest router."""
        for name, one in list(self._reporters.items()):
            if now_s > one.heard_s + SILENT_S:
                self._append_lost(LostSpan(name, one.low_watermark_s, wall_s))
                del self._reporters[name]
        if self._reporters:
            slowest = min(one.low_watermark_s for one in self._reporters.values())
            self._low_watermark_s = max(self._low_watermark_s, slowest)

    def _append(self, event: Event) -> None:
        self._ring.append(event)
        self._next_seq += 1

    def _append_lost(self, span: LostSpan) -> None:
        self._ring.append((self._next_seq, span))
        self._next_seq += 1

    @staticmethod
    def _at_s(entry: _Entry) -> float:
        return entry[1].until_s if isinstance(entry, tuple) else entry.at_s
