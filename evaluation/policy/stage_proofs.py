"""What the stages of a plan must prove, by gate of a policy."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.policy.gates import Proof, StagePlan
from evaluation.policy.policy import GatePolicy


def proofs_by_gate(policy: GatePolicy, stages: Sequence[StagePlan]) -> dict[str, list[Proof]]:
    """The distinct margins that the stages must prove, by gate."""
    out: dict[str, list[Proof]] = {}
    for stage in stages:
        for name, proofs in stage_proofs(policy, stage).items():
            known = out.setdefault(name, [])
            known += [proof for proof in proofs if proof not in known]
    return out


def stage_proofs(policy: GatePolicy, stage: StagePlan) -> dict[str, list[Proof]]:
    """What a stage must prove, by gate of this policy. A rung's `own` margin makes the other one that of the
    whole rollout; the margins of a plan are always of the stage's own units."""
    margins, floor = stage_margins(policy, stage)
    own = policy.rung_for(stage.min_canary).own if stage.margins is None else {}
    return {
        name: [Proof(margin, floor, is_whole=name in own)]
        + ([Proof(own[name], floor)] if name in own else [])
        for name, margin in margins.items()
    }


def stage_margins(policy: GatePolicy, stage: StagePlan) -> tuple[dict[str, float], float]:
    """The margins that a stage must prove, by gate of this policy, and the floor of its rates."""
    rung = policy.rung_for(stage.min_canary)
    margins = rung.margins if stage.margins is None else stage.margins
    names = {gate.name for gate in policy.gates}
    floor = rung.floor if stage.floor is None else stage.floor
    return {name: margin for name, margin in margins.items() if name in names}, floor
