"""The two answers of a mirrored pair, asked of a judge as two questions like all others, reported as one.

Rules:
1. Each answer is judged alone: no question says that there is another, or whose answer it is.
2. Two answers with the same text are one question: the verdict is of both.
3. One record a pair, when its last question has ended. Without a verdict on either answer, `cause` is that of
   the first that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BOTH = (0, 1)  # the places of the answers: stable's, the canary's


@dataclass(frozen=True, slots=True)
class MirroredPair:
    """A request of stable and the answers of both versions to it. None: one without a text."""

    rollout: str
    request_id: str
    unit: str  # HMAC of its key
    assigned_at_s: float  # wall clock
    body: bytes = field(repr=False)
    stable: str | None = field(repr=False)
    canary: str | None = field(repr=False)
    via: bytes = b""  # through which routers the request came, this one included


@dataclass(slots=True)
class PairVerdicts:
    """What has come of the questions of one pair."""

    unit: str
    assigned_at_s: float
    open_questions: int
    bad: list[bool | None] = field(default_factory=lambda: [None, None])
    cause: str | None = None
    tokens: int = 0

    def add(self, places: Sequence[int], bad: bool | None, cause: str | None, tokens: int) -> bool:
        """A question has ended, of the answers at these places: 0 stable's, 1 the canary's. True: all."""
        for place in places:
            self.bad[place] = bad
        if bad is None:
            self.cause = self.cause or cause
        self.tokens += tokens
        self.open_questions -= 1
        return self.open_questions == 0
