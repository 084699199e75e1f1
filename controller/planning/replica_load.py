"""Requests per replica of each arm, as the plan makes them: where latency can be compared, where it cannot.

A canary replica that gets less than stable's may look fast, one that gets more may look slow, and neither
says anything of the version. So latency is demanded only of a stage whose loads match, and where a canary
replica gets more it decides nothing at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from controller.quantities import FULL_BP
from controller.rollout.plan import Plan


@dataclass(frozen=True, slots=True)
class Load:
    """A canary replica's requests over a stable replica's, in a stage or the bake."""

    ratio: float  # with the replicas that it ends with: capacity is loaded a stage ahead
    highest: float  # with the replicas that it begins with

    def means(self, limit: float) -> Literal["proves", "guards", "nothing"]:
        """What latency may decide. guards: it may roll back, never prove. limit: the policy's `load_ratio`.

        A plan may use half of the limit, in logarithms: the other half is for what sticky units and heavy
        tenants make of the weight.
        """
        if self.highest > limit:
            return "nothing"
        return "proves" if 1 / math.sqrt(limit) <= self.ratio <= math.sqrt(limit) else "guards"


def load(plan: Plan, index: int) -> Load | None:
    """The load in a stage, or in the bake (index: the number of stages).

    None: an arm is an endpoint of somebody else, whose replicas are not ours to know.
    """
    if plan.replicas is None or plan.stable_replicas is None:
        return None
    stages = plan.stages
    if index >= len(stages):
        ratio = _ratio(FULL_BP - plan.holdback_bp, plan.replicas, plan.stable_replicas)
        return Load(ratio, ratio)
    stage = stages[index]
    ends_with = stages[index + 1].replicas if index + 1 < len(stages) else plan.replicas
    return Load(
        _ratio(stage.weight_bp, ends_with, plan.stable_replicas),
        _ratio(stage.weight_bp, min(stage.replicas, ends_with), plan.stable_replicas),
    )


def least_replicas(weight_bp: int, replicas: int, stable_replicas: int | None, limit: float) -> int:
    """Canary replicas for a share: for its part of the traffic, and so that none gets more than stable's."""
    least = math.ceil(replicas * weight_bp / FULL_BP)
    if stable_replicas is not None:
        matching = stable_replicas * weight_bp / (FULL_BP - weight_bp)
        least = max(least, math.ceil(matching / math.sqrt(limit)))
    return min(replicas, max(1, least))


def _ratio(weight_bp: int, replicas: int, stable_replicas: int) -> float:
    if weight_bp >= FULL_BP:
        return math.inf
    return weight_bp / (FULL_BP - weight_bp) * stable_replicas / replicas
