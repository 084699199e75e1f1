"""Budget of the bytes of request bodies that one front holds, whole or not. Pure.

Rules:
1. Bodies that have not arrived whole may hold half of the budget. Beyond that the largest is refused (429),
   of the client whose bodies are largest together: bodies that never end cost those who send them.
2. Beyond the budget a whole body is refused as well, unless it is so small that it is not counted.
"""

from __future__ import annotations

from collections.abc import Callable

BODY_BUDGET = 1 << 30  # bytes of bodies that are held at once
COUNTED_BODY = 8 << 10  # bytes; whole ones that are smaller are not counted


class BodyBudget:
    """Bytes of bodies that are held now."""

    __slots__ = ("_sizes", "growing", "limit", "total")

    def __init__(self, limit: int = BODY_BUDGET) -> None:
        self.limit = limit
        self.total = 0
        self.growing = 0  # of these: bodies that have not arrived whole
        self._sizes: dict[BodyShare, int] = {}

    @property
    def is_spent(self) -> bool:
        """True when no more may be held."""
        return self.total > self.limit

    @property
    def is_half_spent(self) -> bool:
        """True when no more requests should be drawn. Bodies that never end do not bring that about."""
        return self.total - self.growing > self.limit // 2

    def grow(self, share: BodyShare, size: int) -> None:
        """So many bytes of this connection's body have come so far; 0: it is whole, or gone."""
        self.growing += size - self._sizes.pop(share, 0)
        if size:
            self._sizes[share] = size

    def relieve(self) -> None:
        """Refuse what grows, the largest first, while it is too much."""
        while self._sizes and (self.growing > self.limit // 2 or self.is_spent):
            share = self._largest()
            share.refuse()
            self.grow(share, 0)

    def _largest(self) -> BodyShare:
        clients: dict[str, int] = {}
        for share, size in self._sizes.items():
            clients[share.client] = clients.get(share.client, 0) + size
        worst = max(clients, key=lambda one: clients[one])
        return max((one for one in self._sizes if one.client == worst), key=lambda one: self._sizes[one])


class BodyShare:
    """What one connection holds of a budget."""

    __slots__ = ("_budget", "_is_growing", "_size", "client", "refuse")

    def __init__(self, budget: BodyBudget, refuse: Callable[[], None]) -> None:
        """refuse: called to answer 429 to the body that grows, and to drop what has come of it."""
        self._budget = budget
        self._size = 0
        self._is_growing = False
        self.client = ""  # who sends the body that grows, as far as is known
        self.refuse = refuse

    def __bool__(self) -> bool:
        """True while anything is counted."""
        return self._size > 0

    def hold(self, whole: int, growing: int) -> None:
        """The connection holds so many bytes of whole bodies, and of one that grows."""
        self._budget.total += whole + growing - self._size
        self._size = whole + growing
        if growing or self._is_growing:
            self._is_growing = growing > 0
            self._budget.grow(self, growing)
            self._budget.relieve()
