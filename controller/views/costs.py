"""View of what a rollout's answers cost."""

from __future__ import annotations

from controller.rollout.observation import EvidenceStatus
from controller.views.cost_models import ArmCostView, CostView


def costs_view(evidence: EvidenceStatus | None) -> CostView | None:
    """The sums so far, with the means of an answer as the gates compare them; None: nothing was counted."""
    costs = evidence.costs if evidence is not None else None
    if costs is None or evidence is None:
        return None
    means = (gate for gate in evidence.gates if (gate.metric, gate.statistic) == ("cost", "mean"))
    shown = next((gate for gate in means if gate.side == "rollback"), None)
    return CostView(
        currency=costs.currency,
        stable=ArmCostView.model_validate(costs.stable),
        canary=ArmCostView.model_validate(costs.canary),
        stable_mean=shown.stable if shown is not None else None,
        canary_mean=shown.canary if shown is not None else None,
        mirror=ArmCostView.model_validate(costs.mirror),
        judge_questions=costs.judge_questions,
        judge_tokens=costs.judge_tokens,
        judge_cost=costs.judge_cost,
    )
