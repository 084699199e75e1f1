"""ASGI front of the router: reads requests, relays bytes and reports events to the core, which decides.

Each request has one coroutine, and one more that waits for the client to disconnect.

Invariant: a client that disconnects stops the engine's work and is recorded as cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from serving.clock import boot_s
from serving.router.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Refusal, Request
from serving.router.upstream import Answer, Upstream, UpstreamFailure
from serving.targets import QUERY_LIMIT, Target, method_of, normalised

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

BODY_LIMIT = 64 << 20  # bytes
TABLE_CHECK_S = 0.01
SHOWN_LIMIT = 100  # bytes of a refused path in its error


class Background(Protocol):
    """The tasks beside the requests: receive route tables, send records."""

    async def start(self, core: RouterCore) -> None: ...
    async def stop(self) -> None: ...


class RouterFront:
    """ASGI application over one `RouterCore`. Lifespan events start and stop the background."""

    def __init__(self, core: RouterCore, background: Background) -> None:
        self.core = core
        self._background = background
        self._upstream: Upstream | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def start(self) -> None:
        """Open the connection pool and start the background, in the running event loop."""
        self._upstream = Upstream(self.core.limits)
        await self._background.start(self.core)

    async def stop(self) -> None:
        """Stop the background, then close the pool."""
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
        target = _target_of(scope, self.core.service)
        if isinstance(target, Refusal):
            await _refuse(send, target)
            return
        body = await _read_body(receive)
        if body is None:
            return  # the client disconnected before it had sent its request
        if isinstance(body, Refusal):
            await _refuse(send, body)
            return
        request = Request(scope["method"], target, tuple(scope["headers"]), body)
        request_id = "req-" + secrets.token_hex(12)
        if self.core.table is None:
            await self._wait_for_table()
        exchange = self.core.begin(request, request_id=request_id, now_s=boot_s(), wall_s=time.time())
        if isinstance(exchange, Refusal):
            await _refuse(send, exchange)
            return
        await self._serve_until_disconnect(exchange, request, receive, send)

    async def _wait_for_table(self) -> None:
        """Hold the requests that arrive before a new router's first poll, for `table_s` at most."""
        deadline_s = boot_s() + self.core.limits.table_s
        while self.core.table is None and boot_s() < deadline_s:  # noqa: ASYNC110 - the core has no event loop
            await asyncio.sleep(TABLE_CHECK_S)

    async def _serve_until_disconnect(
        self, exchange: Exchange, request: Request, receive: Receive, send: Send
    ) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        is_disconnected = False

        async def watch() -> None:
            nonlocal is_disconnected
            while (await receive())["type"] != "http.disconnect":
                pass
            if not exchange.is_over:
                is_disconnected = True
                serving.cancel()

        watcher = asyncio.create_task(watch())
        try:
            await self._serve(exchange, request.method, send)
        except asyncio.CancelledError:
            if not is_disconnected:
                raise  # the server is shutting down
            serving.uncancel()
        except OSError:
            pass  # some servers raise on a send to a client that disconnected; recorded below
        finally:
            watcher.cancel()
            exchange.cancelled(now_s=boot_s())

    async def _serve(self, exchange: Exchange, method: str, send: Send) -> None:
        assert self._upstream is not None, "the front was not started"
        while True:
            attempt = exchange.next_attempt()
            if isinstance(attempt, Refusal):
                exchange.refused(attempt, now_s=boot_s())
                await _refuse(send, attempt)
                return
            answer: Answer | None = None
            deadline_s = boot_s() + attempt.first_byte_s
            try:
                answer = await self._upstream.open(attempt, method, lambda: exchange.may_start(boot_s()))
                if await self._relay(exchange, answer, send, deadline_s):
                    return
            except UpstreamFailure as exc:
                exchange.failed(exc.why)
            finally:
                if answer is not None:
                    answer.close()

    async def _relay(self, exchange: Exchange, answer: Answer, send: Send, deadline_s: float) -> bool:
        """Relay the answer; False: unusable, try again. Raises UpstreamFailure before the first byte."""
        head = exchange.answered(answer.status, answer.headers)
        if head is None:
            return False
        idle_s = self.core.limits.idle_s
        # The head is held until the first bytes: an engine sends it at once and may die before a token.
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
                    # Unfinished, so that the server closes the connection and the client sees the cut.
                    return True
            else:
                if data:
                    exchange.received(data, now_s=boot_s())
                else:
                    data, more = exchange.ended(now_s=boot_s()), False
            await send({"type": "http.response.body", "body": data, "more_body": more})
        return True


def _target_of(scope: Scope, service: str) -> Target | Refusal:
    """The listed path that a request names, without the service's prefix; a Refusal for any other."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path, method = normalised(raw.partition(b"?")[0]), scope["method"]
    prefix = "/" + service
    if path is not None and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :]
    allowed = method_of(path) if path is not None else None
    if path is None or allowed is None:
        return _unknown_path(method, raw, path or "", service)
    if method != allowed and method != "OPTIONS" and (method, allowed) != ("HEAD", "GET"):
        message = f"{method} is not a method of {path}; send {allowed}"
        return Refusal(405, "method_not_allowed", message, ((b"allow", allowed.encode()),))
    try:
        return Target(path, _query_of(scope))
    except ValueError as exc:
        return Refusal(400, "bad_query", f"{exc}; correct the address")


def _query_of(scope: Scope) -> str:
    query: bytes = scope.get("query_string", b"")
    if len(query) > QUERY_LIMIT:
        raise ValueError(f"a query of {len(query)} bytes exceeds {QUERY_LIMIT}")
    return query.decode("latin-1")


def _unknown_path(method: str, raw: bytes, path: str, service: str) -> Refusal:
    api = f"/{service}/v1"
    parts = path.split("/", 3)
    if len(parts) > 2 and parts[2] == "v1" and parts[1]:
        message = f"service {parts[1]} does not exist here; this router serves {service}, at {api}"
        return Refusal(404, "unknown_service", message)
    shown = raw.decode("latin-1")[:SHOWN_LIMIT]
    message = (
        f"{method} {shown!r} is not a route of {service}; its API is at {api}, as {api}/chat/completions"
    )
    return Refusal(404, "unknown_path", message)


async def _read_body(receive: Receive) -> bytes | Refusal | None:
    """The request's body; None when the client disconnected first."""
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
