"""The door of an engine replica: an ASGI application around vLLM's own, on the replica's loopback port.

Rules:
1. Without the service's secret nothing passes: only routers and the fleet know it.
2. A request of a revision below the fence is refused with 409 before the engine hears of it. The fence only
   rises. The check and the count of requests under way happen without an await in between, so that after the
   answer to a fence no request of an older revision starts.
3. `cancel` breaks off what is under way: an answer that has begun ends without its proper end (so the router
   takes over), one that has not begun is 503.

Invariant: no request body and no answer is read, kept or logged here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTROL = "/_canaryctl/"
BODY_LIMIT = 4096  # bytes, of a control request
Mark: TypeAlias = tuple[int, int]  # (epoch, revision)


class EngineFront:
    """Checks, counts and hands on; `app` comes when the engine is ready."""

    def __init__(self, *, secret: str, describe: Callable[[], dict[str, Any]]) -> None:
        """describe: what `GET /_canaryctl/state` adds to in_flight, ready and fence."""
        if not secret:
            raise ValueError("an engine's secret is empty; give one, or anybody could use the engine")
        self._secret = secret.encode()
        self._describe = describe
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.app: App | None = None  # None: still loading
        self.fence: Mark | None = None  # None: none was set

    @property
    def in_flight(self) -> int:
        """Requests that the engine is working on."""
        return len(self._under_way)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI scope."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"x-canaryctl-secret", b""), self._secret):
            await _answer(send, 403, "secret", "this engine takes requests of its routers only")
        elif scope["path"].startswith(CONTROL):
            await self._control(scope, receive, send)
        elif (mark := _mark(headers.get(b"x-canaryctl-revision"))) == "wrong":
            await _answer(send, 400, "revision", "x-canaryctl-revision is not of the form epoch.revision")
        elif isinstance(mark, tuple) and self.fence is not None and mark < self.fence:
            await _answer(send, 409, "fence", f"revision is below the fence {self._fence_text()}")
        elif self.app is None or self._closing:
            await _answer(send, 503, "closed", "the engine is closing" if self._closing else "still loading")
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)  # health, models, metrics: not work
        else:
            await self._work(self.app, scope, receive, send)

    def raise_fence(self, mark: Mark) -> None:
        """From now on requests below `mark` are refused; a mark lower than the present changes nothing."""
        self.fence = mark if self.fence is None else max(mark, self.fence)

    def cancel(self) -> int:
        """Breaks off what is under way; how many requests that were."""
        for task in self._under_way:
            task.cancel()
        return len(self._under_way)

    async def close(self, *, grace_s: float) -> None:
        """Refuses new requests, waits for those under way, breaks off the rest after `grace_s`."""
        self._closing = True
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=grace_s)
        self.cancel()

    async def _work(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            await app(scope, receive, noting)
        except asyncio.CancelledError:
            if begun:
                raise  # the server closes the connection: the answer has no proper end
            task.uncancel()
            await _answer(send, 503, "cancelled", "the request was broken off")
        finally:
            self._under_way.discard(task)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        what = (scope["method"], scope["path"].removeprefix(CONTROL))
        if what == ("GET", "state"):
            await _json(send, 200, self.state())
        elif what == ("POST", "fence"):
            body = await _body(receive)
            epoch, revision = body.get("epoch"), body.get("revision")
            if type(epoch) is not int or type(revision) is not int:
                await _answer(send, 400, "fence", 'a fence is {"epoch": int, "revision": int}')
                return
            self.raise_fence((epoch, revision))
            await _json(send, 200, self.state())
        elif what == ("POST", "cancel"):
            await _json(send, 200, {"cancelled": self.cancel()})
        else:
            await _answer(send, 404, "path", f"no {what[0]} {scope['path']} here")

    def state(self) -> dict[str, Any]:
        """What `GET /_canaryctl/state` answers."""
        ready = self.app is not None and not self._closing
        return {
            "in_flight": self.in_flight,
            "ready": ready,
            "fence": self._fence_text(),
            **self._describe(),
        }

    def _fence_text(self) -> str | None:
        return None if self.fence is None else f"{self.fence[0]}.{self.fence[1]}"


def _mark(header: bytes | None) -> Mark | Literal["wrong"] | None:
    if header is None:
        return None
    epoch, dot, revision = header.partition(b".")
    if not (dot and epoch.isdigit() and revision.isdigit()):
        return "wrong"
    return int(epoch), int(revision)


async def _body(receive: Receive) -> dict[str, Any]:
    body = b""
    while len(body) <= BODY_LIMIT:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _answer(send: Send, status: int, why: str, text: str) -> None:
    """An error in OpenAI's shape, with `x-canaryctl-refused` for the router."""
    error = {"error": {"message": text, "type": f"canaryctl_{why}", "code": status}}
    await _json(send, status, error, (b"x-canaryctl-refused", why.encode()))


async def _json(send: Send, status: int, value: object, *extra: tuple[bytes, bytes]) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
