"""The one read model: what the command line, the API and the dashboard show of a service and its rollout.

A view decides nothing; it says in words what the machine waits for. Its shapes are in `view_shapes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from controller.planning.capacity import Fit
from controller.planning.risk import Assessment
from controller.quantities import FULL_BP, duration, percent
from controller.rollout.observation import EvidenceStatus, SplitStatus, VersionPhase, VersionStatus
from controller.rollout.plan import Plan
from controller.rollout.state import Phase, RolloutState, StagePass
from controller.rollout.status import exit_code
from controller.rollout.twin_report import unproven
from controller.views.models import (
    AlarmView,
    CauseView,
    GateView,
    HoldView,
    LogView,
    PassView,
    PlanView,
    RolloutView,
    ServiceView,
    StageView,
    StepsView,
    VersionView,
    finite,
)
from evaluation.policy.gates import Sampling
from evaluation.policy.observed_ranges import RangeGate
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport, Verdict


def rollout_view(
    state: RolloutState, evidence: EvidenceStatus | None = None, *, now_s: float | None = None
) -> RolloutView:
    """The view of a rollout with the newest evidence; now_s None: as of its last line."""
    at_s = now_s if now_s is not None else (state.log[-1].at_s if state.log else state.entered_at_s)
    in_stage, cause, going = state.phase is Phase.STAGE, state.cause, state.departure
    return RolloutView(
        rollout=state.id,
        service=state.service,
        stable=state.stable.id,
        canary=state.canary.id,
        serving=state.serving,
        phase=state.phase,
        stage=state.stage + 1 if in_stage else None,
        stages=_stages(state.plan, state.stage if _has_started(state) else -1, in_stage=in_stage),
        weight_bp=state.weight_bp,
        holdback_bp=state.plan.holdback_bp,
        twin=state.plan.twin,
        passed=tuple(_pass_view(one) for one in state.passed),
        risk=state.plan.risk,
        risk_reasons=state.plan.reasons,
        reason=state.reason,
        waiting_for=waiting_for(state, evidence, at_s),
        started_at_s=state.started_at_s,
        entered_at_s=state.entered_at_s,
        acked_at_s=state.acked_at_s,
        deadline_at_s=state.deadline_at_s,
        is_final=state.is_final,
        exit_code=exit_code(state),
        holds=tuple(
            HoldView(kind=hold.kind.value, actor=hold.actor, reason=hold.reason, since_s=hold.since_s)
            for hold in state.holds
        ),
        verdict=evidence.verdict if evidence is not None else None,
        canary_requests=evidence.canary_requests if evidence is not None else 0,
        stable_requests=evidence.stable_requests if evidence is not None else 0,
        gates=tuple(gate_view(gate) for gate in evidence.gates) if evidence is not None else (),
        missing=evidence.missing if evidence is not None else (),
        guards=tuple(f"{guard.name}: {guard.text}" for guard in evidence.guards)
        if evidence is not None
        else (),
        notes=(*_notes(state), *(evidence.notes if evidence is not None else ())),
        alarms=tuple(
            AlarmView(
                gate=alarm.gate,
                segment=alarm.segment,
                text=alarm.text,
                canary_requests=alarm.canary_requests,
                at_s=alarm.at_s,
            )
            for alarm in (evidence.alarms if evidence is not None else ())
        ),
        cause=CauseView(kind=cause.kind.value, text=cause.text, actor=cause.actor)
        if cause is not None
        else None,
        decisive=gate_view(state.decisive) if state.decisive is not None else None,
        decided_canary=state.decided_canary,
        steps=StepsView(
            leaving=going.leaving,
            staying=going.staying,
            step=going.step.value,
            cancelled=going.cancelled,
            traffic_shift_ms=going.traffic_shift_ms,
            drain_ms=going.drain_ms,
            unload_ms=going.unload_ms,
            total_ms=going.total_ms,
        )
        if going is not None
        else None,
        log=tuple(
            LogView(seq=line.seq, at_s=line.at_s, actor=line.actor, text=line.text) for line in state.log
        ),
    )


def service_view(
    service: str,
    *,
    url: str,
    stable: str,
    split: SplitStatus | None,
    versions: Iterable[VersionStatus] | None,
    rollout: RolloutView | None,
) -> ServiceView:
    """The view of a service; what could not be read is None and shows as null."""
    return ServiceView(
        service=service,
        url=url,
        stable=stable,
        weight_bp=split.weight_bp if split is not None else None,
        versions=None
        if versions is None
        else tuple(
            VersionView(
                version=sight.version,
                phase=sight.phase.value,
                ready_replicas=sight.ready_replicas,
                in_flight=sight.in_flight,
                memory_bytes=sight.memory_bytes,
                last_error=sight.last_error,
            )
            for sight in versions
            if sight.phase is not VersionPhase.GONE
        ),
        rollout=rollout,
    )


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
    """The view of a plan. A changed sampling default is a warning: it changes answers, not the model.

    latency: where it can be proven (`plan.latency_lines`).
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
        stages=_stages(plan, -1, in_stage=False),
        holdback_bp=plan.holdback_bp,
        bake_s=plan.bake_s,
        shortest_s=math.fsum(stage.duration_s for stage in plan.stages) + (0.0 if plan.twin else plan.bake_s),
        alpha=policy.alpha,
        gates=(
            *(_gate_line(policy, index) for index in range(len(policy.gates))),
            *(_range_line(policy, gate) for gate in policy.observed_ranges),
        ),
        latency=latency,
        fits=fit.fits,
        capacity=fit.text,
    )


