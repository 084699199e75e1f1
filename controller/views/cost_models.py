"""Shapes of what a rollout's answers cost."""

from __future__ import annotations

from controller.views.shape import Real, View


class ArmCostView(View):
    """Tokens and cost of answers that one version gave itself; a request without an answer has neither."""

    answers: int
    counted: int  # of them, those whose tokens are known
    prompt_tokens: int
    cached_tokens: int  # of the prompts', from a cache
    completion_tokens: int
    cost: Real = None  # null: its tokens have no price


class CostView(View):
    """What a rollout's answers cost so far; apart from that its judge and the copies at a mirrored canary."""

    currency: str | None  # null: the service has no prices
    stable: ArmCostView
    canary: ArmCostView
    stable_mean: Real = None  # of an answer, over the same traffic; null: not known
    canary_mean: Real = None
    mirror: ArmCostView
    judge_questions: int
    judge_tokens: int
    judge_cost: Real = None
