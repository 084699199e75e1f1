"""One client's connection: requests in, answers out, framed as HTTP/1.1. Nothing about a request is decided.

Rules:
1. A client that disconnects stops the engine's work (but see `departed.py`) and is recorded as cancelled. One
   that only closes its sending side gets its answer: when nothing has been sent yet, the beginning of the
   status line is sent at once, which a client that is gone answers with a reset.
2. A client that reads slowly stops the reading of the engine's answer, so that its answer waits in the
   engine's socket and not here. One that reads nothing for `idle_s` is disconnected.
   Few requests are read ahead, one is begun a turn of the loop, and none while answers wait unread.
   What is large or costly to read waits for its turn (`turns.py`), with that of all other clients, and so do
   small requests, ends and time limits of many connections at once.
3. A head must arrive within HEAD_S, a body within BODY_S; bodies held at once stay within a budget
   (`body_budget.py`), beyond which the answer is 429 with retry-after.
4. A client that may not ask is answered by its head (`admission.py`): nothing of its body is kept, and what
   comes of it for LINGER_S is discarded.
5. HTTP/1.0 gets no chunks: its answer ends with the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

from serving.clock import boot_s
from serving.router.bodies.body_budget import COUNTED_BODY, BodyShare
from serving.router.bodies.prepared import Prepared
from serving.router.exchange.relay import Relay
from serving.router.front import request_start
from serving.router.front.admission import Sent, client_name, peer_of
from serving.router.front.answer_framing import AnswerFraming
from serving.router.front.paths import Found, find_target
from serving.router.front.request_parser import ParsedRequest, RequestParser
from serving.router.front.service_choice import Chosen
from serving.router.front.time_limits import LINGER_S, TOO_LATE, arrival_s
from serving.router.turns import LARGE_READ, Reading
from serving.router.types import Deliver, Head, Refusal, overloaded
from serving.targets import REALTIME

if TYPE_CHECKING:
    from serving.router.front.front_wire import WireFront
    from serving.router.router import RouterCore

CLOSE_S = 0.00002  # that closing a connection takes, most of it later
COSTLY_BODY = 4 << 10  # bytes; a request with a larger body begins in its turn
WRITE_BUFFER = 256 << 10  # bytes that wait for one client before its engine is slowed


class ClientConnection(asyncio.Protocol):
    """One client's connection, which carries one request at a time."""

    __slots__ = (
        *("_begun_s", "_blocked_s", "_framing", "_front", "_is_closing", "_is_half_closed"),
        *("_is_waiting", "_linger_until_s", "_parser", "_relay", "_request", "_share", "_task"),
        *("address_name", "core", "reading", "transport"),
    )

    def __init__(self, front: WireFront) -> None:
        self._front = front
        self._parser = RequestParser()
        self._relay: Relay | None = None
        self._request: ParsedRequest | None = None  # under way
        self.core: RouterCore | None = None  # of its service; None: it names none so far
        self._begun_s = boot_s()  # of the request that is being read, or of the idle time
        self._blocked_s: float | None = None  # since when the client does not read; None: it does
        self._linger_until_s: float | None = None  # what comes is discarded until then
        self._share = BodyShare(front.bodies, self._refuse_growing)
        self._task: asyncio.Task[None] | None = None  # of the request under way; ends with the client
        self._framing = AnswerFraming()  # of the answer under way
        self._is_closing = self._is_half_closed = self._is_waiting = False  # waiting: to begin, in its turn

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.address_name = client_name(peer_of(self.transport))  # of who has no key that is known
        self.reading = Reading(self.transport, self._front.turns, self.address_name)
        self._front.joined(self)

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE_READ:
            self.reading.came()
        if self._is_closing:
            return
        if self._request is None and self._parser.is_idle:
            self._begun_s = boot_s()
        self._parser.feed(data)
        self._go_on(len(data))

    def eof_received(self) -> bool:
        """The client sends no more; True keeps the connection open for the answer."""
        if self._is_closing or (self._request is None and not self._parser.has_more):
            return False
        self._is_half_closed = True
        if self._request is not None:
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
            leave = partial(self._front.departed.leave, relay, relay.body_bytes)
            leave() if self._front.turns.is_free() else self._join(leave)

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
        elif self._parser.is_idle and not self._is_waiting:
            if now_s - self._begun_s > self._front.load.idle_now_s:
                self._join(self.close_if_idle, CLOSE_S)
        elif not self._is_waiting and now_s - self._begun_s > arrival_s(
            self._parser, has_place=self._front.places.has_place(self)
        ):
            self._parser.refuse(TOO_LATE)
            self._wait_for_turn()

    def close_if_idle(self, refusal: Refusal | None = None) -> bool:
        """Close unless a request is under way, waits or arrives: True. refusal: for one that is arriving."""
        if self._request is not None or self._is_waiting or self._is_closing:
            return False
        if self._parser.is_idle and not self._parser.has_more:
            self.close_after_flush()
        elif refusal is not None and not self._parser.has_whole:  # which keeps its place
            self._parser.refuse(refusal)
            self._next_request()
        else:
            return False
        return True

    def stop(self, refusal: Refusal) -> None:
        """The router ends, `front.ending`: who has no whole answer is told, but for those in a tunnel."""
        if self._relay is not None:
            self._relay.stop(refusal)
        elif self._request is not None and not (self._is_closing or self._framing.has_head):
            if self._task is not None:
                self._task.cancel()
            self.refuse(refusal)
        elif self._request is None and not self.close_if_idle(refusal):
            self._next_request(is_turn=True)

    def abort_if_unread(self) -> bool:
        """Break it where its client does not read what it was answered, and no request is under way: True."""
        since_s = self._blocked_s if self._request is None else None
        if since_s is None or boot_s() - since_s <= LINGER_S:
            return False
        self.abort()
        return True

    def abort(self) -> None:
        """Break the connection."""
        self._is_closing = True
        self.transport.abort()

    # ---- requests

    def _go_on(self, size: int = 0, *, is_turn: bool = False) -> None:
        """Begin the next request, if none is under way. size: bytes that have come. is_turn: it may cost."""
        self._next_request(is_turn=is_turn)
        parser = self._parser
        is_usual = size <= COUNTED_BODY and not (self._share.size or self._is_half_closed or self._blocked_s)
        if is_usual and parser.is_empty and not self.reading.is_held:
            return  # all that came has begun
        if parser.has_chunks:
            self._join(self._take_turn)
        elif self._is_half_closed and self._request is None and not parser.requests and not self._blocked_s:
            self.close_after_flush()  # the rest is no whole request
        self._pace()
        if self._share.size or parser.buffered or len(parser.requests) > 1 or size > COUNTED_BODY:
            self._count_body()

    def _wait_for_turn(self) -> None:
        self._is_waiting = True
        self._join(self._take_turn)

    def _join(self, work: Callable[[], object], least_s: float = 0.0) -> None:
        """Do this in a turn of this client's."""
        self._front.turns.join(work, least_s, self.reading.client)

    def _take_turn(self) -> None:
        """Parse the next piece of a body in chunks, or begin the request that has waited."""
        self._is_waiting = False
        if self._is_closing:
            return
        if self._parser.has_chunks:
            self._parser.go_on()
        self._go_on(is_turn=True)

    def _pace(self) -> None:
        """Read from the client only while few of its requests wait, and while it reads its answers."""
        parser = self._parser
        is_slow = self._blocked_s is not None if self._request is None else parser.buffered > WRITE_BUFFER
        self.reading.hold(parser.is_full or is_slow)

    def _next_request(self, *, is_turn: bool = False) -> None:
        if self._is_closing or self._request is not None or self._blocked_s is not None:
            return
        parser, front = self._parser, self._front
        if not parser.requests and parser.has_unread and not parser.has_chunks:
            parser.go_on()
        if not parser.requests:
            if parser.refusal is not None:
                self._framing.begin(is_head_request=False, is_http_11=True, keep_alive=False)
            elif parser.has_new_head:
                self._admit()
            if parser.refusal is not None:
                self.refuse(parser.refusal)
            return
        if not is_turn and (len(parser.requests[0].body) > COSTLY_BODY or not self._front.turns.is_free()):
            if not self._is_waiting:
                self._name(parser.requests[0])
            self._wait_for_turn()
            return
        parsed = self._request = parser.requests.popleft()
        found = find_target(parsed.method, parsed.target, front.services, is_websocket=parsed.is_websocket)
        is_own = front.is_own(parsed.target, found)
        crowd = front.ending or (None if is_own else front.places.refusal(self))
        self._framing.begin(
            is_head_request=parsed.method == "HEAD",
            is_http_11=parsed.is_http_11,
            keep_alive=parsed.keep_alive and parsed.is_http_11 and crowd is None,
        )
        if crowd is not None:
            self.refuse(crowd)
            return
        self._name(parsed, found)
        if (later := request_start.begin(front, self, parsed, found)) is not None:
            self._task = front.run(later)

    def _name(self, parsed: ParsedRequest, found: Found | Refusal | None = None) -> None:
        """What this connection costs from now on is that of who sends this request."""
        found = found or find_target(parsed.method, parsed.target, self._front.services)
        self._share.client = self.reading.client = request_start.name_of(self._front, self, parsed, found)

    def _admit(self) -> None:
        """Judge a request by its head, before its body has come."""
        parser, front = self._parser, self._front
        parser.has_new_head = False
        sent = Sent(*parser.head, peer_of(self.transport))
        found = find_target(sent.method, sent.target, front.services)
        client = request_start.admit_head(front, self, sent, found)
        if isinstance(client, Refusal):
            self._framing.begin(is_head_request=sent.method == "HEAD", is_http_11=True, keep_alive=False)
            self.core = None if isinstance(found, Refusal) else front.cores.get(found.service or "")
            parser.refuse(client)
            return
        self._share.client = self.reading.client = client
        if parser.wants_continue:
            parser.wants_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_growing(self) -> None:
        """The body that is being sent is too much for the budget: it is dropped, and refused in its turn."""
        self._parser.refuse(overloaded("the router holds too many bodies that have not arrived whole"))
        self._count_body()
        if self._request is None:
            self._wait_for_turn()

    def begin_chosen(
        self, parsed: ParsedRequest, found: Found, cores: Mapping[str, RouterCore], chosen: Chosen | Refusal
    ) -> None:
        """Begin a request whose service is known, or refuse it."""
        if isinstance(chosen, Refusal):
            self.refuse(chosen)
        else:
            self.core = cores[chosen.service]
            self.begin_with(parsed, found, self.core, chosen.prepared)

    def begin_with(
        self, parsed: ParsedRequest, found: Found, core: RouterCore, prepared: Prepared | None = None
    ) -> None:
        """Begin a request for this core."""
        front, over = self._front, self._on_over
        exchange = request_start.begin_exchange(front, self, core, parsed, found, prepared=prepared)
        if isinstance(exchange, Refusal):
            self.refuse(exchange)
            return
        if found.target.path == REALTIME:
            self._task = front.run(request_start.tunnel_of(front, exchange, self, parsed))
            return
        relay = request_start.relay_of(front, core, exchange, self, method=parsed.method, on_over=over)
        self._relay = relay
        if self._blocked_s is not None:
            relay.slow()
        if len(parsed.body) > COUNTED_BODY:
            self._count_body()  # with what was made of it
        relay.start()

    def sent(self, parsed: ParsedRequest) -> Sent:
        """Its head, and who sent it."""
        return Sent(parsed.method, parsed.target, parsed.headers, peer_of(self.transport))

    def _on_over(self) -> None:
        self._relay = None

    def _done(self) -> None:
        """The answer is whole: the next request, or the end of the connection."""
        self._request = self.core = self._task = None
        self._front.requests.end(self)
        if self._share.size:
            self._count_body()
        self._begun_s, parser = boot_s(), self._parser
        if parser.refusal is not None and not parser.requests and not self._framing.keep_alive:
            self._linger()
        elif not self._framing.keep_alive or self._front.is_stopping:
            self.close_after_flush()
        elif parser.has_more or parser.refusal is not None or parser.has_new_head:
            asyncio.get_running_loop().call_soon(self._go_on)
        elif self._is_half_closed:
            self.close_after_flush()
        elif self.reading.is_held:
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
        if data := self._framing.bytes_of(action):
            self.transport.write(data)
        if action.then == "more":
            return
        if action.then == "break" or self._framing.is_short:
            self.close_after_flush()
        else:
            self._done()

    def refuse(self, refusal: Refusal) -> None:
        """Send the router's own error."""
        self._front.count_refusal(refusal.code, self.core)
        self._framing.begin_anew()
        asked = self._request or self._parser
        self.deliver(refusal.answer(asked.target.decode("latin-1"), asked.headers))

    def switch(self, head: Head, protocol: asyncio.BaseProtocol) -> None:
        """Send this head, a 101; the connection is that protocol's from then on."""
        self.transport.set_protocol(protocol)
        self._blocked_s = None  # who reads and who does not is the tunnel's to know
        self.transport.write(self._framing.switched(head))
        self.reading.hold(False)

    def _probe(self) -> None:
        """Send one byte of the beginning of the status line, if no head was sent yet."""
        if data := self._framing.start_ahead():
            self.transport.write(data)

    def close_after_flush(self) -> None:
        """Send what waits, then close; of an answer that is not whole the client sees that."""
        self._is_closing = True
        self._linger_until_s = boot_s() + self._front.core.limits.idle_s
        self.transport.close()

    def _linger(self) -> None:
        """End the answer, and read on for a while: closing now would reset the connection."""
        self._is_closing = True
        self._linger_until_s = boot_s() + LINGER_S
        self.reading.hold(False)
        self.transport.write_eof()

    def _count_body(self) -> None:
        whole = sum(len(one.body) for one in self._parser.requests)
        one, relay = self._request, self._relay
        whole += relay.body_bytes if relay is not None else len(one.body) if one is not None else 0
        self._share.hold(whole, self._parser.buffered)