def gate_view(gate: GateReport) -> GateView:
    """One gate's standing."""
    limit = finite(gate.limit)
    ratio = gate.log_e / limit if limit is not None and limit > 0 and math.isfinite(gate.log_e) else 0.0
    low, high = gate.interval if gate.interval is not None else (None, None)
    return GateView(
        gate=gate.gate,
        metric=gate.metric,
        side=gate.side,
        verdict=gate.verdict,
        log_e=gate.log_e,
        limit=gate.limit,
        progress_ratio=min(1.0, max(0.0, ratio)),
        reason=gate.reason,
        n_canary=gate.n_canary,
        n_stable=gate.n_stable,
        canary=gate.canary,
        stable=gate.stable,
        low=low,
        high=high,
    )


def waiting_for(state: RolloutState, evidence: EvidenceStatus | None, now_s: float) -> tuple[str, ...]:
    """What stands between this moment and the next move, in words; empty: nothing, or the rollout is over."""
    if state.is_final:
        return ()
    waits = [f"{hold.kind.value.replace('_', ' ')} ({hold.actor}): {hold.reason}" for hold in state.holds]
    if state.departure is not None:
        return (f"{state.departure.step.value} of {state.departure.leaving}",)
    if state.phase in (Phase.STAGE, Phase.BAKING) and state.acked_at_s is None:
        return (*waits, f"the routers to acknowledge {percent(state.weight_bp)}")
    if state.phase is Phase.STAGE and state.acked_at_s is not None and state.waived_through < state.stage:
        waits += _stage_waits(state, evidence, now_s - state.acked_at_s)
    elif state.phase is Phase.BAKING:
        left_s = state.plan.bake_s - (now_s - state.entered_at_s)
        waits += [f"{duration(math.ceil(left_s))} of bake"] if left_s > 0 else []
    elif state.phase is Phase.PROMOTING:
        waits.append(
            "the whole capacity" if state.weight_bp != FULL_BP - state.plan.holdback_bp else "the routers"
        )
    elif state.phase is not Phase.STAGE:
        waits.append(f"{state.phase.value} of {state.canary.id}")
    return tuple(waits)


