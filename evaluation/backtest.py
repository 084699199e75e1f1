"""What would this gate have done? A whole rollout at once, from arrays.

The arrays take the route that a live rollout takes (`pipeline.py`), so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evaluation.columns import Array, Table, checked, gated
from evaluation.gate import GateReport
from evaluation.pipeline import Pipeline
from evaluation.policy import GatePolicy, StagePlan
from evaluation.records import EvidenceError
from evaluation.verdict import gate_reports, rollback_of, unusable

ROWS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """The decision, the metric that made it, and where: canary requests and time of the row that decided.

    `decision`: 'rollback', 'promote', 'undecided' or 'invalid'. `log_e`: the largest log wealth of rollback
    by metric. `proofs`: by gate, canary requests when its margin was proven. `reasons`: why it is invalid
    or undecided.
    """

    decision: Literal["rollback", "promote", "undecided", "invalid"]
    metric: str | None  # None: no single metric decided
    canary_requests: int
    t_s: float
    log_e: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    proofs: Mapping[str, int] = field(default_factory=dict)
    gates: tuple[GateReport, ...] = ()
    reasons: tuple[str, ...] = ()
    policy: str = "default"


def run(
    columns: Mapping[str, Array],
    policy: str | GatePolicy | None = None,
    *,
    stages: Sequence[StagePlan] | None = None,
    seed_latency_ms: Mapping[str, Sequence[float]] | None = None,
) -> BacktestResult:
    """Judge a recorded rollout. Rows in order of assignment; arm 1 is the canary; absent columns are not
    gated.

    Columns of equal length: `t_s` (s), `unit`, `arm`, `w` (0 with arm 0: before the canary), `assigned_by`,
    optionally `stage`, and metrics (`error`, `latency_ms`, `quality`, ...; NaN where missing). `stages`:
    what must be proven; by default one stage at the policy's first rung. Errors: EvidenceError,
    PolicyError; nothing is guessed.
    """
    chosen = gated(columns, policy)
    table = checked(columns, chosen)
    plan = tuple(stages) if stages is not None else (StagePlan(0.5, 0),)
    if len(plan) > 1 and "stage" not in columns:
        raise EvidenceError(f"column stage is missing; {len(plan)} stages need to know which row is of which")
    pipeline = Pipeline(chosen, plan)
    for metric, values in (seed_latency_ms or {}).items():
        if metric in pipeline.metrics:
            pipeline.metrics[metric].seed(np.asarray(values, dtype=np.float64))
    feed(pipeline, table)
    for lane in pipeline.lanes:
        lane.close_through(float("inf"))
    return _result(pipeline, plan, chosen)


def feed(pipeline: Pipeline, table: Table, rows_at_once: int = ROWS_AT_ONCE) -> None:
    """Send a table through the pipeline."""
    for start in range(0, len(table.at_s), rows_at_once):
        part = slice(start, start + rows_at_once)
        rows, keep = pipeline.draw(
            table.at_s[part],
            table.arm[part],
            table.w[part],
            table.kind[part],
            table.unit[part],
            table.stage[part],
            table.fell_back[part],
        )
        raw = {name: values[part][keep] for name, values in table.values.items()}
        for lane in pipeline.lanes:
            lane.take(rows, raw, table.failed[part][keep])


def _result(pipeline: Pipeline, stages: Sequence[StagePlan], policy: GatePolicy) -> BacktestResult:
    last = len(stages) - 1
    reports = gate_reports(pipeline, stages, last)
    log_e = {
        metric: max(r.log_e for r in reports if r.metric == metric and r.side == "rollback")
        for metric in pipeline.metrics
    }
    intervals = {r.metric: r.interval for r in reports if r.interval is not None and r.side == "rollback"}
    proofs = {
        r.gate: r.decided_canary for r in reports if r.side == "promotion" and r.decided_canary is not None
    }
    rollback = rollback_of(reports)
    wanted = [r for r in reports if r.side == "promotion"]
    reasons = unusable(pipeline, reports)
    decision: Literal["rollback", "promote", "undecided", "invalid"]
    metric: str | None = None
    at: tuple[int, float] = (pipeline.canary, float("nan"))
    if rollback is not None:
        decision, metric = "rollback", rollback.metric
        at = (rollback.decided_canary or 0, rollback.decided_at_s or float("nan"))
    elif reasons:
        decision = "invalid"
    elif wanted and len(proofs) == len(wanted) and pipeline.stage_canary >= stages[last].min_canary:
        decision = "promote"
        final = max(wanted, key=lambda r: r.decided_canary or 0)
        metric, at = final.metric, (final.decided_canary or 0, final.decided_at_s or float("nan"))
    else:
        decision = "undecided"
    return BacktestResult(
        decision, metric, at[0], at[1], log_e, intervals, proofs, tuple(reports), tuple(reasons), policy.name
    )
