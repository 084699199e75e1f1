"""The detached actor `table:{service}`: hosts the route table of one service.

It survives its own crash through Ray's key-value store (everything but the canary's share).

Invariant: every method returns at once, except `watch`, which answers after 300 ms at the latest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import aiohttp
from ray.experimental import internal_kv

from serving.clock import boot_s
from serving.messages import Arm, RouteTable, SplitStatus
from serving.table.route_table import POLL_S, FenceOrder, Poll, Split, TableCore

TICK_S = 0.02  # while a split is not applied yet
IDLE_TICK_S = 0.25
FENCE_TIMEOUT_S = 0.5
_KV_NAMESPACE = b"canaryctl"

log = logging.getLogger("canaryctl.table")


class TableActor:
    """Hosts the `TableCore` of one service: gives it time, posts its fences, keeps what must survive."""

    def __init__(self, service: str, silence_s: float | None) -> None:
        self._key = f"table:{service}".encode()
        kept = internal_kv._internal_kv_get(self._key, namespace=_KV_NAMESPACE)
        stored: dict[str, Any] | None = json.loads(kept) if kept else None
        self._core = TableCore(
            service, epoch=int(time.time()), now_s=boot_s(), stored=stored, silence_s=silence_s
        )
        self._kept: dict[str, Any] | None = None
        self._news: asyncio.Event | None = None  # of the present table; set when it is superseded
        self._mark = self._core.mark
        self._tasks: list[asyncio.Task[None]] = []

    # ---- the controller's side

    async def open(self, secret: str) -> None:
        """Takes the service's secret."""
        self._core.open(secret)
        self._spread()

    async def set_split(self, split: Split, token: int) -> SplitStatus:
        """See `TableCore.set_split`. Raises StaleToken, BadSplit."""
        sight = self._core.set_split(split, token=token, now_s=boot_s())
        self._spread()
        return sight

    async def heartbeat(self, token: int) -> None:
        """The controller lives. Raises StaleToken."""
        self._core.heartbeat(token, now_s=boot_s())
        self._spread()

    async def tombstone(self, rollout: str) -> SplitStatus:
        """Withdraws the rollout's canary for ever."""
        sight = self._core.tombstone(rollout, now_s=boot_s())
        self._spread()
        return sight

    async def observe(self) -> SplitStatus:
        """The present split and how far it is applied."""
        sight = self._core.sight(now_s=boot_s())
        self._spread()
        return sight

    async def table(self) -> RouteTable:
        """The present table, secret included."""
        return self._core.table()

    async def close(self) -> None:
        """Forgets what was kept for a restart: the service is going down."""
        for task in self._tasks:
            task.cancel()
        internal_kv._internal_kv_del(self._key, namespace=_KV_NAMESPACE)

    # ---- the fleet's side

    async def set_replicas(self, arm: Arm) -> int:
        """Publishes where a version answers; an arm without replicas takes it out of the table."""
        change = self._core.set_replicas(arm)
        self._spread()
        return change

    async def is_replicas_applied(self, version: str) -> bool:
        """True when no live router will send this version's former replicas another request."""
        return self._core.is_replicas_applied(version, now_s=boot_s())

    # ---- the routers' side

    async def watch(self, router: str, epoch: int, change: int) -> RouteTable | None:
        """Acknowledges (epoch, change), renews the lease; the next table, or None after 300 ms."""
        poll = Poll(router, (epoch, change))
        has_news = self._core.poll(poll, now_s=boot_s())
        news = self._spread()
        if not has_news:
            try:
                async with asyncio.timeout(POLL_S):
                    await news.wait()
            except TimeoutError:
                pass
        return self._core.table() if self._core.has_news(poll) else None

    async def routers(self) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return self._core.routers(now_s=boot_s())

    # ---- inside

    def _spread(self) -> asyncio.Event:
        """After every change: keep, wake the routers, post fences. Returns the event of the next change."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._run_clock()), asyncio.create_task(self._run_fences())]
        kept = self._core.to_store()
        if kept != self._kept:
            # Kept before the routers are told: a crash in between repeats the change, never forgets it.
            internal_kv._internal_kv_put(
                self._key, json.dumps(kept).encode(), overwrite=True, namespace=_KV_NAMESPACE
            )
            self._kept = kept
        if self._news is None or self._mark != self._core.mark:
            if self._news is not None:
                self._news.set()
            self._news = asyncio.Event()
            self._mark = self._core.mark
        return self._news

    async def _run_clock(self) -> None:
        while True:
            self._core.tick(now_s=boot_s())
            self._spread()
            await asyncio.sleep(IDLE_TICK_S if self._core.is_applied else TICK_S)

    async def _run_fences(self) -> None:
        timeout = aiohttp.ClientTimeout(total=FENCE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                orders = self._core.fence_orders()
                if orders:
                    await asyncio.gather(*(self._post(session, order) for order in orders))
                    await asyncio.sleep(0 if not self._core.fence_orders() else 0.05)
                elif self._news is not None:
                    await self._news.wait()

    async def _post(self, session: aiohttp.ClientSession, order: FenceOrder) -> None:
        body = {"epoch": order.epoch, "revision": order.revision}
        headers = {"x-canaryctl-secret": self._core.table().secret}
        try:
            async with session.post(order.url + "/_canaryctl/fence", json=body, headers=headers) as answer:
                if answer.status < 300:
                    self._core.fenced(order, now_s=boot_s())
                else:
                    log.warning("fence refused", extra={"url": order.url, "status": answer.status})
        except (aiohttp.ClientError, TimeoutError) as exc:
            log.warning("fence not reached", extra={"url": order.url, "error": repr(exc)})
