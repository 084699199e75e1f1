"""Budget of the bytes of request bodies that one front holds, whole or not. Pure.

Rules:
1. Bodies that have not arrived whole may hold half of the budget. Beyond that a largest one is refused (429),
   of the client whose bodies are largest together: bodies that never end cost those who send them. Which is
   found in constant time, among CLOSE of about the same size: thousands grow, and each read may be too much.
2. Beyond the budget a whole body is refused as well, unless it is so small that it is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

BODY_BUDGET = 1 << 30  # bytes of bodies that are held at once
COUNTED_BODY = 8 << 10  # bytes; whole ones that are smaller are not counted
CLOSE = 16  # sizes that are compared; others of as many binary digits count as the same

K = TypeVar("K")


class _BySize(Generic[K]):
    """Sizes, of which a largest is found whatever their number."""

    __slots__ = ("_sizes", "_with_digits")

    def __init__(self) -> None:
        self._sizes: dict[K, int] = {}
        self._with_digits: dict[int, dict[K, None]] = {}  # by the binary digits of the size

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def get(self, key: K) -> int:
        return self._sizes.get(key, 0)

    def set(self, key: K, size: int) -> None:
        """0: it is removed."""
        before, digits = self._sizes.pop(key, 0).bit_length(), size.bit_length()
        if size:
            self._sizes[key] = size
        if before == digits:
            return
        if before:
            del self._with_digits[before][key]
            if not self._with_digits[before]:
                del self._with_digits[before]
        if digits:
            self._with_digits.setdefault(digits, {})[key] = None

    def largest(self) -> K:
        """The largest, or one of more than half of its size. Raises ValueError when there is none."""
        close = islice(self._with_digits[max(self._with_digits)], CLOSE)
        return max(close, key=self._sizes.__getitem__)


class BodyBudget:
    """Bytes of bodies that are held now."""

    __slots__ = ("_bodies", "_clients", "growing", "limit", "total")

    def __init__(self, limit: int = BODY_BUDGET) -> None:
        self.limit = limit
        self.total = 0
        self.growing = 0  # of these: bodies that have not arrived whole
        self._clients: _BySize[str] = _BySize()  # who sends what grows
        self._bodies: dict[str, _BySize[BodyShare]] = {}  # by client

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
        client = share.counted_for
        bodies = self._bodies.get(client)
        if bodies is None:
            bodies = self._bodies[client] = _BySize()
        more = size - bodies.get(share)
        bodies.set(share, size)
        self._clients.set(client, self._clients.get(client) + more)
        self.growing += more
        if not bodies:
            del self._bodies[client]

    def relieve(self) -> None:
        """Refuse what grows, a largest first, while it is too much."""
        while self._clients and (self.growing > self.limit // 2 or self.is_spent):
            share = self._bodies[self._clients.largest()].largest()
            share.refuse()
            self.grow(share, 0)


class BodyShare:
    """What one connection holds of a budget."""

    __slots__ = ("_budget", "_is_growing", "client", "counted_for", "refuse", "size")

    def __init__(self, budget: BodyBudget, refuse: Callable[[], None]) -> None:
        """refuse: called to answer 429 to the body that grows, and to drop what has come of it."""
        self._budget = budget
        self.size = 0  # bytes that are counted
        self._is_growing = False
        self.client = ""  # who sends the body that grows, as far as is known
        self.counted_for = ""  # the same when it began to grow
        self.refuse = refuse

    def __bool__(self) -> bool:
        """True while anything is counted."""
        return self.size > 0

    def hold(self, whole: int, growing: int) -> None:
        """The connection holds so many bytes of whole bodies, and of one that grows."""
        self._budget.total += whole + growing - self.size
        self.size = whole + growing
        if growing or self._is_growing:
            if not self._is_growing:
                self.counted_for = self.client
            self._is_growing = growing > 0
            self._budget.grow(self, growing)
            self._budget.relieve()
