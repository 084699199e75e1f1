"""A warm connection to each address of a split, so that users of a small weight seldom wait for a new one.

Rules:
1. Each address of a table with a canary, on either arm, has a connection, idle or in use; so an arm whose
   requests are seldom has one when they come. It goes by the table, never by how much an arm is asked.
2. Only while requests come (WARM_S): a router that nobody asks opens nothing.
3. An address that cannot be reached is tried again after RETRY_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from serving.messages import RouteTable
from serving.router.upstreams.engine_connection import EngineConnection
from serving.router.upstreams.upstream import Upstream
from serving.targets import Endpoint

WARM_S = 60.0  # since the last request of any service
RETRY_S = 5.0


class WarmConnections:
    """Those of one pool. `check` a few times a second; `close` at the end."""

    def __init__(self, pool: Upstream) -> None:
        self._pool = pool
        self._opening: dict[str, asyncio.Task[None]] = {}  # by origin
        self._not_before_s: dict[str, float] = {}  # by origin that could not be reached

    def check(self, tables: Iterable[RouteTable | None], *, now_s: float) -> None:
        """Open what is missing. tables: of the services. now_s: CLOCK_BOOTTIME."""
        if now_s - self._pool.asked_s > WARM_S:
            return
        for table in tables:
            if table is None or table.canary is None:
                continue
            for arm in table.arms:
                for replica in arm.replicas:
                    self._keep_warm(Endpoint.parsed(replica.url), now_s, is_external=arm.external)

    def _keep_warm(self, endpoint: Endpoint, now_s: float, *, is_external: bool) -> None:
        origin, pool = endpoint.origin, self._pool
        if origin in self._opening or now_s < self._not_before_s.get(origin, 0.0):
            return
        if not pool.has_connection(origin):
            self._not_before_s.pop(origin, None)
            opening = self._open(endpoint, now_s, is_external=is_external)
            self._opening[origin] = asyncio.get_running_loop().create_task(opening)

    async def _open(self, endpoint: Endpoint, now_s: float, *, is_external: bool) -> None:
        pool = self._pool
        try:
            connection = await pool.connected(endpoint, lambda: EngineConnection(pool, endpoint.origin))
        finally:
            del self._opening[endpoint.origin]
        if connection is None:
            self._not_before_s[endpoint.origin] = now_s + RETRY_S
        else:
            pool.keep(connection, is_external=is_external)

    def close(self) -> None:
        """Open no more."""
        for task in self._opening.values():
            task.cancel()
