"""Front of the router: HTTP/1.1 straight on the sockets of an asyncio (uvloop) event loop.

One `ClientConnection` a connection; a `RouterCore` decides. What is here is shared by the connections: the
pool of engine connections, the reader of large bodies, the budget of bytes, the sweep of the time limits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Protocol, cast

from serving.clock import boot_s
from serving.router.body_budget import COUNTED_BODY, BodyBudget
from serving.router.body_reader import BodyReader
from serving.router.client_connection import ClientConnection
from serving.router.departed import Departed
from serving.router.held import HeldBytes
from serving.router.load import Load, open_files, overloaded
from serving.router.mirror import Mirror
from serving.router.relay import Relay
from serving.router.request_ids import RequestIds
from serving.router.router import RouterCore
from serving.router.types import OwnRoutes, Refusal
from serving.router.upstream import Upstream
from serving.supervised import LoopState

log = logging.getLogger("canaryctl.router")

SWEEP_S = 0.25
LATE_S = 0.05  # an event loop that is so late has no time for copies
DRAIN_S = 120.0  # how long `stop` waits for requests under way
HAND_OVER_S = 30.0  # of these, how long stable has for what a canary has not answered
FLUSH_S = 1.0  # for the last words to clients
STOPPING = Refusal(503, "stopping", "the router is being stopped; send the request again", (), 1)


class Background(Protocol):
    """The tasks beside the requests: receive route tables, send records."""

    async def start(self, core: RouterCore) -> None:
        """Serve this core too; called once for each."""

    async def stop(self) -> None: ...


class WireFront:
    """HTTP server over one `RouterCore` a service."""

    def __init__(self, cores: RouterCore | Sequence[RouterCore], background: Background) -> None:
        """cores: of different services; at least one."""
        self.core: RouterCore  # the only one, as a rule; its limits hold for all connections
        self.cores: dict[str, RouterCore]  # by service; replaced, never changed
        self.services: tuple[str, ...]
        self.ids = RequestIds()
        self.bodies = BodyBudget()  # of all requests that are held now
        self.held = HeldBytes()  # of answers
        self.load = Load.of_files(open_files())
        self.departed = Departed(self.bodies)
        self.refusals: dict[str, int] = {}  # by code, of requests that name none of several services
        self.upstream: Upstream | None = None
        self.reader = BodyReader(self.bodies)
        self.mirror = Mirror()
        self.serve([cores] if isinstance(cores, RouterCore) else cores)
        self._background = background
        self._connections: set[ClientConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_due_s = 0.0
        self._is_stopping = False
        self._own_routes: OwnRoutes | None = None
        self.own_prefixes: tuple[bytes, ...] = ()  # of the paths that those answer
        self._upstream_age_s: float | None = None  # None: by the limits of the core

    def serve(self, cores: Sequence[RouterCore]) -> None:
        """Serve these from now on, at least one; requests under way end where they began."""
        for core in cores:
            core.held = self.held
            if self.upstream is not None:
                core.unreachable = self.upstream.reachability.reasons
        self.core, self.cores = cores[0], {core.service: core for core in cores}
        self.services = tuple(self.cores)

    def serve_own_routes(self, answer: OwnRoutes, prefixes: tuple[bytes, ...] = (b"/-/",)) -> None:
        """Answer paths that begin so by this function: status and body, or None for the usual 404."""
        self._own_routes, self.own_prefixes = answer, prefixes

    def use_limits(self, client_idle_s: float, upstream_age_s: float) -> None:
        """Keep connections of clients idle for so long, and those to engines to this age."""
        self.load.client_idle_s, self._upstream_age_s = client_idle_s, upstream_age_s
        if self.upstream is not None:
            self.upstream.limits = replace(self.upstream.limits, connection_age_s=upstream_age_s)

    async def start(self) -> None:
        """Open the connection pool and start the background, in the running event loop."""
        self.upstream = Upstream(self.core.limits)
        if self._upstream_age_s is not None:
            self.use_limits(self.load.client_idle_s, self._upstream_age_s)
        for core in self.cores.values():
            core.unreachable = self.upstream.reachability.reasons
            await self._background.start(core)
        self._sweep()

    async def listen(self, listening: socket.socket) -> int:
        """Serve this bound socket; its port."""
        loop = asyncio.get_running_loop()
        self._servers.append(
            await loop.create_server(lambda: ClientConnection(self), sock=listening, backlog=2048)
        )
        return cast(int, listening.getsockname()[1])

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Accept no more, let requests under way end for `drain_s`, then stop the background.

        In the last `HAND_OVER_S` stable is asked where a canary has not answered yet. Whoever has no whole
        answer at the end is told so.
        """
        self.stop_accepting()
        hand_over_s = min(HAND_OVER_S, drain_s / 2)
        await self._drained(drain_s - hand_over_s)
        if drain_s:
            self._hand_over(withdrawn=False)
        await self._drained(hand_over_s)
        for relay in self._relays():
            relay.stop(STOPPING)
        for connection in list(self._connections):
            connection.close_if_idle()
        await self._drained(FLUSH_S if drain_s else 0.0)
        for connection in list(self._connections):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._tasks:
            task.cancel()
        self.mirror.close()
        self.departed.close()
        if self.upstream is not None:
            self.upstream.close()
        self.reader.close()
        await self._background.stop()

    async def _drained(self, most_s: float) -> None:
        """Wait until every connection has ended, for so long at most."""
        deadline_s = boot_s() + most_s
        while self._connections and boot_s() < deadline_s:  # noqa: ASYNC110 - an end, not a hot path
            await asyncio.sleep(0.02)

    def tables_changed(self) -> None:
        """The tables or limits of the cores have changed: nobody waits on for a canary that has left."""
        if self.upstream is not None:
            self.upstream.limits = self.core.limits
        self._hand_over(withdrawn=True)

    def _hand_over(self, *, withdrawn: bool) -> None:
        """Ask stable where a client has nothing of a canary's answer; withdrawn: of one that has left."""
        if moved := sum(relay.hand_over(withdrawn=withdrawn) for relay in self._relays()):
            log.info("requests that waited for a canary go to stable", extra={"requests": moved})

    def _relays(self) -> list[Relay]:
        """The requests of clients that are under way."""
        calls = list(self.upstream.calls) if self.upstream is not None else []
        return [call.listener for call in calls if isinstance(call.listener, Relay)]

    def stop_accepting(self) -> None:
        """Close the listeners and idle connections; requests under way go on."""
        self._is_stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close_if_idle()

    @property
    def loops(self) -> tuple[LoopState, ...]:
        """The loops of the background."""
        return getattr(self._background, "loops", ())

    @property
    def under_way(self) -> int:
        """Requests under way at engines."""
        return len(self.upstream.calls) if self.upstream is not None else 0

    @property
    def is_stopping(self) -> bool:
        """True when connections end with the answer under way."""
        return self._is_stopping

    # ---- called by connections

    def count_refusal(self, code: str, core: RouterCore | None) -> None:
        """The router itself has answered an error. core: of the request's service; None: it names none."""
        if core is not None or len(self.cores) == 1:
            (core or self.core).counters.on_refusal(code)
        else:
            self.refusals[code] = self.refusals.get(code, 0) + 1

    def joined(self, connection: ClientConnection) -> Refusal | None:
        """A client has connected. A Refusal: there are too many."""
        self._connections.add(connection)
        self.load.connections = len(self._connections)
        return self.load.crowd_refusal()

    def left(self, connection: ClientConnection) -> None:
        """A client's connection is closed."""
        self._connections.discard(connection)
        self.load.connections = len(self._connections)

    def refusal(self, body_bytes: int = 0) -> Refusal | None:
        """Why no further request is begun now; None: it is. body_bytes: of its body, which is whole."""
        if body_bytes > COUNTED_BODY and self.bodies.is_spent:
            return overloaded(f"the router holds {self.bodies.limit} bytes of requests already")
        load = self.load
        if load.is_late or (self.upstream and len(self.upstream.calls) >= load.requests_limit):
            return load.refusal()
        return None

    def run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a task of a connection, and keep it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def own_routes(self) -> OwnRoutes | None:
        """What answers paths with one of `own_prefixes`; None: nothing."""
        return self._own_routes

    def _sweep(self) -> None:
        now_s, late_s = boot_s(), 0.0
        if self._sweep_due_s:
            late_s = max(0.0, now_s - self._sweep_due_s)
            for core in self.cores.values():
                core.counters.lag.add(late_s)
        self._sweep_due_s = now_s + SWEEP_S
        calls = len(self.upstream.calls) if self.upstream is not None else 0
        has_many_bytes = self.bodies.is_half_spent or self.held.is_half_spent
        self.load.swept(late_s=late_s, requests=calls, has_many_bytes=has_many_bytes)
        for core in self.cores.values():
            core.assigner.is_overloaded = self.load.is_undrawn
        self.departed.check()
        self.mirror.check(is_strained=self.load.is_undrawn or late_s > LATE_S)
        # Before the checks: an error in one must not end the time limits of all.
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        unread = 0
        for connection in list(self._connections):
            try:
                connection.check(now_s)
                unread += connection.unread_bytes
            except Exception:
                log.exception("time limits of a connection failed; it is closed")
                connection.abort()
        self.held.unread = unread
