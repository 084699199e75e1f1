"""Verdicts from the channels' decisions: a report for each gate and side, the rollback, and the stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from evaluation.betting.tails import TailChannel
from evaluation.betting.wealth import Decision
from evaluation.gate_texts import USES, beyond, harm, margin, requests_text
from evaluation.metrics import SIZES, STREAMED, VALUES, Kind
from evaluation.open_proofs import of_those_who_waited, step_notes, steps_text, what_forbids, why_not
from evaluation.pipeline import Pipeline
from evaluation.policy.alpha_split import gate_alpha, log_limit
from evaluation.policy.gates import Gate, Proof, StagePlan
from evaluation.policy.stage_proofs import stage_proofs
from evaluation.report import EvaluationReport, GateReport, Side, Source, Verdict
from evaluation.shared_hardware import interference
from evaluation.shown_estimates import (
    budget_text,
    first_estimates,
    is_over_budget,
    point_estimates,
    statistic_of,
    unanswered_shares,
    within_text,
)
from evaluation.split_reports import (
    frozen_since,
    is_served_hold,
    later_void_since,
    served_reports,
    sessions_void_since,
    split_reasons,
)
from evaluation.units.gate_channels import Track, deciding, rollback_tracks
from evaluation.units.metric_evidence import MetricEvidence

MIN_ROWS = 1000  # after so many requests an invalid split is not a coincidence
UNEQUAL_LOAD = "not comparable"  # begins the reason of a gate that unequal load alone makes INVALID
MIN_NEVER = 100  # requests without a single value
MIN_LATER_SHARE = 0.2  # of a stage's values, of later requests: then these must prove the margins as well


def gate_reports(pipeline: Pipeline, stages: Sequence[StagePlan], stage: int) -> list[GateReport]:
    """A rollback report for each gate, and a promotion report for each margin that `stage` must prove."""
    proofs = stage_proofs(pipeline.policy, stages[stage])
    reports = []
    for metric in pipeline.metrics.values():
        for gate in metric.gates:
            if gate.is_alarm and not metric.counts.any():
                continue
            reports.append(_rollback_report(pipeline, metric, gate))
            if gate.name in proofs:
                reports.append(_proof_report(pipeline, metric, gate, proofs[gate.name], stage))
    return [*reports, *_range_reports(pipeline), *served_reports(pipeline)]


def _range_reports(pipeline: Pipeline) -> list[GateReport]:
    """A report for each observed range."""
    reports = []
    for monitor in pipeline.ranges:
        metric = pipeline.metrics[monitor.gate.metric]
        # Where no answer is streamed, missing values are no reason to hold.
        is_idle = is_not_streamed(metric)
        reports.append(
            monitor.report(
                n_stable=int(metric.counts[0]),
                void_from=min(frozen_since(pipeline), metric.void_since()),
                invalid_reason=None if is_idle else metric.invalid_reason(),
            )
        )
    return reports


def evaluation_report(
    pipeline: Pipeline,
    stages: Sequence[StagePlan],
    stage: int,
    *,
    through_s: float,
    late: int = 0,
    load_ratio: float = 1.0,
    load_now: float = 1.0,
) -> EvaluationReport:
    """The whole report on the current stage.

    load_ratio, load_now: a canary replica's load over a stable one's, in the stage and at this moment.
    """
    reports = [of_those_who_waited(report, pipeline) for report in gate_reports(pipeline, stages, stage)]
    reports = [_with_load(report, pipeline, load_ratio, load_now) for report in reports]
    rollback = rollback_of(reports)
    split = split_reasons(pipeline)
    invalid = invalid_gates(pipeline, reports)
    is_mismatch = bool(split) and pipeline.seq >= MIN_ROWS
    only_load = not is_mismatch and all(f": {UNEQUAL_LOAD}: " in reason for reason in invalid)
    stage_canary = pipeline.stage_canary if pipeline.stage == stage else 0
    shared = interference(pipeline)
    missing = [
        f"{r.gate}: {r.reason}"
        for r in reports
        if r.side == "promotion" and r.verdict not in (Verdict.PASS, Verdict.INVALID)
    ]
    if few := pipeline.canary_text(stage, stages[stage].min_canary):
        missing.append(few)
    if rollback is not None:
        verdict = Verdict.FAIL
    elif is_mismatch or invalid:
        verdict = Verdict.INVALID
    elif missing or split or shared:
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.PASS
    return EvaluationReport(
        stage=stage,
        stage_verdict=verdict,
        rollback=rollback,
        gates=tuple(reports),
        missing=(*split, *shared, *invalid, *missing),
        frozen=math.isfinite(frozen_since(pipeline)),
        n_canary=pipeline.canary,
        n_stable=pipeline.stable,
        stage_canary=stage_canary,
        through_s=through_s,
        late_events=late,
        notes=(
            *shared,
            *(f"{r.gate}: {r.reason}" for r in reports if is_served_hold(r)),
            *step_notes(pipeline, stages[stage]),
            *([few] if few and pipeline.stage_seen >= stages[stage].min_canary else []),
        ),
        only_load=verdict is Verdict.INVALID and only_load,
    )


def _with_load(report: GateReport, pipeline: Pipeline, load_ratio: float, load_now: float) -> GateReport:
    """The report, INVALID where the replicas' loads differ too much to compare latency.

    A proof needs similar loads, a rollback only a canary without more load: under less load, slower is
    slower. Harm shown before stays, and so does another reason to be INVALID.
    """
    if report.metric not in VALUES - SIZES or report.verdict in (Verdict.FAIL, Verdict.INVALID):
        return report
    limit = pipeline.policy.load_ratio
    ratio = load_now if load_now > limit else load_ratio
    is_proof = report.side == "promotion"
    if not (load_now > limit or (is_proof and not 1.0 / limit <= load_ratio <= limit)):
        return report
    load = "no canary replica is ready" if math.isinf(ratio) else f"canary load {ratio:.1f}x stable's"
    return replace(report, verdict=Verdict.INVALID, reason=f"{UNEQUAL_LOAD}: {load}")


def rollback_of(reports: Sequence[GateReport]) -> GateReport | None:
    """The report of the gate that showed harm first; None: none did."""
    failed = [r for r in reports if r.side == "rollback" and r.verdict is Verdict.FAIL]
    return min(failed, key=lambda r: (r.decided_canary or 0, r.decided_at_s or 0.0), default=None)


def invalid_gates(pipeline: Pipeline, reports: Sequence[GateReport]) -> list[str]:
    """The gates that are INVALID, each once, with the reason: nothing can be proven meanwhile.

    Includes gates that can only roll back: without evidence, the canary may be doing the harm they test for.
    Excludes streaming times while no answer is streamed, guards, and alarms.
    """
    reasons: dict[str, str] = {}
    for report in reports:
        if report.verdict is not Verdict.INVALID or report.side == "guard" or report.is_alarm:
            continue
        metric = pipeline.metrics.get(report.metric)
        is_idle = metric is not None and is_not_streamed(metric) and not is_required(metric)
        if not (is_idle and report.side == "rollback"):
            reasons.setdefault(report.gate, report.reason)
    return [f"{gate}: {reason}" for gate, reason in reasons.items()]


def is_not_streamed(metric: MetricEvidence) -> bool:
    """Whether the metric is a streaming time, and no answer has been streamed yet."""
    return metric.name in STREAMED and metric.presence.never_arrived


def is_required(metric: MetricEvidence) -> bool:
    """Whether a user asked for a gate on the metric: without values it blocks."""
    return any(gate.required for gate in metric.gates)


def _rollback_report(pipeline: Pipeline, metric: MetricEvidence, gate: Gate) -> GateReport:
    by_use = rollback_tracks(metric.tracks, gate)
    limit = log_limit(gate_alpha(pipeline.policy, gate))
    best = max((min(tracks, key=_lead) for tracks in by_use.values()), key=_lead).channel.decision
    if math.isinf(best.limit):
        log_e = max(t.channel.decision.peak for tracks in by_use.values() for t in tracks[:1])
    elif best.is_reached:
        log_e = max(best.peak - best.limit + limit, limit)
    else:
        log_e = min(max(best.peak - max(best.limit - limit, 0.0), 0.0), limit)
    last_of = [max(tracks, key=_reached_at) for tracks in by_use.values()]
    reached = [t for t in last_of if _reached_at(t) < _void_from(pipeline, metric, t)]
    invalid_reason = metric.invalid_reason()
    verdict, text, decision = Verdict.UNDECIDED, "no harm shown so far", None
    is_within = gate.kind is Kind.MEAN and not is_over_budget(metric, gate)
    if reached and not is_within:
        first = min(reached, key=_reached_at)
        verdict, decision = Verdict.FAIL, first.channel.decision
        text = f"{harm(gate)} shown by {USES[first.use]}"
        if gate.is_alarm and gate.kind is Kind.MEAN:
            text = f"{budget_text(metric, gate)}; {beyond(gate)} shown by {USES[first.use]}"
    elif invalid_reason is not None:
        verdict, text = Verdict.INVALID, invalid_reason
    elif reached:
        text = f"{beyond(gate)} shown, and {within_text(metric, gate)}"
    if gate.is_alarm:
        verdict = Verdict.UNDECIDED
    return _report(
        metric,
        gate,
        "rollback",
        verdict,
        text,
        log_e=log_e,
        limit=limit,
        decision=decision,
        unanswered=unanswered_shares(pipeline),
        limits=beyond(gate),
    )


def _reached_at(track: Track) -> float:
    """Sequence number at which a channel reached its limit; infinite: it has not."""
    decision = track.channel.decision
    return float(decision.seq) if decision.is_reached else math.inf


def _void_from(pipeline: Pipeline, metric: MetricEvidence, track: Track) -> float:
    """Sequence number from which a channel decides nothing: the split, its values or sessions are void."""
    void = min(frozen_since(pipeline), metric.void_since())
    match track.use:
        case "session":
            return min(void, sessions_void_since(pipeline, doubted=True))
        case "later":  # the second test protects a canary that keeps more units, not fewer
            return min(void, later_void_since(pipeline, track.part))
        case _:
            return void


def _proof_tracks(pipeline: Pipeline, metric: MetricEvidence, gate: Gate, proof: Proof) -> list[Track]:
    """The channels that must all prove a margin: of sessions, or of first requests once sessions say nothing;
    and of the parts of later sessions that are many of the stage's requests."""
    needed = {("first proof", 0)}
    if math.isinf(sessions_void_since(pipeline)):
        parts = metric.later_share.parts_of(MIN_LATER_SHARE)
        needed = {("proof", 0), *(("later proof", part) for part in parts)}
    found = [t for t in metric.tracks if t.gate == gate and t.proof == proof and (t.use, t.part) in needed]
    return deciding(found)


