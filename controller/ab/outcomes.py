"""Which requests of a service are an A/B test's outcomes, in which order, and when each may be counted.

One outcome a unit, in the order of assignment. A request counts when every earlier one has been told and has
its score, or has waited for it long enough: a version that answers or is graded faster is not heard sooner.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from evaluation.units.units import HELD, LEFT_OUT, kind_of, unit_hash

MAX_OUTCOMES = 200_000
MAX_PENDING = 200_000
HELD_SCORES = 20_000
HELD_S = 900.0  # how long a score waits for its request to be told
#: What a request's own record holds.
REQUEST_METRICS = frozenset(
    {"error", "latency_ms", "ttft_ms", "itl_ms", "tokens", "truncated", "empty", "cancelled"}
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One unit's outcome. `y` None: it never came; shown by arm, never counted."""

    unit: int
    is_b: bool
    w: float
    y: float | None
    at_s: float


class Request(Protocol):
    """What a test reads of a request's record."""

    @property
    def seq(self) -> int: ...
    @property
    def request_id(self) -> str: ...
    @property
    def answer_id(self) -> str | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def rollout(self) -> str: ...
    @property
    def arm(self) -> int: ...
    @property
    def w(self) -> float: ...
    @property
    def assigned_by(self) -> str: ...
    @property
    def at_s(self) -> float: ...


class Score(Protocol):
    """What a test reads of a score."""

    @property
    def seq(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def at_s(self) -> float: ...


def request_value(record: object, metric: str) -> float | None:
    """The metric's value that a request's record itself holds; None: it holds none."""
    if metric not in REQUEST_METRICS:
        return None
    if metric == "truncated":
        return float(getattr(record, "finish_reason", None) == "length")
    if metric == "cancelled":
        return float(getattr(record, "outcome", None) == "cancelled")
    value = getattr(record, {"tokens": "completion_tokens"}.get(metric, metric))
    return None if value is None else float(value)


@dataclass(slots=True)
class _Waiting:
    seq: int
    names: tuple[str, ...]
    unit: int
    is_b: bool
    w: float
    at_s: float
    y: float | None


@dataclass(slots=True)
class OutcomeLedger:
    """Requests of one test that wait for their turn or their score, and which units have been counted."""

    rollout: str
    metric: str
    score_wait_s: float
    settled_through_s: float = 0.0  # everything assigned before this has been given out
    seen: set[int] = field(default_factory=set)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # by request id
    _names: dict[str, str] = field(default_factory=dict)  # answer id -> request id
    _held: OrderedDict[str, Score] = field(
        default_factory=OrderedDict
    )  # scores that came before their request

    def add_request(self, record: Request) -> None:
        """Take a request; a score of it may have come before it."""
        is_ours = record.rollout == self.rollout and 0 < record.w < 1
        if not is_ours or record.at_s < self.settled_through_s or len(self._waiting) >= MAX_PENDING:
            return
        if kind_of(record.assigned_by) in (LEFT_OUT, HELD):
            return
        names = tuple(name for name in (record.request_id, record.answer_id) if name is not None)
        y = request_value(record, self.metric)
        for name in names:
            if (score := self._held.pop(name, None)) is not None:
                y = score.value
        self._waiting[record.request_id] = _Waiting(
            record.seq, names, unit_hash(record.unit), record.arm == 1, record.w, record.at_s, y
        )
        for name in names:
            self._names[name] = record.request_id

    def add_score(self, score: Score) -> None:
        """Take a score, by the request's or the answer's id."""
        if score.metric != self.metric or self.metric in REQUEST_METRICS:
            return
        found = self._waiting.get(self._names.get(score.id, ""))
        if found is not None:
            found.y = score.value
            return
        # Records come in batches, so most scores are here first; those of nobody are forgotten in time.
        self._held[score.id] = score
        while len(self._held) > HELD_SCORES or next(iter(self._held.values())).at_s < score.at_s - HELD_S:
            self._held.popitem(last=False)

    def drop_span(self, since_s: float, until_s: float) -> None:
        """Forget both arms of a span in which records may be lost."""
        for waiting in [w for w in self._waiting.values() if since_s <= w.at_s < until_s]:
            self._forget(waiting)

    def settle(self, through_s: float, now_s: float) -> list[Outcome]:
        """Outcomes that are due, in order of assignment, each unit once.

        through_s: every request assigned before it has been told. The first that still waits for its score
        keeps all later ones waiting, for `score_wait_s` at most; what a record holds itself is due at once.
        """
        is_scored = self.metric not in REQUEST_METRICS
        told = [w for w in self._waiting.values() if w.at_s < through_s]
        settled_s = through_s
        out = []
        for waiting in sorted(told, key=lambda w: (w.at_s, w.seq)):
            if is_scored and waiting.y is None and now_s - waiting.at_s < self.score_wait_s:
                settled_s = waiting.at_s
                break
            self._forget(waiting)
            if waiting.unit not in self.seen and len(self.seen) < MAX_OUTCOMES:
                self.seen.add(waiting.unit)
                out.append(Outcome(waiting.unit, waiting.is_b, waiting.w, waiting.y, waiting.at_s))
        self.settled_through_s = max(self.settled_through_s, settled_s)
        return out

    def resume_seq(self, read_seq: int) -> int:
        """Where a restarted controller has to read from: before the oldest event that still waits."""
        firsts = [waiting.seq - 1 for waiting in self._waiting.values()]
        if self._held:
            firsts.append(next(iter(self._held.values())).seq - 1)
        return min(firsts, default=read_seq)

    def _forget(self, waiting: _Waiting) -> None:
        del self._waiting[waiting.names[0]]
        for name in waiting.names:
            self._names.pop(name, None)
