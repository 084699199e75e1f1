"""The router's front in place of Serve's: Serve's ingress (HAProxy) reaches `WireFront` on a replica's port.

Serve starts uvicorn on a port of each replica, and its HAProxy sends requests there. Uvicorn, ASGI and
Serve's bookkeeping cost more than the router itself, so the starter of that server is replaced in this
process by one that starts the front on the same port. Serve's own routes (`/-/healthz`, `/-/routes`) are
answered as Serve would. Serve stops the server as it stops its own: `should_exit`, then a wait for the task.

Serve also has a proxy of its own, to which HAProxy turns when it finds no replica healthy. Its requests come
as ASGI calls; an `Ingress` is an ASGI application that passes them on to the front over HTTP. A body is
passed on as it comes, a part at a time: it has the front's limits (its bytes, their budget, the time for them
to arrive, whether its client may ask) and no others.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import aiohttp

from serving.loopback import bound
from serving.router.front.front_wire import WireFront
from serving.router.headers import forwarded_whole, returned_whole, value_of
from serving.router.types import Refusal

log = logging.getLogger("canaryctl.router")

CHECK_S = 0.05
Message: TypeAlias = MutableMapping[str, Any]


class ServerOfFront:
    """What Serve needs of a server: `should_exit`."""

    def __init__(self, front: WireFront) -> None:
        self.should_exit = False
        self._front = front

    async def serve(self) -> None:
        """Serve until `should_exit`, then let the requests under way end."""
        try:
            while not self.should_exit:  # noqa: ASYNC110 - Serve sets the attribute
                await asyncio.sleep(CHECK_S)
            await self._front.stop()
        except asyncio.CancelledError:
            await self._front.stop(drain_s=0.0)
            raise


class Ingress:
    """Connects one front with Serve in this process. Create it in the deployment's constructor."""

    def __init__(self, front: WireFront) -> None:
        """Raises RuntimeError when this Ray's Serve has no such starter to replace."""
        from ray.serve._private import replica

        if not hasattr(replica, "start_asgi_http_server"):
            raise RuntimeError("this release of Ray has another ingress; install the one in constraints.txt")
        self._front = front
        self._base = ""  # of the front; empty: not started
        replica.start_asgi_http_server = self._start

    async def _start(
        self, app: Any, http_options: Any, *, event_loop: Any, enable_so_reuseport: bool = False
    ) -> tuple[asyncio.Task[None], ServerOfFront]:
        """In place of Serve's `start_asgi_http_server`. Raises RuntimeError when the port is taken."""
        host, port = http_options.host, http_options.port
        try:
            listening = bound(host, port)
        except OSError as exc:
            raise RuntimeError(f"Failed to bind to address '{host}:{port}'.") from exc
        self._front.serve_own_routes(_own_routes(app))
        await self._front.start()
        await self._front.listen(listening)
        self._base = f"http://{host}:{port}"
        server = ServerOfFront(self._front)
        return asyncio.get_running_loop().create_task(server.serve()), server

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one ASGI scope by passing it on to the front."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        first = await receive()
        if first["type"] != "http.request":
            return
        body, answer = _Body(first, receive), _Answer(send)
        try:
            await self._pass_on(scope, body, answer)
        except aiohttp.ClientError:
            if body.is_broken_off:
                return
            if answer.has_begun:
                raise  # the client sees a cut
            text = "the router is starting or stopping; retry"
            refusal = Refusal(503, "no_router", text, retry_after_s=1)
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": refusal.body(scope["path"])})

    async def _pass_on(self, scope: Message, body: _Body, send: Callable[[Message], Awaitable[None]]) -> None:
        from yarl import URL

        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope.get("query_string", b"")
        target = raw.partition(b"?")[0] + (b"?" + query if query else b"")
        url = URL((self._base or "http://127.0.0.1:9") + target.decode("latin-1"), encoded=True)
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in forwarded_whole(scope["headers"])]
        if not body.is_whole and (length := value_of(scope["headers"], b"content-length")) is not None:
            headers.append(("content-length", length))  # by which the front refuses one that is too large
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        data = (body.first or None) if body.is_whole else body.parts()
        async with (
            aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=skipped) as session,
            session.request(
                scope["method"], url, data=data, headers=headers, allow_redirects=False, timeout=None
            ) as answer,
        ):
            head = {"status": answer.status, "headers": returned_whole(answer.raw_headers)}
            await send({"type": "http.response.start", **head})
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class _Body:
    """The body of one request, of which no more than a part is held."""

    def __init__(self, first: Message, receive: Callable[[], Awaitable[Message]]) -> None:
        """first: the first message of the request."""
        self.first: bytes = first.get("body", b"")
        self.is_whole = not first.get("more_body")  # as it came: in one part
        self.is_broken_off = False
        self._receive = receive

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it. Raises ConnectionError when the client leaves before its end."""
        part, has_more = self.first, not self.is_whole
        while True:
            if part:
                yield part
            if not has_more:
                return
            message = await self._receive()
            if message["type"] != "http.request":
                self.is_broken_off = True
                raise ConnectionError("the client has left")
            part, has_more = message.get("body", b""), bool(message.get("more_body"))


class _Answer:
    """Sends an answer, and knows whether it has begun."""

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self.has_begun = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)


def _own_routes(app: Any) -> Callable[[str], Awaitable[tuple[int, bytes] | None]]:
    """Serve's routes of a replica, whose ASGI application is this bound method."""
    replica = app.__self__

    async def answer(path: str) -> tuple[int, bytes] | None:
        if path not in ("/-/healthz", "/-/routes"):
            return None
        is_healthy, message = await replica._dataplane_health_check()
        text = json.dumps(message)
        if path == "/-/routes" and is_healthy:
            text = json.dumps({replica._route_prefix: replica._deployment_id.app_name})
        return (200 if is_healthy else 503), text.encode()

    return answer
