"""The one reader of a service's records log: reads once per tick, joins scores, delivers to subscribers.

Rules:
1. A subscriber receives every page after its own position, in log order, with the lost spans of that page.
2. Subscribers at one position share each read. One that is behind (it is new, or restored from a snapshot)
   is read for separately until it catches up; the others do not wait for it.
3. A log that cannot be read leaves every subscriber as it was.
4. A log that began anew with lower numbers, because the wall clock was set back, is read from its start; its
   first page has the lost span.
5. A subscriber that raises is dropped, with the page behind it: it never sees a page twice, and the others go
   on. Whoever subscribed it decides where it starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller import telemetry
from controller.evidence.score_join import IdBudget, Joined, ScoreJoin
from serving.judge_messages import JudgeRecord
from serving.messages import LostSpan, MirrorRecord, RecordPage

PAGE_EVENTS = 5_000
PAGES_A_TICK = 4  # per position
READ_S = 1.0  # of a tick, per position: many gates take milliseconds for each request


class RecordsLog(Protocol):
    """The one replayable stream of a service. None: it cannot be read now."""

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None: ...


@dataclass(frozen=True, slots=True)
class JoinedPage:
    """One page of the log, its scores joined to their requests."""

    events: Sequence[Joined]
    lost: Sequence[LostSpan]
    low_watermark_s: float  # every request assigned before this was delivered; 0: more pages follow first
    is_end: bool  # the log holds nothing more now
    mirrored: Sequence[MirrorRecord] = ()  # copies to a mirrored canary, of any rollout
    verdicts: Sequence[JudgeRecord] = ()  # of judges, in log order, of any rollout


class Subscriber(Protocol):
    """A consumer of the log. Its position survives the reader, so it may subscribe to the next one."""

    seq: int  # the last event consumed; advanced by the reader after each page
    join_s: float  # how long a score is held until its request comes
    join_ids: int  # how many request and answer ids scores may refer to; a request has up to two

    def on_page(self, page: JoinedPage, now_s: float) -> None: ...


class RecordsReader:
    """Subscribers of one service's log and the join they share. Not shared between threads."""

    def __init__(
        self,
        service: str,
        log: RecordsLog,
        budget: IdBudget | None = None,
        *,
        elapsed_s: Callable[[], float] | None = None,
    ) -> None:
        """budget: of the ids that scores may refer to, shared by all services; None: one of its own.
        elapsed_s: a clock that only goes forward, by which a tick reads for READ_S; None: by pages alone."""
        self._service = service
        self._log = log
        self._join = ScoreJoin(budget)
        self._subscribers: dict[str, Subscriber] = {}
        self._elapsed_s = elapsed_s or (lambda: 0.0)
        self._awaited: Subscriber | None = None  # its replay is under way; None: none is
        self._has_read = False

    def subscribe(self, name: str, subscriber: Subscriber) -> None:
        """Deliver to `subscriber` from the next poll on; it replaces an earlier one of this name."""
        self._subscribers[name] = subscriber
        if subscriber is self._awaited:
            self._awaited = None

    def unsubscribe(self, name: str) -> None:
        """Deliver no more; does nothing for an unknown name."""
        self._subscribers.pop(name, None)

    def poll(self, now_s: float) -> bool:
        """Read what is new for every subscriber; False: the log cannot be read now."""
        subscribers = self._subscribers.values()
        for position in sorted({one.seq for one in subscribers}):
            if not self._advance(position, now_s):
                return False
        needs = [*subscribers, *([] if self._awaited is None else [self._awaited])]
        if needs:
            self._join.forget(
                before_s=now_s - max(one.join_s for one in needs),
                max_ids=max(one.join_ids for one in needs),
            )
        return True

    def replay(
        self, after_seq: int, subscriber: Subscriber, consume: Callable[[Sequence[Joined]], None]
    ) -> int | None:
        """Read again what a subscriber had consumed, from `after_seq` on, `PAGES_A_TICK` pages at most.

        Returns the position reached: done at `subscriber.seq`, so subscribe; before it, call again with that.
        None: the log cannot be read now.
        """
        self._awaited = subscriber
        for _ in range(PAGES_A_TICK):
            if after_seq >= subscriber.seq:
                break
            page = self._read(after_seq, min(PAGE_EVENTS, subscriber.seq - after_seq))
            if page is None:
                return None
            if page.next_seq < after_seq:
                return subscriber.seq  # of an earlier log, which is gone; the new one is read by `poll`
            consume(self._join.join(event for event in page.events if event.seq <= subscriber.seq))
            after_seq = page.next_seq if page.next_seq > after_seq else subscriber.seq
        return after_seq

    def _read(self, after_seq: int, limit: int) -> RecordPage | None:
        page = self._log.read(self._service, after_seq=after_seq, limit=limit)
        if page is None:
            return None
        if page.dropped_s is not None and not self._has_read:
            self._join.miss(page.dropped_s)
        for span in page.lost:
            if not span.router:  # it fell out of the log before it was read
                self._join.miss(span.until_s)
        self._has_read = True
        return page

    def has(self, name: str) -> bool:
        """True: a subscriber of this name is subscribed. False: it never was, or it was dropped."""
        return name in self._subscribers

    def has_request(self, id: str) -> bool:
        """True: a recent request with this request id or answer id was read. Safe to call from any thread."""
        return self._join.has(id)

    def has_score(self, id: str, metric: str) -> bool:
        """True: a score of the metric was read for the request with this id. Safe to call from any thread."""
        return self._join.has_score(id, metric)

    @property
    def forgotten_after_s(self) -> float | None:
        """Age at which requests are forgotten, too early for some scores; None: none is too late for that."""
        return self._join.forgotten_after_s

    def resume_seq(self, seq: int) -> int:
        """The position to restart from, for a subscriber at `seq`: before the oldest score still held."""
        first_held = self._join.first_held()
        return seq if first_held is None else min(seq, first_held - 1)

    def _deliver(self, subscriber: Subscriber, page: JoinedPage, now_s: float) -> None:
        names = [name for name, one in self._subscribers.items() if one is subscriber]
        if not names:
            return  # dropped at an earlier page of this poll
        try:
            subscriber.on_page(page, now_s)
        except Exception as exc:  # noqa: BLE001 - one consumer's fault must not stop the others
            telemetry.error("a subscriber failed on the records log", exc, subscriber=names[0])
            del self._subscribers[names[0]]

    def _advance(self, position: int, now_s: float) -> bool:
        group = [one for one in self._subscribers.values() if one.seq == position]
        until_s = self._elapsed_s() + READ_S
        for _ in range(PAGES_A_TICK):
            page = self._read(position, PAGE_EVENTS)
            if page is None:
                return False
            is_anew = page.next_seq < position
            if is_anew:
                telemetry.warning(
                    "the records log began anew with lower numbers, was the clock set back? What was not "
                    "read of the earlier one is lost",
                    service=self._service,
                )
            is_end = not is_anew and page.next_seq - position < PAGE_EVENTS
            mirrored = [event for event in page.events if isinstance(event, MirrorRecord)]
            verdicts = [event for event in page.events if isinstance(event, JudgeRecord)]
            events = self._join.join(page.events, now_s=now_s)
            joined = JoinedPage(events, page.lost, page.low_watermark_s, is_end, mirrored, verdicts)
            for subscriber in group:
                subscriber.seq = page.next_seq  # first: a page that it fails on must not be counted again
                self._deliver(subscriber, joined, now_s)
            position = page.next_seq
            if is_end or self._elapsed_s() >= until_s:
                break
        return True
