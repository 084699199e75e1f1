"""Budget of the bytes of answers that one front keeps for all its clients. Pure.

Rules:
1. Beyond the budget an answer is passed on as it comes. It is not covered any more; it does not fail.
2. The first FREE bytes of an answer may always be held: what comes before the first content commits nobody to
   this answer, and a canary that fails there must be replaced. They count in the budget like all others.
3. What is kept to be read of an event, or an answer, that is not whole counts beside what is held back of it.
   Beyond the budget more than FREE of it is passed on unread.
4. What was sent to clients that read slowly, and waits for them, counts too.
"""

from __future__ import annotations

HELD_BUDGET = 256 << 20  # bytes
FREE = 16 << 10  # bytes of each answer


class HeldBytes:
    """Bytes that are held now."""

    __slots__ = ("limit", "total", "unread")

    def __init__(self, limit: int = HELD_BUDGET) -> None:
        self.limit = limit
        self.total = 0
        self.unread = 0  # by clients that read slowly, as of the last sweep

    @property
    def is_spent(self) -> bool:
        """True when no answer may hold more than FREE."""
        return self.total + self.unread >= self.limit

    @property
    def is_half_spent(self) -> bool:
        """True when no more requests should be drawn."""
        return self.total + self.unread > self.limit // 2
