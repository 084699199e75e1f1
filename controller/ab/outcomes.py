"""Outcome ledger of an A/B test: which requests count, in which order, and from when on.

One outcome per unit, in order of assignment. A request counts once every earlier one is known and has its
score, or has waited for it long enough: a version that answers or is scored faster does not count earlier.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    seq: int
    request_id: str
    unit: int
    is_b: bool
    w: float
    at_s: float
    y: float | None


@dataclass(slots=True)
class OutcomeLedger:
    """Pending requests of one test, and the units already counted."""

    rollout: str
    metric: str
    score_wait_s: float
    settled_through_s: float = 0.0  # every outcome assigned before this has been settled
    seen: set[int] = field(default_factory=set)
    _pending: dict[str, _Pending] = field(default_factory=dict)  # by request id

    def add_request(self, record: RequestRecord, scores: Sequence[ScoreRecord] = ()) -> None:
        """Accept a request, with the scores that came before it."""
        is_ours = record.rollout == self.rollout and 0 < record.w < 1
        if not is_ours or record.at_s < self.settled_through_s or len(self._pending) >= MAX_PENDING:
            return
        if kind_of(record.assigned_by) in (LEFT_OUT, HELD):
            return
        self._pending[record.request_id] = _Pending(
            record.seq,
            record.request_id,
            unit_hash(record.unit),
            record.arm == CANARY,
            record.w,
            record.at_s,
            _request_value(record, self.metric),
        )
        for score in scores:
            self.add_score(score, record.request_id)

    def add_score(self, score: ScoreRecord, request_id: str) -> None:
        """Accept a score of a pending request; until it settles, a later score replaces an earlier one."""
        pending = self._pending.get(request_id)
        if pending is not None and score.metric == self.metric and self.metric not in REQUEST_METRICS:
            pending.y = score.value

    def drop_span(self, since_s: float, until_s: float) -> None:
        """Drop both arms of a span in which records may be lost."""
        for pending in [one for one in self._pending.values() if since_s <= one.at_s < until_s]:
            del self._pending[pending.request_id]

    def settle(self, through_s: float, now_s: float) -> list[AbOutcome]:
        """Outcomes that are due, in order of assignment, each unit once.

        through_s: every request assigned before it is known. The first that still waits for its score holds
        back all later ones, for at most `score_wait_s`; a metric of the record itself is due at once.
        """
        is_scored = self.metric not in REQUEST_METRICS
        known = [one for one in self._pending.values() if one.at_s < through_s]
        settled_s = through_s
        due = []
        for pending in sorted(known, key=lambda one: (one.at_s, one.seq)):
            if is_scored and pending.y is None and now_s - pending.at_s < self.score_wait_s:
                settled_s = pending.at_s
                break
            del self._pending[pending.request_id]
            if pending.unit not in self.seen and len(self.seen) < MAX_OUTCOMES:
                self.seen.add(pending.unit)
                due.append(AbOutcome(pending.unit, pending.is_b, pending.w, pending.y, pending.at_s))
        self.settled_through_s = max(self.settled_through_s, settled_s)
        return due

    def resume_seq(self, seq: int) -> int:
        """Where a restarted controller must read from: before the oldest pending request, at most `seq`."""
        return min((seq, *(pending.seq - 1 for pending in self._pending.values())))


def _request_value(record: RequestRecord, metric: str) -> float | None:
    """The metric's value in the record itself; None: it has none."""
    if metric not in REQUEST_METRICS:
        return None
    if metric == "truncated":
        return float(record.finish_reason == "length")
    if metric == "cancelled":
        return float(record.outcome == "cancelled")
    value = getattr(record, "completion_tokens" if metric == "tokens" else metric)
    return None if value is None else float(value)
