"""One client's connection: requests in, answers out, framed as HTTP/1.1. Nothing about a request is decided.

Rules:
1. A client that disconnects stops the engine's work (but see `departed.py`) and is recorded as cancelled. One
   that only closes its sending side gets its answer: when nothing has been sent yet, the beginning of the
   status line is sent at once, which a client that is gone answers with a reset.
2. A client that reads slowly stops the reading of the engine's answer, so that its answer waits in the
   engine's socket and not here. One that reads nothing for `idle_s` is disconnected.
   Few requests are read ahead, one is begun a turn of the loop, and none while answers wait unread.
3. A head must arrive within HEAD_S, a body within BODY_S; bodies held at once stay within a budget
   (`body_budget.py`), beyond which the answer is 429 with retry-after.
4. A client that may not ask is answered by its head (`admission.py`): nothing of its body is kept, and what
   comes of it for LINGER_S is discarded.
5. HTTP/1.0 gets no chunks: its answer ends with the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from serving.clock import boot_s
from serving.router import service_choice, tunnel
from serving.router.admission import Sent, admit, without_names
from serving.router.answer_framing import VERSION, framed
from serving.router.body_budget import COUNTED_BODY, BodyShare
from serving.router.exchange import Exchange
from serving.router.paths import Found, find_target
from serving.router.prepared import Prepared
from serving.router.relay import Client, Relay
from serving.router.request_parser import ParsedRequest, RequestParser
from serving.router.service_choice import Chosen
from serving.router.types import Deliver, Head, Refusal, Request
from serving.targets import REALTIME

if TYPE_CHECKING:
    from serving.router.front_wire import WireFront
    from serving.router.router import RouterCore

HEAD_S = 20.0  # from a head's first byte to its last
BODY_S = 300.0  # from a request's first byte to its last
LINGER_S = 2.0  # how long what a refused client still sends is read, so that it gets the answer and no reset
WRITE_BUFFER = 256 << 10  # bytes that wait for one client before its engine is slowed


class ClientConnection(asyncio.Protocol):
    """One client's connection, which carries one request at a time."""

    __slots__ = (
        *("_begun_s", "_blocked_s", "_core", "_front", "_has_head", "_is_chunked", "_is_closing"),
        *("_is_half_closed", "_is_head_request", "_keep_alive", "_left_bytes", "_linger_until_s"),
        *("_is_paused", "_parser", "_relay", "_request", "_sent_start", "_share", "_task", "transport"),
    )

    def __init__(self, front: WireFront) -> None:
        self._front = front
        self._parser = RequestParser()
        self._relay: Relay | None = None
        self._request: ParsedRequest | None = None  # under way
        self._core: RouterCore | None = None  # of its service; None: it names none so far
        self._begun_s = boot_s()  # of the request that is being read, or of the idle time
        self._blocked_s: float | None = None  # since when the client does not read; None: it does
        self._linger_until_s: float | None = None  # what comes is discarded until then
        self._share = BodyShare(front.bodies, self._refuse_growing)
        self._task: asyncio.Task[None] | None = None  # of the request under way; ends with the client
        self._has_head = self._is_chunked = self._is_closing = False
        self._is_half_closed = self._keep_alive = self._is_head_request = self._is_paused = False
        self._left_bytes: int | None = None  # of a body with a declared length
        self._sent_start = 0  # bytes of the status line that were sent ahead

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if (refusal := self._front.joined(self)) is not None:
            self._parser.refuse(refusal)
            self._next_request()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        parser = self._parser
        if parser.is_idle and self._request is None:
            self._begun_s = boot_s()
        parser.feed(data)
        self._go_on(len(data))

    def eof_received(self) -> bool:
        """The client sends no more; True keeps the connection open for the answer."""
        if self._is_closing or self._request is None:
            return False
        self._is_half_closed = True
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._front.left(self)
        self._share.hold(0, 0)
        if self._task is not None:
            self._task.cancel()
        relay, self._relay = self._relay, None
        if relay is not None:
            body = self._request.body if self._request is not None else b""
            self._front.departed.leave(relay, len(body))

    def pause_writing(self) -> None:
        self._blocked_s = boot_s()
        if self._relay is not None:
            self._relay.slow()

    def resume_writing(self) -> None:
        self._blocked_s = None
        if self._relay is not None:
            self._relay.ready()
        if self._request is None and not self._is_closing:
            asyncio.get_running_loop().call_soon(self._go_on)

    # ---- called by the front

    def check(self, now_s: float) -> None:
        """Apply the time limits."""
        if self._linger_until_s is not None and now_s > self._linger_until_s:
            self.transport.abort()
        if self._blocked_s is not None and now_s - self._blocked_s > self._front.core.limits.idle_s:
            self.abort()
        elif self._is_closing or (self._request is None and self._blocked_s is not None):
            return  # what is blocked: its answers wait, and its requests with them
        elif self._request is not None:
            if self._is_half_closed:
                self._probe()
            if self._relay is not None:
                self._relay.waited(now_s)
        elif self._parser.is_idle:
            if now_s - self._begun_s > self._front.load.keep_alive_s:
                self.close_after_flush()
        elif now_s - self._begun_s > (BODY_S if self._parser.is_in_body else HEAD_S):
            self._parser.refuse(
                Refusal(408, "request_timeout", "the request did not arrive in time; resend it")
            )
            self._next_request()

    def close_if_idle(self) -> None:
        """Close unless a request is under way."""
        if self._request is None:
            self.close_after_flush()

    def abort(self) -> None:
        """Break the connection."""
        self._is_closing = True
        self.transport.abort()

    # ---- requests

    def _go_on(self, size: int = 0) -> None:
        """Begin the next request, if none is under way. size: bytes that have just come."""
        parser = self._parser
        if self._request is None:
            self._next_request()
        self._pace()
        if self._share or parser.buffered or parser.requests or size > COUNTED_BODY:
            self._count_body()

    def _pace(self) -> None:
        """Read from the client only while few of its requests wait, and while it reads its answers."""
        parser = self._parser
        is_slow = self._blocked_s is not None if self._request is None else parser.buffered > WRITE_BUFFER
        must_wait = parser.is_full or is_slow
        if must_wait is not self._is_paused and not self.transport.is_closing():
            self._is_paused = must_wait
            self.transport.pause_reading() if must_wait else self.transport.resume_reading()

    def _next_request(self) -> None:
        if self._is_closing or self._request is not None or self._blocked_s is not None:
            return
        parser = self._parser
        if parser.has_unread and not parser.requests:
            parser.go_on()
        if not parser.requests:
            if parser.has_new_head and parser.refusal is None:
                self._admit()
            if parser.refusal is not None:
                self.refuse(parser.refusal, closes=True)
            return
        parsed = parser.requests.popleft()
        self._request = parsed
        self._keep_alive = parsed.keep_alive and parsed.is_http_11
        self._has_head = self._is_chunked = False
        self._left_bytes = None
        self._is_head_request = parsed.method == "HEAD"
        front = self._front
        found = find_target(parsed.method, parsed.target, front.services)
        if isinstance(found, Refusal):
            if front.own_routes is not None and parsed.target.startswith(front.own_prefixes):
                answer = service_choice.answer_own(front.own_routes, parsed.target, found, self)
                self._task = front.run(answer)
            else:
                self.refuse(without_names(front.cores, self._sent(parsed), found))
            return
        if found.service is None:
            self._begin_unnamed(parsed, found)
            return
        core = self._core = front.cores[found.service]
        if core.table is None or service_choice.is_large(parsed):
            self._task = front.run(self._begin_later(parsed, found, {found.service: core}))
        else:
            self._begin(parsed, found, core)

    def _admit(self) -> None:
        """Judge a request by its head, before its body has come."""
        parser, front = self._parser, self._front
        parser.has_new_head = False
        method, target, headers = parser.head
        found = find_target(method, target, front.services)
        if not target.startswith(front.own_prefixes):
            client = admit(front.cores, Sent(method, target, headers, self._peer()), found)
            client = front.refusal() or client if isinstance(client, str) else client
            if isinstance(client, Refusal):
                self._is_head_request = method == "HEAD"
                self._core = None if isinstance(found, Refusal) else front.cores.get(found.service or "")
                parser.refuse(client)
                return
            self._share.client = client
        if parser.wants_continue:
            parser.wants_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_growing(self) -> None:
        """The body that is being sent is too much for the budget: it is refused, and dropped."""
        text = "the router holds too many bodies that have not arrived whole; retry"
        self._parser.refuse(Refusal(429, "overloaded", text, retry_after_s=1))
        self._count_body()
        if self._request is None:
            self._next_request()

    def _begin_unnamed(self, parsed: ParsedRequest, found: Found) -> None:
        """Begin a request whose path names none of several services."""
        cores, sent = self._front.cores, self._sent(parsed)
        if found.target.path == "/v1/models":
            answer = service_choice.answer_models(cores, sent)
            self.refuse(answer) if isinstance(answer, Refusal) else self.deliver(answer)
        elif service_choice.is_large(parsed) or any(core.table is None for core in cores.values()):
            self._task = self._front.run(self._begin_later(parsed, found, cores))
        else:
            self._begin_chosen(parsed, found, cores, service_choice.choose_now(cores, parsed, found, sent))

    async def _begin_later(
        self, parsed: ParsedRequest, found: Found, cores: Mapping[str, RouterCore]
    ) -> None:
        """Begin when a new router has its table, and when a large body has been read."""
        chosen = await service_choice.choose_later(
            self._front.reader, cores, parsed, found, self._sent(parsed)
        )
        self._begin_chosen(parsed, found, cores, chosen)

    def _begin_chosen(
        self, parsed: ParsedRequest, found: Found, cores: Mapping[str, RouterCore], chosen: Chosen | Refusal
    ) -> None:
        if isinstance(chosen, Refusal):
            self.refuse(chosen)
        else:
            self._core = cores[chosen.service]
            self._begin(parsed, found, self._core, chosen.prepared)

    def _begin(
        self, parsed: ParsedRequest, found: Found, core: RouterCore, prepared: Prepared | None = None
    ) -> None:
        upstream = self._front.upstream
        assert upstream is not None, "the front was not started"
        if (refusal := self._front.refusal(len(parsed.body))) is not None:
            self.refuse(refusal)
            return
        peer = self._peer() if core.needs_peer else ""
        request = Request(parsed.method, found.target, parsed.headers, parsed.body, peer)
        request_id = self._front.ids.next()
        if found.target.path == REALTIME:
            self._task = self._front.run(tunnel.serve(self, core, request, request_id))
            return
        exchange = core.begin(
            request, request_id=request_id, now_s=boot_s(), wall_s=time.time(), prepared=prepared
        )
        if not isinstance(exchange, Exchange):
            self.refuse(exchange)
            return
        client, on_over = cast(Client, self), self._on_over
        if core.table is not None and core.table.mirror is not None:
            client, on_over = self._front.mirror.tapped(core, exchange.start, upstream, client, on_over)
        relay = self._relay = Relay(exchange, client, upstream, parsed.method, on_over)
        if self._blocked_s is not None:
            relay.slow()
        relay.start()

    def _sent(self, parsed: ParsedRequest) -> Sent:
        return Sent(parsed.method, parsed.target, parsed.headers, self._peer())

    def _peer(self) -> str:
        """The client's address; empty: it is not known."""
        address = self.transport.get_extra_info("peername")
        return str(address[0]) if isinstance(address, tuple) else ""

    def _on_over(self) -> None:
        self._relay = None

    def _done(self) -> None:
        """The answer is whole: the next request, or the end of the connection."""
        self._request = self._core = self._task = None
        if self._share:
            self._count_body()
        self._begun_s, parser = boot_s(), self._parser
        if parser.refusal is not None and not parser.requests and not self._keep_alive:
            self._linger()
        elif not self._keep_alive or self._is_half_closed or self._front.is_stopping:
            self.close_after_flush()
        elif parser.requests or parser.has_unread or parser.refusal is not None or parser.has_new_head:
            # One a turn of the loop: those of other clients are answered in between.
            asyncio.get_running_loop().call_soon(self._go_on)
        elif self._is_paused:
            self._pace()

    # ---- answers

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for the client, while it does not read as fast as it is answered."""
        return self.transport.get_write_buffer_size() if self._blocked_s is not None else 0

    def deliver(self, action: Deliver) -> None:
        """Send what the exchange delivers."""
        if self._is_closing:
            return
        parts: list[bytes] = []
        if action.head is not None:
            parts.append(self._head_bytes(action.head, action.data, action.then))
        data = action.data
        if data and not self._is_head_request:
            if self._left_bytes is not None:
                data = data[: self._left_bytes]
                self._left_bytes -= len(data)
            parts += (b"%x\r\n" % len(data), data, b"\r\n") if self._is_chunked else (data,)
        if action.then == "end" and self._is_chunked:
            parts.append(b"0\r\n\r\n")
        if parts:
            self.transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if action.then == "more":
            return
        if action.then == "break" or self._left_bytes:
            self.close_after_flush()
        else:
            self._done()

    def refuse(self, refusal: Refusal, *, closes: bool = False) -> None:
        """Send the router's own error. closes: the connection ends with it."""
        self._keep_alive = self._keep_alive and not closes
        self._front.count_refusal(refusal.code, self._core)
        self._has_head, self._is_chunked, self._left_bytes = False, False, None
        target = self._request.target if self._request is not None else self._parser.target
        self.deliver(refusal.answer(target.decode("latin-1")))

    def _head_bytes(self, head: Head, data: bytes, then: str) -> bytes:
        """The head as bytes; decides how the body is framed."""
        self._has_head = True
        text, self._is_chunked, self._left_bytes, self._keep_alive = framed(
            head,
            data if then == "end" else None,
            is_http_11=self._request is not None and self._request.is_http_11,
            is_head_request=self._is_head_request,
            keep_alive=self._keep_alive,
        )
        if self._sent_start:
            text = text[self._sent_start :]
            self._sent_start = 0
        return text

    def _probe(self) -> None:
        """Send the beginning of the status line, which is the same whatever follows, byte by byte."""
        if not self._has_head and self._sent_start < len(VERSION):
            self.transport.write(VERSION[self._sent_start : self._sent_start + 1])
            self._sent_start += 1

    def close_after_flush(self) -> None:
        """Send what waits, then close; of an answer that is not whole the client sees that."""
        self._is_closing = True
        self.transport.close()

    def _linger(self) -> None:
        """End the answer, and read on for a while: closing now would reset the connection."""
        self._is_closing = True
        self._linger_until_s = boot_s() + LINGER_S
        if self._is_paused:
            self.transport.resume_reading()
        self.transport.write_eof()

    def _count_body(self) -> None:
        whole = sum(len(one.body) for one in self._parser.requests)
        whole += len(self._request.body) if self._request is not None else 0
        self._share.hold(whole, self._parser.buffered)
