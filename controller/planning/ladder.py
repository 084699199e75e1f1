"""Plan of a rollout: canary weights, how long each is held, and with how many replicas. Pinned at the start.

The ladder is 2, 5, 10, 25, 50, 100 %. The risk decides at which step it starts and how long that is held;
a policy may give its own stages instead. 100 % is not a stage but the promotion: all traffic less the
holdback, then the bake.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from controller.errors import BadSpec
from controller.planning.replica_load import LatencyRole, load_ratio, min_replicas
from controller.planning.risk import Assessment, Risk
from controller.quantities import FULL_BP, NEVER_CANARY, duration, percent
from controller.rollout.plan import MirrorPlan, Plan, PreflightPlan, Stage
from controller.spec.policy import PolicySpec
from controller.spec.policy_parts import StageSpec
from evaluation.forecast.stages import DEADLINE_FACTOR, MIN_DEADLINE_S
from evaluation.metrics import VALUES
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

MIN_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
SLOW_S = 7 * DAY_S  # a stage whose requests take longer than this is most likely a mistake


@dataclass(frozen=True, slots=True)
class LadderStep:
    """One weight of a ladder: how long it is held, and how many canary requests it needs."""

    weight_bp: int
    duration_s: float
    min_canary: int


LADDER = (
    LadderStep(200, 30 * MIN_S, 200),
    LadderStep(500, 30 * MIN_S, 500),
    LadderStep(1000, HOUR_S, 2000),
    LadderStep(2500, HOUR_S, 5000),
    LadderStep(5000, 2 * HOUR_S, 10_000),
)
# First weight of the ladder, and how long it is held.
FIRST: Mapping[Risk, tuple[int, float]] = {
    Risk.NONE: (1000, 30 * MIN_S),
    Risk.LOW: (1000, 30 * MIN_S),
    Risk.MEDIUM: (1000, HOUR_S),
    Risk.HIGH: (500, 4 * HOUR_S),
    Risk.CRITICAL: (200, DAY_S),
}
VENDOR = (
    LadderStep(10, DAY_S, 200),
    LadderStep(100, 2 * DAY_S, 500),
    LadderStep(500, 2 * DAY_S, 2000),
    LadderStep(2500, 5 * DAY_S, 5000),
)
WARMUP_WHOLE_STAGE_S = 366 * DAY_S  # longer than any stage: all of its latency is excluded, of both arms


def make_plan(
    assessment: Assessment,
    policy: PolicySpec,
    *,
    replicas: int,
    stable_replicas: int | None = None,
    requests_per_s: float | None = None,
) -> Plan:
    """The plan for a change of this risk under this policy.

    replicas: of the canary at full traffic. stable_replicas: None when either arm is an external endpoint,
    whose replicas are not known. requests_per_s: the service's traffic; None: not known, and the deadlines
    follow from the durations alone. Raises BadSpec when no stage is left below the bake's weight, or a stage
    has a margin for latency that its replicas make unprovable.
    """
    given = policy.stages
    promotion = next((stage for stage in given or () if stage.bp == FULL_BP), None)
    top_bp = FULL_BP - policy.holdback
    steps = [step for step in _ladder(assessment.risk, policy) if step.weight_bp < top_bp]
    if not steps:
        raise BadSpec(
            f"policy leaves no stage below the bake's {percent(top_bp)}; lower holdback, or give stages"
        )
    limit = policy.gate_policy().load_ratio
    stages: list[Stage] = []
    audience_bp: dict[str, int] = {}  # kept in later stages
    for step in steps:
        needed = min_replicas(step.weight_bp, replicas, stable_replicas, limit)
        stage = _stage(step, needed, requests_per_s, policy)
        audience_bp |= dict(stage.audience_bp)
        stages.append(replace(stage, audience_bp=tuple(audience_bp.items())))
    plan = Plan(
        risk=assessment.risk.value,
        reasons=assessment.reasons,
        stages=tuple(stages),
        holdback_bp=policy.holdback,
        bake_s=promotion.duration if promotion is not None and promotion.duration > 0 else policy.bake,
        **time_limits(policy),
        warmup_tokens=policy.warmup_tokens,
        replicas=replicas if stable_replicas is not None else None,
        stable_replicas=stable_replicas,
        twin=policy.twin,
        mirror=mirror_plan(policy),
        preflight=preflight_plan(policy),
    )
    _refuse_unprovable_margins(plan, given or (), policy.gate_policy())
    return plan


def slow_stages(plan: Plan, requests_per_s: float) -> tuple[str, ...]:
    """A line for each stage whose canary requests take longer than anybody waits at this traffic."""
    lines = []
    for index, stage in enumerate(plan.stages):
        at_s = requests_per_s * stage.weight_bp / FULL_BP
        needed_s = stage.min_canary / at_s if at_s > 0 else 0.0
        if needed_s > SLOW_S and stage.min_canary < NEVER_CANARY:
            lines.append(
                f"stage {index + 1}: its {stage.min_canary} canary requests take {duration(needed_s)} at "
                f"{requests_per_s:.3g} requests/s (deadline {duration(stage.deadline_s)}); lower its "
                "min_canary or raise its weight: policy.stages"
            )
    return tuple(lines)


def mirror_plan(policy: PolicySpec) -> MirrorPlan | None:
    """The policy's copies before the first stage; None: it has none."""
    spec = policy.mirror
    return None if spec is None else MirrorPlan(spec.share, spec.min_pairs, spec.deadline)


