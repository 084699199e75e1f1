"""Outcome ledger of an A/B test: which requests count, in which order, and from when on.

One outcome per unit, in order of assignment. A request counts once every earlier one is known and has its
score, or has waited for it long enough: a version that answers or is scored faster does not count earlier.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.evidence.records import flags_of
from controller.store.rows import AbOutcome
from evaluation.units.units import HELD, LEFT_OUT, kind_of, unit_hash
from serving.messages import CANARY, RequestRecord, ScoreRecord

MAX_OUTCOMES = 200_000
MAX_PENDING = 200_000
#: Metrics whose value is in the request's own record; the others are scored later.
REQUEST_METRICS = frozenset(
    {"error", "latency_ms", "ttft_ms", "itl_ms", "tokens", "truncated", "empty", "cancelled"}
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
    _pending: dict[str, _Pending] = field(default_factory=dict)  # by request id

    def add_request(self, record: RequestRecord) -> None:
        """Accept a request of the test; ignore any other."""
        is_ours = record.rollout == self.rollout and 0 < record.w < 1
        if not is_ours or record.at_s < self.settled_through_s or len(self._pending) >= MAX_PENDING:
            return
        if kind_of(record.assigned_by) in (LEFT_OUT, HELD):
            return
        y = _request_value(record, self.metric)
        self._pending[record.request_id] = _Pending(record, unit_hash(record.unit), y)

    def add_score(self, score: ScoreRecord, request_id: str) -> None:
        """Accept a score of a pending request; until it settles, a later score replaces an earlier one."""
        pending = self._pending.get(request_id)
        if pending is not None and score.metric == self.metric and self.metric not in REQUEST_METRICS:
            pending.y = score.value

    def drop_span(self, since_s: float, until_s: float) -> None:
        """Drop both arms of a span in which records may be lost."""
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
            if unit not in self.counted_units and len(self.counted_units) < MAX_OUTCOMES:
                self.counted_units.add(unit)
                due.append(AbOutcome(unit, record.arm == CANARY, record.w, y, record.at_s))
        self.settled_through_s = max(self.settled_through_s, settled_s)
        return due

    def resume_seq(self, seq: int) -> int:
        """Where a restarted controller must read from: before the oldest pending request, at most `seq`."""
        return min((seq, *(pending.record.seq - 1 for pending in self._pending.values())))


def _request_value(record: RequestRecord, metric: str) -> float | None:
    """The metric's value in the record itself; None: it has none."""
    if metric not in REQUEST_METRICS:
        return None
    flag = flags_of(record).get(metric)
    value = getattr(record, "completion_tokens" if metric == "tokens" else metric) if flag is None else flag
    return None if value is None else float(value)
