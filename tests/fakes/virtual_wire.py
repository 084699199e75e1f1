"""A whole router between scripted clients and engines: no socket, and a clock that jumps to the next timer.

Nothing waits: a minute of virtual time takes milliseconds. What an engine writes is a list of timed pieces;
what a client does depends on what it has read.
"""

from __future__ import annotations

import asyncio
import json
import math
import selectors
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import pytest

from serving.credentials import DataSecret
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.front.client_connection import ClientConnection
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.types import Limits
from serving.router.upstreams.engine_connection import EngineConnection
from serving.router.upstreams.health import UpstreamHealth
from serving.targets import Endpoint

STARTED_S = 1000.0
_CLOCKS = (
    *("exchange.relay", "upstreams.upstream", "front.client_connection", "front.front_wire"),
    *("front.request_start", "front.service_choice", "mirror.mirror", "mirror.mirror_copy"),
)
SOCKET_BUFFER = 32 << 10  # bytes that leave the router's memory before their client has read them


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now_s = STARTED_S

    def __call__(self) -> float:
        return self.now_s


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left to wait for")
        self._clock.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing is left to do."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now_s


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """A loop on a virtual clock, which the router's modules read too."""
    clock = Clock()
    loop = VirtualLoop(clock)
    with pytest.MonkeyPatch.context() as patch:
        for name in _CLOCKS:
            patch.setattr(f"serving.router.{name}.boot_s", clock)
        # On a busy machine a turn's budget would else hold less, and the records of two arms differ.
        patch.setattr("serving.router.turns.time", SimpleNamespace(perf_counter=clock))
        try:
            yield loop
        finally:
            loop.close()


Piece: TypeAlias = tuple[float, bytes | Literal["reset"]]  # seconds after the one before, what comes then
# What an engine writes for the request of this number (of all that it gets), path and body; None: it refuses
# the connection.
Behaviour: TypeAlias = Callable[[str, dict[str, Any]], Sequence[Piece] | None]