def preflight_plan(policy: PolicySpec) -> PreflightPlan | None:
    """What the policy asks before the first user, its golden set's digest not read yet; None: nothing."""
    spec = policy.preflight
    return None if spec is None else PreflightPlan(spec.smoke, spec.golden, None, spec.require)


class TimeLimits(TypedDict):
    """The fields of `Plan` that a policy limits, in seconds."""

    load_s: float
    warm_s: float
    smoke_s: float
    promote_s: float
    drain_s: float
    unload_s: float
    unreadable_s: float
    unready_s: float
    hold_limit_s: float


def time_limits(policy: PolicySpec) -> TimeLimits:
    """The policy's time limits, by the names of `Plan`."""
    return TimeLimits(
        load_s=policy.load_timeout,
        warm_s=policy.warm_timeout,
        smoke_s=policy.smoke_timeout,
        promote_s=policy.promote_timeout,
        drain_s=policy.drain_timeout,
        unload_s=policy.unload_timeout,
        unreadable_s=policy.unreadable_timeout,
        unready_s=policy.unready_timeout,
        hold_limit_s=policy.hold_limit,
    )


def gate_stages(plan: Plan, policy: PolicySpec) -> tuple[StagePlan, ...]:
    """The evaluator's view of the plan's stages, and of the bake, which has to prove nothing.

    The bake is left out when there is no holdback: without a control group there is no evidence. Latency must
    be proven only where the load ratio allows, and is excluded where the canary's replicas get more load.
    """
    specs = {stage.bp: stage for stage in policy.stages or ()}
    gates = policy.gate_policy()
    stages = []
    for index, stage in enumerate(plan.stages):
        spec = specs.get(stage.weight_bp)
        margins, floor = (spec.margins, spec.floor) if spec is not None else (None, None)
        role = _latency_role(plan, index, gates)
        if role != "proves":
            demanded = gates.rung_for(stage.min_canary).margins if margins is None else margins
            latency = set(_latency_gates(demanded, gates))
            margins = {name: margin for name, margin in demanded.items() if name not in latency}
        stages.append(StagePlan(stage.weight_bp / FULL_BP, stage.min_canary, margins, floor, _warmup_s(role)))
    if plan.holdback_bp > 0:
        warmup_s = _warmup_s(_latency_role(plan, len(plan.stages), gates))
        stages.append(StagePlan(1 - plan.holdback_bp / FULL_BP, 0, {}, warmup_s=warmup_s))
    return tuple(stages)


