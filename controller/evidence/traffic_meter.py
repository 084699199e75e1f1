"""Traffic meter of a service: request rate and stable's baseline, from the records log.

The baseline covers stable alone (what the canary does may be the fault under test) and its newest requests,
in blocks, so that old ones drop out. Nothing is stored: after a restart the whole log is read again.
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controller.evidence.reader import JoinedPage
from controller.evidence.records import flags_of
from controller.evidence.score_join import JOIN_WINDOW_S
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from serving.messages import STABLE, RequestRecord, ScoreRecord

WINDOW_S = 60.0
BLOCK_REQUESTS = 500
BLOCKS = 40
LATENCIES = 4_000
OPEN_SESSIONS = 20_000
SESSION_S = 600.0
SCORES_TAKE_S = 600.0  # younger answers may still get a score, so they are left out of the judged share


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
    """Up to BLOCK_REQUESTS consecutive requests of stable."""

    first_seq: int = sys.maxsize  # of its first request; the maximum: it is empty
    requests: int = 0
    answered: int = 0
    last_s: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    scores: dict[str, _Sum] = field(default_factory=dict)
    sessions: int = 0
    session_requests: int = 0


class TrafficMeter:
    """Subscriber that measures one service's request rate and its stable version's baseline."""

    join_s = JOIN_WINDOW_S
    join_ids = 2 * BLOCKS * BLOCK_REQUESTS

    def __init__(self, promoted_at_s: Callable[[str], float] = lambda version: 0.0) -> None:
        """promoted_at_s: when a version became stable; older requests belong to its predecessor."""
        self._promoted_at_s = promoted_at_s
        self._stable: str | None = None  # None: not known yet
        self._stable_since_s = 0.0
        self.seq = 0
        self._recent: deque[float] = deque()
        self._now_s = 0.0
        self._lock = threading.Lock()  # ticks write, API requests read
        self._reset()

    def set_stable(self, stable: str) -> None:
        """Note the stable version's id; a different one starts the baseline anew."""
        if stable != self._stable:
            since_s = self._promoted_at_s(stable)
            with self._lock:
                self._stable, self._stable_since_s = stable, since_s
                self._reset()

    def on_page(self, page: JoinedPage, now_s: float) -> None:
        """Consume one page."""
        with self._lock:
            for event in page.events:
                if event.is_new:
                    self._add(event.request)
                self._add_scores(event.request, event.scores)
        self._now_s = now_s
        while self._recent and self._recent[0] < now_s - WINDOW_S:
            self._recent.popleft()

    def requests_per_s(self) -> float | None:
        """Requests per second over the last minute; None: there was none."""
        return len(self._recent) / WINDOW_S if self._recent else None

    def measured(self) -> MeasuredBaseline:
        """Baseline of stable's newest requests, up to 20,000."""
        with self._lock:
            events: Counter[str] = Counter()
            for block in self._blocks:
                events.update(block.events)
            logs = sorted(math.log(max(value, 1e-3)) for value in self._latencies_ms)
            mean = math.fsum(logs) / len(logs) if logs else 0.0
            spread = math.sqrt(math.fsum((one - mean) ** 2 for one in logs) / len(logs)) if logs else None
            return MeasuredBaseline(
                requests=sum(block.requests for block in self._blocks),
                events=events,
                latency_p50_ms=math.exp(logs[len(logs) // 2]) if logs else None,
                latency_p99_ms=math.exp(logs[min(len(logs) - 1, int(0.99 * len(logs)))]) if logs else None,
                latency_log_sd=spread,
                scores=self._scored(),
                unit_requests=self._unit_requests(),
            )

    def _reset(self) -> None:
        self._blocks: deque[_Block] = deque([_Block()], maxlen=BLOCKS)
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self._sessions: OrderedDict[str, tuple[float, int]] = OrderedDict()  # unit -> start, requests

    def _add(self, record: RequestRecord) -> None:
        self._recent.append(record.at_s)
        if record.at_s >= self._stable_since_s:
            self._add_to_session(record)
        if not self._is_of_stable(record):
            return
        block = self._blocks[-1]
        if block.requests >= BLOCK_REQUESTS:
            block = _Block()
            self._blocks.append(block)
        block.first_seq = min(block.first_seq, record.seq)
        block.requests += 1
        block.last_s = record.at_s
        block.events.update(error=record.error is True, **flags_of(record))
        if record.error is False and not record.rejected:
            block.answered += 1
            if record.latency_ms is not None:
                self._latencies_ms.append(record.latency_ms)

    def _add_scores(self, request: RequestRecord, scores: Sequence[ScoreRecord]) -> None:
        if not scores or not self._is_of_stable(request):
            return
        index = bisect_right(self._blocks, request.seq, key=lambda block: block.first_seq) - 1
        if index >= 0:
            sums = self._blocks[index].scores
            for score in scores:
                sums.setdefault(score.metric, _Sum()).add(score.value)

    def _is_of_stable(self, record: RequestRecord) -> bool:
        return record.arm == STABLE and record.at_s >= self._stable_since_s

    def _add_to_session(self, record: RequestRecord) -> None:
        if record.assigned_by == "request":
            self._close(1)
            return
        session = self._sessions.get(record.unit)
        if session is not None and record.at_s <= session[0] + SESSION_S:
            self._sessions[record.unit] = (session[0], session[1] + 1)
            return
        if session is not None:
            self._close(self._sessions.pop(record.unit)[1])
        self._sessions[record.unit] = (record.at_s, 1)
        # Sessions start in order, so the oldest are in front.
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if oldest[0] + SESSION_S >= record.at_s and len(self._sessions) <= OPEN_SESSIONS:
                break
            self._close(self._sessions.popitem(last=False)[1][1])

    def _close(self, requests: int) -> None:
        self._blocks[-1].sessions += 1
        self._blocks[-1].session_requests += requests

    def _unit_requests(self) -> float:
        """Mean requests per session; open ones count as they are, which is a slight underestimate."""
        sessions = sum(block.sessions for block in self._blocks) + len(self._sessions)
        requests = sum(block.session_requests for block in self._blocks)
        requests += sum(count for _, count in self._sessions.values())
        return requests / sessions if sessions else 1.0

    def _scored(self) -> dict[str, ScoreStats]:
        names = dict.fromkeys(name for block in self._blocks for name in block.scores)
        old = [block for block in self._blocks if block.last_s < self._now_s - SCORES_TAKE_S]
        answered = sum(block.answered for block in old)
        out = {}
        for name in names:
            sums = [block.scores[name] for block in self._blocks if name in block.scores]
            count = sum(one.count for one in sums)
            mean = math.fsum(one.total for one in sums) / count
            variance = max(math.fsum(one.squares for one in sums) / count - mean * mean, 0.0)
            judged = sum(block.scores[name].count for block in old if name in block.scores)
            ratio = min(judged / answered, 1.0) if answered >= BLOCK_REQUESTS else None
            out[name] = ScoreStats(count, mean, math.sqrt(variance), ratio)
        return out
