"""Routers of a table: what each has acknowledged, and until when it may start canary requests. Pure.

A router has acknowledged a change only of the *same* epoch. One that reports another epoch obeys a table of
another incarnation, whatever its numbers are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

TABLE_LEASE_S = 1.0
LEASE_MARGIN_S = 0.2
FORGOTTEN_S = 60.0  # after its last poll

Applied: TypeAlias = tuple[int, int]  # (epoch, change)


@dataclass(slots=True)
class _Router:
    applied: Applied
    last_poll_s: float

    def has_lease(self, now_s: float) -> bool:
        return now_s < self.last_poll_s + TABLE_LEASE_S + LEASE_MARGIN_S

    def is_behind(self, required: Applied) -> bool:
        return self.applied[0] != required[0] or self.applied[1] < required[1]


class Acknowledgements:
    """The routers that have polled."""

    def __init__(self) -> None:
        self._routers: dict[str, _Router] = {}

    def polled(self, router: str, applied: Applied, now_s: float) -> None:
        """A poll, which acknowledges `applied` and renews the lease."""
        self._routers[router] = _Router(applied, now_s)

    def are_behind(self, required: Applied, now_s: float) -> bool:
        """True when a router with a lease has not acknowledged this change."""
        return any(one.is_behind(required) and one.has_lease(now_s) for one in self._routers.values())

    def with_lease(self, now_s: float) -> int:
        """Number of routers that may start canary requests."""
        return sum(one.has_lease(now_s) for one in self._routers.values())

    def ages(self, now_s: float) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return {name: now_s - one.last_poll_s for name, one in self._routers.items()}

    def forget(self, now_s: float) -> None:
        """Drop routers that have not polled for a minute."""
        for name in [name for name, one in self._routers.items() if now_s > one.last_poll_s + FORGOTTEN_S]:
            del self._routers[name]
