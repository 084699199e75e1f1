"""The detached actor `table:{service}`, which hosts the route table of one service.

Its state survives a crash in Ray's key-value store, all but the canary and its weight.

Invariant: every method returns at once, except `watch`, which returns within 300 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import aiohttp
from ray.experimental import internal_kv

from serving.access import ClientRules
from serving.clock import boot_s
from serving.messages import Arm, DatabaseMark, RouteTable, SplitStatus, UnitCounts
from serving.supervised import LoopState, SupervisedLoops
from serving.table.orders import FenceOrder, Poll, Split
from serving.table.route_table import POLL_S, TableCore
from serving.targets import Endpoint

TICK_S = 0.02  # while a split is not applied yet
IDLE_TICK_S = 0.25
FENCE_TIMEOUT_S = 0.5
FENCE_PATH = "/_canaryctl/fence"  # of an engine's front
_KV_NAMESPACE = b"canaryctl"

log = logging.getLogger("canaryctl.table")


class TableActor:
    """Actor around a `TableCore`: passes the time, posts fences, persists state, wakes waiting polls."""

    def __init__(self, service: str, silence_s: float | None) -> None:
        self._key = f"table:{service}".encode()
        text = internal_kv._internal_kv_get(self._key, namespace=_KV_NAMESPACE)
        # Without stored state the table is new, or the state was lost and routers may still have a lease.
        stored: dict[str, Any] = json.loads(text) if text else {}
        self._core = TableCore(
            service, epoch=time.time_ns() // 1_000_000, now_s=boot_s(), stored=stored, silence_s=silence_s
        )
        self._persisted: dict[str, Any] | None = None
        self._superseded: asyncio.Event | None = None  # set when the published table is superseded
        self._published = self._core.publication
        self._loops = SupervisedLoops()
        self._is_closed = False

    # ---- called by the controller

    async def open(self, secret: str, token: int) -> None:
        """Set the service's root secret. Raises StaleFencingToken."""
        self._core.open(secret, token=token)
        self._persist_and_publish()

    async def set_split(self, split: Split, token: int) -> SplitStatus:
        """See `TableCore.set_split`. Raises StaleFencingToken, BadSplit."""
        status = self._core.set_split(split, token=token, now_s=boot_s())
        self._persist_and_publish()
        return status

    async def set_clients(self, rules: ClientRules, token: int) -> None:
        """See `TableCore.set_clients`. Raises StaleFencingToken."""
        self._core.set_clients(rules, token=token, now_s=boot_s())
        self._persist_and_publish()

    async def heartbeat(self, token: int) -> None:
        """The controller is alive. Raises StaleFencingToken."""
        self._core.heartbeat(token, now_s=boot_s())
        self._persist_and_publish()

    async def mark(self, mark: DatabaseMark, instead_of: DatabaseMark | None) -> DatabaseMark | None:
        """See `TableCore.mark`."""
        noted = self._core.mark(mark, instead_of=instead_of)
        self._persist_and_publish()
        return noted

    async def tombstone(self, rollout: str) -> SplitStatus:
        """Withdraw the rollout's canary permanently."""
        status = self._core.tombstone(rollout, now_s=boot_s())
        self._persist_and_publish()
        return status

    async def destroy_unit_key(self, rollout: str, token: int) -> bool:
        """Destroy the key of the rollout's units, in the store too; False: it had none.

        Raises StaleFencingToken, UnitKeyInUse.
        """
        is_destroyed = self._core.destroy_unit_key(rollout, token=token)
        self._persist_and_publish()
        return is_destroyed

    async def loops(self) -> tuple[LoopState, ...]:
        """The background loops of this actor."""
        return self._loops.states

    async def observe(self) -> SplitStatus:
        """The current split, and how far it is applied."""
        status = self._core.status(now_s=boot_s())
        self._persist_and_publish()
        return status

    async def table(self) -> RouteTable:
        """The current table, with the data secret."""
        return self._core.table()

    async def close(self, token: int) -> None:
        """Stop, and delete the persisted state: the service is removed. Raises StaleFencingToken."""
        self._core.require(token)
        self._is_closed = True
        self._loops.cancel()
        internal_kv._internal_kv_del(self._key, namespace=_KV_NAMESPACE)

    # ---- called by the fleet

    async def set_replicas(self, arm: Arm, fence_epoch: int = 0) -> int:
        """Publish a version's replicas; without any it leaves the table. The change to wait for.

        fence_epoch: the highest of a fence at one of the service's replicas.
        """
        self._core.rise_above((fence_epoch, 0), now_s=boot_s())
        change = self._core.set_replicas(arm)
        self._persist_and_publish()
        return change

    async def are_replicas_applied(self, version: str) -> bool:
        """True when no router with a lease sends requests to this version's former replicas."""
        return self._core.are_replicas_applied(version, now_s=boot_s())

    # ---- called by routers

    async def watch(
        self, router: str, epoch: int, change: int, counts: UnitCounts | None = None
    ) -> RouteTable | None:
        """Acknowledge (epoch, change) and renew the lease; a newer table, or None after 300 ms without.

        counts: the router's requests by unit, when a report is due.
        """
        poll = Poll(router, (epoch, change), counts)
        has_news = self._core.poll(poll, now_s=boot_s())
        superseded = self._persist_and_publish()
        if not has_news:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await superseded.wait()
        return self._core.table() if self._core.has_news(poll) else None

    async def routers(self) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return self._core.routers(now_s=boot_s())

    # ---- inside

    def _persist_and_publish(self) -> asyncio.Event:
        """Persist a changed state, then wake waiting polls and the fence loop. The next such event."""
        if not self._loops.are_running:
            self._loops.start("clock", self._run_clock)
            self._loops.start("fences", self._run_fences)
        state = self._core.to_store()
        if state != self._persisted and not self._is_closed:
            # Before routers get the change: a crash in between repeats it and never loses it.
            text = json.dumps(state).encode()
            internal_kv._internal_kv_put(self._key, text, overwrite=True, namespace=_KV_NAMESPACE)
            self._persisted = state
        if self._superseded is None or self._published != self._core.publication:
            if self._superseded is not None:
                self._superseded.set()
            self._superseded = asyncio.Event()
            self._published = self._core.publication
        return self._superseded

    async def _run_clock(self) -> None:
        while True:
            self._core.tick(now_s=boot_s())
            self._persist_and_publish()
            await asyncio.sleep(IDLE_TICK_S if self._core.is_applied else TICK_S)

    async def _run_fences(self) -> None:
        timeout = aiohttp.ClientTimeout(total=FENCE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                orders = self._core.pending_fences()
                if orders:
                    await asyncio.gather(*(self._post(session, order) for order in orders))
                    await asyncio.sleep(0 if not self._core.pending_fences() else 0.05)
                else:
                    await self._persist_and_publish().wait()

    async def _post(self, session: aiohttp.ClientSession, order: FenceOrder) -> None:
        body = {"epoch": order.epoch, "revision": order.revision}
        url, headers = Endpoint.parsed(order.url).own(FENCE_PATH), self._core.control_secret.headers
        try:
            async with session.post(url, json=body, headers=headers) as answer:
                if answer.status < 300:
                    self._core.confirm_fence(order, now_s=boot_s())
                    epoch, _, revision = str((await answer.json())["fence"]).partition(".")
                    self._core.rise_above((int(epoch), int(revision)), now_s=boot_s())
                else:
                    log.warning("fence rejected", extra={"url": order.url, "status": answer.status})
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as exc:
            log.warning("fence request failed", extra={"url": order.url, "error": repr(exc)})
