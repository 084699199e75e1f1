"""Front of the router: HTTP/1.1 straight on the sockets of an asyncio (uvloop) event loop.

One `ClientConnection` a connection; a `RouterCore` decides. What is here is shared by the connections: the
pool of engine connections, the reader of large bodies, the budgets of bytes and of load, mirrored copies, ids
of requests, the sweep of the time limits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Protocol, cast

from serving.clock import boot_s
from serving.router.bodies.body_budget import COUNTED_BODY, BodyBudget
from serving.router.bodies.body_reader import BodyReader
from serving.router.exchange.held import HeldBytes
from serving.router.exchange.relay import Relay
from serving.router.exchange.trial import Trial
from serving.router.front.admission import network_of, peer_of
from serving.router.front.client_connection import ClientConnection
from serving.router.front.connection_limit import ConnectionLimit
from serving.router.front.departed import Departed
from serving.router.front.load import Load, open_files
from serving.router.front.paths import Found
from serving.router.front.request_ids import RequestIds
from serving.router.front.request_limit import RequestLimit
from serving.router.mirror.mirror import Mirror
from serving.router.records.owners import Owners
from serving.router.router import RouterCore
from serving.router.spare_turns import SpareTurns
from serving.router.turns import Turns
from serving.router.types import OwnRoutes, Refusal, overloaded
from serving.router.upstreams.upstream import Upstream
from serving.router.upstreams.warm import WarmConnections
from serving.supervised import LoopState

log = logging.getLogger("canaryctl.router")

SWEEP_S = 0.25
STRAINED_S = 0.05  # an event loop that is so late has no time for copies
HAND_OVER_S = 30.0  # of the drain, in which stable is asked too where a canary is silent
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
        self.owners = Owners()
        self.load = Load.of_files(open_files())
        self.places: ConnectionLimit[ClientConnection] = ConnectionLimit(self.load)
        self.requests: RequestLimit[ClientConnection] = RequestLimit(self.load)
        self.departed = Departed(self.bodies)
        self.refusals: dict[str, int] = {}  # by code, of requests that name none of several services
        self.upstream: Upstream | None = None
        self.warm: WarmConnections | None = None
        self.reader = BodyReader(self.bodies)
        self.turns = Turns()  # of reading what clients send
        self.spare = SpareTurns()  # of what nobody waits for
        self.mirror = Mirror()
        self.cores = {}
        self.serve([cores] if isinstance(cores, RouterCore) else cores)
        self._background = background
        self._connections: set[ClientConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_due_s = 0.0
        self._is_stopping = False
        self.ending: Refusal | None = None  # why nothing begins any more; None: it does
        self._is_hurried = False  # nothing is waited for before the end
        self.own_routes: OwnRoutes | None = None  # what answers paths with one of these prefixes
        self.own_prefixes: tuple[bytes, ...] = ()

    def serve(self, cores: Sequence[RouterCore]) -> None:
        """Serve these from now on, at least one, by the limits of the first. Requests under way end where
        they began, but nobody waits on for a canary that has left."""
        for core in cores:
            core.held, core.owners = self.held, self.owners
        for core in self.cores.values():
            if core not in cores:
                core.judge.use(None, "")  # until it is served again; `stop` is for good
        self.core, self.cores = cores[0], {core.service: core for core in cores}
        self.services = tuple(self.cores)
        self.load.client_idle_s = self.core.limits.client_idle_s
        if self.upstream is not None:
            self._connect(self.upstream)
            self._hand_over()

    def _connect(self, upstream: Upstream) -> None:
        """Let the services that are served share the pool."""
        upstream.limits = self.core.limits
        upstream.reachability.is_logged = any(core.health is None for core in self.cores.values())
        for core in self.cores.values():
            core.unreachable = upstream.reachability.reasons
            core.unread.later = self.spare.join_for

    def serve_own_routes(self, answer: OwnRoutes, prefixes: tuple[bytes, ...] = (b"/-/",)) -> None:
        """Answer paths that begin so by this function: status and body, or None for the usual 404."""
        self.own_routes, self.own_prefixes = answer, prefixes

    async def start(self) -> None:
        """Open the connection pool and start the background, in the running event loop."""
        self.upstream = Upstream(self.core.limits)
        self.warm = WarmConnections(self.upstream)
        self._connect(self.upstream)
        for core in self.cores.values():
            await self._background.start(core)
        self._sweep()

    async def listen(self, listening: socket.socket) -> int:
        """Serve this bound socket; its port."""
        loop = asyncio.get_running_loop()
        self._servers.append(
            await loop.create_server(lambda: ClientConnection(self), sock=listening, backlog=2048)
        )
        return cast(int, listening.getsockname()[1])

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Accept no more, let requests under way end for `drain_s`, then stop the background. drain_s: None:
        by the limits.

        In the last `HAND_OVER_S` stable is asked too where a canary is silent. Whoever has no whole answer at
        the end is told so.
        """
        self.stop_accepting()
        drain_s = self.core.limits.drain_s if drain_s is None else drain_s
        hand_over_s = min(HAND_OVER_S, drain_s / 2)
        await self._drained(drain_s - hand_over_s)
        if (
            drain_s
            and not self._is_hurried
            and (asked := sum(relay.ask_beside() for relay in self._relays()))
        ):
            log.info("stable is asked beside a silent canary", extra={"requests": asked})
        await self._drained(hand_over_s)
        self._tell_all()
        await self._drained(FLUSH_S if drain_s else 0.0, is_last=True)
        for connection in list(self._connections):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._tasks:
            task.cancel()
        self.mirror.close()
        self.departed.close()
        if self.warm is not None and self.upstream is not None:
            self.warm.close()
            self.upstream.close()
        self.reader.close()
        for core in self.cores.values():
            core.unread.read_all()  # whose turn does not come any more: their records are the last
            core.judge.stop()
        await self._background.stop()

    def _tell_all(self) -> None:
        """Tell whoever has no whole answer; one that fails is logged, and the others are told."""
        self.ending = STOPPING
        calls = list(self.upstream.calls) if self.upstream is not None else []
        # A request may have no call: its body is being read, or what stable said beside a canary passed on.
        listed: list[Callable[[], object]] = [partial(one.stop, STOPPING) for one in self._connections]
        listed += [partial(one.stop, STOPPING) for one in self._relays()]  # also of clients that have left
        listed += [call.listener.stop for call in calls if isinstance(call.listener, Trial)]
        for tell in listed:
            try:
                tell()
            except Exception:
                log.exception("a request was not told that the router stops")

    def hurry(self) -> None:
        """Let `stop`, which has been called, wait for no request: clients are told, records are written."""
        self._is_hurried = True

    async def _drained(self, most_s: float, *, is_last: bool = False) -> None:
        """Wait until every connection has ended, for so long at most. is_last: for what clients are told."""
        deadline_s = boot_s() + most_s
        while self._connections and boot_s() < deadline_s and (is_last or not self._is_hurried):  # noqa: ASYNC110 - an end, not a hot path
            await asyncio.sleep(0.02)

    def _hand_over(self) -> None:
        """Ask stable where a client has nothing of the answer of a canary that has left."""
        if moved := sum(relay.hand_over() for relay in self._relays()):
            log.info("requests that waited for a canary go to stable", extra={"requests": moved})

    def _relays(self) -> list[Relay]:
        """The requests of clients that are under way."""
        calls = list(self.upstream.calls) if self.upstream is not None else []
        return [call.listener for call in calls if isinstance(call.listener, Relay)]

    def stop_accepting(self) -> None:
        """Close the listeners and idle connections; requests under way go on, and those that are arriving."""
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
        return len(self.upstream.calls) + len(self.upstream.tunnels) if self.upstream is not None else 0

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

    def is_own(self, target: bytes, found: Found | Refusal) -> bool:
        """Whether this path, which is of no service, may be one of `own_routes`."""
        return isinstance(found, Refusal) and target.startswith(self.own_prefixes)

    def joined(self, connection: ClientConnection) -> None:
        """A client has connected."""
        self._connections.add(connection)
        self.places.join(connection, network_of(peer_of(connection.transport)))

    def left(self, connection: ClientConnection) -> None:
        """A client's connection is closed."""
        self._connections.discard(connection)
        self.places.leave(connection)
        self.requests.end(connection)

    def refusal(self, client: str, body_bytes: int = 0) -> Refusal | None:
        """Why no further request of this client is begun now; None: it is. body_bytes: of its body, which is
        whole."""
        if body_bytes > COUNTED_BODY and self.bodies.total - body_bytes > self.bodies.limit:  # without it
            return overloaded(f"the router holds {self.bodies.limit} bytes of requests already")
        return self.requests.refusal(client, self.under_way)

    def run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a task of a connection, and keep it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _sweep(self) -> None:
        now_s, late_s = boot_s(), 0.0
        if self._sweep_due_s:
            late_s = max(0.0, now_s - self._sweep_due_s)
            for core in self.cores.values():
                core.counters.lag.add(late_s)
        self._sweep_due_s = now_s + SWEEP_S
        has_many_bytes = self.bodies.is_half_spent or self.held.is_half_spent
        largest = self.requests.largest
        self.load.swept(
            late_s=late_s, requests=self.under_way, has_many_bytes=has_many_bytes, largest=largest
        )
        for core in self.cores.values():
            core.assigner.is_overloaded = self.load.is_undrawn
        self.departed.check()
        self.mirror.check(is_strained=self.load.is_strained or late_s > STRAINED_S)
        # Before the checks: an error in one must not end the time limits of all.
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        if self.warm is not None and not self._is_stopping:
            self.warm.check((core.table for core in self.cores.values()), now_s=now_s)
        unread = 0
        for connection in list(self._connections):
            try:
                connection.check(now_s)
                unread += connection.unread_bytes
            except Exception:
                log.exception("time limits of a connection failed; it is closed")
                connection.abort()
        self.held.unread = unread
