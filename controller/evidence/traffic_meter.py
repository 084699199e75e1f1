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

from controller.evidence.outages import Outage, StableAnswers
from controller.evidence.pricing import tokens_of
from controller.evidence.reader import JoinedPage
from controller.evidence.records import OF_SIGNALS, flags_of
from controller.evidence.score_join import JOIN_WINDOW_S
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from serving.messages import STABLE, RequestRecord, ScoreRecord
from serving.targets import TEXT_PATHS

# The rate is taken from the shortest window with enough requests: few say nothing about what is to come.
RATE_WINDOWS_S = (60.0, 600.0, 3600.0)
MIN_RATE_REQUESTS = 30
BUCKET_S = 5.0
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
    texts: int = 0  # answers of text, and those of them whose signals were read
    texts_read: int = 0
    last_s: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    scores: dict[str, _Sum] = field(default_factory=dict)
    values: Counter[str] = field(default_factory=Counter)  # requests with a value, by metric
    sessions: int = 0
    session_requests: int = 0
    keyed: int = 0  # requests whose unit is a key
    alone: int = 0  # requests that are units of their own


class RequestRate:
    """Request rate of the last minute, ten minutes or hour. Memory: one count for each `BUCKET_S`."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by BUCKET_S
        self._first_s: float | None = None  # time of the first request; None: there was none

    def add(self, at_s: float) -> None:
        """Count a request."""
        self._counts[int(at_s // BUCKET_S)] += 1
        self._first_s = at_s if self._first_s is None else min(self._first_s, at_s)

    def forget(self, now_s: float) -> None:
        """Drop what is older than the longest window, or in the future since the clock was set back."""
        oldest, newest = (now_s - RATE_WINDOWS_S[-1]) // BUCKET_S, now_s // BUCKET_S + 1
        for bucket in [one for one in self._counts if not oldest <= one <= newest]:
            del self._counts[bucket]

    def per_s(self, now_s: float) -> float | None:
        """Requests per second; None: fewer than `MIN_RATE_REQUESTS` in an hour."""
        for window_s in RATE_WINDOWS_S:
            oldest = (now_s - window_s) // BUCKET_S
            count = sum(count for bucket, count in self._counts.items() if bucket > oldest)
            if count >= MIN_RATE_REQUESTS and self._first_s is not None:
                return count / min(window_s, max(now_s - self._first_s, RATE_WINDOWS_S[0]))
        return None


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
        self._rate = RequestRate()
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
            self._rate.forget(now_s)

    @property
    def stable(self) -> str | None:
        """The stable version's id; None: not known yet."""
        return self._stable

    def outage(self, now_s: float) -> Outage | None:
        """The newest requests to stable, where none of them was answered; None: it answers, or none came."""
        with self._lock:
            return self._answers.outage(now_s)

    def answered_s(self) -> float | None:
        """When stable's newest answer ended; None: none is known."""
        with self._lock:
            return self._answers.answered_s

    def requests_per_s(self) -> float | None:
        """Requests per second, lately; None: too few to tell."""
        with self._lock:
            return self._rate.per_s(self._now_s)

    def measured(self) -> MeasuredBaseline:
        """Baseline of stable's newest requests, up to 20,000."""
        with self._lock:
            events: Counter[str] = Counter()
            values: Counter[str] = Counter()
            for block in self._blocks:
                events.update(block.events)
                values.update(block.values)
            # A router reads only some of the answers that no rollout compares, chosen by their time alone.
            texts, read = sum(one.texts for one in self._blocks), sum(one.texts_read for one in self._blocks)
            events.update({name: round(events[name] * (texts / read - 1)) for name in OF_SIGNALS if read})
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
                keyed_share=self._keyed_share(),
                values=values,
                settled=sum(block.answered for block in self._blocks if self._is_settled(block)),
            )

    def _reset(self) -> None:
        self._blocks: deque[_Block] = deque([_Block()], maxlen=BLOCKS)
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self._answers = StableAnswers()
        self._sessions: OrderedDict[str, tuple[float, int]] = OrderedDict()  # unit -> start, requests

    def _add(self, record: RequestRecord) -> None:
        self._rate.add(record.at_s)
        if record.at_s >= self._stable_since_s:
            self._add_to_session(record)
            self._answers.add(record)
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
        if record.path in TEXT_PATHS and record.outcome == "answered" and record.error is False:
            block.texts += 1
            block.texts_read += record.signals is not None
        block.values.update(name for name, value in _values(record) if value is not None)
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
        if record.assigned_by in ("request", "heavy"):
            self._blocks[-1].alone += 1
            self._close(1)
            return
        self._blocks[-1].keyed += 1
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

    def _keyed_share(self) -> float:
        """Share of the requests whose unit is a key; 0 without requests."""
        keyed = sum(block.keyed for block in self._blocks)
        requests = keyed + sum(block.alone for block in self._blocks)
        return keyed / requests if requests else 0.0

    def _is_settled(self, block: _Block) -> bool:
        return block.last_s < self._now_s - SCORES_TAKE_S

    def _scored(self) -> dict[str, ScoreStats]:
        names = dict.fromkeys(name for block in self._blocks for name in block.scores)
        old = [block for block in self._blocks if self._is_settled(block)]
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


def _values(record: RequestRecord) -> tuple[tuple[str, float | None], ...]:
    """The metrics of a record that are numbers."""
    return (
        ("latency_ms", record.latency_ms),
        ("ttft_ms", record.ttft_ms),
        ("itl_ms", record.itl_ms),
        ("tokens", tokens_of(record).completion),
    )
