"""HTTP client to engines: a pool of connections, answers as events of a `Call`, failures by fixed words.

Rules:
1. Every failure reaches the listener once, as a `Failure`; nothing is raised after `open` has returned.
2. `may_start` is asked when there is a connection and before the first byte is written.
3. An external peer may close a kept-alive connection while a request is on its way. A quick reset says
   nothing about it, so the request is sent once more, on a new connection; only that outcome counts. So it is
   whether the connection was kept or new: the arm with fewer requests finds one open less often, and would
   have more errors. What is sent a second time, or may be sent but once (`is_fresh`), is sent on a new one at
   once, of which no reset is forgiven. Our engines never close an idle connection (`KEEP_ALIVE_S` there
   is an hour): a reset is a failure.
4. An endpoint's API key is read when a request is sent, and is in no other value; not in its answer either.
5. A connection is kept for `connection_age_s` at most, so that a name that moves is followed; idle for so
   long to an engine of ours, for KEEP_ALIVE_S to an external endpoint.
6. A time-out covers a whole attempt up to the first event with content (`Attempt.first_byte_s`), from when
   its request is written, and then each pause between bytes. One timer checks all calls.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

from aiohappyeyeballs import start_connection

from serving.clock import boot_s
from serving.credentials import KeyFilter, KeyReference, NoKey
from serving.router.headers import lines_of
from serving.router.turns import Turns
from serving.router.types import Attempt, Failure, Limits, pieces_of
from serving.router.upstreams.decompressed import Decompressor, cut, decompressor_of
from serving.router.upstreams.engine_connection import EngineConnection, Headers
from serving.router.upstreams.key_answers import REFUSED, KeyAnswers
from serving.router.upstreams.listener import Listener
from serving.router.upstreams.reachability import Reachability
from serving.router.upstreams.resolver import Resolver
from serving.targets import Endpoint

# Below uvicorn's 5 s, so that the router closes an idle connection, not the endpoint during a request.
KEEP_ALIVE_S = 4.0
NEXT_ADDRESS_S = 0.25  # after which the next address of a name is tried too
STALE_S = 1.0  # a reset that comes later than this is the failure of a request that the peer had accepted
TIMER_S = 0.05
IDLE_LIMIT = 512  # kept connections to one address

P = TypeVar("P", bound=asyncio.BaseProtocol)
log = logging.getLogger("canaryctl.router")


class Call:
    """One request to one engine, and its answer."""

    __slots__ = (
        "_again",
        "_connecting",
        "_connection",
        "_is_paused",
        "_key",
        "_pool",
        "attempt",
        "deadline_s",
        "decompressor",
        "has_head",
        "is_over",
        "listener",
        "method",
        "sent_s",
        "was_sent_again",
    )

    def __init__(self, pool: Upstream, attempt: Attempt, method: str, listener: Listener) -> None:
        self._pool = pool
        self.attempt = attempt
        self.method = method
        self.listener = listener
        self.deadline_s = boot_s() + attempt.first_byte_s  # of the next bytes; the listener sets later ones
        self.sent_s = 0.0
        self.has_head = False
        self.is_over = False
        self._connection: EngineConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._key: KeyFilter | None = None
        self.decompressor: Decompressor | None = None  # of an answer that is compressed
        self._again = attempt.may_be_stale and not attempt.is_fresh
        self.was_sent_again = False  # after a reset that was forgiven
        self._is_paused = False

    def pause(self) -> None:
        """Read no more of the answer for now."""
        self._is_paused = True
        if self._connection is not None:
            self._connection.pace()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._connection is not None:
            self._connection.pace()

    @property
    def is_paused(self) -> bool:
        """True while the client, which reads slowly, holds the answer up."""
        return self._is_paused

    def close(self) -> None:
        """End the call: its connection is broken, which stops the engine. No event follows."""
        if not self.is_over:
            self._over()
            if self._connecting is not None:
                self._connecting.cancel()
            if self._connection is not None:
                self._connection.drop()

    def fail(self, why: Failure) -> None:
        """End the call, and tell why."""
        if not self.is_over:
            self.close()
            self.listener.on_failed(why)

    def _over(self) -> None:
        self.is_over = True
        self._pool.calls.discard(self)

    # ---- called by the pool and the connection

    def connect(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        pool, endpoint = self._pool, self.attempt.endpoint
        try:
            connection = await pool.connected(
                endpoint, lambda: EngineConnection(pool, endpoint.origin), within_s=self.attempt.first_byte_s
            )
        finally:
            self._connecting = None
        if connection is None:
            self.fail("refused")
        elif self.is_over:
            connection.drop()
        else:
            self.write(connection)

    def write(self, connection: EngineConnection) -> None:
        """Send the request on this connection."""
        attempt = self.attempt
        if not self.listener.may_start():
            self._over()
            self._pool.keep(connection, is_external=attempt.may_be_stale)
            self.listener.on_failed("withheld")
            return
        lines = head_lines(self.method, attempt)
        if attempt.api_key is not None:
            try:
                key = self._pool.key(attempt.api_key)
            except NoKey:
                self._over()
                self._pool.keep(connection, is_external=attempt.may_be_stale)
                self.listener.on_failed("refused")
                return
            self._key = KeyFilter(key)
            lines.append(b"authorization: Bearer " + key.encode() + b"\r\n")
        if attempt.body or self.method == "POST":
            lines.append(b"content-length: %d\r\n\r\n" % len(attempt.body))
        else:
            lines.append(b"\r\n")
        self._connection = connection
        connection.call = self
        self.sent_s = boot_s()
        self.deadline_s = self.sent_s + attempt.first_byte_s
        if len(attempt.body) < 1 << 16:
            lines.append(bytes(attempt.body))
            connection.transport.write(b"".join(lines))
        else:
            connection.transport.write(b"".join(lines))
            for piece in pieces_of(attempt.body):
                connection.transport.write(piece)
        if self._is_paused:
            connection.pace()

    def head(self, status: int, headers: Headers) -> None:
        self.has_head = True
        if self._key is not None:
            headers = [(name, self._key.whole(value)) for name, value in headers]
            self._pool.on_status(self.attempt, status, sent_s=self.sent_s)
        if self.method != "HEAD":
            self.decompressor, headers = decompressor_of(status, headers)
        self.listener.on_head(status, headers)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The next bytes of the body as they are read, a piece at a time. Raises ValueError: they are not."""
        return cut(data) if self.decompressor is None else self.decompressor.pieces(data)

    def data(self, data: bytes) -> None:
        """A piece of the body."""
        if self._key is not None:
            data = self._key.feed(data)
        if data:
            self.listener.on_data(data)

    def end(self, connection: EngineConnection, *, is_reusable: bool) -> None:
        """The answer is whole."""
        if self.decompressor is not None and not self.decompressor.is_whole:
            connection.drop()
            self.lost(has_bytes=True)
            return
        held = self._key.end() if self._key is not None else b""
        if held:
            self.listener.on_data(held)
        if self.is_over:
            return
        self._over()
        self._connection = None
        if is_reusable and not self._is_paused:
            self._pool.keep(connection, is_external=self.attempt.may_be_stale)
        else:
            connection.drop()
        self.listener.on_end()

    def lost(self, *, has_bytes: bool) -> None:
        """The connection broke, or what came on it is not HTTP."""
        self._connection = None
        if self._again and not has_bytes and boot_s() - self.sent_s < STALE_S:
            self._again, self.was_sent_again = False, True
            self.connect()
            return
        self._over()
        self.listener.on_failed("cut" if self.has_head else "reset")


