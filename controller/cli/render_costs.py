"""Rendering of what a rollout's answers cost, without I/O: both versions, and apart what judges them."""

from __future__ import annotations

from controller.cli.output import number
from controller.views.cost_models import ArmCostView, CostView


def cost_lines(costs: CostView | None) -> list[str]:
    """The lines; empty: the service has no prices, or no answer was counted yet."""
    if costs is None or costs.currency is None:
        return []
    lines = []
    if costs.stable.counted or costs.canary.counted:
        stable = _arm("stable", costs.stable, costs.stable_mean)
        canary = _arm("canary", costs.canary, costs.canary_mean)
        ratio = ""
        if costs.stable_mean and costs.canary_mean is not None:
            ratio = f", {costs.canary_mean / costs.stable_mean:.2f}x"
        lines.append(f"cost in {costs.currency}: {stable}; {canary}{ratio}")
    apart = []
    if costs.judge_questions:
        spent = "" if costs.judge_cost is None else f", {number(costs.judge_cost)}"
        apart.append(f"judge {costs.judge_questions:,} questions, {costs.judge_tokens:,} tokens{spent}")
    if costs.mirror.answers:
        spent = "" if costs.mirror.cost is None else f", {number(costs.mirror.cost)}"
        tokens = costs.mirror.prompt_tokens + costs.mirror.completion_tokens
        apart.append(f"mirror {costs.mirror.answers:,} copies, {tokens:,} tokens{spent}")
    if apart:
        lines.append(f"apart from these, in {costs.currency}: {'; '.join(apart)}")
    return lines


def _arm(name: str, arm: ArmCostView, mean: float | None) -> str:
    """`stable 0.0021 an answer (1,203 answers, 310,000 + 88,000 tokens, 2.53)`."""
    if arm.cost is None:
        return f"{name} no price ({arm.counted:,} answers)" if arm.counted else f"{name} no tokens known"
    each = mean if mean is not None else arm.cost / arm.counted
    tokens = f"{arm.prompt_tokens:,} + {arm.completion_tokens:,} tokens"
    left = f" of {arm.answers:,}" if arm.counted < arm.answers else ""
    return f"{name} {number(each)} an answer ({arm.counted:,}{left} answers, {tokens}, {number(arm.cost)})"
