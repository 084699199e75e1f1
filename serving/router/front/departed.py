"""Answers that are read to their end after their client has left, for their records alone.

Which these are, and why: `record.py`, rule 5. At most LIMIT of them at once: beyond that an answer ends with
its client, on either arm. Their request bodies stay in the budget.
"""

from __future__ import annotations

from serving.router.bodies.body_budget import BodyBudget
from serving.router.exchange.relay import Relay
from serving.router.types import Deliver, Refusal

LIMIT = 256


class Nobody:
    """In place of a client that has left."""

    unread_bytes = 0

    def deliver(self, action: Deliver) -> None:
        """Nobody reads it."""

    def refuse(self, refusal: Refusal) -> None:
        """Nobody reads it."""


class Departed:
    """The requests of one front whose clients have left."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._relays: dict[Relay, int] = {}  # bytes of the request's body

    def __len__(self) -> int:
        return len(self._relays)

    def leave(self, relay: Relay, body_bytes: int) -> None:
        """The client of this request has left: its answer ends, or goes on."""
        if len(self._relays) >= LIMIT or not relay.go_on(Nobody(), lambda: self._over(relay)):
            relay.gone()
            return
        self._relays[relay] = body_bytes
        self._budget.total += body_bytes

    def check(self) -> None:
        """Called a few times a second: end what is in a record already."""
        for relay in [one for one in self._relays if one.is_recorded]:
            relay.gone()

    def close(self) -> None:
        """End all."""
        for relay in list(self._relays):
            relay.gone()

    def _over(self, relay: Relay) -> None:
        self._budget.total -= self._relays.pop(relay, 0)