def _unproven_text(pipeline: Pipeline, metric: MetricEvidence) -> str:
    """Which later requests a proof says nothing of, where they are many; empty: few."""
    share, sessions = metric.later_share.unproven(MIN_LATER_SHARE)
    if share < MIN_LATER_SHARE:
        return ""
    first = sessions * pipeline.policy.session_requests
    return f"; not of what comes after a unit's first {first} requests of an hour, {share:.0%} of its values"


def _proof_void(pipeline: Pipeline, track: Track) -> float:
    """Sequence number from which a channel proves nothing."""
    void = later_void_since(pipeline, track.part) if track.use == "later proof" else math.inf
    return min(frozen_since(pipeline), void)


def _proof_report(
    pipeline: Pipeline, metric: MetricEvidence, gate: Gate, proofs: Sequence[Proof], stage: int
) -> GateReport:
    """The report on all that a stage must prove of one gate; the figures are of the proof that is furthest
    from its limit."""
    tracks_of = [_proof_tracks(pipeline, metric, gate, proof) for proof in proofs]
    tracks = [track for of_proof in tracks_of for track in of_proof]
    margins = [margin(gate, proof, len(proofs)) for proof in proofs]
    names = [
        f"{words} by later requests" if track.use == "later proof" else words
        for words, of in zip(margins, tracks_of, strict=True)
        for track in of
    ]
    is_begun = [t.staged is None or t.staged.stage == stage for t in tracks]
    reached = [
        begun and t.channel.decision.is_reached and t.channel.decision.seq < _proof_void(pipeline, t)
        for t, begun in zip(tracks, is_begun, strict=True)
    ]
    open_ones = [index for index, is_proven in enumerate(reached) if not is_proven]
    shown = min(
        open_ones or range(len(tracks)),
        key=lambda i: tracks[i].channel.decision.peak if open_ones else -tracks[i].channel.decision.seq,
    )
    decision = tracks[shown].channel.decision
    log_e, is_proven = decision.peak, False
    invalid_reason = metric.invalid_reason()
    text = f"{names[shown]} not proven yet{why_not(metric, tracks[shown])}"
    verdict = Verdict.UNDECIDED
    shown_track = tracks[shown]
    if shown_track.use == "later proof" and math.isfinite(later_void_since(pipeline, shown_track.part)):
        text += ", and cannot be: units of one arm come back more often, or ask more then"
    drifting = [t.channel.tail for t in tracks if isinstance(t.channel, TailChannel)]
    if unfit := next((tail for tail in drifting if not tail.is_fitting), None):
        text += f"; {unfit.text}"
    if steps := steps_text(metric, gate, tracks[shown].margin):
        text += f"; {steps}"
    if invalid_reason is not None:
        verdict, text = Verdict.INVALID, invalid_reason
    elif not is_begun[shown]:
        log_e, text = 0.0, "no unit of this stage has settled yet"
    elif forbidden := what_forbids(metric, gate, proofs):
        text = f"{names[shown]} not proven: {forbidden}"
    elif not open_ones:
        is_proven, verdict, text = True, Verdict.PASS, f"{' and '.join(margins)} proven"
        estimates = point_estimates(metric, gate, unanswered_shares(pipeline))
        rows = float(metric.counts.sum()) / max(metric.columns[0].units.rows, 1)
        narrowest = min(proofs, key=lambda proof: proof.margin)
        text += requests_text(gate, narrowest, *estimates, requests_per_unit=rows)
        text += _unproven_text(pipeline, metric)
    if tracks[0].use == "first proof":
        text += " (by first requests: conversations differ in length)"
    return _report(
        metric,
        gate,
        "promotion",
        verdict,
        text,
        log_e=log_e,
        limit=decision.limit,
        decision=decision if is_proven else None,
        unanswered=unanswered_shares(pipeline),
        limits=" and ".join(words.removeprefix(gate.name).removeprefix(":").strip() for words in margins),
    )


