"""Of which requests a judge is asked: a coin of its own, tossed when the arm is drawn. Pure.

Rules:
1. It falls by the unit, under a salt of its own: independent of the arm, the same at every router that names
   units alike, and before any answer exists. So both arms have the same share.
2. Of draws only, and of requests whose answer is one text and whose conversation can be read. What is left
   out is so by the request alone: drawn, it would be a verdict that is missing whatever the judge does.
"""

from __future__ import annotations

from serving.judge_messages import JudgeOrder
from serving.judging.conversation import BODY_LIMIT, conversation
from serving.messages import FULL_BP, RouteTable
from serving.router.assignment.assignment import Salted, salt_of
from serving.router.bodies.body_facts import BodyFacts
from serving.router.types import Assignment, Body
from serving.targets import TEXT_PATHS

RANDOMISED = frozenset({"request", "sticky", "conversation", "heavy", "pinned"})


class JudgeCoin:
    """The coin of one route table with an order."""

    __slots__ = ("_salted", "_share_bp")

    def __init__(self, table: RouteTable, order: JudgeOrder) -> None:
        self._salted = Salted(f"{salt_of(table.service, table.salt)}\0judge")
        self._share_bp = order.share_bp

    def falls(self, drawn: Assignment, path: str, facts: BodyFacts, body: Body) -> bool:
        """Whether the judge is asked of this request's answer. The body is read (0.01 ms; of many values
        2 ms) only where the coin falls."""
        is_one_text = path in TEXT_PATHS and facts.choices == 1 and not facts.is_background
        is_read = len(body) <= BODY_LIMIT and not facts.is_unread
        if not (is_one_text and is_read and drawn.assigned_by in RANDOMISED):
            return False
        is_drawn = self._salted.hash64(drawn.unit) % FULL_BP < self._share_bp
        return is_drawn and conversation(bytes(body)) is not None
