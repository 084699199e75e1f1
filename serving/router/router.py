"""Core of a router: its route table and lease, assignment of requests to arms. No socket, no clock.

Rules:
1. The arm is assigned once, before anything else about the request is known.
2. A canary gets requests only while the lease holds: 1 s from when the last answered poll was *sent*. Without
   a lease, or without a ready canary replica, nothing is randomised: all go to stable and are no evidence.
3. Only requests that ask a model for an answer are eligible, assigned and recorded; all others go to stable.
4. A request open for `settle_s` is recorded as open (`report`), whichever arm it has.

Clocks: `now_s` and `sent_s` are CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

import math

from serving.messages import CANARY, FULL_BP, STABLE, RecordBatch, RequestRecord, RouteTable
from serving.router.assignment import (
    SESSION_HEADER,
    AssignmentKey,
    bucket_of,
    find_key,
    is_eligible,
    unit_of,
)
from serving.router.exchange import Exchange
from serving.router.headers import value_of
from serving.router.outbox import Canary, Outbox
from serving.router.prepared import Prepared, prepare
from serving.router.types import Assignment, Limits, Refusal, Request, Start
from serving.table.route_table import TABLE_LEASE_S

SLOWDOWN_RATIO = 0.1  # by which a clock that was set back runs slower until the wall clock has caught up


class MonotonicWallClock:
    """The wall clock of records, which never goes back.

    The log's low watermark cannot go back. After a clock that had jumped ahead was corrected, every request
    would otherwise come too late to count until the time of the jump was reached again.
    """

    def __init__(self) -> None:
        self._now_s = self._at_s = -math.inf

    def at_s(self, now_s: float, wall_s: float) -> float:
        """`wall_s`; while that is behind the last value returned, a time that advances more slowly."""
        if wall_s < self._at_s:
            wall_s = self._at_s + (1 - SLOWDOWN_RATIO) * max(now_s - self._now_s, 0.0)
        self._now_s, self._at_s = now_s, wall_s
        return wall_s


class RouterCore:
    """One router of one service."""

    def __init__(
        self, service: str, *, router: str, limits: Limits | None = None, lease_s: float = TABLE_LEASE_S
    ) -> None:
        """`lease_s` infinite: a router whose table no other process can withdraw (a file)."""
        self.service = service
        self.router = router
        self.limits = limits or Limits()
        self.outbox = Outbox(router)
        self.table: RouteTable | None = None
        self.in_flight: dict[str, int] = {}
        self._clock = MonotonicWallClock()
        self._unrecorded: dict[str, Exchange] = {}  # eligible requests by id, in order of assignment
        self._lease_s = lease_s
        self._lease_until_s = -math.inf

    @property
    def applied(self) -> tuple[int, int]:
        """The (epoch, change) that every new request obeys: what a poll acknowledges."""
        return (self.table.epoch, self.table.change) if self.table else (0, 0)

    def on_table(self, table: RouteTable | None, *, sent_s: float) -> None:
        """A poll sent at `sent_s` was answered; `table` None: unchanged."""
        if table is not None and (table.epoch, table.change) > self.applied:
            self.table = table
        self._lease_until_s = max(self._lease_until_s, sent_s + self._lease_s)
        self.outbox.confirm(sent_s, canary_of(self.table))

    def has_lease(self, now_s: float) -> bool:
        """True while this router may start canary requests."""
        return now_s < self._lease_until_s

    @property
    def models(self) -> tuple[str, ...]:
        """The model names at the endpoints of the current table; a body is prepared for each."""
        arms = (self.table.stable, self.table.canary) if self.table else ()
        return tuple(arm.model for arm in arms if arm is not None and arm.model is not None)

    def begin(
        self,
        request: Request,
        *,
        request_id: str,
        now_s: float,
        wall_s: float,
        prepared: Prepared | None = None,
    ) -> Exchange | Refusal:
        """Assign the request's arm. A Refusal, which is no evidence: no table, or an unusable body.

        prepared: by another process; None: prepare the body now.
        """
        if self.table is None:
            message = f"service {self.service} has no version in service yet; retry when `up` has finished"
            return Refusal(503, "no_table", message, retry_after_s=1)
        eligible = is_eligible(request.method, request.path)
        if prepared is None:
            route = f"{request.method} {request.path}"
            prepared = prepare(request.body, request.headers, self.models, route=route, is_eligible=eligible)
        if prepared.refusal is not None:
            return prepared.refusal
        facts, bodies = prepared.facts, prepared.bodies
        wall_s = self._clock.at_s(now_s, wall_s)
        if not eligible:
            assignment = Assignment(STABLE, 0.0, None, "", request_id, "request", None)
            start = Start(request_id, request, self.table, assignment, False, False, wall_s, now_s, bodies)
            return Exchange(self, start)
        key = find_key(value_of(request.headers, SESSION_HEADER), facts, request_id=request_id)
        assignment = self._assign(self.table, key, now_s)
        self.outbox.opened(request_id, wall_s)
        n = facts.choices if facts.streams else 1
        start = Start(
            request_id, request, self.table, assignment, True, facts.streams, wall_s, now_s, bodies, n
        )
        exchange = self._unrecorded[request_id] = Exchange(self, start)
        return exchange

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while the lease holds and this canary is still published."""
        return self.has_lease(now_s) and canary_of(self.table) == canary

    def on_record(self, record: RequestRecord, *, assigned_s: float, canary: Canary | None) -> None:
        """Accept the one record of a request."""
        self._unrecorded.pop(record.request_id, None)
        self.outbox.add(record, assigned_s=assigned_s, canary=canary)

    def report(self, *, now_s: float, wall_s: float, last: bool = False) -> RecordBatch:
        """The next batch for the log; call `outbox.acknowledge` when the log has accepted it.

        Includes every request that by now has been open, or unconfirmed, for `settle_s`.
        """
        while self._unrecorded:
            exchange = next(iter(self._unrecorded.values()))
            if exchange.settle_deadline_s > now_s:
                break
            exchange.record_open()
        self.outbox.expire(now_s - self.limits.settle_s)
        return self.outbox.next_batch(now_s=self._clock.at_s(now_s, wall_s), last=last)

    def _assign(self, table: RouteTable, key: AssignmentKey, now_s: float) -> Assignment:
        secret = table.secret.text if table.secret is not None else ""
        unit = unit_of(secret, table.rollout, key.text)
        if table.canary is None:
            return Assignment(STABLE, 0.0, None, unit, key.text, key.source, None)
        bucket = bucket_of(table.salt, key.text)
        if not self.has_lease(now_s):
            return Assignment(STABLE, 0.0, bucket, unit, key.text, "fenced", None)
        if not table.canary.replicas:
            return Assignment(STABLE, 0.0, bucket, unit, key.text, "no-capacity", None)
        arm = CANARY if bucket < table.weight_bp else STABLE
        w = table.weight_bp / FULL_BP
        return Assignment(arm, w, bucket, unit, key.text, key.source, canary_of(table))


def canary_of(table: RouteTable | None) -> Canary | None:
    """A table's canary as (rollout, version); None without one."""
    return (table.rollout, table.canary.version) if table and table.canary else None
