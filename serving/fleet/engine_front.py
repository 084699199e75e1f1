"""Front of an engine replica: ASGI application around vLLM's, with authentication, fence and drain.

Rules:
1. The listed routes for users (`serving/targets.py`) need the service's data secret, which routers hold.
   Every other path (fence, state, cancel, metrics, vLLM's own control routes) needs its control secret,
   which only the fleet and table actors hold. The path is the one that vLLM routes by.
2. A request of a revision below the fence is refused with 409 before it reaches the engine. The fence only
   rises. There is no await between the check and the count of requests in flight, so that after the answer to
   a fence no request of an older revision starts.
3. `cancel` aborts requests in flight: an answer that has begun is cut (the router takes over), one that has
   not begun is 503.
4. A dead engine is never asked, and its errors are replaced by a 503 that routers recognise.
5. Between the events of a stream of tokens a comment names the tokens' ids (`token_notes.py`).

Invariant: no request body and no answer is read, kept or logged here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from serving.credentials import SECRET_HEADER, ControlSecret, DataSecret
from serving.engine_headers import REFUSED_HEADER, REVISION_HEADER
from serving.fleet.token_notes import TokenNote, TokenNotes
from serving.targets import REALTIME, method_of

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTROL = "/_canaryctl/"
BODY_LIMIT = 4096  # bytes, of a control request
TableRevision: TypeAlias = tuple[int, int]  # (epoch, revision)


class EngineFront:
    """ASGI application of one replica. `app` is set when the engine is ready."""

    def __init__(
        self,
        *,
        data: DataSecret,
        control: ControlSecret,
        describe: Callable[[], dict[str, Any]],
        is_alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """describe: further fields of `GET /_canaryctl/state`. is_alive: False once the engine has died."""
        self._data = data.text.encode()
        self._control_secret = control.text.encode()
        self._describe = describe
        self._is_alive = is_alive
        self._tasks: set[asyncio.Task[Any]] = set()  # one for each request in flight
        self._closing = False
        self.is_leaving = False  # it still answers, until no router sends to it
        self.app: App | None = None  # None: still loading
        self.notes: TokenNotes | None = None  # None: no tokens are noted
        self.fence: TableRevision | None = None  # None: not set

    @property
    def in_flight(self) -> int:
        """Number of requests inside the engine."""
        return len(self._tasks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
            return
        headers = dict(scope["headers"])
        needed = self._control_secret if method_of(scope["path"]) is None else self._data
        if not hmac.compare_digest(headers.get(SECRET_HEADER, b""), needed):
            await _refuse(send, 403, "secret", "this engine accepts requests of its routers only")
        elif scope["path"].startswith(CONTROL):
            await self._control(scope, receive, send)
        elif (revision := _table_revision(headers.get(REVISION_HEADER))) == "malformed":
            await _refuse(send, 400, "revision", "x-canaryctl-revision is not of the form epoch.revision")
        elif isinstance(revision, tuple) and self.fence is not None and revision < self.fence:
            await _refuse(send, 409, "fence", f"revision is below the fence {self._fence_text()}")
        elif self.app is None or not self._is_ready:
            await _refuse(send, 503, "closed", f"the engine {self._why_not_ready}")
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)  # health, models, metrics: not counted
        else:
            await self._serve(self.app, scope, receive, send)

    @property
    def _is_ready(self) -> bool:
        return self.app is not None and not self._closing and self._is_alive()

    @property
    def _why_not_ready(self) -> str:
        if self._closing:
            return "is closing"
        return "is still loading" if self.app is None else "has died"

    def raise_fence(self, revision: TableRevision) -> None:
        """Refuse requests below `revision` from now on; one below the current fence has no effect."""
        self.fence = revision if self.fence is None else max(revision, self.fence)

    def cancel(self) -> int:
        """Abort the requests in flight; their number."""
        for task in self._tasks:
            task.cancel()
        return len(self._tasks)

    async def close(self, *, grace_s: float) -> None:
        """Refuse new requests, wait for those in flight, abort the rest after `grace_s`."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        self.cancel()

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket of a router; any other, and one of another path, is refused before it is accepted."""
        secret = dict(scope["headers"]).get(SECRET_HEADER, b"")
        is_allowed = scope["path"] == REALTIME and hmac.compare_digest(secret, self._data)
        if not is_allowed or self.app is None or not self._is_ready:
            status, why = (503, b"loading") if is_allowed else (403, b"secret")
            headers = [(REFUSED_HEADER, why)]
            await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        with self._counted():
            await self.app(scope, receive, send)

    @contextmanager
    def _counted(self) -> Iterator[asyncio.Task[Any]]:
        """Count the present task among the requests, which `cancel` ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield task
        finally:
            self._tasks.discard(task)

    async def _serve(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = has_died = False
        notes, path = self.notes, scope["path"]
        note = notes.open(path) if notes is not None else None

        async def track(message: Message) -> None:
            nonlocal has_begun, has_died
            if note is not None and message["type"] == "http.response.body":
                message = _with_ids(message, note)
            elif message["type"] == "http.response.start":
                if message["status"] >= 500 and not self._is_alive():
                    has_died = True
                elif notes is not None and message["status"] == 200:
                    message = _with_tokens_header(message, path, notes, note)
            if not has_died:
                has_begun = True
                await send(message)

        with self._counted() as task:
            try:
                await app(scope, receive, track)
                if has_died:
                    await _refuse(send, 503, "closed", f"the engine {self._why_not_ready}")
            except asyncio.CancelledError:
                if has_begun:
                    raise  # the server closes the connection, so that the client sees the cut
                task.uncancel()
                await _refuse(send, 503, "cancelled", "the request was aborted")

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["method"], scope["path"].removeprefix(CONTROL):
            case "GET", "state":
                await _json(send, 200, self.state())
            case "POST", "fence":
                body = await _body(receive)
                epoch, revision = body.get("epoch"), body.get("revision")
                if type(epoch) is not int or type(revision) is not int:
                    await _refuse(send, 400, "fence", 'a fence is {"epoch": int, "revision": int}')
                    return
                self.raise_fence((epoch, revision))
                await _json(send, 200, self.state())
            case "POST", "cancel":
                await _json(send, 200, {"cancelled": self.cancel()})
            case method, _:
                await _refuse(send, 404, "path", f"no control request {method} {scope['path']}")

    def state(self) -> dict[str, Any]:
        """Body of `GET /_canaryctl/state`."""
        is_ready = self._is_ready and not self.is_leaving
        state = {"in_flight": self.in_flight, "ready": is_ready, "fence": self._fence_text()}
        return {**state, **self._describe()}

    def _fence_text(self) -> str | None:
        return None if self.fence is None else f"{self.fence[0]}.{self.fence[1]}"


def _table_revision(header: bytes | None) -> TableRevision | Literal["malformed"] | None:
    if header is None:
        return None
    epoch, dot, revision = header.partition(b".")
    if not (dot and epoch.isdigit() and revision.isdigit()):
        return "malformed"
    return int(epoch), int(revision)


def _with_ids(message: Message, note: TokenNote) -> Message:
    """A part of a body; an event with the ids of its tokens before it."""
    body = message.get("body", b"")
    line = note.line() if body.startswith(b"data:") else b""
    return {**message, "body": line + body} if line else message


def _with_tokens_header(message: Message, path: str, notes: TokenNotes, note: TokenNote | None) -> Message:
    kind = dict(message["headers"]).get(b"content-type", b"")
    header = notes.header(path, note, is_stream=kind.startswith(b"text/event-stream"))
    return {**message, "headers": [*message["headers"], header]}


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


async def _refuse(send: Send, status: int, why: str, text: str) -> None:
    """Send an error in OpenAI's shape, with the header `x-canaryctl-refused` for the router."""
    error = {"error": {"message": text, "type": f"canaryctl_{why}", "code": status}}
    await _json(send, status, error, (REFUSED_HEADER, why.encode()))


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
