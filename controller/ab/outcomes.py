"""Outcome ledger of an A/B test: which requests count, in which order, and from when on.

One outcome per unit, its first answer's, in order of assignment. A request counts once every earlier one is
known and has its score, or has waited for it long enough: a version that answers or is scored faster does not
count earlier. Of several scores of an answer the first counts, and none where the assigned version did not
write the answer: the rules of the gate. Later answers of a counted unit are left out, and counted as such.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.evidence.records import OF_SIGNALS, draw_of, flags_of, score_of
from controller.store.rows import AbOutcome
from evaluation.metrics import UNANSWERED, WAITS
from evaluation.records import SETTLE_S
from evaluation.units.units import HELD, LEFT_OUT, kind_of, unit_hash
from serving.messages import CANARY, RequestRecord, ScoreRecord

MAX_OUTCOMES = 200_000
MAX_PENDING = 200_000
MAX_SPANS = 1000  # lost spans that are remembered, the newest; older ones were settled long ago
#: Metrics whose value is in the request's own record; the others are scored later.
REQUEST_METRICS = frozenset(
    {"error", "rejected", "latency_ms", "ttft_ms", "itl_ms", "tokens", "truncated", "empty", "cancelled"}
    | frozenset(OF_SIGNALS)
)


@dataclass(slots=True)
class _Pending:
    record: RequestRecord
    unit: int
    y: float | None  # None: not scored yet, or the record has no value


@dataclass(slots=True)
class OutcomeLedger:
    """Pending requests of one test, and the units already counted."""

    rollout: str
    metric: str
    score_wait_s: float
    settled_through_s: float = 0.0  # every outcome assigned before this has been settled
    counted_units: set[int] = field(default_factory=set)
    left_out: int = 0  # later answers of counted units, since this ledger began
    crossed: set[int] = field(default_factory=set)  # units seen on both sides at the same split
    _pending: dict[str, _Pending] = field(default_factory=dict)  # by request id
    _side: dict[int, tuple[bool, float]] = field(default_factory=dict)  # a unit's first side and its w
    _lost: list[tuple[float, float]] = field(default_factory=list)  # spans, merged, in order of time

    def add_request(self, record: RequestRecord) -> None:
        """Accept a request of the test; ignore any other."""
        is_ours = record.rollout == self.rollout and 0 < record.w < 1
        if not is_ours or record.at_s < self.settled_through_s or len(self._pending) >= MAX_PENDING:
            return
        kind = kind_of(record.assigned_by)
        if kind == LEFT_OUT or any(since_s <= record.at_s < until_s for since_s, until_s in self._lost):
            return
        unit = unit_hash(record.unit)
        self._watch_side(unit, record)
        if kind != HELD:
            y = _request_value(record, self.metric)
            self._pending[record.request_id] = _Pending(record, unit, y)
        elif unit in self.counted_units:
            self.left_out += 1

    def _watch_side(self, unit: int, record: RequestRecord) -> None:
        """Note a unit that is on both sides, though its split was not raised in between."""
        is_b = record.arm == CANARY
        if unit not in self._side and len(self._side) < MAX_OUTCOMES:
            self._side[unit] = (is_b, record.w)
        side, w = self._side.get(unit, (is_b, record.w))
        if is_b != side and (side or record.w <= w):
            self.crossed.add(unit)

    def add_score(self, score: ScoreRecord, request_id: str) -> None:
        """Accept the first score of a pending request whose answer the assigned version wrote."""
        pending = self._pending.get(request_id)
        if pending is None or score.metric != self.metric or self.metric in REQUEST_METRICS:
            return
        if pending.y is None and (counted := score_of(score, pending.record)) is not None:
            pending.y = counted.value

    def drop_span(self, since_s: float, until_s: float) -> None:
        """Drop both arms of a span in which records may be lost, also those that are read later."""
        self._lost = _merged([*self._lost, (since_s, until_s)])[-MAX_SPANS:]
        for id in [id for id, one in self._pending.items() if since_s <= one.record.at_s < until_s]:
            del self._pending[id]

    def settle(self, through_s: float, now_s: float) -> list[AbOutcome]:
        """Outcomes that are due, in order of assignment, each unit once.

        through_s: every request assigned before it is known. The first that still waits for its score holds
        back all later ones, for at most `score_wait_s`; a metric of the record itself is due at once.
        """
        is_scored = self.metric not in REQUEST_METRICS
        known = [one for one in self._pending.values() if one.record.at_s < through_s]
        settled_s = through_s
        due = []
        for pending in sorted(known, key=lambda one: (one.record.at_s, one.record.seq)):
            record, unit, y = pending.record, pending.unit, pending.y
            if is_scored and y is None and now_s - record.at_s < self.score_wait_s:
                settled_s = record.at_s
                break
            del self._pending[record.request_id]
            if unit in self.counted_units:
                self.left_out += 1
            elif len(self.counted_units) < MAX_OUTCOMES:
                self.counted_units.add(unit)
                due.append(AbOutcome(unit, record.arm == CANARY, record.w, y, record.at_s))
        self.settled_through_s = max(self.settled_through_s, settled_s)
        return due

    def resume_seq(self, seq: int) -> int:
        """Where a restarted controller must read from: before the oldest pending request, at most `seq`."""
        return min((seq, *(pending.record.seq - 1 for pending in self._pending.values())))


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times as few spans, in order."""
    out: list[tuple[float, float]] = []
    for since_s, until_s in sorted(spans):
        if out and since_s <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], until_s))
        else:
            out.append((since_s, until_s))
    return out


def _request_value(record: RequestRecord, metric: str) -> float | None:
    """The metric's value in the record itself; None: it has none.

    The rule of the gates: without an answer a time counts as slowest on both sides, as failing fast is not
    fast, and any other value is missing. So does a wait that the client ended by leaving: of a faster version
    fewer leave, and the others' slowest would be compared with the whole of its own.
    """
    if metric not in REQUEST_METRICS:
        return None
    draw = draw_of(record)
    if metric not in UNANSWERED and draw.is_unanswered:
        return SETTLE_S * 1000.0 if metric.endswith("_ms") else None
    flag = flags_of(record).get(metric)
    if metric == "tokens":
        return draw.tokens
    value = getattr(record, metric, None) if flag is None else flag
    if value is None and metric in WAITS and draw.is_cancelled:
        return SETTLE_S * 1000.0
    if metric == "rejected" and value is None and record.error is not None:
        return 0.0  # an answered or failed request without the flag was not rejected
    return None if value is None else float(value)