def latency_lines(plan: Plan, policy: PolicySpec) -> tuple[str, ...]:
    """Lines for people: at which weights latency can be proven, only roll back, or is ignored, by load."""
    gates = policy.gate_policy()
    if not any(gate.metric in VALUES for gate in gates.gates):
        return ()
    if plan.stable_replicas is None:
        return ("latency: the replicas of an external endpoint are not known; equal load is assumed",)
    places: dict[LatencyRole, list[str]] = {"proves": [], "rollback_only": [], "ignored": []}
    weights = [stage.weight_bp for stage in plan.stages]
    for index, bp in enumerate([*weights, plan.promoted_bp]):
        ratio = load_ratio(plan, index)
        if ratio is not None and (index < len(weights) or (plan.holdback_bp > 0 and not plan.twin)):
            role = ratio.latency_role(gates.load_ratio)
            shown = ratio.at_start if role == "ignored" else ratio.at_end
            name = percent(bp) if index < len(weights) else f"the bake's {percent(bp)}"
            places[role].append(f"{name} ({shown:.2g}x stable's load)")
    texts = {
        "proves": "can be proven at",
        "rollback_only": "can roll back, but not be proven, at",
        "ignored": "is ignored at",
    }
    lines = [f"latency {texts[role]} {', '.join(names)}" for role, names in places.items() if names]
    if not places["proves"]:
        lines.append(f"latency is proven at no stage; {_remedy(plan)}")
    return tuple(lines)


def _latency_role(plan: Plan, index: int, gates: GatePolicy) -> LatencyRole:
    ratio = load_ratio(plan, index)
    return ratio.latency_role(gates.load_ratio) if ratio is not None else "proves"


def _warmup_s(role: LatencyRole) -> float:
    return WARMUP_WHOLE_STAGE_S if role == "ignored" else 0.0


def _latency_gates(names: Iterable[str], gates: GatePolicy) -> list[str]:
    metrics = {gate.name: gate.metric for gate in gates.gates}
    return [name for name in names if metrics.get(name) in VALUES]


def _refuse_unprovable_margins(plan: Plan, given: tuple[StageSpec, ...], gates: GatePolicy) -> None:
    """Raises BadSpec: a latency margin that a user wrote is never dropped silently."""
    margins = {stage.bp: stage.margins or {} for stage in given}
    for index, stage in enumerate(plan.stages):
        latency = _latency_gates(margins.get(stage.weight_bp, {}), gates)
        ratio = load_ratio(plan, index)
        if latency and ratio is not None and ratio.latency_role(gates.load_ratio) != "proves":
            raise BadSpec(
                f"policy.stages.{index}.margins.{latency[0]} cannot be proven at {percent(stage.weight_bp)}: "
                f"a canary replica gets {ratio.at_end:.2g}x the load of stable's; leave it out here, or "
                f"{_remedy(plan)}"
            )


def _remedy(plan: Plan) -> str:
    canary, stable = plan.replicas or 1, plan.stable_replicas or 1
    return f"prove it in a last stage at {percent(round(FULL_BP * canary / (canary + stable) / 100) * 100)}"


def _ladder(risk: Risk, policy: PolicySpec) -> tuple[LadderStep, ...]:
    if policy.stages is not None:
        return tuple(LadderStep(stage.bp, stage.duration, stage.min_canary) for stage in policy.stages)
    if policy.preset == "vendor":
        return VENDOR
    if policy.ladder == "full":
        return LADDER
    first_bp, first_s = FIRST[risk]
    return tuple(
        LadderStep(
            step.weight_bp, first_s if step.weight_bp == first_bp else step.duration_s, step.min_canary
        )
        for step in LADDER
        if step.weight_bp >= first_bp
    )


def _stage(step: LadderStep, replicas: int, requests_per_s: float | None, policy: PolicySpec) -> Stage:
    spec = next((stage for stage in policy.stages or () if stage.bp == step.weight_bp), None)
    accepts_points = spec.promote_if_point_ok if spec is not None else None
    planned_s = step.duration_s
    if requests_per_s is not None and requests_per_s > 0:
        planned_s = max(planned_s, step.min_canary / (requests_per_s * step.weight_bp / FULL_BP))
    deadline_s = max(DEADLINE_FACTOR * planned_s, step.duration_s, MIN_DEADLINE_S)
    return Stage(
        weight_bp=step.weight_bp,
        duration_s=step.duration_s,
        min_canary=step.min_canary,
        deadline_s=spec.deadline if spec is not None and spec.deadline is not None else deadline_s,
        replicas=replicas,
        on_missing=spec.on_missing if spec is not None else "hold",
        promote_if_point_ok=policy.promote_if_point_ok if accepts_points is None else accepts_points,
        audience_bp=tuple(spec.audience_bp.items()) if spec is not None else (),
    )
