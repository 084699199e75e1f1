"""The plan of a rollout: which shares, for how long, with how many replicas. Pinned when the rollout starts.

The ladder goes 2, 5, 10, 25, 50, 100 %. A risk says where it begins and how long the first share is held; a
policy may give its own stages instead. 100 % is not a stage but the promotion: all traffic less the holdback,
then the bake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from controller.errors import BadSpec
from controller.risk import Assessment, Risk
from controller.spec import PolicySpec, StageSpec
from controller.state import FULL_BP, Plan, Stage
from controller.units import percent
from evaluation.policy import StagePlan

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


def make_plan(
    assessment: Assessment, policy: PolicySpec, *, replicas: int, requests_per_s: float | None = None
) -> Plan:
    """The plan for a change of this risk under this policy.

    replicas: of the canary at full traffic. requests_per_s: the service's traffic; None: not known, and the
    deadlines come from the durations alone. Raises BadSpec when no stage is left below the bake's share.
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
    return Plan(
        risk=assessment.risk.value,
        reasons=assessment.reasons,
        stages=tuple(_stage(rung, replicas, requests_per_s, given) for rung in kept),
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
    )


def gate_stages(plan: Plan, policy: PolicySpec) -> tuple[StagePlan, ...]:
    """What the evaluator must know of the plan's stages, and of the bake, which has to prove nothing.

    The bake is left out when there is no holdback: without a coin there is no evidence.
    """
    own = {stage.bp: stage for stage in policy.stages or ()}
    stages = []
    for stage in plan.stages:
        spec = own.get(stage.weight_bp)
        margins, floor = (spec.margins, spec.floor) if spec is not None else (None, None)
        stages.append(StagePlan(stage.weight_bp / FULL_BP, stage.min_canary, margins, floor))
    if plan.holdback_bp > 0:
        stages.append(StagePlan(1 - plan.holdback_bp / FULL_BP, 0, {}))
    return tuple(stages)


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


def _stage(
    rung: Rung, replicas: int, requests_per_s: float | None, given: tuple[StageSpec, ...] | None
) -> Stage:
    spec = next((stage for stage in given or () if stage.bp == rung.weight_bp), None)
    planned_s = rung.duration_s
    if requests_per_s is not None and requests_per_s > 0:
        planned_s = max(planned_s, rung.min_canary / (requests_per_s * rung.weight_bp / FULL_BP))
    deadline_s = max(DEADLINE_FACTOR * planned_s, rung.duration_s, MIN_DEADLINE_S)
    return Stage(
        weight_bp=rung.weight_bp,
        duration_s=rung.duration_s,
        min_canary=rung.min_canary,
        deadline_s=spec.deadline if spec is not None and spec.deadline is not None else deadline_s,
        replicas=min(replicas, max(1, math.ceil(replicas * rung.weight_bp / FULL_BP))),
        on_missing=spec.on_missing if spec is not None else "hold",
    )
