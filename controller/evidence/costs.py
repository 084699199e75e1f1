"""Tokens and costs of one rollout, counted from its records: of both versions, of its judge, of its copies.

Invariant: sums alone, which decide nothing, and whose faults are none of the evidence's. What a version's
answers cost is evidence by the metric `cost`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from controller.evidence.beside import decides_nothing
from controller.evidence.pricing import MAX_TOKENS, Tokens, has_own_answer, is_count, priced, tokens_of
from controller.rollout.observation import ArmCosts, CostStatus
from evaluation.costs import Prices, TokenPrice
from serving.judge_messages import JudgeRecord
from serving.messages import MirrorRecord, RequestRecord


class RolloutCosts:
    """Counts what is fed to it. Not thread-safe."""

    def __init__(self, rollout: str, prices: Prices | None) -> None:
        """prices: of both versions; None: tokens alone are counted."""
        self._rollout = rollout
        self._prices = prices
        self._arms = [ArmCosts(), ArmCosts()]
        self._mirror = ArmCosts()
        self._judge = [0, 0]  # questions, tokens

    @decides_nothing(None)
    def add(self, record: RequestRecord) -> None:
        """Count one of the rollout's own requests, if its version answered it."""
        if not has_own_answer(record):
            return
        cost = priced(record, self._prices)
        self._arms[record.arm] = _with(self._arms[record.arm], tokens_of(record), cost)

    @decides_nothing(None)
    def add_copy(self, record: MirrorRecord) -> None:
        """Count a copy at the canary that was answered; the tokens of others are not known."""
        if record.rollout != self._rollout or record.outcome != "ok":
            return
        price: TokenPrice | None = None if self._prices is None else self._prices.canary
        tokens = tokens_of(record)
        prompt, _, completion = tokens
        is_known = price is not None and prompt is not None and completion is not None
        cost = price.cost(prompt, completion) if is_known else None  # type: ignore[union-attr, arg-type]
        self._mirror = _with(self._mirror, tokens, cost)

    @decides_nothing(None)
    def add_question(self, record: JudgeRecord) -> None:
        """Count a question to the rollout's judge, of a mirrored pair both."""
        if record.rollout == self._rollout and is_count(record.tokens) and record.tokens > 0:
            asked = 1 if record.pair is None else 2
            self._judge = [self._judge[0] + asked, self._judge[1] + record.tokens]

    @decides_nothing(CostStatus())
    def status(self) -> CostStatus:
        """All counts so far."""
        questions, tokens = self._judge
        price = None if self._prices is None else self._prices.judge
        return CostStatus(
            self._arms[0],
            self._arms[1],
            self._mirror,
            questions,
            tokens,
            None if price is None else tokens * price / 1e6,
            None if self._prices is None else self._prices.currency,
        )

    @decides_nothing(None)
    def to_mapping(self) -> dict[str, Any] | None:
        """JSON values for the snapshot."""
        arms = [asdict(arm) for arm in (*self._arms, self._mirror)]
        return {"arms": arms, "judge": self._judge}

    @decides_nothing(None)
    def restore(self, data: Mapping[str, Any] | None) -> None:
        """Go on from `to_mapping`; None: of an older release, which counted nothing."""
        if data is None:
            return
        known = {one.name for one in fields(ArmCosts)}
        stable, canary, self._mirror = (
            ArmCosts(**{name: value for name, value in arm.items() if name in known}) for arm in data["arms"]
        )
        self._arms = [stable, canary]
        if data["judge"][1] <= MAX_TOKENS:  # an older release added up whatever a judge said
            self._judge = list(data["judge"])


def _with(arm: ArmCosts, tokens: Tokens, cost: float | None) -> ArmCosts:
    """The counts with one more answer."""
    prompt, cached, completion = tokens
    if prompt is None or completion is None:
        return replace(arm, answers=arm.answers + 1)
    return ArmCosts(
        arm.answers + 1,
        arm.counted + 1,
        arm.prompt_tokens + prompt,
        arm.cached_tokens + (cached or 0),
        arm.completion_tokens + completion,
        arm.cost if cost is None else (arm.cost or 0.0) + cost,
    )
