"""The router's ASGI front: reads a request whole, asks the core, moves bytes, tells the core what happened.

One coroutine a request, one more that waits for the client to go away. Nothing is decided here.

Invariant: a client that goes away stops the engine's work, and is recorded as cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from serving.clock import boot_s
from serving.router.exchange import Exchange, Refusal, Request
from serving.router.router import RouterCore
from serving.router.upstream import Answer, Upstream, UpstreamFailure

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

BODY_LIMIT = 64 << 20  # bytes
TABLE_LOOK_S = 0.01


class Background(Protocol):
    """What runs beside the requests: news of the table in, records out."""

    async def start(self, core: RouterCore) -> None: ...
    async def stop(self) -> None: ...


class RouterFront:
    """An ASGI application over one `RouterCore`. Lifespan start-up and shutdown run the background."""

    def __init__(self, core: RouterCore, background: Background) -> None:
        self.core = core
        self._background = background
        self._upstream: Upstream | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def start(self) -> None:
        """Opens the connection pool and starts the background, in the running event loop."""
        self._upstream = Upstream(self.core.limits)
        await self._background.start(self.core)

    async def stop(self) -> None:
        """Stops the background, then closes the pool."""
        await self._background.stop()
        if self._upstream is not None:
            await self._upstream.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _own_path(scope, self.core.service)
        if path is None:
            await _refuse(send, _unknown_service(scope["path"], self.core.service))
            return
        body = await _read(receive)
        if body is None:
            return  # the client went away before it had asked anything
        if isinstance(body, Refusal):
            await _refuse(send, body)
            return
        headers = tuple(scope["headers"])
        request = Request(scope["method"], path, scope.get("query_string", b""), headers, body)
        request_id = "req-" + secrets.token_hex(12)
        if self.core.table is None:
            await self._first_table()
        exchange = self.core.begin(request, request_id=request_id, now_s=boot_s(), wall_s=time.time())
        if isinstance(exchange, Refusal):
            await _refuse(send, exchange)
            return
        await self._watched(exchange, request, receive, send)

    async def _first_table(self) -> None:
        """Waits for the table of a router that started late: users may come before its first poll."""
        ends_at_s = boot_s() + self.core.limits.table_s
        while self.core.table is None and boot_s() < ends_at_s:  # noqa: ASYNC110 - the core knows no loop
            await asyncio.sleep(TABLE_LOOK_S)

    async def _watched(self, exchange: Exchange, request: Request, receive: Receive, send: Send) -> None:
        """Serves the exchange until it ends or the client goes away, whichever is first."""
        serving = asyncio.current_task()
        assert serving is not None
        is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            if not exchange.is_over:
                is_gone = True
                serving.cancel()

        watcher = asyncio.create_task(watch())
        try:
            await self._serve(exchange, request, send)
        except asyncio.CancelledError:
            if not is_gone:
                raise  # the server is going down
            serving.uncancel()
        except OSError:
            pass  # a server that raises on a send to a client that went away; recorded below
        finally:
            watcher.cancel()
            exchange.cancelled(now_s=boot_s())

    async def _serve(self, exchange: Exchange, request: Request, send: Send) -> None:
        assert self._upstream is not None, "the front was not started"
        while True:
            attempt = exchange.next_try()
            if isinstance(attempt, Refusal):
                exchange.refused(attempt, now_s=boot_s())
                await _refuse(send, attempt)
                return
            answer: Answer | None = None
            deadline_s = boot_s() + attempt.first_byte_s
            try:
                answer = await self._upstream.open(attempt, request, lambda: exchange.may_start(boot_s()))
                if await self._pass(exchange, answer, send, deadline_s):
                    return
            except UpstreamFailure as exc:
                exchange.failed(exc.why)
            finally:
                if answer is not None:
                    answer.close()

    async def _pass(self, exchange: Exchange, answer: Answer, send: Send, deadline_s: float) -> bool:
        """Passes the answer on; False: of no use, try on. Raises UpstreamFailure before the first byte."""
        head = exchange.answered(answer.status, answer.headers)
        if head is None:
            return False
        idle_s = self.core.limits.idle_s
        # The head waits for the first bytes: an engine sends its head at once and may die before a token.
        first_s = max(0.001, deadline_s - boot_s())
        data = await (answer.whole(first_s) if head.hold else answer.chunk(first_s))
        if not exchange.received(data, now_s=boot_s()):
            exchange.failed("error in the answer" if data else "cut")
            return False
        more = bool(data) and not head.hold
        if not more:
            exchange.ended(now_s=boot_s())
        await send({"type": "http.response.start", "status": head.status, "headers": head.headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})
        while more:
            try:
                data = await answer.chunk(idle_s)
            except UpstreamFailure:
                data, more = exchange.cut_off(now_s=boot_s()), False
                if not data:
                    # Left unfinished, so that the server closes the connection and the client sees the cut.
                    return True
            else:
                if data:
                    exchange.received(data, now_s=boot_s())
                else:
                    data, more = exchange.ended(now_s=boot_s()), False
            await send({"type": "http.response.body", "body": data, "more_body": more})
        return True


def _own_path(scope: Scope, service: str) -> str | None:
    """The path as the engine knows it; None when it names another service."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    prefix = "/" + service
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :] or "/"
    parts = path.split("/", 3)
    return None if len(parts) > 2 and parts[2] == "v1" and parts[1] else path


def _unknown_service(path: str, service: str) -> Refusal:
    name = path.split("/", 2)[1]
    message = f"service {name} does not exist here; this router serves {service}, at /{service}/v1"
    return Refusal(404, "unknown_service", message)


async def _read(receive: Receive) -> bytes | Refusal | None:
    """The request's body; None when the client went away first."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT:
            text = f"body of more than {BODY_LIMIT} bytes; send a smaller request"
            return Refusal(413, "body_too_large", text)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = refusal.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    headers += refusal.headers
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
