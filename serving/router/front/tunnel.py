"""A client's WebSocket, passed through to stable: `/v1/realtime`, as vLLM serves it.

Rules:
1. It is never drawn and never recorded: a connection of many utterances is no request that could be assigned,
   repeated or compared. It stays with the engine of stable that it was opened to, until one side closes it.
2. The handshake is a request like any other: the exchange names the replica to ask, counts it, and makes the
   heads and the errors. Only its body is passed on as it comes.
3. A side that reads slowly stops the reading of the other. A tunnel in which nothing moves for `idle_s` ends.
4. After a large read a side waits for its turn (`turns.py`), and so do the ends of many tunnels at once. An
   open tunnel counts as a request under way.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import httptools

from serving.clock import boot_s
from serving.router.exchange.exchange import Exchange
from serving.router.headers import HEADERS_LIMIT, REASONS, TO_WEBSOCKET
from serving.router.turns import LARGE_READ, Reading, Turns
from serving.router.types import Attempt, Deliver, Failure, Head, Refusal, Step
from serving.router.upstreams.engine_connection import HEAD_LIMIT, Headers
from serving.router.upstreams.upstream import Upstream, head_lines
from serving.targets import REALTIME

if TYPE_CHECKING:
    from serving.router.front.client_connection import ClientConnection

SWITCHED = 101
END_S = 0.00005  # that closing two ends takes, a part of it later
NOT_A_WEBSOCKET = Refusal(
    426,
    "upgrade_required",
    f"{REALTIME} is a WebSocket; send a handshake of HTTP/1.1 with `upgrade: websocket`",
    ((b"upgrade", b"websocket"),),
)
Answer: TypeAlias = tuple[int, Headers]  # of the engine to the handshake: its status and headers


class _End(asyncio.Protocol):
    """One end of a tunnel: what it reads, the other writes."""

    tunnel: Tunnel | None = None  # None: the other end is not there yet
    transport: asyncio.Transport
    reading: Reading

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE_READ:
            self.reading.came()
        if self.tunnel is not None:
            self.tunnel.moved_s = boot_s()
            self.tunnel.other(self).transport.write(data)

    def pause_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.other(self).reading.hold(True)

    def resume_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.other(self).reading.hold(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.tunnel is not None:
            self.tunnel.end()


class _ClientEnd(_End):
    """In place of the connection that the client's handshake came on, which is told of the end."""

    def __init__(self, owner: ClientConnection) -> None:
        self.transport, self.reading = owner.transport, owner.reading
        self._owner = owner

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner.connection_lost(exc)


class _EngineEnd(_End):
    """Reads the answer to the handshake first."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        # None: the connection broke before it, or it is no HTTP.
        self.answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self.first = b""  # of what follows the head
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._status: int | None = None
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.reading = Reading(self.transport, self._turns)

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            super().data_received(data)
            return
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self.first = data[exc.args[0] :]
        except httptools.HttpParserError:
            self._status, self._size = None, HEAD_LIMIT + 1
        if self._status is not None:
            self.answer.set_result((self._status, self._headers))
        elif self._size > HEAD_LIMIT:
            self.answer.set_result(None)
        if self.answer.done():
            self.reading.hold(True)  # what follows waits until the client's end is there to write it

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= HEADERS_LIMIT:  # the parser stops here
            raise ValueError(f"more than {HEADERS_LIMIT} header lines")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == SWITCHED or status >= 200:
            self._status = status
        else:
            self._headers = []  # an interim answer

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(None)
        super().connection_lost(exc)


class Tunnel:
    """One WebSocket, from the engine's acceptance until either side closes it."""

    def __init__(
        self, exchange: Exchange, client: ClientConnection, engine: _EngineEnd, upstream: Upstream
    ) -> None:
        self.moved_s = boot_s()
        self._exchange = exchange
        self._idle_s = upstream.limits.idle_s
        self._timer: asyncio.TimerHandle | None = None
        self._upstream = upstream
        upstream.tunnels.add(self)
        self._client, self._engine = _ClientEnd(client), engine
        self._client.tunnel = engine.tunnel = self

    def other(self, end: _End) -> _End:
        """The end that writes what this one reads."""
        return self._client if end is self._engine else self._engine

    def begin(self, client: ClientConnection, head: Head) -> None:
        """The client's connection is this tunnel's from now on, after this head."""
        client.switch(head, self._client)
        if self._engine.first:
            self._client.transport.write(self._engine.first)
        if self._engine.transport.is_closing():
            self.close()
            return
        self._engine.reading.hold(False)
        self._check()

    def end(self) -> None:
        """Close both ends, in its turn where many end at once."""
        turns = self._upstream.turns
        self.close() if turns.is_free() else turns.join(self.close, END_S)

    def close(self) -> None:
        """Close both ends; what has been written is sent."""
        if self._exchange.is_over:
            return
        self._exchange.cancelled(now_s=boot_s())
        self._upstream.tunnels.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._engine, self._client):
            end.transport.close()

    def _check(self) -> None:
        left_s = self.moved_s + self._idle_s - boot_s()
        if left_s <= 0:
            self.close()
        elif not self._exchange.is_over:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._check)


