"""What would this gate have done? A whole rollout at once, from arrays.

The arrays take the route that a live rollout takes (`pipeline.py`), so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

from evaluation.offline.arrays import names_of
from evaluation.offline.columns import Table, checked_seeds, checked_stages, checked_table, policy_for_columns
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import EvidenceError
from evaluation.report import GateReport, Verdict
from evaluation.verdict import blind_gates, evaluation_report, split_reasons

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
    columns: Mapping[str, ArrayLike],
    policy: str | GatePolicy | Mapping[str, object] | None = None,
    *,
    stages: Sequence[StagePlan] | None = None,
    seed_latency_ms: Mapping[str, ArrayLike] | None = None,
) -> BacktestResult:
    """Judge a recorded rollout. Rows in order of assignment; arm 1 is the canary; absent columns are not
    gated.

    Columns of equal length, of whatever makes an array: `t_s` (s), `arm`, `w` (0 with arm 0: before the
    canary); `unit` (what was drawn; requests need none); `assigned_by` (`request`, `sticky`, `pin` for what a
    token held, `force` for what no coin decided, and `records.py` has their synonyms; without the column a
    unit that comes again is sticky, and else each request is its own unit); `request_id`, `stage`,
    `fell_back`; and metrics (`error`, `latency_ms`, `quality`, ...; None, NaN and what a mask hides are
    missing). A request that is there twice is refused: by its `request_id`, or see `repeats.py`.

    `policy`: a name, a mapping, a `GatePolicy`; None is `default`. `stages`: what must be proven; by default
    one stage at the policy's first rung. Errors: EvidenceError, PolicyError; nothing is guessed.
    """
    chosen = policy_for_columns(columns, policy)
    table = checked_table(columns, chosen)
    plan = checked_stages(stages, chosen)
    if len(plan) > 1 and "stage" not in names_of(columns):
        raise EvidenceError(f"column stage is missing; {len(plan)} stages need to know which row is of which")
    if len(table.stage) and not 0 <= table.stage.min() <= table.stage.max() < len(plan):
        found = f"{table.stage.min()}..{table.stage.max()}"
        raise EvidenceError(
            f"column stage holds {found}, the plan has stages 0..{len(plan) - 1}; give its own"
        )
    pipeline = Pipeline(chosen, plan)
    for metric, values in checked_seeds(seed_latency_ms).items():
        if metric in pipeline.metrics:
            pipeline.metrics[metric].seed(values)
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
    report = evaluation_report(pipeline, stages, len(stages) - 1, through_s=float("inf"))
    harms = [r for r in report.gates if r.side == "rollback"]
    wanted = [r for r in report.gates if r.side == "promotion"]
    log_e = {m: max((r.log_e for r in harms if r.metric == m), default=0.0) for m in pipeline.metrics}
    intervals = {r.metric: r.interval for r in harms if r.interval is not None}
    proofs = {r.gate: r.decided_canary or 0 for r in wanted if r.verdict is Verdict.PASS}
    decision: Literal["rollback", "promote", "undecided", "invalid"] = "undecided"
    decided: GateReport | None = None
    if report.rollback is not None:
        decision, decided = "rollback", report.rollback
    elif split_reasons(pipeline) or blind_gates(pipeline, report.gates):
        decision = "invalid"
    elif wanted and report.stage_verdict is Verdict.PASS:
        decision, decided = "promote", max(wanted, key=lambda r: r.decided_canary or 0)
    at_s = decided.decided_at_s if decided is not None else None
    return BacktestResult(
        decision=decision,
        metric=decided.metric if decided is not None else None,
        canary_requests=(decided.decided_canary or 0) if decided is not None else pipeline.canary,
        t_s=at_s if at_s is not None else float("nan"),
        log_e=log_e,
        intervals=intervals,
        proofs=proofs,
        gates=report.gates,
        reasons=report.missing if decided is None else (),
        policy=policy.name,
    )
