"""Evaluator of one live rollout: records in, reports out.

Rules:
1. Records may arrive in any order; they settle in order of assignment, behind the watermarks of `advance`.
2. A report is a function of the settled records alone: neither of the calls of `advance`, `report` and
   `snapshot`, nor of the batches in which records arrived. `backtest.run` on the same records returns the
   same bits.
3. A restored evaluator continues with the same bits as the one that was saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluation import snapshot as snapshots
from evaluation.betting.unit_block import Floats
from evaluation.metrics import CATALOGUE, OUTCOMES, STREAMED
from evaluation.pipeline import Lane, Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import (
    LEFT_MS,
    SETTLE_S,
    Draw,
    EvidenceError,
    Pair,
    Score,
    check_draw,
    check_pair,
    check_score,
)
from evaluation.report import EvaluationReport
from evaluation.units.score_queue import Queue
from evaluation.units.sessions import Rows
from evaluation.units.settlement import Settlement
from evaluation.units.units import Assignments, kind_of, unit_hash
from evaluation.verdict import evaluation_report

ROWS_AT_ONCE = 512
MIN_SEEDS = 200  # latencies of stable that show whether anything is streamed

#: Called with settled requests, lane by lane, in order of assignment: their ids, their rows, values by metric
#: (NaN: missing), and which failed. It has no influence on the evaluator.
OnSettled: TypeAlias = Callable[[Sequence[str], Rows, Mapping[str, Floats], NDArray[np.bool_]], None]


class Evaluator:
    """Add records (`add`), advance the watermark (`advance`), read the report (`report`). Not thread-safe."""

    __state__ = (
        "pipeline", "settlement", "queues", "stage_starts", "stage", "load_ratio", "load_now", "overloads",
        "pairs", "paired", "pair_count", "unsourced",
    )  # fmt: skip

    def __init__(self, policy: GatePolicy, stages: Sequence[StagePlan]) -> None:
        if not stages:
            raise EvidenceError("an evaluator needs at least one stage; give the plan's")
        self._policy = policy  # with alarms, and without the gates that have no source
        self._digest = ""
        self._stages = tuple(stages)
        self.pipeline = Pipeline(policy, stages)
        self._deadlines = {
            name: max(g.deadline_s for g in policy.gates_for(name)) for name in self.pipeline.metrics
        }
        self.settlement = Settlement(keep_scores_s=max(self._deadlines.values(), default=0.0))
        later = [self.pipeline.metrics[name] for name in self.pipeline.lane_names[1:]]
        self.queues = [Queue(metric.name, metric.covariates.names) for metric in later]
        self.stage_starts: list[float] = [float("-inf")]
        self.stage: list[int] = [0]
        self.load_ratio = 1.0  # of the stage
        self.load_now = 1.0
        self.overloads: list[list[float]] = []  # start, end: latency of requests assigned in it is ignored
        self.pairs: list[
            tuple[float, str, str, float, float]
        ] = []  # pending: at_s, conversation, metric, scores
        self.paired: dict[int, int] = {}  # hashes of conversations whose pair was counted
        self.pair_count = 0
        self.unsourced: list[str] = []  # metrics known to have no source before the first draw
        self._ready: list[Draw] = []
        self.on_settled: OnSettled | None = None  # not part of a snapshot: set it again after a restore

    @classmethod
    def start(
        cls,
        policy: GatePolicy,
        *,
        stages: Sequence[StagePlan],
        seed_latency_ms: Mapping[str, Sequence[float]],
        has_keys: bool = False,
    ) -> Evaluator:
        """A new evaluator. `seed_latency_ms`: stable's own values before the canary, by metric. `has_keys`:
        some of its units then were sticky.

        Where stable has latencies and no streaming time, nothing is streamed: the preset's gates on those
        times become alarms, and their alpha is shared out. Errors: EvidenceError when there is no stage or a
        seed is not a finite number of at least 0.
        """
        unsourced = _not_streamed(seed_latency_ms)
        evaluator = cls._of(policy, stages, unsourced)
        evaluator.pipeline.was_sticky = has_keys
        for metric, given in seed_latency_ms.items():
            values = np.asarray(given, dtype=np.float64)
            if not bool((np.isfinite(values) & (values >= 0.0)).all()):
                raise EvidenceError(
                    f"seed of {metric} holds a value that is not finite or below 0; leave it out"
                )
            if metric in evaluator.pipeline.metrics:
                evaluator.pipeline.metrics[metric].seed(values)
        return evaluator

    def add(self, event: Draw | Score | Pair) -> None:
        """Add one record, in any order within the settlement window. Errors: EvidenceError, changing
        nothing."""
        if isinstance(event, Draw):
            check_draw(event)
            self.settlement.add_draw(event)
        elif isinstance(event, Score):
            check_score(event)
            self.settlement.add_score(event)
        else:
            check_pair(event)
            self.pairs.append((event.at_s, event.conversation, event.metric, event.stable, event.canary))

    def advance(self, through_s: float, now_s: float) -> None:
        """Advance the watermark: all draws assigned before `through_s` and all scores received before `now_s`
        were added. Errors: EvidenceError when `through_s` goes back.
        """
        self._ready += self.settlement.advance(through_s, now_s)
        if len(self._ready) >= ROWS_AT_ONCE:
            self._settle()

    def enter_stage(self, stage: int, at_s: float) -> None:
        """Start a stage whose weight was acknowledged at `at_s`: its proofs use units assigned from then on.

        Units that have settled already keep their stage. Errors: EvidenceError for a stage outside the plan,
        or before the current one.
        """
        if not self.stage[-1] <= stage < len(self._stages):
            raise EvidenceError(
                f"stage {stage} is outside {self.stage[-1]}..{len(self._stages) - 1}; stages only rise"
            )
        if stage == self.stage[-1]:
            return
        self.stage_starts.append(max(at_s, self.settlement.through_s))
        self.stage.append(stage)

    def set_stage_load(self, *, stable: float, canary: float) -> None:
        """Set the stage's requests per ready replica of each arm. Far apart, latency is not comparable."""
        self.load_ratio = canary / stable if stable > 0.0 else float("inf")

    def set_current_load(self, ratio: float, *, since_s: float, at_s: float) -> None:
        """Set a canary replica's load over a stable one's at `at_s`; it was reached after `since_s`.

        While it is above the policy's `load_ratio`, latency of both arms is ignored: slowness under the load
        of a lost replica is not an effect of the version. A lower load excuses nothing. Units that have
        settled already are not changed.
        """
        through_s = self.settlement.through_s
        is_open = self.overloads and self.overloads[-1][1] == float("inf")
        self.load_now = ratio
        if ratio > self._policy.load_ratio:
            start_s = max(since_s, through_s)
            if self.overloads and start_s <= self.overloads[-1][1]:
                self.overloads[-1][1] = float("inf")
            else:
                self.overloads.append([start_s, float("inf")])
        elif is_open:
            self.overloads[-1][1] = max(at_s, through_s)

    def report(self) -> EvaluationReport:
        """The report on all evidence settled so far."""
        self._settle()
        return evaluation_report(
            self.pipeline,
            self._stages,
            self.stage[-1],
            through_s=self.settlement.through_s,
            late=self.settlement.late,
            load_ratio=self.load_ratio,
            load_now=self.load_now,
        )

    def snapshot(self) -> bytes:
        """The whole state as versioned JSON, to be restored with the same policy and stages."""
        self._settle()
        return snapshots.write(self, digest=self._digest)

    @classmethod
    def restore(cls, policy: GatePolicy, stages: Sequence[StagePlan], data: bytes) -> Evaluator:
        """The evaluator whose `snapshot` returned `data`. Errors: SnapshotMismatch."""
        unsourced = [name for name in snapshots.stored_names(data, "unsourced") if name in STREAMED]
        evaluator = cls._of(policy, stages, unsourced)
        snapshots.read(evaluator, data, digest=evaluator._digest)
        evaluator.pipeline.restore_limits()
        return evaluator

    @classmethod
    def _of(cls, policy: GatePolicy, stages: Sequence[StagePlan], unsourced: Sequence[str]) -> Evaluator:
        evaluator = cls(policy.without_sources(unsourced).with_alarms(), stages)
        evaluator._digest = plan_digest(policy, stages)
        evaluator.unsourced = list(unsourced)
        return evaluator

    def _settle(self) -> None:
        """Feed the pipeline with everything that can settle."""
        if self._ready:
            self._draw(self._ready)
            self._ready = []
        settlement = self.settlement
        self.pipeline.lanes[0].close_through(settlement.through_s)
        for lane, queue in zip(self.pipeline.lanes[1:], self.queues, strict=True):
            self._settle_scores(lane, queue)
        settlement.forget_scores()
        self._settle_pairs()

    def _settle_scores(self, lane: Lane, queue: Queue) -> None:
        metric = queue.metric
        requests, rows, raw, failed = queue.pop(self._deadlines[metric], self.settlement)
        lane.feed(rows, raw, failed)
        self._tell(requests, rows, {metric: raw[metric]}, failed)
        waiting = float(queue.rows.at_s[0]) if queue.requests else float("inf")
        lane.close_through(min(self.settlement.through_s, waiting))

    def _tell(
        self, requests: list[str], rows: Rows, raw: Mapping[str, Floats], failed: NDArray[np.bool_]
    ) -> None:
        """Tell the listener of settled requests, without those of later sessions."""
        if self.on_settled is None or not requests:
            return
        if rows.round.any():
            kept = np.flatnonzero(rows.round == 0)
            requests = [requests[row] for row in kept.tolist()]
            rows, failed = rows.pick(kept), failed[kept]
            raw = {name: values[kept] for name, values in raw.items()}
        if requests:
            self.on_settled(requests, rows, raw, failed)

    def _draw(self, draws: Sequence[Draw]) -> None:
        """Feed settled draws: to the lane of metrics known by now, and to the queues that wait for scores."""
        at_s = np.array([d.at_s for d in draws])
        stage = np.searchsorted(np.array(self.stage_starts), at_s, side="right") - 1
        rows, keep, fell_back = self.pipeline.draw(
            Assignments(
                at_s,
                np.array([d.arm == 1 for d in draws]),
                np.array([d.w for d in draws]),
                np.array([kind_of(d.assigned_by) for d in draws], dtype=np.int64),
                np.array([unit_hash(d.unit) for d in draws], dtype=np.int64),
                np.array(self.stage, dtype=np.int64)[stage],
                np.array([_number(d.flags.get("fell_back")) for d in draws]),
            )
        )
        rows = self._without_overloads(rows, through_s=float(at_s[-1]))
        kept = [draws[i] for i in keep.tolist()]
        failed = np.array([d.is_unanswered or d.is_cancelled for d in kept], dtype=np.bool_)
        cancelled = np.array([_cancelled(d) for d in kept], dtype=np.float64)
        lane = self.pipeline.lanes[0]
        raw = {m.name: np.array([_value(d, m.name) for d in kept], dtype=np.float64) for m in lane.metrics}
        raw[LEFT_MS] = np.array([_number(d.left_ms) for d in kept], dtype=np.float64)
        lane.feed(rows, raw, failed, fell_back, cancelled)
        requests = [d.request_id for d in kept]
        del raw[LEFT_MS]
        self._tell(requests, rows, raw, failed)
        for queue in self.queues:
            queue.push(kept, rows, failed)

    def _without_overloads(self, rows: Rows, *, through_s: float) -> Rows:
        """The rows, cold where assigned during an overload; forgets overloads that ended by `through_s`."""
        if not self.overloads:
            return rows
        cold = rows.cold.copy()
        for start_s, end_s in self.overloads:
            cold |= (rows.at_s >= start_s) & (rows.at_s < end_s)
        self.overloads = [span for span in self.overloads if span[1] > through_s]
        return replace(rows, cold=cold)

    def _settle_pairs(self) -> None:
        due = [pair for pair in self.pairs if pair[0] < self.settlement.through_s]
        due.sort(key=lambda pair: pair[:2])  # never by the difference: of equal pairs the first added counts
        self.pairs = [pair for pair in self.pairs if not pair[0] < self.settlement.through_s]
        for at_s, conversation, name, stable, canary in due:
            key = unit_hash(f"{name}/{conversation}")
            if key in self.paired or name not in self.pipeline.metrics:
                continue
            self.paired[key] = 1
            self.pair_count += 1
            self.pipeline.metrics[name].add_pair(
                draw=self.pair_count,
                at_s=at_s,
                scores=(stable, canary),
                seq=self.pipeline.seq,
                canary=self.pipeline.canary,
            )


