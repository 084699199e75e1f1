"""A router on a socket in front of two local HTTP servers with scripted behaviour."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from aiohttp import web

from serving.clock import boot_s
from serving.credentials import DataSecret
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.front.front_wire import WireFront
from serving.router.front.request_parser import RequestParser
from serving.router.router import RouterCore
from serving.router.types import Limits

SECRET = DataSecret("s3cret")
CHAT = "/chat/v1/chat/completions"
Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    data = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
    return b"data: " + json.dumps({**data, "choices": [choice]}).encode() + b"\n\n"


CHUNKS = [chunk("Hel"), chunk("lo"), chunk("", "stop"), b"data: [DONE]\n\n"]


class Engine:
    """An upstream that records its requests and answers with `behave`, by default properly."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.behave: Behaviour = self.well
        self.seen: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.aborted = asyncio.Event()  # the router closed the connection of a request
        self.url = ""
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.bodies.append(await request.read())
        try:
            return await self.behave(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted.set()
            raise

    async def well(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(self.bodies[-1] or b"{}")
        if body.get("stream"):
            return await self.stream(request, CHUNKS)
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        answer = {"id": f"id-{self.text}", "object": "chat.completion", "created": 1, "model": "chat"}
        return web.json_response({**answer, "choices": [choice], "usage": usage}, headers={"x-extra": "1"})

    async def stream(
        self, request: web.Request, chunks: list[bytes], gap_s: float = 0.0
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for one in chunks:
            await response.write(one)
            await asyncio.sleep(gap_s)
        return response


@asynccontextmanager
async def running(engine: Engine, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Engine]:
    app = web.Application(client_max_size=256 << 20)
    app.router.add_route("*", "/{path:.*}", engine.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    engine.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    engine.url = f"http://{host}:{engine.port}"
    try:
        yield engine
    finally:
        await runner.cleanup()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that another task fulfils; twenty seconds at least, on a busy machine more."""
    for _ in range(4000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition did not hold within twenty seconds")


class NoBackground:
    """A background that does nothing."""

    async def start(self, core: RouterCore) -> None: ...
    async def stop(self) -> None: ...


class Rig:
    """A router in front of a stable and a canary engine; every request is assigned to the canary."""

    def __init__(self, core: RouterCore, stable: Engine, canary: Engine, base: str, front: WireFront) -> None:
        self.core, self.stable, self.canary, self.base, self.front = core, stable, canary, base, front
        # Without TLS: a client that could speak it reads all trusted certificates, in 20 ms of CPU.
        self.client = httpx.AsyncClient(base_url=base, timeout=30, verify=False)

    def publish(self, *, weight_bp: int = 10_000, change: int = 1, canary: bool = True) -> None:
        arm = Arm("v-2", (Replica(self.canary.url),)) if canary else None
        stable = Arm("v-1", (Replica(self.stable.url),))
        table = RouteTable("chat", 1, change, change, "r-1", "salt", weight_bp, stable, arm, 0, SECRET)
        self.core.on_table(table, sent_s=boot_s())

    async def ask(self, **body: object) -> httpx.Response:
        return await self.client.post(CHAT, json={"messages": [], **body})

    def records(self) -> list[RequestRecord]:
        self.core.on_table(None, sent_s=boot_s() + 1)
        records = list(self.core.outbox.next_batch(now_s=1e12).records)
        self.core.outbox.acknowledge()
        return records

    async def record(self) -> RequestRecord:
        records: list[RequestRecord] = []

        def has_arrived() -> bool:
            records.extend(self.records())
            return bool(records)

        await until(has_arrived)
        (one,) = records
        return one


@asynccontextmanager
async def serving(front: WireFront) -> AsyncIterator[str]:
    """A front on a free port of loopback; its address."""
    await front.start()
    port = await front.listen(socket.create_server(("127.0.0.1", 0)))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await front.stop(drain_s=1.0)


@asynccontextmanager
async def router_rig(limits: Limits | None = None) -> AsyncIterator[Rig]:
    """A running router, its table published, and its two engines."""
    limits = limits or Limits(
        connect_s=10.0, canary_stream_s=1.0, canary_whole_s=1.0, stable_s=20.0, idle_s=20.0
    )
    core = RouterCore("chat", router="r", limits=limits, lease_s=1e9)
    async with AsyncExitStack() as stack:
        stable = await stack.enter_async_context(running(Engine("stable")))
        canary = await stack.enter_async_context(running(Engine("canary")))
        front = WireFront(core, NoBackground())
        base = await stack.enter_async_context(serving(front))
        one = Rig(core, stable, canary, base, front)
        one.publish()
        yield one
        await one.client.aclose()


def feed(parser: RequestParser, data: bytes) -> None:
    """Feed the parser as a connection does: what comes of a body in chunks in one turn after the other."""
    parser.feed(data)
    while parser.has_chunks:
        parser.go_on()
