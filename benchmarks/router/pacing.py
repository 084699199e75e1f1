"""Fake engine whose streams last: so many events a second each, for as long as the request says.

Every event names its number and when it was written (microseconds of the machine's monotonic clock), so a
client knows what is lost and how late it is. Streams are spread over the time between two events, as engines
write for all their sequences at once but are not in step with each other. As the engine's front does, a
comment names each event's token, so that the router can continue a stream elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass

from benchmarks.router.engine import END, LAST, Engine, chunk

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
LARGE = 4096  # bytes of a body that is none of a paced stream: answered whole, unread
TICKS = 20  # groups of streams, one after the other
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-canaryctl-tokens: d1 1000000\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT = b': ids %d\ndata: {"id":"c","object":"chat.completion.chunk","created":1,"model":"chat","choices":[{"index":0,"delta":{"content":"%d %d "},"finish_reason":null}]}\n\n'  # noqa: E501


@dataclass(frozen=True, slots=True)
class Settings:
    """rate: events a second of each stream."""

    rate: float


class PacingEngine(Engine):
    """One connection. A stream's number of events is the request's `max_tokens`. A WebSocket is sent back
    what it sends, but for one with `silent` in its query, which gets no answer."""

    groups: tuple[dict[PacingEngine, None], ...] = tuple({} for _ in range(TICKS))
    _next_group = itertools.cycle(range(TICKS))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._group: dict[PacingEngine, None] | None = None
        self._sent = self._wanted = 0
        self._is_websocket = False

    def data_received(self, data: bytes) -> None:
        if self._is_websocket:
            self.transport.write(data)
        else:
            super().data_received(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _answer(self, head: bytes, body: bytes) -> None:
        if b"upgrade: websocket" in head:
            if b"silent" not in head:
                self._is_websocket = True
                self.transport.write(ACCEPTED)
            return
        fields = json.loads(body) if 0 < len(body) < LARGE else {}
        if not isinstance(fields, dict) or not fields.get("stream"):
            super()._answer(head, body)
            return
        self.transport.write(HEAD)
        self._sent, self._wanted = 0, int(fields["max_tokens"])
        self._group = self.groups[next(self._next_group)]
        self._group[self] = None

    def write_next(self) -> None:
        """Write the next event, or the end of the answer."""
        if self._sent < self._wanted:
            event = EVENT % (self._sent % 256, self._sent, time.monotonic_ns() // 1000)
            self.transport.write(chunk(event))
            self._sent += 1
            return
        self.transport.write(chunk(LAST) + END)
        self._leave()

    def _leave(self) -> None:
        if self._group is not None:
            del self._group[self]
            self._group = None


async def serve(settings: Settings) -> None:
    """Serve for ever; prints the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(PacingEngine, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    began_s, step_s = loop.time(), 1.0 / settings.rate / TICKS
    for tick in itertools.count():
        await asyncio.sleep(max(began_s + tick * step_s - loop.time(), 0.0))
        for stream in list(PacingEngine.groups[tick % TICKS]):
            stream.write_next()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Settings(**json.loads(sys.argv[1]))))