class Upstream:
    """The connections of a router to every engine. Use it in one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.calls: set[Call] = set()
        self.tunnels: set[object] = set()  # WebSockets that are open
        self.resolver = Resolver()
        self.reachability = Reachability()
        self.asked_s = -math.inf  # when the last call was made
        self.turns = Turns()  # of reading what engines answer
        self._idle: dict[str, deque[EngineConnection]] = {}  # by origin
        self._external: set[str] = set()  # origins whose peers close idle connections by their own rule
        self._keys_missing: set[str] = set()  # logged once each
        self._keys_refused: set[str] = set()
        self._keys = KeyAnswers()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def open(self, attempt: Attempt, method: str, listener: Listener) -> Call:
        """Send a request; its answer comes to the listener, perhaps before this returns."""
        call = Call(self, attempt, method, listener)
        self.calls.add(call)
        self.asked_s = boot_s()
        if self._timer is None:
            self._schedule()
        idle = self._idle.get(attempt.endpoint.origin)
        while idle and not attempt.is_fresh:
            connection = idle.pop()
            if not connection.is_closed and not connection.transport.is_closing():
                call.write(connection)
                return call
        call.connect()
        return call

    async def connected(
        self, endpoint: Endpoint, protocol: Callable[[], P], *, within_s: float = math.inf
    ) -> P | None:
        """A new connection, in `connect_s` at most; None: there is none, and `reachability` knows why."""
        try:
            async with asyncio.timeout(min(self.limits.connect_s, within_s)):
                connection = await self.connect(endpoint, protocol)
        except (OSError, TimeoutError, ValueError) as exc:
            self.reachability.failed(endpoint.origin, exc, now_s=boot_s())
            return None
        self.reachability.reached(endpoint.origin, now_s=boot_s())
        return connection

    async def connect(self, endpoint: Endpoint, protocol: Callable[[], P]) -> P:
        """A new connection. Raises OSError, or ValueError for a host that is no name."""
        host, port = endpoint.address
        found = await self.resolver.addresses(host, port)
        # An address that swallows what it is sent must not hold up the others of its name (RFC 8305).
        connected = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
        _, connection = await asyncio.get_running_loop().create_connection(
            protocol,
            sock=connected,
            ssl=_tls() if endpoint.is_tls else None,
            # No certificate names the root's dot.
            server_hostname=host.rstrip(".") if endpoint.is_tls else None,
        )
        return connection

    def has_connection(self, origin: str) -> bool:
        """Whether one to this address is idle or in use."""
        return bool(self._idle.get(origin)) or any(
            one.attempt.endpoint.origin == origin for one in self.calls
        )

    def keep(self, connection: EngineConnection, *, is_external: bool) -> None:
        """The connection is free."""
        if is_external:
            self._external.add(connection.origin)
        if (idle := self._idle.get(connection.origin)) is None:
            idle = self._idle[connection.origin] = deque()
        now_s = boot_s()
        is_old = now_s - connection.made_s > self.limits.connection_age_s
        if is_old or self._is_closed or len(idle) >= IDLE_LIMIT or connection.is_closed:
            connection.drop()
            return
        connection.idle_since_s = now_s
        idle.append(connection)
        if self._timer is None:
            self._schedule()

    def forget(self, connection: EngineConnection) -> None:
        """The connection is closed."""
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Close every connection; calls under way fail."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for call in list(self.calls):
            call.fail("cut" if call.has_head else "reset")
        for idle in self._idle.values():
            while idle:
                idle.pop().drop()

    def key(self, reference: KeyReference) -> str:
        """The key, as it is now. Raises NoKey, which is logged once."""
        try:
            key = reference.read()
        except NoKey as exc:
            if str(reference) not in self._keys_missing:
                self._keys_missing.add(str(reference))
                log.error("no API key", extra={"error": str(exc)})
            raise
        self._keys_missing.discard(str(reference))
        return key

    def on_status(self, attempt: Attempt, status: int, *, sent_s: float) -> None:
        """Log once that an endpoint refuses the key of this attempt, until it accepts it."""
        name, place = str(attempt.api_key), (attempt.arm, attempt.endpoint, attempt.api_key, attempt.path)
        is_refused = self._keys.is_refused(place, status, sent_s=sent_s)
        if status not in REFUSED:
            self._keys_refused.discard(name)
        elif is_refused and name not in self._keys_refused:
            self._keys_refused.add(name)
            log.error("endpoint refuses our API key", extra={"key": name, "status": status})

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TIMER_S, self._tick)

    def _tick(self) -> None:
        now_s = boot_s()
        try:
            for call in [one for one in self.calls if now_s >= one.deadline_s and not one.is_paused]:
                if call.listener.on_silent():
                    call.fail("timeout")
            for origin, idle in self._idle.items():
                most_s = KEEP_ALIVE_S if origin in self._external else self.limits.connection_age_s
                while idle and idle[0].idle_since_s < now_s - most_s:
                    idle[0].drop()
        finally:  # an error in one must not end the time limits of all
            if self.calls or any(self._idle.values()):
                self._schedule()
            else:
                self._timer = None


def head_lines(method: str, attempt: Attempt) -> list[bytes]:
    """The head of a request in pieces, but for its key, what frames its body, and the blank line."""
    return [_start_of(method, attempt.path, attempt.endpoint.authority), *lines_of(attempt.headers)]


@lru_cache(maxsize=1024)
def _start_of(method: str, path: str, authority: str) -> bytes:
    """The first two lines of a request."""
    return f"{method} {path} HTTP/1.1\r\nhost: {authority}\r\n".encode()


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
