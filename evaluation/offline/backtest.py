"""Backtest: the decision of a gate policy on a whole recorded rollout, from arrays.

It uses the pipeline of a live rollout (`pipeline.py`), so that both yield the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from evaluation.metrics import UNANSWERED
from evaluation.offline.arrays import names_of
from evaluation.offline.columns import (
    Table,
    checked_seeds,
    checked_table,
    gates_without_column,
    policy_for_columns,
    stages_for_columns,
)
from evaluation.open_proofs import step_notes
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.records import EvidenceError
from evaluation.report import EvaluationReport, GateReport, Verdict
from evaluation.split_reports import split_reasons
from evaluation.verdict import evaluation_report, invalid_gates

ROWS_AT_ONCE = 16384
BOTH_BAD = 0.5  # share of each arm's requests without an answer


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage at its own last row, as the decision has it: whether the rollout would have left it.

    `missing`: what it still had to prove, or why it failed or was not reached.
    """

    stage: int
    weight: float
    canary_requests: int
    verdict: Verdict
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """The decision, the metric that decided, and the row: its canary requests so far and its time.

    `log_e`: maximum log wealth of rollback, by metric. `proofs`: canary requests when a gate's margin was
    proven, by gate. `reasons`: why it is invalid or undecided. `not_judged`: gates of the policy whose metric
    has no column: nothing is known of them, whatever the decision. `stages`: every one of the plan.
    `doubts`: what is wrong with the split of a recording that is rolled back, which may be why. `notes`: how
    values are recorded, where that makes a proof harder.
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
    not_judged: tuple[str, ...] = ()
    stages: tuple[StageResult, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def run(
    columns: Mapping[str, ArrayLike],
    policy: str | GatePolicy | Mapping[str, object] | None = None,
    *,
    stages: Sequence[StagePlan] | None = None,
    required: Collection[str] = (),
    seed_latency_ms: Mapping[str, ArrayLike] | None = None,
) -> BacktestResult:
    """Evaluate a recorded rollout. Metrics without a column are not gated, and named in `not_judged`.

    columns: array-likes of equal length, rows in order of assignment. `t_s`: seconds. `arm`: 1 is the canary.
    `w`: P(canary) at the draw; 0 with arm 0 is before the canary. `unit`: what was randomised; not needed for
    requests. `assigned_by`: `request`, `sticky`, `pin` (held by a token), `force` (no coin), or a synonym in
    `records.py`; without the column a repeated unit is sticky, else each request is its own unit. Also
    `request_id`, `stage`, `fell_back`, and metrics (`error`, `latency_ms`, `quality`, ...; None, NaN and
    masked values are missing). A duplicate request is refused, see `duplicates.py`, and so is an unknown name
    close to a known one, see `names.py`.

    `policy`: a name, a mapping or a `GatePolicy`; None: `default`. `stages`: None: one stage at the policy's
    first rung; with several, the decision is to promote when each stage was proven by its own last row.
    `required`: gates without which nothing is promoted, also where they have no column. Errors:
    EvidenceError, PolicyError.
    """
    whole_policy = gate_policy_of(policy)
    gate_policy = policy_for_columns(columns, whole_policy)
    table = checked_table(columns, gate_policy)
    plan = stages_for_columns(stages, whole_policy, gate_policy)
    w = table.requests.w[table.requests.w > 0.0]
    if stages is None and len(w):
        plan = (replace(plan[0], weight=float(np.median(w))),)
    if len(plan) > 1 and "stage" not in names_of(columns):
        raise EvidenceError(f"column stage is missing; {len(plan)} stages need the stage of each row")
    stage = table.requests.stage
    if len(stage) and not 0 <= stage.min() <= stage.max() < len(plan):
        raise EvidenceError(
            f"column stage holds {stage.min()}..{stage.max()}, the plan has stages 0..{len(plan) - 1}; "
            "give its own"
        )
    pipeline = Pipeline(gate_policy, plan)
    for metric, values in checked_seeds(seed_latency_ms).items():
        if metric in pipeline.metrics:
            pipeline.metrics[metric].seed(values)
    passed = _feed_stages(pipeline, table, plan)
    last = int(stage.max()) if len(stage) else len(plan) - 1
    not_judged = gates_without_column(columns, whole_policy)
    return closing_result(pipeline, plan, last, passed, not_judged, required)


def feed(pipeline: Pipeline, table: Table, rows_at_once: int = ROWS_AT_ONCE) -> None:
    """Feed a table to the pipeline, in blocks of rows."""
    for start in range(0, len(table.requests), rows_at_once):
        part = table.pick(slice(start, start + rows_at_once))
        rows, keep, fell_back = pipeline.draw(part.requests)
        raw = {name: values[keep] for name, values in part.values.items()}
        for lane in pipeline.lanes:
            lane.feed(rows, raw, part.failed[keep], fell_back, part.cancelled[keep])


def _feed_stages(pipeline: Pipeline, table: Table, plan: Sequence[StagePlan]) -> list[StageResult]:
    """Feed all rows; the results of the stages before the last one reached, each at its own last row."""
    at_s, reached = table.requests.at_s, np.maximum.accumulate(table.requests.stage)
    ends = np.flatnonzero(np.diff(reached)) + 1  # the first row of each stage but the first reached
    found = []
    start = 0
    for end in ends.tolist():
        feed(pipeline, table.pick(slice(start, end)))
        start = end
        for lane in pipeline.lanes:
            lane.close_through(float(at_s[end]))
        report = evaluation_report(pipeline, plan, int(reached[end - 1]), through_s=float(at_s[end]))
        found.append(_stage_result(plan, report))
    feed(pipeline, table.pick(slice(start, None)))
    return found


def closing_result(
    pipeline: Pipeline,
    plan: Sequence[StagePlan],
    stage: int,
    passed: Sequence[StageResult] = (),
    not_judged: tuple[str, ...] = (),
    required: Collection[str] = (),
) -> BacktestResult:
    """The result once all rows were fed: closes the open sessions. passed: of the stages before `stage`."""
    for lane in pipeline.lanes:
        lane.close_through(float("inf"))
    report = evaluation_report(pipeline, plan, stage, through_s=float("inf"))
    found = (*passed, _stage_result(plan, report))
    result = _result(pipeline, report, found, plan, not_judged, required)
    return replace(result, notes=tuple(step_notes(pipeline, plan[stage])))


def _stage_result(plan: Sequence[StagePlan], report: EvaluationReport) -> StageResult:
    """The stage of a report, with the reasons why it has not passed."""
    reasons = report.missing if report.rollback is None else (report.rollback.reason,)
    weight = plan[report.stage].weight
    return StageResult(report.stage, weight, report.stage_canary, report.stage_verdict, reasons)


def _result(
    pipeline: Pipeline,
    report: EvaluationReport,
    stages: tuple[StageResult, ...],
    plan: Sequence[StagePlan],
    not_judged: tuple[str, ...],
    required: Collection[str],
) -> BacktestResult:
    rollbacks = [r for r in report.gates if r.side == "rollback"]
    promotions = [r for r in report.gates if r.side == "promotion"]
    log_e = {m: max((r.log_e for r in rollbacks if r.metric == m), default=0.0) for m in pipeline.metrics}
    intervals = {r.metric: r.interval for r in rollbacks if r.interval is not None}
    proofs = {r.gate: r.decided_canary or 0 for r in promotions if r.verdict is Verdict.PASS}
    blocked, both_bad = [gate for gate in not_judged if gate in required], _both_bad(pipeline)
    unproven = (*_unproven(stages, len(plan), blocked), *both_bad)
    decision: Literal["rollback", "promote", "undecided", "invalid"] = "undecided"
    decided: GateReport | None = None
    if report.rollback is not None:
        decision, decided = "rollback", report.rollback
    elif split_reasons(pipeline) or invalid_gates(pipeline, report.gates):
        decision, unproven = "invalid", report.missing
    elif promotions and not unproven:
        decision, decided = "promote", max(promotions, key=lambda r: r.decided_canary or 0)
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
        reasons=unproven if decided is None else (),
        policy=pipeline.policy.name,
        not_judged=not_judged,
        stages=_as_decided(stages, plan, blocked, both_bad),
        doubts=tuple(split_reasons(pipeline)) if decision == "rollback" else (),
    )


def _both_bad(pipeline: Pipeline) -> list[str]:
    """Why nothing is promoted where half of both arms' requests have no answer: no ratio says anything there.

    The guard of a live rollout holds in that case.
    """
    reasons = []
    for name in sorted(UNANSWERED & pipeline.metrics.keys()):
        sums, counts = pipeline.metrics[name].sums, pipeline.metrics[name].counts
        if (counts > 0.0).all() and (sums >= BOTH_BAD * counts).all():
            stable, canary = (sums / counts).tolist()
            text = f"{stable:.0%} of stable's requests and {canary:.0%} of the canary's"
            reasons.append(f"{name}: {text}: both arms are bad, so no ratio says anything")
    return reasons


def _as_decided(
    stages: Sequence[StageResult], plan: Sequence[StagePlan], blocked: Sequence[str], both_bad: Sequence[str]
) -> tuple[StageResult, ...]:
    """Every stage of the plan, so that none says other than the decision: a rollback ends the rollout,
    whatever was recorded later, and what stands against the promotion stands against leaving the stage."""
    found = {stage.stage: stage for stage in stages}
    last, failed = max(found, default=0), next((s.stage for s in stages if s.verdict is Verdict.FAIL), None)
    out = []
    for index, planned in enumerate(plan):
        one = found.get(index) or StageResult(index, planned.weight, 0, Verdict.UNDECIDED, ("no rows",))
        against = [f"{gate}: NOT JUDGED, it has no column" for gate in blocked]
        against += both_bad if index == last else ()
        if failed is not None and index > failed:
            missing = (f"not reached: rolled back in stage {failed + 1}",)
            one = replace(one, verdict=Verdict.UNDECIDED, missing=missing)
        elif one.verdict is Verdict.PASS and against:
            one = replace(one, verdict=Verdict.UNDECIDED, missing=tuple(against))
        out.append(one)
    return tuple(out)


def _unproven(stages: Sequence[StageResult], planned: int, blocked: Sequence[str]) -> tuple[str, ...]:
    """What stands against a promotion, stage by stage, counted from 1. Empty: nothing does."""
    out = [f"{gate}: NOT JUDGED, it has no column" for gate in blocked]
    many = planned > 1
    for stage in stages:
        if stage.verdict is not Verdict.PASS:
            prefix = f"stage {stage.stage + 1} ({stage.weight * 100:.4g} %): " if many else ""
            out += [prefix + reason for reason in stage.missing or (stage.verdict.value,)]
    reached = {stage.stage for stage in stages}
    if skipped := [str(index + 1) for index in range(planned) if index not in reached]:
        out.append(f"no rows of stage {', '.join(skipped)}")
    return tuple(out)