def _not_streamed(seeds: Mapping[str, Sequence[float]]) -> list[str]:
    """The streaming times that stable's own traffic shows to have no source."""
    if len(seeds.get("latency_ms", ())) < MIN_SEEDS:
        return []
    return sorted(metric for metric in STREAMED if metric in seeds and len(seeds[metric]) == 0)


def plan_digest(policy: GatePolicy, stages: Sequence[StagePlan]) -> str:
    """Sixteen hex digits of everything that decides: the policy and the stages."""
    text = json.dumps([policy.to_mapping(), [asdict(stage) for stage in stages]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cancelled(draw: Draw) -> float:
    """1 where the client left before an answer or a failure; NaN where that is not known."""
    return float(draw.is_cancelled) if "cancelled" in draw.flags else float("nan")


def _value(draw: Draw, metric: str) -> float:
    if metric in OUTCOMES and draw.is_cancelled:
        return 0.0
    if metric in draw.flags:
        return float(draw.flags[metric])
    if metric == "rejected":  # a known outcome that says nothing of a rejection was none
        return float("nan") if draw.error is None else 0.0
    if metric not in _FIELDS:
        return float("nan")
    if metric == "latency_ms" and draw.flags.get("censored"):
        return SETTLE_S * 1000.0
    return _number(getattr(draw, metric))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


_FIELDS = frozenset(name for name, metric in CATALOGUE.items() if not metric.arrives_later) & frozenset(
    Draw.__slots__
)
