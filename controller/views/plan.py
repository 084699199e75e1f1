"""View of a plan: what `canaryctl plan` shows of a rollout before it starts."""

from __future__ import annotations

import math

from controller.planning.capacity import Fit
from controller.planning.risk import Assessment
from controller.quantities import duration, figure, percent
from controller.rollout.plan import Plan
from controller.rollout.state import RolloutState
from controller.spec.label import Label
from controller.views.models import AttemptView, ForecastView, PlanView
from controller.views.rollout import stage_views
from evaluation.forecast.detectable_effect import DetectableEffect
from evaluation.forecast.stages import StageForecast
from evaluation.metrics import Kind
from evaluation.policy.gates import Sampling
from evaluation.policy.observed_ranges import RangeGate
from evaluation.policy.policy import GatePolicy


def plan_view(
    service: str,
    stable: str,
    canary: str,
    *,
    assessment: Assessment,
    plan: Plan,
    policy: GatePolicy,
    fit: Fit,
    latency: tuple[str, ...] = (),
) -> PlanView:
    """The plan without its forecast. A changed sampling default is a warning: it alone changes answers.

    latency: the lines of `planning.ladder.latency_lines`.
    """
    warnings = [f"sampling default changes: {change}" for change in assessment.sampling]
    if not fit.fits:
        warnings.append(fit.text)
    return PlanView(
        twin=plan.twin,
        service=service,
        stable=stable,
        canary=canary,
        risk=plan.risk,
        reasons=plan.reasons,
        warnings=tuple(warnings),
        stages=stage_views(plan),
        holdback_bp=plan.holdback_bp,
        bake_s=plan.bake_s,
        shortest_s=math.fsum(stage.duration_s for stage in plan.stages) + (0.0 if plan.twin else plan.bake_s),
        alpha=policy.alpha,
        gates=(
            *(_gate_line(policy, index) for index in range(len(policy.gates))),
            *(_range_line(policy, gate) for gate in policy.observed_ranges),
        ),
        latency=latency,
        mirror=_mirror_line(plan),
        preflight=_preflight_line(plan),
        fits=fit.fits,
        capacity=fit.text,
    )


def _mirror_line(plan: Plan) -> str:
    mirror = plan.mirror
    if mirror is None:
        return ""
    limit = duration(round(mirror.deadline_s))
    share = percent(mirror.share_bp)
    if plan.judge is not None:
        until = f"{mirror.min_pairs} pairs of answers are judged by {plan.judge.model}"
        return f"{share} of stable's requests, until {until}, or {limit} with too little traffic for that"
    return f"{share} of stable's requests, until {mirror.min_pairs} pairs of answers or {limit}"


def _preflight_line(plan: Plan) -> str:
    asked = plan.preflight
    if asked is None:
        return ""
    parts = ["smoke cases" if asked.smoke else "", f"golden set {asked.golden}" if asked.golden else ""]
    parts.append(f"must pass {', '.join(asked.require)}" if asked.require else "")
    return ", ".join(filter(None, parts))


def attempt_view(state: RolloutState, label: Label, ended_at_s: float | None) -> AttemptView:
    """An earlier rollout of the planned version. Its cause, if it has one, goes before its last reason."""
    return AttemptView(
        rollout=state.id,
        started_at_s=state.started_at_s,
        ended_at_s=ended_at_s,
        phase=state.phase,
        reason=state.cause.text if state.cause is not None else state.reason,
        actor=label.actor,
        message=label.message,
    )


def forecast_view(stage: StageForecast, weight_bp: int) -> ForecastView:
    """The forecast of one stage."""
    return ForecastView(
        number=stage.stage + 1,
        weight_bp=weight_bp,
        proven_ratio=stage.proven_ratio,
        requests_median=stage.requests_median,
        requests_p90=stage.requests_p90,
        seconds_median=stage.seconds_median,
        seconds_p90=stage.seconds_p90,
        slowest_gate=stage.slowest_gate,
        finds=tuple(_finding_text(one) for one in stage.detectable),
        refusal=stage.refusal,
        runs=stage.runs,
        proven_runs=stage.proven_runs,
        simulated_requests=stage.cut_at,
    )


def _finding_text(finding: DetectableEffect) -> str:
    if finding.harm is None:
        return f"{finding.gate}: nothing"
    sign = "-" if finding.kind is Kind.SCORE else "x"
    return f"{finding.gate} {sign}{figure(finding.harm, 3)}"


def _range_line(policy: GatePolicy, gate: RangeGate) -> str:
    action = "rolls back" if gate.on_outside == "rollback" else "holds"
    ranges = ", ".join(f"{one.name} {one.low:g}..{one.high:g}" for one in gate.ranges)
    outside = "above" if gate.sides == "above" else "outside"
    alpha = policy.alpha * gate.alpha_share
    return f"{gate.name}: {action} where {gate.metric} is {outside} {ranges} (alpha {alpha:g})"


def _gate_line(policy: GatePolicy, index: int) -> str:
    gate = policy.gates[index]
    alpha = policy.alpha * gate.alpha_share
    judged = ""
    if (ratios := gate.sampling) != Sampling():
        judged = f"; judged: {ratios.stable:.0%} of stable's answers, {ratios.canary:.0%} of the canary's"
    if alpha == 0:
        return f"{gate.name}: shown, never deciding{judged}"
    if gate.kind == "score":
        threshold, tolerance = f"-{gate.threshold:g}", f"-{gate.tolerance:g}"
    else:
        threshold, tolerance = f"+{gate.threshold * 100:g} %", f"+{gate.tolerance * 100:g} %"
    return f"{gate.name}: rolls back at {threshold}, tolerates {tolerance} (alpha {alpha:g}){judged}"
