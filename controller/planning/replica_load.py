"""Load ratio of the arms: requests per canary replica over requests per stable replica, as planned.

A canary replica with less load than stable's may look fast, one with more may look slow, and neither says
anything about the version. So a stage must prove latency only where the loads match, and latency decides
nothing where a canary replica gets more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from controller.quantities import FULL_BP
from controller.rollout.plan import Plan

# proves: must be proven, and may roll back.  rollback_only: is never proven.  ignored: neither.
LatencyRole = Literal["proves", "rollback_only", "ignored"]


@dataclass(frozen=True, slots=True)
class LoadRatio:
    """A canary replica's requests over a stable replica's, in a stage or the bake."""

    at_end: float  # with the replicas of the stage's end: capacity is loaded a stage ahead
    at_start: float  # with the replicas of the stage's start, the maximum

    def latency_role(self, limit: float) -> LatencyRole:
        """What latency may decide at this load. limit: the policy's `load_ratio`.

        A plan may use half of the limit, in logarithms: the other half is reserved for how much sticky units
        and heavy tenants distort the weight.
        """
        if self.at_start > limit:
            return "ignored"
        return "proves" if 1 / math.sqrt(limit) <= self.at_end <= math.sqrt(limit) else "rollback_only"


def load_ratio(plan: Plan, index: int) -> LoadRatio | None:
    """The load ratio in a stage, or in the bake (index: the number of stages).

    None: an arm is an external endpoint, whose replicas are not known.
    """
    if plan.replicas is None or plan.stable_replicas is None:
        return None
    stages = plan.stages
    if index >= len(stages):
        ratio = _ratio(plan.promoted_bp, plan.replicas, plan.stable_replicas)
        return LoadRatio(ratio, ratio)
    stage = stages[index]
    end_replicas = stages[index + 1].replicas if index + 1 < len(stages) else plan.replicas
    return LoadRatio(
        _ratio(stage.weight_bp, end_replicas, plan.stable_replicas),
        _ratio(stage.weight_bp, min(stage.replicas, end_replicas), plan.stable_replicas),
    )


def min_replicas(weight_bp: int, replicas: int, stable_replicas: int | None, limit: float) -> int:
    """Canary replicas for a weight: enough for its traffic, and for no more load each than on stable's."""
    needed = math.ceil(replicas * weight_bp / FULL_BP)
    if stable_replicas is not None:
        matching = stable_replicas * weight_bp / (FULL_BP - weight_bp)
        needed = max(needed, math.ceil(matching / math.sqrt(limit)))
    return min(replicas, max(1, needed))


def _ratio(weight_bp: int, replicas: int, stable_replicas: int) -> float:
    if weight_bp >= FULL_BP:
        return math.inf
    return weight_bp / (FULL_BP - weight_bp) * stable_replicas / replicas
