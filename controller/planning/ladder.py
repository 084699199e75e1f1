"""The plan of a rollout: which shares, for how long, with how many replicas. Pinned when the rollout starts.

The ladder goes 2, 5, 10, 25, 50, 100 %. A risk says where it begins and how long the first share is held; a
policy may give its own stages instead. 100 % is not a stage but the promotion: all traffic less the holdback,
then the bake.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.errors import BadSpec
from controller.planning.replica_load import least_replicas, load
from controller.planning.risk import Assessment, Risk
from controller.quantities import FULL_BP, percent
from controller.rollout.plan import Plan, Stage
from controller.spec.service import PolicySpec, StageSpec
from evaluation.metrics import VALUES
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

MIN_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Rung:
    """A share of the ladder: how long it is held, and how many canary requests it needs."""

    weight_bp: int
    duration_s: float
    min_canary: int


LADDER = (
    Rung(200, 30 * MIN_S, 200),
    Rung(500, 30 * MIN_S, 500),
    Rung(1000, HOUR_S, 2000),
    Rung(2500, HOUR_S, 5000),
    Rung(5000, 2 * HOUR_S, 10_000),
)
# Where the ladder begins, and how long that first share is held.
FIRST: Mapping[Risk, tuple[int, float]] = {
    Risk.NONE: (1000, 30 * MIN_S),
    Risk.LOW: (1000, 30 * MIN_S),
    Risk.MEDIUM: (1000, HOUR_S),
    Risk.HIGH: (500, 4 * HOUR_S),
    Risk.CRITICAL: (200, DAY_S),
}
VENDOR = (
    Rung(10, DAY_S, 200),
    Rung(100, 2 * DAY_S, 500),
    Rung(500, 2 * DAY_S, 2000),
    Rung(2500, 5 * DAY_S, 5000),
)
DEADLINE_FACTOR = 3.0  # of what is planned, before a stage is held as not proven
MIN_DEADLINE_S = 60.0
WHOLE_STAGE_S = 366 * DAY_S  # a warm-up that no stage outlives: its latency says nothing, of either arm


def make_plan(
    assessment: Assessment,
    policy: PolicySpec,
    *,
    replicas: int,
    stable_replicas: int | None = None,
    requests_per_s: float | None = None,
) -> Plan:
    """The plan for a change of this risk under this policy.

    replicas: of the canary at full traffic. stable_replicas: None when either arm is an endpoint, whose
    replicas are not ours to know. requests_per_s: the service's traffic; None: not known, and the deadlines
    come from the durations alone. Raises BadSpec when no stage is left below the bake's share, or a stage
    has a margin for latency that its replicas make unprovable.
    """
    given = policy.stages
    rungs = _rungs(assessment.risk, policy) if given is None else tuple(_own(stage) for stage in given)
    promotion = next((stage for stage in given or () if stage.bp == FULL_BP), None)
    top_bp = FULL_BP - policy.holdback
    kept = [stage for stage in rungs if stage.weight_bp < top_bp]
    if not kept:
        raise BadSpec(
            f"policy leaves no stage below the bake's {percent(top_bp)}; lower holdback, or give stages"
        )
    limit = policy.gate_policy().load_ratio
    plan = Plan(
        risk=assessment.risk.value,
        reasons=assessment.reasons,
        stages=tuple(
            _stage(
                rung, least_replicas(rung.weight_bp, replicas, stable_replicas, limit), requests_per_s, policy
            )
            for rung in kept
        ),
        holdback_bp=policy.holdback,
        bake_s=promotion.duration if promotion is not None and promotion.duration > 0 else policy.bake,
        load_s=policy.load_timeout,
        warm_s=policy.warm_timeout,
        smoke_s=policy.smoke_timeout,
        promote_s=policy.promote_timeout,
        drain_s=policy.drain_timeout,
        unload_s=policy.unload_timeout,
        unreadable_s=policy.unreadable_timeout,
        unready_s=policy.unready_timeout,
        hold_limit_s=policy.hold_limit,
        warmup_tokens=policy.warmup_tokens,
        replicas=replicas if stable_replicas is not None else None,
        stable_replicas=stable_replicas,
        twin=policy.twin,
    )
    _refuse_unprovable(plan, given or (), policy.gate_policy())
    return plan


def gate_stages(plan: Plan, policy: PolicySpec) -> tuple[StagePlan, ...]:
    """What the evaluator must know of the plan's stages, and of the bake, which has to prove nothing.

    The bake is left out when there is no holdback: without a coin there is no evidence. Latency is demanded
    only where both arms' replicas are loaded alike, and decides nothing where the canary's get more.
    """
    own = {stage.bp: stage for stage in policy.stages or ()}
    gates = policy.gate_policy()
    stages = []
    for index, stage in enumerate(plan.stages):
        spec = own.get(stage.weight_bp)
        margins, floor = (spec.margins, spec.floor) if spec is not None else (None, None)
        means = _means(plan, index, gates)
        if means != "proves":
            wanted = gates.rung_for(stage.min_canary).margins if margins is None else margins
            late = set(_latency_gates(wanted, gates))
            margins = {name: margin for name, margin in wanted.items() if name not in late}
        stages.append(
            StagePlan(stage.weight_bp / FULL_BP, stage.min_canary, margins, floor, _warmup_s(means))
        )
    if plan.holdback_bp > 0:
        warmup_s = _warmup_s(_means(plan, len(plan.stages), gates))
        stages.append(StagePlan(1 - plan.holdback_bp / FULL_BP, 0, {}, warmup_s=warmup_s))
    return tuple(stages)


def latency_lines(plan: Plan, policy: PolicySpec) -> tuple[str, ...]:
    """Where latency can be proven, where it can only roll back, and where it decides nothing, by load."""
    gates = policy.gate_policy()
    if not any(gate.metric in VALUES for gate in gates.gates):
        return ()
    if plan.stable_replicas is None:
        return ("latency: the replicas behind an endpoint are not known, so their load is taken to be alike",)
    places: dict[str, list[str]] = {"proves": [], "guards": [], "nothing": []}
    weights = [stage.weight_bp for stage in plan.stages]
    for index, bp in enumerate([*weights, FULL_BP - plan.holdback_bp]):
        found = load(plan, index)
        if found is not None and (index < len(weights) or (plan.holdback_bp > 0 and not plan.twin)):
            ratio = found.highest if found.means(gates.load_ratio) == "nothing" else found.ratio
            name = percent(bp) if index < len(weights) else f"the bake's {percent(bp)}"
            places[found.means(gates.load_ratio)].append(f"{name} ({ratio:.2g}x stable's load)")
    says = {
        "proves": "can be proven at",
        "guards": "can roll back, not be proven, at",
        "nothing": "decides nothing at",
    }
    lines = [f"latency {says[key]} {', '.join(at)}" for key, at in places.items() if at]
    if not places["proves"]:
        lines.append(f"latency is proven at no stage; {_remedy(plan)}")
    return tuple(lines)


def _means(plan: Plan, index: int, gates: GatePolicy) -> str:
    found = load(plan, index)
    return found.means(gates.load_ratio) if found is not None else "proves"


def _warmup_s(means: str) -> float:
    return WHOLE_STAGE_S if means == "nothing" else 0.0


def _latency_gates(names: Iterable[str], gates: GatePolicy) -> list[str]:
    metrics = {gate.name: gate.metric for gate in gates.gates}
    return [name for name in names if metrics.get(name) in VALUES]


def _refuse_unprovable(plan: Plan, given: tuple[StageSpec, ...], gates: GatePolicy) -> None:
    """A margin that somebody wrote is never dropped in silence."""
    margins = {stage.bp: stage.margins or {} for stage in given}
    for index, stage in enumerate(plan.stages):
        late = _latency_gates(margins.get(stage.weight_bp, {}), gates)
        found = load(plan, index)
        if late and found is not None and found.means(gates.load_ratio) != "proves":
            raise BadSpec(
                f"policy.stages.{index}.margins.{late[0]} cannot be proven at {percent(stage.weight_bp)}: "
                f"a canary replica gets {found.ratio:.2g}x the load of stable's; leave it out here, or "
                f"{_remedy(plan)}"
            )


def _remedy(plan: Plan) -> str:
    canary, stable = plan.replicas or 1, plan.stable_replicas or 1
    return f"prove it in a last stage at {percent(round(FULL_BP * canary / (canary + stable) / 100) * 100)}"


def _rungs(risk: Risk, policy: PolicySpec) -> tuple[Rung, ...]:
    if policy.preset == "vendor":
        return VENDOR
    if policy.ladder == "full":
        return LADDER
    first_bp, hold_s = FIRST[risk]
    return tuple(
        Rung(rung.weight_bp, hold_s if rung.weight_bp == first_bp else rung.duration_s, rung.min_canary)
        for rung in LADDER
        if rung.weight_bp >= first_bp
    )


def _own(stage: StageSpec) -> Rung:
    return Rung(stage.bp, stage.duration, stage.min_canary)


def _stage(rung: Rung, replicas: int, requests_per_s: float | None, policy: PolicySpec) -> Stage:
    spec = next((stage for stage in policy.stages or () if stage.bp == rung.weight_bp), None)
    points = spec.promote_if_point_ok if spec is not None else None
    planned_s = rung.duration_s
    if requests_per_s is not None and requests_per_s > 0:
        planned_s = max(planned_s, rung.min_canary / (requests_per_s * rung.weight_bp / FULL_BP))
    deadline_s = max(DEADLINE_FACTOR * planned_s, rung.duration_s, MIN_DEADLINE_S)
    return Stage(
        weight_bp=rung.weight_bp,
        duration_s=rung.duration_s,
        min_canary=rung.min_canary,
        deadline_s=spec.deadline if spec is not None and spec.deadline is not None else deadline_s,
        replicas=replicas,
        on_missing=spec.on_missing if spec is not None else "hold",
        promote_if_point_ok=policy.promote_if_point_ok if points is None else points,
    )
