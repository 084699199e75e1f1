"""Server-sent events of a service: lines of its log, and its view where that has changed."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from controller import telemetry
from controller.api.slow_calls import SlowCalls
from controller.errors import CanaryctlError, UnknownService, Unreachable
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from controller.views.models import ServiceView

EVENTS_POLL_S = 0.25
MAX_STREAMS = 256
SHARE_OF_ONE = 4  # a quarter of them is the most that one caller may have
FULL_RETRY_AFTER_S = 10


class Streams:
    """How many streams are open, in all and of each caller: each holds a connection for as long as its client
    likes, and who rolls back needs one. Of one event loop."""

    def __init__(self, limit: int = MAX_STREAMS) -> None:
        self._limit = limit
        self._of_one = max(1, limit // SHARE_OF_ONE)
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def enter(self, name: str) -> None:
        """One more of this caller. Raises Unreachable where there are too many."""
        count = self._open[name]
        if count >= self._of_one:
            text = f"{name} has {count} event streams open already, at most {self._of_one} may be"
        elif len(self) >= self._limit:
            text = f"{len(self)} event streams are open already, at most {self._limit} may be"
        else:
            self._open[name] += 1
            return
        raise Unreachable(f"{text}; end one, or ask without a stream", retry_after_s=FULL_RETRY_AFTER_S)

    def leave(self, name: str) -> None:
        """One of this caller has ended."""
        self._open[name] -= 1
        if self._open[name] <= 0:
            del self._open[name]


class HeldStream(StreamingResponse):
    """A stream that leaves its place when it ends, also where its client went before it began."""

    def __init__(self, content: AsyncIterator[str], *, leave: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class StreamedViews:
    """Views of services, read once for all streams that follow one service. Of one event loop."""

    def __init__(self, store: SqlStore, view: Callable[[ServiceRow], ServiceView], calls: SlowCalls) -> None:
        self._store = store
        self._view = view
        self._calls = calls
        self._newest: dict[str, tuple[float, asyncio.Future[tuple[str, int]]]] = {}

    async def of(self, service: str) -> tuple[str, int]:
        """The view as JSON and the number of the log's newest line, both as of `EVENTS_POLL_S` ago at most.

        Raises UnknownService, Unreachable.
        """
        now_s = asyncio.get_running_loop().time()
        at_s, reading = self._newest.get(service, (-math.inf, None))
        if reading is None or (reading.done() and now_s - at_s >= EVENTS_POLL_S / 2):
            reading = asyncio.ensure_future(self._calls.run(lambda: self._read(service)))
            # Its streams may have ended, and an error that nobody reads would be reported.
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._newest[service] = now_s, reading
        try:
            return await asyncio.shield(reading)
        except CanaryctlError:
            self._newest.pop(service, None)
            raise

    def _read(self, service: str) -> tuple[str, int]:
        newest = self._store.last_event(service)  # before the view, which may tell more than this line
        view = self._view(self._store.service(service)).model_dump_json()
        return view, newest.seq if newest is not None else 0


async def events(store: SqlStore, views: StreamedViews, service: str, after: int) -> AsyncIterator[str]:
    """The service's events, from after line `after` of its log until it is gone."""
    sent_view = ""
    while True:
        view: str | None
        try:
            try:
                view, newest = await views.of(service)
            except UnknownService:
                view, newest = None, after + 1  # its last lines tell of the removal
            rows = await asyncio.to_thread(store.events, service, after_seq=after) if newest > after else ()
        except CanaryctlError as exc:
            # The service is not gone: its client connects again, and is told what is wrong if that lasts.
            telemetry.warning("event stream ended", service=service, why=str(exc))
            return
        for row in rows:
            after = row.seq
            data = {"at_s": row.at_s, "rollout": row.rollout, "actor": row.actor, "text": row.text}
            yield f"id: {row.seq}\nevent: log\ndata: {json.dumps(data)}\n\n"
        if view is None:
            yield "event: gone\ndata: {}\n\n"
            return
        if view != sent_view:
            sent_view = view
            yield f"event: view\ndata: {view}\n\n"
        await asyncio.sleep(EVENTS_POLL_S)


async def while_allowed(
    events: AsyncIterator[str], check: Callable[[], Awaitable[object]]
) -> AsyncIterator[str]:
    """The events until `check` raises: a token may be revoked while its stream goes on for days.

    The client connects again, and is told what is wrong.
    """
    async for event in events:
        try:
            await check()
        except (HTTPException, CanaryctlError):
            return
        yield event
