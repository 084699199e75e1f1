"""What a service's traffic is like, from its records log: for plans, and for warming a canary up.

Of stable alone, for a canary may be what is wrong; its newest requests, in blocks, so that what was long ago
is forgotten. Nothing is stored: after a restart the log is read again from its oldest event.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.evidence.feed import RecordsLog
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from serving.messages import STABLE, RequestRecord, ScoreRecord

WINDOW_S = 60.0
PAGE_EVENTS = 5_000
PAGES_A_LOOK = 4
BLOCK_REQUESTS = 500
BLOCKS = 40
LATENCIES = 4_000
IDS = 2 * BLOCKS * BLOCK_REQUESTS  # a request has up to two
OPEN_UNITS = 20_000
SESSION_S = 600.0
SCORES_TAKE_S = 600.0  # younger answers may still get a score: they say nothing of how many do


@dataclass(slots=True)
class _Sum:
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value


@dataclass(slots=True)
class _Block:
    """So many of stable's requests, one after the other."""

    requests: int = 0
    answered: int = 0
    last_s: float = 0.0
    events: dict[str, int] = field(default_factory=dict)
    scores: dict[str, _Sum] = field(default_factory=dict)
    sessions: int = 0
    session_requests: int = 0


class TrafficMeter:
    """Measures the requests of one service, and what its stable version is like."""

    def __init__(
        self, service: str, log: RecordsLog, promoted_at_s: Callable[[str], float] = lambda version: 0.0
    ) -> None:
        """promoted_at_s: when a version became the stable one; what is older was another's."""
        self._service = service
        self._log = log
        self._promoted_at_s = promoted_at_s
        self._stable: str | None = None  # None: not told yet
        self._begins_s = 0.0
        self._seq = 0
        self._recent: deque[float] = deque()
        self._since_s: float | None = None  # None: the log was not read yet
        self._now_s = 0.0
        self._lock = threading.Lock()  # a tick measures, a request for a plan reads
        self._forget()

    def look(self, now_s: float, stable: str = "") -> None:
        """Take in what is new; a log that cannot be read changes nothing. stable: id of that version."""
        if stable != self._stable:
            begins_s = self._promoted_at_s(stable)
            with self._lock:
                self._stable, self._begins_s = stable, begins_s
                self._forget()
        for _ in range(PAGES_A_LOOK):
            page = self._log.read(self._service, after_seq=self._seq, limit=PAGE_EVENTS)
            if page is None:
                return
            self._seq = page.next_seq
            with self._lock:
                for event in page.events:
                    if isinstance(event, RequestRecord):
                        self._take(event)
                    else:
                        self._take_score(event)
            if len(page.events) < PAGE_EVENTS:
                break
        self._now_s = now_s
        if self._since_s is None:
            self._since_s = now_s
        while self._recent and self._recent[0] < now_s - WINDOW_S:
            self._recent.popleft()

    def requests_per_s(self) -> float | None:
        """Requests a second over the last minute; None: nothing was counted yet."""
        if self._since_s is None or not self._recent:
            return None
        return len(self._recent) / WINDOW_S

    def measured(self) -> MeasuredBaseline:
        """What stable's newest requests, up to 20,000, were like."""
        with self._lock:
            return self._measured(tuple(self._blocks))

    def _measured(self, blocks: tuple[_Block, ...]) -> MeasuredBaseline:
        events: dict[str, int] = {}
        for block in blocks:
            for name, count in block.events.items():
                events[name] = events.get(name, 0) + count
        logs = sorted(math.log(max(value, 1e-3)) for value in self._latencies_ms)
        mean = math.fsum(logs) / len(logs) if logs else 0.0
        spread = math.sqrt(math.fsum((one - mean) ** 2 for one in logs) / len(logs)) if logs else None
        return MeasuredBaseline(
            requests=sum(block.requests for block in blocks),
            events=events,
            latency_p50_ms=math.exp(logs[len(logs) // 2]) if logs else None,
            latency_p99_ms=math.exp(logs[min(len(logs) - 1, int(0.99 * len(logs)))]) if logs else None,
            latency_log_sd=spread,
            scores=self._scored(blocks),
            unit_requests=self._unit_requests(blocks),
        )

    def _forget(self) -> None:
        self._blocks: deque[_Block] = deque([_Block()], maxlen=BLOCKS)
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self._places: OrderedDict[str, _Block] = OrderedDict()  # by the ids that a score may name
        self._open: OrderedDict[str, list[float]] = OrderedDict()  # unit -> [its session's begin, requests]

    def _take(self, record: RequestRecord) -> None:
        self._recent.append(record.at_s)
        if record.at_s < self._begins_s:
            return
        self._take_unit(record)
        if record.arm != STABLE or record.outcome == "fenced":
            return
        block = self._blocks[-1]
        if block.requests >= BLOCK_REQUESTS:
            block = _Block()
            self._blocks.append(block)
        block.requests += 1
        block.last_s = record.at_s
        flags = {
            "error": record.error is True,
            "truncated": record.finish_reason == "length",
            "empty": record.empty,
            "cancelled": record.outcome == "cancelled",
        }
        for name, is_so in flags.items():
            block.events[name] = block.events.get(name, 0) + is_so
        if record.error is False:
            block.answered += 1
            if record.latency_ms is not None:
                self._latencies_ms.append(record.latency_ms)
        for known_as in {record.request_id, record.answer_id} - {None}:
            self._places[str(known_as)] = block
        while len(self._places) > IDS:
            self._places.popitem(last=False)

    def _take_score(self, score: ScoreRecord) -> None:
        # A score from before its request was told is left out: it would only be one more.
        block = self._places.get(score.id)
        if block is not None:
            block.scores.setdefault(score.metric, _Sum()).add(score.value)

    def _take_unit(self, record: RequestRecord) -> None:
        block = self._blocks[-1]
        if record.assigned_by == "request":
            block.sessions += 1
            block.session_requests += 1
            return
        session = self._open.get(record.unit)
        if session is not None and record.at_s <= session[0] + SESSION_S:
            session[1] += 1
            return
        if session is not None:
            self._close(self._open.pop(record.unit))
        self._open[record.unit] = [record.at_s, 1]
        # Sessions begin in order, so the oldest are in front.
        while self._open:
            first = next(iter(self._open.values()))
            if first[0] + SESSION_S >= record.at_s and len(self._open) <= OPEN_UNITS:
                break
            self._close(self._open.popitem(last=False)[1])

    def _close(self, session: list[float]) -> None:
        self._blocks[-1].sessions += 1
        self._blocks[-1].session_requests += int(session[1])

    def _unit_requests(self, blocks: tuple[_Block, ...]) -> float:
        """Mean requests of a session; those still open count as they are, which is a little too few."""
        held = list(self._open.values())
        sessions = sum(block.sessions for block in blocks) + len(held)
        requests = sum(block.session_requests for block in blocks) + sum(one[1] for one in held)
        return requests / sessions if sessions else 1.0

    def _scored(self, blocks: tuple[_Block, ...]) -> dict[str, ScoreStats]:
        names = dict.fromkeys(name for block in blocks for name in block.scores)
        old = [block for block in blocks if block.last_s < self._now_s - SCORES_TAKE_S]
        answered = sum(block.answered for block in old)
        out = {}
        for name in names:
            sums = [block.scores[name] for block in blocks if name in block.scores]
            count = sum(one.count for one in sums)
            mean = math.fsum(one.total for one in sums) / count
            variance = max(math.fsum(one.squares for one in sums) / count - mean * mean, 0.0)
            judged = sum(block.scores[name].count for block in old if name in block.scores)
            ratio = min(judged / answered, 1.0) if answered >= BLOCK_REQUESTS else None
            out[name] = ScoreStats(count, mean, math.sqrt(variance), ratio)
        return out