def _lead(track: Track) -> float:
    """How far the log wealth is above its limit; negative below it."""
    decision = track.channel.decision
    return decision.peak - decision.limit if math.isfinite(decision.limit) else -math.inf


def _report(
    metric: MetricEvidence,
    gate: Gate,
    side: Side,
    verdict: Verdict,
    reason: str,
    *,
    log_e: float,
    limit: float,
    decision: Decision | None,
    unanswered: tuple[float, float],
    limits: str,
) -> GateReport:
    """decision: of the channel that decided; None: none has. unanswered: shares of both arms' requests."""
    has_fired = side == "rollback" and decision is not None
    stable, canary = (first_estimates if has_fired else point_estimates)(metric, gate, unanswered)
    return GateReport(
        gate=gate.name,
        metric=gate.metric,
        side=side,
        verdict=verdict,
        log_e=log_e,
        limit=limit,
        reason=reason,
        n_canary=int(metric.counts[1]),
        n_stable=int(metric.counts[0]),
        stable=stable,
        canary=canary,
        interval=metric.interval(gate) if side == "rollback" else None,
        effective_units=float(metric.columns[0].units.rows),
        decided_at_s=None if decision is None else decision.at_s,
        decided_canary=None if decision is None else decision.canary,
        is_alarm=gate.is_alarm,
        source=_source(metric),
        last_value_s=metric.presence.last_s if metric.presence.present else None,
        statistic=statistic_of(metric, gate),
        unanswered=unanswered if metric.takes_values and not metric.is_size else None,
        limits=limits,
    )


def _source(metric: MetricEvidence) -> Source:
    if metric.presence.has_stopped:
        return Source.STOPPED
    if metric.presence.never_arrived and metric.presence.rows >= MIN_NEVER:
        return Source.NEVER
    return Source.ARRIVES
