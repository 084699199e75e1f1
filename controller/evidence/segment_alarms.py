"""What has settled, cut by segment: an alarm where the canary harms one kind of request and not the mean.

A request's segments are known before its coin: the endpoint, and how long the request is (in bytes: tokens
are told by the answer, so they would hang on the arm). A unit counts once, in the segments of its first
request. Levels: the policy's alpha over all gates and all segments that can ever appear.

Invariant: nothing here decides. An alarm is shown, told once, and stays.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller import telemetry
from controller.rollout.observation import Alarm
from evaluation import snapshot as snapshots
from evaluation.betting.wealth import Floats
from evaluation.metrics import VALUES, Kind
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport
from evaluation.segments import SegmentAlarm, SegmentAlarms
from evaluation.units.metric_evidence import judged_probability
from evaluation.units.sessions import Rows
from serving.messages import RequestRecord

LENGTHS_KIB = (1, 4, 16, 64, 256)
LABELS = 200_000  # of requests that have not settled in every metric yet


def segments_of(record: RequestRecord) -> tuple[str, ...]:
    """The segments of a request, by what was known of it before its coin."""
    found = [f"endpoint {record.path}"]
    if record.body_bytes is not None:
        at = bisect_right(LENGTHS_KIB, record.body_bytes / 1024)
        low = LENGTHS_KIB[at - 1] if at else 0
        found.append(
            f"requests of {low}-{LENGTHS_KIB[at]} KiB"
            if at < len(LENGTHS_KIB)
            else f"requests of {low} KiB and more"
        )
    return tuple(found)


class SegmentFeed:
    """The alarms of one rollout's gates, by segment. `watch` is what the evaluator tells of what settles."""

    def __init__(self, policy: GatePolicy) -> None:
        gates = [gate for gate in policy.gates if gate.kind is not Kind.PERCENTILE]
        self._gates = {
            gate.name: (
                gate,
                SegmentAlarms(gate.kind, tolerance=gate.tolerance, alpha=policy.alpha / len(gates)),
            )
            for gate in gates
        }
        self._labels: OrderedDict[str, tuple[int, float, tuple[str, ...]]] = OrderedDict()
        self._raised: dict[str, Alarm] = {}

    def note(self, record: RequestRecord) -> None:
        """Remember the segments of a request until it has settled."""
        self._labels[record.request_id] = (record.seq, record.at_s, segments_of(record))
        while len(self._labels) > LABELS:
            self._labels.popitem(last=False)

    def watch(
        self, requests: Sequence[str], rows: Rows, raw: Mapping[str, Floats], failed: NDArray[np.bool_]
    ) -> None:
        """Take what has settled, in order: the first request of each unit."""
        first = np.flatnonzero((rows.position == 1) & (rows.w > 0.0)).tolist()
        found = [(at, self._labels[requests[at]][2]) for at in first if requests[at] in self._labels]
        for gate, alarms in self._gates.values():
            y = raw.get(gate.metric)
            if y is None:
                continue
            if gate.metric in VALUES:
                y = np.where(failed | rows.cold, np.nan, y)
            _feed(alarms, rows, y, judged_probability(gate.sampling, rows.w), found)

    def raised(self, *, frozen: bool) -> tuple[Alarm, ...]:
        """Every alarm so far. frozen: the split does not fit its weight, so nothing new is believed."""
        if not frozen:
            for gate, alarms in self._gates.values():
                for alarm in alarms.alarms():
                    self._raised.setdefault(f"{gate.name}/{alarm.segment}", _sight(gate, alarm))
        return tuple(self._raised.values())

    def forget(self, before_s: float) -> None:
        """Drop the segments of requests that have settled in every metric: those assigned before."""
        while self._labels and next(iter(self._labels.values()))[1] < before_s:
            self._labels.popitem(last=False)

    @property
    def first_seq(self) -> int | None:
        """Position of the oldest request that is remembered; None: there is none."""
        return next(iter(self._labels.values()))[0] if self._labels else None

    def to_mapping(self) -> dict[str, Any]:
        """For a snapshot; the segments of requests are read again from the log."""
        return {
            "gates": {
                name: base64.b64encode(snapshots.write(alarms, digest=_digest(gate))).decode()
                for name, (gate, alarms) in self._gates.items()
            },
            "raised": {key: _to_json(alarm) for key, alarm in self._raised.items()},
        }

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """What `to_mapping` gave; None: an older canaryctl knew no segments, and they begin now."""
        if saved is None:
            return
        self._raised = {key: Alarm(**alarm) for key, alarm in saved["raised"].items()}
        for name, (gate, alarms) in self._gates.items():
            try:
                snapshots.read(alarms, base64.b64decode(saved["gates"][name]), digest=_digest(gate))
            except (ValueError, KeyError, TypeError) as exc:
                # An alarm decides nothing: what cannot be read costs what it had seen, and not the rollout.
                telemetry.warning("segment alarms start again", gate=name, why=str(exc))
                alarms.segments = []


def _feed(
    alarms: SegmentAlarms, rows: Rows, y: Floats, w: Floats, found: Sequence[tuple[int, tuple[str, ...]]]
) -> None:
    """Each segment's rows that have a value. They appear in that order, however blocks are cut."""
    present = ~np.isnan(y)
    places: dict[str, list[int]] = {}
    for at, segments in found:
        if present[at]:
            for segment in segments:
                places.setdefault(segment, []).append(at)
    for segment, chosen in places.items():
        alarms.feed(segment, rows.block(y, np.array(chosen, dtype=np.int64), w))


def _sight(gate: Gate, alarm: SegmentAlarm) -> Alarm:
    beyond = (
        f"more than {gate.tolerance:g} below stable"
        if gate.kind is Kind.SCORE
        else f"above {1 + gate.tolerance:g}x stable's"
    )
    text = f"{gate.name} {beyond} in {alarm.segment}"
    return Alarm(gate.name, alarm.segment, text, alarm.canary_requests, alarm.at_s)


def metric_alarms(report: EvaluationReport) -> tuple[Alarm, ...]:
    """What no gate asks about, and is worse over all requests. None while the split does not fit."""
    rang = [gate for gate in report.gates if gate.is_alarm and gate.decided_canary is not None]
    return tuple(
        Alarm(
            gate=gate.gate,
            segment="all requests",
            text=gate.reason.replace(gate.gate, gate.metric),
            canary_requests=gate.decided_canary or 0,
            at_s=gate.decided_at_s or 0.0,
        )
        for gate in (() if report.frozen else rang)
    )


def _to_json(alarm: Alarm) -> dict[str, Any]:
    return {name: getattr(alarm, name) for name in alarm.__slots__}


def _digest(gate: Gate) -> str:
    return f"{gate.metric} {gate.kind.value} {gate.tolerance!r}"
