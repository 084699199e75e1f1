"""Which arm a request is drawn to, and how long a canary may be sent any. No socket, no clock.

`RouterCore` holds the table and the lease; `begin` draws a request's arm and makes its `Exchange`.

Rules:
1. The arm is drawn once, before anything else is known.
2. A canary gets requests only while the lease holds: 1 s from when the last answered poll was *sent*. Without
   a lease, or without a ready replica, nothing is drawn: both arms go to stable and are no evidence.
3. Only requests that ask a model for an answer are drawn and recorded; all others go to stable.
4. What has been open for `settle_s` is told as it stands (`report`), whichever arm it has.

Clocks: `now_s` and `sent_s` are CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from serving.messages import CANARY, FULL_BP, STABLE, RecordBatch, RequestRecord, RouteTable
from serving.router.assignment import bucket_of, find_key, is_drawn, unit_of, weight_bp_of
from serving.router.exchange import Draw, Exchange, Limits, Refusal, Request, Start
from serving.router.headers import value_of
from serving.router.outbox import Canary, Outbox
from serving.table.route_table import LEASE_S

BACK_RATE = 0.1  # how fast a clock that was set back is followed, in seconds a second


class ForwardClock:
    """The wall clock as records see it: it never goes back.

    The log's watermark cannot go back, so after a clock that jumped ahead was corrected, all requests would
    come too late to count until the time of the jump was reached again.
    """

    def __init__(self) -> None:
        self._now_s = self._at_s = -math.inf

    def at_s(self, now_s: float, wall_s: float) -> float:
        """`wall_s`, or while that is behind what was said before, a time that goes on more slowly."""
        if wall_s < self._at_s:
            wall_s = self._at_s + (1 - BACK_RATE) * max(now_s - self._now_s, 0.0)
        self._now_s, self._at_s = now_s, wall_s
        return wall_s


class RouterCore:
    """One router's view of one service."""

    def __init__(
        self, service: str, *, router: str, limits: Limits | None = None, lease_s: float = LEASE_S
    ) -> None:
        """`lease_s` infinite: a router whose table nobody else withdraws (a file)."""
        self.service = service
        self.router = router
        self.limits = limits or Limits()
        self.outbox = Outbox(router)
        self.table: RouteTable | None = None
        self.in_flight: dict[str, int] = {}
        self._clock = ForwardClock()
        self._untold: dict[str, Exchange] = {}  # recorded requests by id, in order of their draws
        self._lease_s = lease_s
        self._lease_until_s = -math.inf

    @property
    def applied(self) -> tuple[int, int]:
        """The (epoch, change) that every new request obeys: what a poll acknowledges."""
        return (self.table.epoch, self.table.change) if self.table else (0, 0)

    def heard(self, table: RouteTable | None, *, sent_s: float) -> None:
        """A poll sent at `sent_s` was answered; `table` None: nothing new."""
        if table is not None and (table.epoch, table.change) > self.applied:
            self.table = table
        self._lease_until_s = max(self._lease_until_s, sent_s + self._lease_s)
        self.outbox.confirm(sent_s, canary_of(self.table))

    def has_lease(self, now_s: float) -> bool:
        """True while this router may start canary requests."""
        return now_s < self._lease_until_s

    def begin(self, request: Request, *, request_id: str, now_s: float, wall_s: float) -> Exchange | Refusal:
        """Draws the request's arm. Refuses without a table."""
        if self.table is None:
            message = f"service {self.service} has no version in service yet; retry when `up` has finished"
            return Refusal(503, "no_table", message, retry_after_s=1)
        wall_s = self._clock.at_s(now_s, wall_s)
        recorded = is_drawn(request.method, request.path)
        body = _json_object(request.body) if recorded else None
        draw = self._draw(self.table, request, body, request_id, now_s, recorded)
        if recorded:
            self.outbox.opened(request_id, wall_s)
        streams = bool(body and body.get("stream"))
        start = Start(request_id, request, self.table, draw, recorded, streams, wall_s, now_s)
        exchange = Exchange(self, start)
        if recorded:
            self._untold[request_id] = exchange
        return exchange

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while the lease holds and this canary is still published."""
        return self.has_lease(now_s) and canary_of(self.table) == canary

    def settle(self, record: RequestRecord, *, drawn_s: float, canary: Canary | None) -> None:
        """Takes the one record of a request."""
        self._untold.pop(record.request_id, None)
        self.outbox.ended(record, drawn_s=drawn_s, canary=canary)

    def report(self, *, now_s: float, wall_s: float, last: bool = False) -> RecordBatch:
        """The next batch for the log; say `outbox.sent` when it has been taken.

        What is open or unconfirmed for `settle_s` by now is in it: nobody waits longer for either.
        """
        while self._untold:
            exchange = next(iter(self._untold.values()))
            if exchange.settles_at_s > now_s:
                break
            exchange.overdue()
        self.outbox.give_up(now_s - self.limits.settle_s)
        return self.outbox.take(now_s=self._clock.at_s(now_s, wall_s), last=last)

    def _draw(
        self,
        table: RouteTable,
        request: Request,
        body: Mapping[str, Any] | None,
        request_id: str,
        now_s: float,
        recorded: bool,
    ) -> Draw:
        if not recorded:
            return Draw(STABLE, 0.0, None, "", request_id, "request", None)
        session = value_of(request.headers, b"x-session-id")
        key = find_key({"x-session-id": session or ""}, body, request_id=request_id)
        unit = unit_of(table.secret, table.rollout, key.text)
        if table.canary is None:
            return Draw(STABLE, 0.0, None, unit, key.text, key.by, None)
        bucket = bucket_of(table.salt, key.text)
        if not self.has_lease(now_s):
            return Draw(STABLE, 0.0, bucket, unit, key.text, "fenced", None)
        if not table.canary.replicas:
            return Draw(STABLE, 0.0, bucket, unit, key.text, "no-capacity", None)
        weight_bp = weight_bp_of(table)
        arm = CANARY if bucket < weight_bp else STABLE
        return Draw(arm, weight_bp / FULL_BP, bucket, unit, key.text, key.by, canary_of(table))


def canary_of(table: RouteTable | None) -> Canary | None:
    """The name of a table's canary: (rollout, version); None without one."""
    return (table.rollout, table.canary.version) if table and table.canary else None


def _json_object(body: bytes) -> dict[str, Any] | None:
    """The body's JSON object; None when it is not one (the engine says what is wrong with it)."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