def head(
    status: int = 200, kind: str = "text/event-stream", *, length: int | None = None, more: str = ""
) -> bytes:
    """The head of an engine's answer. length: None: chunked."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{more}{framing}\r\n\r\n".encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK = b"0\r\n\r\n"


class _EngineTransport(asyncio.Transport):
    """The router's end of a connection to a scripted engine."""

    def get_write_buffer_size(self) -> int:
        return 0

    def __init__(self, engine: VirtualEngine, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.connection: EngineConnection
        self._engine, self._loop = engine, loop
        self._sent = b""
        self._waiting: list[bytes | Literal["reset"]] = []  # while nothing is read
        self._is_paused = self._is_closed = False

    def write(self, data: Any) -> None:
        self._sent += data
        top, blank, body = self._sent.partition(b"\r\n\r\n")
        lengths = [line for line in top.split(b"\r\n") if line.startswith(b"content-length: ")]
        length = int(lengths[0].split()[1]) if lengths else 0
        if not blank or len(body) < length:
            return
        self._sent = b""
        path = top.split(b" ", 2)[1].decode()
        self._play(iter(self._engine.asked(path, json.loads(body or b"{}")) or ()))

    def _play(self, pieces: Iterator[Piece], piece: bytes | Literal["reset"] = b"") -> None:
        """Write this piece, and the next ones in their time."""
        if piece:
            self._arrives(piece)
        if (following := next(pieces, None)) is not None and not self._is_closed:
            self._loop.call_later(following[0], self._play, pieces, following[1])

    def _arrives(self, piece: bytes | Literal["reset"]) -> None:
        if self._is_closed:
            return
        if self._is_paused:
            self._waiting.append(piece)
        elif piece == "reset":
            self._is_closed = True
            self.connection.connection_lost(ConnectionResetError())
        else:
            self.connection.data_received(piece)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        while self._waiting and not self._is_paused:
            self._arrives(self._waiting.pop(0))

    def is_closing(self) -> bool:
        return self._is_closed

    def abort(self) -> None:
        self._is_closed = True

    close = abort


class VirtualEngine:
    """An engine that answers by a script."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.requests = 0

    def asked(self, path: str, body: dict[str, Any]) -> Sequence[Piece] | None:
        self.requests += 1
        return self._behaviour(path, body)

    async def connect(self, front: WireFront, endpoint: Endpoint) -> EngineConnection:
        if self._behaviour("", {}) is None:
            raise ConnectionRefusedError
        assert front.upstream is not None
        connection = EngineConnection(front.upstream, endpoint.origin)
        transport = _EngineTransport(self, asyncio.get_running_loop())
        transport.connection = connection
        connection.connection_made(transport)
        return connection


@dataclass(frozen=True)
class Habit:
    """What a client does. Times in seconds since its request; None: never."""

    reads_bytes_a_s: float = math.inf
    leaves_at_s: float | None = None
    leaves_after_head_s: float | None = None
    leaves_on_reading: bytes | None = None
    read_timeout_s: float | None = None
    closes_its_side: bool = False
    pipelines: bool = False


class _ClientTransport(asyncio.Transport):
    """The router's end of a connection to a client, and the client."""

    def __init__(self, habit: Habit, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.connection: ClientConnection
        self.read = b""  # by the client
        self.has_left = False
        self._habit, self._loop = habit, loop
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._high = 64 << 10
        self._is_blocked = self._is_closing = self._is_draining = False
        self._timeout: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The request has been sent."""
        if self._habit.leaves_at_s is not None:
            self._loop.call_later(self._habit.leaves_at_s, self.leave)
        self._waits()

    def _waits(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if self._habit.read_timeout_s is not None:
            self._timeout = self._loop.call_later(self._habit.read_timeout_s, self.leave)

    def leave(self) -> None:
        """The client closes its connection."""
        if not self.has_left:
            self.has_left = self._is_closing = True
            if self._timeout is not None:
                self._timeout.cancel()
            self.connection.connection_lost(None)

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        self._unread.append(bytes(data))
        self._unread_bytes += len(data)
        if math.isinf(self._habit.reads_bytes_a_s):
            self._drain()
            return
        if not self._is_draining:
            self._is_draining = True
            self._loop.call_later(0.02, self._drain)
        if self._unread_bytes > self._high + SOCKET_BUFFER and not self._is_blocked:
            self._is_blocked = True
            self.connection.pause_writing()

    def _drain(self) -> None:
        self._is_draining = False
        data = b"".join(self._unread)
        rate = self._habit.reads_bytes_a_s
        size = len(data) if math.isinf(rate) else min(len(data), int(rate * 0.02))
        self._unread, self._unread_bytes = [data[size:]], len(data) - size
        self._reads(data[:size])
        if self.has_left:
            return
        if self._is_blocked and self._unread_bytes <= self._high // 4 + SOCKET_BUFFER:
            self._is_blocked = False
            self.connection.resume_writing()
        if self._unread_bytes:
            self._is_draining = True
            self._loop.call_later(0.02, self._drain)
        elif self._is_closing:
            self.leave()

    def _reads(self, data: bytes) -> None:
        had_head = b"\r\n\r\n" in self.read
        self.read += data
        if data:
            self._waits()
        habit = self._habit
        if habit.leaves_after_head_s is not None and not had_head and b"\r\n\r\n" in self.read:
            self._loop.call_later(habit.leaves_after_head_s, self.leave)
        if habit.leaves_on_reading is not None and habit.leaves_on_reading in self.read:
            self._loop.call_soon(self.leave)

    def get_write_buffer_size(self) -> int:
        return self._unread_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or self._high

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 9) if name == "peername" else default

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        if not self._unread_bytes:
            self._loop.call_soon(self.leave)

    def abort(self) -> None:
        self._is_closing = True
        self._loop.call_soon(self.leave)


class _NoBackground:
    async def start(self, core: RouterCore) -> None: ...
    async def stop(self) -> None: ...


@dataclass
class Seen:
    """What came of the requests of one client."""

    records: list[RequestRecord] = field(default_factory=list)
    answer: bytes = b""  # as the client read it, with heads and chunks
    asked: dict[str, int] = field(default_factory=dict)  # requests by arm


LIMITS = Limits(
    connect_s=1.0,
    settle_s=8.0,
    canary_stream_s=8.0,
    canary_whole_s=10.0,
    stable_s=12.0,
    idle_s=6.0,
    stall_s=3.0,
    tokenize_s=2.0,
    keep_alive_s=0.5,
)


@dataclass
class Wire:
    """A router of two equal engines on the virtual clock."""

    core: RouterCore
    front: WireFront
    table: RouteTable
    engines: dict[str, VirtualEngine]
    connections: dict[str, int]  # made, by arm

    def send(
        self, path: str, body: Mapping[str, Any], habit: Habit = Habit(), *, more: bytes = b""
    ) -> _ClientTransport:
        """One client's request(s). more: further lines of the head."""
        connection = ClientConnection(self.front)
        transport = _ClientTransport(habit, asyncio.get_running_loop())
        transport.connection = connection
        connection.connection_made(transport)
        data = json.dumps(body).encode()
        request = b"POST /chat%b HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n%b"
        connection.data_received(
            request % (path.encode(), more, len(data), data) * (2 if habit.pipelines else 1)
        )
        transport.begin()
        if habit.closes_its_side and not connection.eof_received():
            transport.close()
        return transport

    async def records(self) -> list[RequestRecord]:
        """A quarter of a second later: what has been recorded since the last call."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.25)
        if self.core.health is not None:
            list(self.core.health.tick(loop.time(), self.table))
        self.core.on_table(None, sent_s=loop.time())
        found = self.core.report(now_s=loop.time(), wall_s=loop.time()).records
        self.core.outbox.acknowledge()
        return list(found)

    async def close(self) -> None:
        self.front.departed.close()
        await self.front.stop(drain_s=0.0)


async def wire(
    behaviour: Behaviour,
    *,
    weight_bp: int,
    replicas: int = 1,
    external: bool = False,
    limits: Limits = LIMITS,
    connect_s: float = 0.0,
    failures: int | None = None,
    canary: Behaviour | None = None,
) -> Wire:
    """A router. connect_s: that a connection takes.  failures: after which a canary is set aside, as a router
    of a table file does; None: as one of a fleet.  canary: its own behaviour, None: as stable's."""
    loop = asyncio.get_running_loop()
    core = RouterCore("chat", router="r", limits=limits, lease_s=math.inf)
    if failures is not None:
        core.health = UpstreamHealth("chat", failures=failures, now_s=loop.time())
    front = WireFront(core, _NoBackground())
    await front.start()
    engines = {"stable": VirtualEngine(behaviour), "canary": VirtualEngine(canary or behaviour)}
    connections = {"stable": 0, "canary": 0}
    assert front.upstream is not None

    async def connect(endpoint: Endpoint, protocol: object) -> EngineConnection:
        arm = endpoint.authority.split("-")[0]
        connections[arm] += 1
        if connect_s:
            await asyncio.sleep(connect_s)
        return await engines[arm].connect(front, endpoint)

    front.upstream.connect = connect  # type: ignore[method-assign, assignment]
    stable_arm, canary_arm = (
        Arm(f"v-{name}", tuple(Replica(f"http://{name}-{n}") for n in range(replicas)), external)
        for name in ("stable", "canary")
    )
    table = RouteTable("chat", 1, 2, 2, "r-1", "salt", weight_bp, stable_arm, canary_arm, 0, DataSecret("s"))
    core.on_table(table, sent_s=loop.time())
    return Wire(core, front, table, engines, connections)


async def traffic(
    requests: Sequence[tuple[float, str, Mapping[str, Any]]], behaviour: Behaviour, **of_wire: Any
) -> tuple[list[RequestRecord], Wire]:
    """The records of many clients, each with one request: (seconds since the start, path, body)."""
    loop = asyncio.get_running_loop()
    made = await wire(behaviour, **of_wire)
    for at_s, path, body in requests:
        loop.call_later(
            at_s, lambda path, body: made.send(path, body, more=b"connection: close\r\n"), path, body
        )
    records: list[RequestRecord] = []
    until_s = loop.time() + requests[-1][0] + made.core.limits.settle_s + 5.0
    while len(records) < len(requests) and loop.time() < until_s:
        records += await made.records()
    await made.close()
    return records, made


async def ask(
    behaviour: Behaviour,
    habit: Habit,
    *,
    arm: int,
    path: str,
    body: Mapping[str, Any],
    replicas: int = 1,
    external: bool = False,
    limits: Limits = LIMITS,
    stop: tuple[float, float] | None = None,
) -> Seen:
    """Send one client's request(s), assigned to this arm, to two equal engines; what came of them.

    stop: the router is told to stop so many seconds after the request, with this time to drain.
    """
    loop = asyncio.get_running_loop()
    # With this weight every key is of this arm, and the coin could still have fallen on the other side.
    weight_bp = 9999 if arm else 1
    made = await wire(behaviour, weight_bp=weight_bp, replicas=replicas, external=external, limits=limits)
    transport = made.send(path, {**body, "user": "u"}, habit)
    connection = transport.connection
    stopping: asyncio.Task[None] | None = None
    began_s = loop.time()
    seen = Seen()
    until_s = loop.time() + limits.settle_s + 60.0
    while len(seen.records) < (2 if habit.pipelines else 1) and loop.time() < until_s:
        if stop is not None and stopping is None and loop.time() >= began_s + stop[0]:
            stopping = loop.create_task(made.front.stop(drain_s=stop[1]))
        seen.records += await made.records()
    if stopping is not None:
        await stopping
    # A record may come before the client's end.
    while connection._request is not None and not transport.has_left and loop.time() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.25)
    transport.leave()
    await made.close()
    seen.answer, seen.asked = transport.read, {name: one.requests for name, one in made.engines.items()}
    return seen