def _stage_waits(state: RolloutState, evidence: EvidenceStatus | None, spent_s: float) -> list[str]:
    stage, waits = state.plan.stages[state.stage], []
    if evidence is None:
        return ["evidence that can be read"]
    if state.plan.is_test:
        return [f"canaryctl ab stop {state.service}: an A/B test is never promoted by itself"]
    if spent_s < stage.duration_s:
        waits.append(f"{duration(math.ceil(stage.duration_s - spent_s))} of {percent(stage.weight_bp)}")
    if evidence.canary_requests < stage.min_canary:
        waits.append(f"{stage.min_canary - evidence.canary_requests} canary requests")
    if evidence.verdict is not Verdict.PASS:
        open_gates = [
            gate.gate
            for gate in evidence.gates
            if gate.side == "promotion" and gate.verdict is not Verdict.PASS
        ]
        waits.append(f"proof of {', '.join(open_gates)}" if open_gates else "PASS")
    return waits + [f"data to judge {name}" for name in evidence.missing]


def _has_started(state: RolloutState) -> bool:
    return state.exposed or state.phase in (Phase.STAGE, Phase.PROMOTING, Phase.BAKING, Phase.UNLOADING)


def _notes(state: RolloutState) -> list[str]:
    """What must not be overlooked of the rollout itself."""
    twin = ["a twin run: both arms are one model, and nothing will be promoted"] if state.plan.twin else []
    return [*twin, *([unproven(state).removeprefix("; ")] if unproven(state) else [])]


def _pass_view(one: StagePass) -> PassView:
    return PassView(
        number=one.stage + 1,
        weight_bp=one.weight_bp,
        how=one.how,
        at_s=one.at_s,
        held_s=one.held_s,
        canary_requests=one.canary_requests,
        proven_canary=one.proven_canary,
        proven_after_s=one.proven_after_s,
        last_gate=one.last_gate,
        nearest_gate=one.nearest_gate,
        nearest_ratio=one.nearest_ratio,
    )


def _stages(plan: Plan, at: int, *, in_stage: bool) -> tuple[StageView, ...]:
    views = []
    for index, stage in enumerate(plan.stages):
        status: Literal["done", "now", "ahead"] = "done" if index < at else "ahead"
        if in_stage and index == at:
            status = "now"
        views.append(
            StageView(
                number=index + 1,
                weight_bp=stage.weight_bp,
                duration_s=stage.duration_s,
                min_canary=stage.min_canary,
                deadline_s=stage.deadline_s,
                replicas=stage.replicas,
                status=status,
                promote_if_point_ok=stage.promote_if_point_ok,
            )
        )
    return tuple(views)


def _range_line(policy: GatePolicy, gate: RangeGate) -> str:
    does = "rolls back" if gate.on_outside == "rollback" else "holds"
    shown = ", ".join(f"{one.name} {one.low:g}..{one.high:g}" for one in gate.ranges)
    outside = "above" if gate.sides == "above" else "outside"
    alpha = policy.alpha * gate.alpha_share
    return f"{gate.name}: {does} where {gate.metric} is {outside} {shown} (alpha {alpha:g})"


def _gate_line(policy: GatePolicy, index: int) -> str:
    gate = policy.gates[index]
    alpha = policy.alpha * gate.alpha_share
    shares = gate.sampling
    judged = ""
    if shares != Sampling():
        judged = f"; judged: {shares.stable:.0%} of stable's answers, {shares.canary:.0%} of the canary's"
    if alpha == 0:
        return f"{gate.name}: shown, never deciding{judged}"
    sign = "-" if gate.kind == "score" else "+"
    unit = f"{gate.threshold:g}" if gate.kind == "score" else f"{gate.threshold * 100:g} %"
    tolerated = f"{gate.tolerance:g}" if gate.kind == "score" else f"{gate.tolerance * 100:g} %"
    return f"{gate.name}: rolls back at {sign}{unit}, tolerates {sign}{tolerated} (alpha {alpha:g}){judged}"
