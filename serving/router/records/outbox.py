"""Outbox of a router: request records on their way to the records log. Pure: time is a parameter.

Rules:
1. Each request is reported once, in numbered batches: when it has ended, or as open after SETTLE_S, so that
   an endless stream does not hold back later requests. Each batch has a low watermark: every request that
   this router assigned before it has been reported.
2. An assignment counts only when a poll sent after it found its canary still published. Until then its record
   waits. If the canary was withdrawn instead, or no poll confirmed the assignment within SETTLE_S, the record
   is marked 'fenced'. That depends on neither outcome nor arm, so both arms are left out alike.
3. Everything is bounded: a router that cannot reach the log drops its oldest records and reports how many.

Invariant: nothing here blocks; a slow or dead log never delays a request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from serving.judge_messages import JudgeRecord
from serving.messages import MirrorRecord, RecordBatch, RequestRecord
from serving.router.records.votes import WAITING_LIMIT, Votes
from serving.router.types import Canary

OUTBOX_LIMIT = 20_000  # records
BATCH_LIMIT = 2_000
MIRRORED_LIMIT = 2_000  # records of copies
VERDICTS_LIMIT = 4_000  # records of questions to a judge
CONFIRMED_LIMIT = 8  # canaries whose last confirmation is kept for requests that are still open


@dataclass(slots=True)
class _Unconfirmed:
    record: RequestRecord
    assigned_s: float  # boot clock
    canary: Canary


class Outbox:
    """One router's records, from assignment until the log has accepted them."""

    def __init__(self, router: str) -> None:
        self._router = router
        self._number = 0
        self._open: dict[str, float] = {}  # request id -> at_s, in order of assignment
        self._unconfirmed: deque[_Unconfirmed] = deque()
        self._confirmed_s: dict[Canary, float] = {}  # when the last poll that found it published was sent
        self._ready: deque[RequestRecord] = deque()
        self._mirrored: deque[MirrorRecord] = deque(maxlen=MIRRORED_LIMIT)
        self._verdicts: deque[JudgeRecord] = deque(maxlen=VERDICTS_LIMIT)
        # In all; the requests that they are of are known as `judged`, and so as missing.
        self.lost_verdicts = 0
        self._dropped = 0  # since the last batch
        self.dropped_in_all = 0
        self._unacknowledged: RecordBatch | None = None
        self.votes = Votes()

    @property
    def waiting(self) -> int:
        """Records that no batch holds yet."""
        return len(self._ready) + len(self._unconfirmed)

    @property
    def has_open(self) -> bool:
        """True while a request that was assigned has no record."""
        return bool(self._open)

    def opened(self, request_id: str, at_s: float) -> None:
        """A request has been assigned."""
        self._open[request_id] = at_s

    def add(self, record: RequestRecord, *, assigned_s: float, canary: Canary | None) -> None:
        """The record of a request that has ended or is given up as open.

        `assigned_s`: boot clock. `canary`: the one it could have been assigned to; None: not randomised.
        """
        self._open.pop(record.request_id, None)
        if canary is None or assigned_s <= self._confirmed_s.get(canary, 0.0):
            self._ready.append(record)
        else:
            self._unconfirmed.append(_Unconfirmed(record, assigned_s, canary))
        while len(self._ready) + len(self._unconfirmed) > OUTBOX_LIMIT:
            (self._ready or self._unconfirmed).popleft()
            self._dropped += 1
            self.dropped_in_all += 1

    def add_mirrored(self, record: MirrorRecord) -> None:
        """The record of a copy that has ended; the oldest goes when there are too many."""
        self._mirrored.append(record)

    def add_verdict(self, record: JudgeRecord) -> None:
        """What came of a question to the judge; the oldest goes when there are too many. From any thread."""
        if len(self._verdicts) == VERDICTS_LIMIT:
            self.lost_verdicts += 1
        self._verdicts.append(record)

    def confirm(self, sent_s: float, canary: Canary | None) -> None:
        """A poll sent at `sent_s` (boot clock) found this canary published; None: no canary."""
        if canary is not None:
            self._confirmed_s.pop(canary, None)
            self._confirmed_s[canary] = sent_s
            while len(self._confirmed_s) > CONFIRMED_LIMIT:
                del self._confirmed_s[next(iter(self._confirmed_s))]
        unconfirmed, self._unconfirmed = self._unconfirmed, deque()
        for one in unconfirmed:
            if one.assigned_s <= self._confirmed_s.get(one.canary, 0.0):
                self._ready.append(one.record)
            else:
                self._wait(one, is_fenced=one.canary != canary)

    def expire(self, assigned_s: float) -> None:
        """Mark as fenced what was assigned by `assigned_s` (boot clock) and is still unconfirmed."""
        unconfirmed, self._unconfirmed = self._unconfirmed, deque()
        for one in unconfirmed:
            self._wait(one, is_fenced=one.assigned_s <= assigned_s)

    def _wait(self, one: _Unconfirmed, *, is_fenced: bool) -> None:
        """Let it wait for a confirmation; is_fenced: none will come."""
        if is_fenced:
            self._ready.append(replace(one.record, assigned_by="fenced"))
        else:
            self._unconfirmed.append(one)

    def next_batch(self, *, now_s: float, last: bool = False) -> RecordBatch:
        """The next batch; the same one again until it is acknowledged. `now_s`: wall clock. last: no
        other comes after it, so that it takes all."""
        if self._unacknowledged is None:
            most = OUTBOX_LIMIT + WAITING_LIMIT if last else BATCH_LIMIT
            records = tuple(self._ready.popleft() for _ in range(min(len(self._ready), most)))
            self._number += 1
            watermark_s = self._low_watermark_s(now_s)
            self._unacknowledged = RecordBatch(
                *(self._router, self._number, records, watermark_s, self._dropped, last),
                mirrored=tuple(self._mirrored),
                scores=self.votes.take(most),
                # One by one: another thread may add to them.
                verdicts=tuple(self._verdicts.popleft() for _ in range(len(self._verdicts))),
            )
            self._mirrored.clear()
            self._dropped = 0
        return self._unacknowledged

    def acknowledge(self) -> None:
        """The log has accepted the batch."""
        self._unacknowledged = None

    def _low_watermark_s(self, now_s: float) -> float:
        watermark_s = next(iter(self._open.values()), now_s)
        for one in self._unconfirmed:
            watermark_s = min(watermark_s, one.record.at_s)
        for record in self._ready:
            watermark_s = min(watermark_s, record.at_s)
        return watermark_s
