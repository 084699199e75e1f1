"""Segment alarms of one rollout: kinds of requests that the canary harms though the mean may not show it.

A request's segments are known before assignment: its endpoint and its length (in bytes: a token count comes
with the answer, so it would depend on the arm). A unit counts once, in the segments of its first request.
Significance: the policy's alpha, divided over all gates and all segments that can ever appear.

Invariant: nothing here decides, and a fault here is none of the evidence's. An alarm is shown, published
once, and stays.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller import telemetry
from controller.evidence.beside import decides_nothing
from controller.rollout.observation import Alarm
from evaluation import snapshot as snapshots
from evaluation.betting.unit_block import Floats
from evaluation.metrics import VALUES, Kind
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport
from evaluation.segments import SegmentAlarm, SegmentAlarms
from evaluation.units.judged import judged_probability
from evaluation.units.sessions import Rows
from serving.messages import RequestRecord

LENGTHS_KIB = (1, 4, 16, 64, 256)
MAX_REQUESTS = 200_000  # that have not settled in every metric yet


def segments_of(record: RequestRecord) -> tuple[str, ...]:
    """The segments of a request, from what was known of it before assignment."""
    segments = [f"endpoint {record.path}"]
    if record.body_bytes is not None:
        index = bisect_right(LENGTHS_KIB, record.body_bytes / 1024)
        low = LENGTHS_KIB[index - 1] if index else 0
        is_longest = index == len(LENGTHS_KIB)
        span = f"{low} KiB and more" if is_longest else f"{low}-{LENGTHS_KIB[index]} KiB"
        segments.append(f"requests of {span}")
    return tuple(segments)


class RolloutSegmentAlarms:
    """One `SegmentAlarms` per gate of a rollout, fed by the evaluator through `on_settled`."""

    def __init__(self, policy: GatePolicy) -> None:
        gates = [gate for gate in policy.gates if gate.kind not in (Kind.PERCENTILE, Kind.MEAN)]
        alpha = policy.alpha / max(len(gates), 1)
        self._gates = {
            g.name: (g, SegmentAlarms(g.kind, tolerance=g.tolerance, threshold=g.threshold, alpha=alpha))
            for g in gates
        }
        # request id -> seq, at_s, segments
        self._requests: OrderedDict[str, tuple[int, float, tuple[str, ...]]] = OrderedDict()
        self._raised: dict[str, Alarm] = {}

    @decides_nothing(None)
    def remember(self, record: RequestRecord) -> None:
        """Keep the segments of a request until it has settled."""
        self._requests[record.request_id] = (record.seq, record.at_s, segments_of(record))
        while len(self._requests) > MAX_REQUESTS:
            self._requests.popitem(last=False)

    @decides_nothing(None)
    def on_settled(
        self, requests: Sequence[str], rows: Rows, raw: Mapping[str, Floats], failed: NDArray[np.bool_]
    ) -> None:
        """Consume settled requests in order; only the first request of each unit counts."""
        first = np.flatnonzero((rows.position == 1) & (rows.w > 0.0)).tolist()
        labelled = [(i, self._requests[requests[i]][2]) for i in first if requests[i] in self._requests]
        for gate, alarms in self._gates.values():
            y = raw.get(gate.metric)
            if y is None:
                continue
            if gate.metric in VALUES:
                y = np.where(failed | rows.cold, np.nan, y)
            _feed(alarms, rows, y, judged_probability(gate.sampling, rows.w), labelled)

    @decides_nothing(())
    def raised(self, *, frozen: bool) -> tuple[Alarm, ...]:
        """Every alarm so far. frozen: sample ratio mismatch, so no new alarm is accepted."""
        if not frozen:
            for gate, alarms in self._gates.values():
                for alarm in alarms.alarms():
                    self._raised.setdefault(f"{gate.name}/{alarm.segment}", _alarm(gate, alarm))
        return tuple(self._raised.values())

    @decides_nothing(None)
    def forget(self, before_s: float) -> None:
        """Drop requests assigned before `before_s`, which have settled in every metric."""
        while self._requests and next(iter(self._requests.values()))[1] < before_s:
            self._requests.popitem(last=False)

    @property
    def first_seq(self) -> int | None:
        """Position of the oldest remembered request; None: there is none."""
        return next(iter(self._requests.values()))[0] if self._requests else None

    @decides_nothing(None)
    def to_mapping(self) -> dict[str, Any] | None:
        """State for a snapshot, without the requests: they are read again from the log."""
        return {
            "gates": {
                name: base64.b64encode(snapshots.write(alarms, digest=_digest(gate))).decode()
                for name, (gate, alarms) in self._gates.items()
            },
            "raised": {key: asdict(alarm) for key, alarm in self._raised.items()},
        }

    @decides_nothing(None)
    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Restore the state of `to_mapping`; None: written before segments existed, so they start empty."""
        if saved is None:
            return
        self._raised = {key: Alarm(**alarm) for key, alarm in saved["raised"].items()}
        for name, (gate, alarms) in self._gates.items():
            try:
                snapshots.read(alarms, base64.b64decode(saved["gates"][name]), digest=_digest(gate))
            except (ValueError, KeyError, TypeError) as exc:
                # An alarm decides nothing: an unreadable state costs its evidence so far, not the rollout.
                telemetry.warning("segment alarms start again", gate=name, why=str(exc))
                alarms.segments = []


def _feed(
    alarms: SegmentAlarms, rows: Rows, y: Floats, w: Floats, labelled: Sequence[tuple[int, tuple[str, ...]]]
) -> None:
    """Feed each segment its rows with a value, in order of appearance, however blocks are cut."""
    present = ~np.isnan(y)
    indices: dict[str, list[int]] = {}
    for i, segments in labelled:
        if present[i]:
            for segment in segments:
                indices.setdefault(segment, []).append(i)
    for segment, chosen in indices.items():
        alarms.feed(segment, rows.units_at(np.array(chosen, dtype=np.int64), y, w))


def _alarm(gate: Gate, alarm: SegmentAlarm) -> Alarm:
    is_score, limit = gate.kind is Kind.SCORE, gate.tolerance
    beyond = f"more than {limit:g} below stable" if is_score else f"above {1 + limit:g}x stable's"
    text = f"{gate.name} {beyond} in {alarm.segment}"
    return Alarm(gate.name, alarm.segment, text, alarm.canary_requests, alarm.at_s)


@decides_nothing(())
def metric_alarms(report: EvaluationReport, currency: str | None = None) -> tuple[Alarm, ...]:
    """Alarms of metrics without a gate, over all requests; empty during a sample ratio mismatch.

    currency: of costs; None: not known.
    """
    if report.frozen:
        return ()
    alarms = []
    for gate in report.gates:
        if gate.is_alarm and gate.decided_canary is not None:
            in_money = f" in {currency}" if currency is not None and gate.metric == "cost" else ""
            text = gate.reason.replace(gate.gate, f"{gate.metric}{in_money}")
            at_s = gate.decided_at_s or 0.0
            alarms.append(Alarm(gate.gate, "all requests", text, gate.decided_canary, at_s))
    return tuple(alarms)


def _digest(gate: Gate) -> str:
    return f"{gate.metric} {gate.kind.value} {gate.tolerance!r} {gate.threshold!r}"
