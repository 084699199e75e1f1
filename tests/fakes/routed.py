"""A router core with a table, and requests to it; no socket, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serving.credentials import DataSecret, UnitKey
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Attempt, Refusal, Request
from serving.targets import Target

NOW_S = 1000.0  # boot clock
WALL_S = 1_800_000_000.0
UNIT_KEY = UnitKey("key of units")

TABLE = RouteTable(
    service="chat",
    epoch=1,
    revision=1,
    change=1,
    rollout="r-1",
    salt="r-1",
    weight_bp=5000,
    stable=Arm("v-1", (Replica("http://stable"),)),
    canary=Arm("v-2", (Replica("http://canary"),)),
    secret=DataSecret("s3cret"),
    unit_key=UNIT_KEY,
    generation="1.1",
)


@dataclass
class Routed:
    """A core with a lease, and the records of what it was asked."""

    core: RouterCore = field(default_factory=lambda: RouterCore("chat", router="r", lease_s=1e9))
    asked: int = 0

    def use(self, **changes: Any) -> Routed:
        """Publish TABLE, or the current table, with these changes."""
        table = self.core.table or replace(TABLE, change=0)
        self.core.on_table(replace(table, change=table.change + 1, **changes), sent_s=0.0)
        return self

    def ask(
        self,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        peer: str = "",
        after_s: float = 0.0,
    ) -> Exchange | Refusal:
        """One request, `after_s` after NOW_S and WALL_S."""
        self.asked += 1
        raw = tuple((name.encode(), value.encode()) for name, value in (headers or {}).items())
        request = Request(method, Target(path), raw, json.dumps(body or {}).encode(), peer)
        return self.core.begin(
            request, request_id=f"req-{self.asked}", now_s=NOW_S + after_s, wall_s=WALL_S + after_s
        )

    def served(self, body: Mapping[str, object] | None = None, **how: Any) -> Served:
        """One request, answered by the first replica that is asked."""
        exchange = self.ask(body, **how)
        assert isinstance(exchange, Exchange), exchange
        attempt = exchange.next_attempt()
        assert isinstance(attempt, Attempt)
        now_s = NOW_S + how.get("after_s", 0.0) + 0.1
        exchange.answered(200, [(b"content-type", b"application/json")])
        exchange.received(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}', now_s=now_s)
        head = exchange.ended(now_s=now_s).head  # type: ignore[union-attr]
        assert head is not None
        return Served(attempt, dict(head.headers), self.record())

    def record(self) -> RequestRecord:
        """The one record since the last call."""
        self.core.on_table(None, sent_s=1e9)
        self.core.unread.read_all()
        (one,) = self.core.outbox.next_batch(now_s=1e12).records
        self.core.outbox.acknowledge()
        return one


@dataclass
class Served:
    """What became of a request."""

    attempt: Attempt
    headers: dict[bytes, bytes]
    record: RequestRecord

    @property
    def token(self) -> str:
        return self.headers[b"x-canaryctl-affinity"].decode()
