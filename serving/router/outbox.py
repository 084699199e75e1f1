"""A router's outbox: request records on their way to the records log, pure (time comes in as a value).

Rules:
1. A router reports each request once, in numbered batches: when it has ended, or as it stands when it has
   been open for SETTLE_S, so that no stream without an end holds back what came after it. Each batch has a
   low watermark: every request that this router assigned before it has been reported.
2. A draw counts only when a poll sent after it found its table's canary still published. Until then its
   record waits; if the canary was withdrawn instead, or no poll confirmed the draw within SETTLE_S of it, the
   record is marked 'fenced'. This looks at no outcome and at no arm, so it leaves out both arms alike.
3. Everything is bounded: a router that cannot reach the log drops its oldest records and says so.

Invariant: nothing here waits for anything; a slow or dead log never delays a request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TypeAlias

from serving.messages import RecordBatch, RequestRecord

OUTBOX_LIMIT = 20_000  # records
BATCH_LIMIT = 2_000
CONFIRMED_LIMIT = 8  # canaries whose last confirmation is remembered for requests still open
SETTLE_S = 60.0  # no request is waited for longer

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