async def serve(
    client: ClientConnection, exchange: Exchange, upstream: Upstream, *, is_handshake: bool
) -> None:
    """Open a tunnel for this request, or answer why there is none. is_handshake: as its head was parsed."""
    try:
        opened = _impossible(exchange, is_handshake=is_handshake) or await _opened(exchange, upstream)
    except BaseException:  # the client has left
        exchange.cancelled(now_s=boot_s())
        raise
    if isinstance(opened, Refusal):
        exchange.refused(opened, now_s=boot_s())
        client.refuse(opened)
        return
    accepted = exchange.received(b"", now_s=boot_s())
    assert isinstance(accepted, Deliver)
    assert accepted.head is not None
    Tunnel(exchange, client, opened, upstream).begin(client, accepted.head)


def _impossible(exchange: Exchange, *, is_handshake: bool) -> Refusal | None:
    """Why this request cannot be a tunnel; None: it can."""
    start = exchange.start
    if not is_handshake:
        return NOT_A_WEBSOCKET
    if start.table.stable is not None and start.table.stable.external:
        text = f"service {start.table.service}: {REALTIME} of an endpoint is not passed on"
        return Refusal(501, "no_realtime", f"{text}; connect to it directly")
    return None


async def _opened(exchange: Exchange, upstream: Upstream) -> _EngineEnd | Refusal:
    """A connection to an engine that accepts the handshake; or why there is none."""
    while isinstance(attempt := exchange.next_attempt(boot_s()), Attempt):
        engine = await upstream.connected(
            attempt.endpoint, partial(_EngineEnd, upstream.turns), within_s=attempt.first_byte_s
        )
        if engine is None:
            exchange.broken("refused", now_s=boot_s())
            continue
        answer: Answer | Failure | None = None
        try:
            answer = await _shaken(engine, attempt, upstream.limits.lookup_s)
            if not isinstance(answer, tuple):
                exchange.broken(answer, now_s=boot_s())
            elif exchange.answered(*answer) is Step.HOLD:
                return engine if answer[0] == SWITCHED else _not_accepted(exchange, answer[0])
        finally:
            if not (isinstance(answer, tuple) and answer[0] == SWITCHED):
                engine.transport.abort()
    assert isinstance(attempt, Refusal), "nothing has been sent that could be delivered"
    return attempt


async def _shaken(engine: _EngineEnd, attempt: Attempt, within_s: float) -> Answer | Failure:
    """What the engine answers to the handshake, or why it does not."""
    engine.transport.write(b"".join((*head_lines("GET", attempt), TO_WEBSOCKET)))
    try:
        async with asyncio.timeout(min(within_s, attempt.first_byte_s)):
            return await engine.answer or "reset"
    except TimeoutError:
        return "timeout"


def _not_accepted(exchange: Exchange, status: int) -> Refusal:
    shown = f"{status} {REASONS.get(status, b'').decode()}".rstrip()
    text = f"service {exchange.start.table.service}: stable's engine does not accept {REALTIME} ({shown})"
    return Refusal(501, "no_realtime", f"{text}; its model may not take audio")
