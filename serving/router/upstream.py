"""HTTP client to engines: a pool of connections, answers as events of a `Call`, failures by fixed words.

Rules:
1. Every failure reaches the listener once, as a `Failure`; nothing is raised after `open` has returned.
2. `may_start` is asked when there is a connection and before the first byte is written.
3. An external peer may close a kept-alive connection while a request is on its way. A quick reset of a reused
   connection says nothing about it, so the request is sent once more, on a new connection; only that outcome
   counts. What creates something (`is_fresh`) is sent on a new one at once, so that it is never sent twice.
   Our engines never close an idle connection (`KEEP_ALIVE_S` there is an hour): a reset is a failure.
4. An endpoint's API key is read when a request is sent, and is in no other value; not in its answer either.
5. A time-out covers a whole attempt up to the first event with content (`Attempt.first_byte_s`), and then
   each pause between bytes. One timer checks all calls, so that a request costs none.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from functools import lru_cache
from typing import Protocol

from serving.clock import boot_s
from serving.credentials import KeyFilter, KeyReference, NoKey
from serving.router.engine_connection import Address, EngineConnection, Headers
from serving.router.types import Attempt, Failure, Limits
from serving.targets import Endpoint

# Below uvicorn's 5 s, so that the router closes an idle connection, not the engine during a request.
KEEP_ALIVE_S = 4.0
STALE_S = 1.0  # a reset that comes later than this is the failure of a request that the peer had accepted
TIMER_S = 0.05
IDLE_LIMIT = 512  # kept connections to one address

log = logging.getLogger("canaryctl.router")


class Listener(Protocol):
    """What is told of a call. After `on_failed` or `on_end` nothing more comes."""

    def may_start(self) -> bool:
        """Asked before the first byte is written; False: nothing is sent, and the call fails as withheld."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; names in lower case."""

    def on_data(self, data: bytes) -> None:
        """The next bytes of the body."""

    def on_end(self) -> None:
        """The body ended as its framing declares."""

    def on_silent(self) -> bool:
        """Nothing has come until the deadline; True: the call fails, False: a later one has been set."""

    def on_failed(self, why: Failure) -> None:
        """No answer, or one that broke off."""


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
        "has_head",
        "is_over",
        "listener",
        "method",
        "sent_s",
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
        self._again = attempt.may_be_stale
        self._is_paused = False

    def pause(self) -> None:
        """Read no more of the answer for now."""
        self._is_paused = True
        if self._connection is not None and not self._connection.is_closed:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._connection is not None and not self._connection.is_closed:
            self._connection.transport.resume_reading()

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

    def connect(self, address: Address) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect(address))

    async def _connect(self, address: Address) -> None:
        try:
            async with asyncio.timeout(min(self._pool.limits.connect_s, self.attempt.first_byte_s)):
                connection = await self._pool.connect(address)
        except (OSError, TimeoutError, ValueError):  # ValueError: a name that no DNS holds
            self.fail("refused")
        else:
            if self.is_over:
                connection.drop()
            else:
                self.write(connection)
        finally:
            self._connecting = None

    def write(self, connection: EngineConnection) -> None:
        """Send the request on this connection."""
        attempt = self.attempt
        if not self.listener.may_start():
            self._over()
            self._pool.keep(connection)
            self.listener.on_failed("withheld")
            return
        lines = [_start_of(self.method, attempt.path, attempt.endpoint.authority)]
        if attempt.api_key is not None:
            try:
                key = self._pool.key(attempt.api_key)
            except NoKey:
                self._over()
                self._pool.keep(connection)
                self.listener.on_failed("refused")
                return
            self._key = KeyFilter(key)
            lines.append(b"authorization: Bearer " + key.encode() + b"\r\n")
        for name, value in attempt.headers:
            lines += (name, b": ", value, b"\r\n")
        if attempt.body or self.method == "POST":
            lines.append(b"content-length: %d\r\n\r\n" % len(attempt.body))
        else:
            lines.append(b"\r\n")
        self._connection = connection
        connection.call = self
        self.sent_s = boot_s()
        if len(attempt.body) < 1 << 16:
            lines.append(attempt.body)
            connection.transport.write(b"".join(lines))
        else:
            connection.transport.write(b"".join(lines))
            connection.transport.write(attempt.body)
        if self._is_paused:
            connection.transport.pause_reading()

    def head(self, status: int, headers: Headers) -> None:
        self.has_head = True
        if self._key is not None:
            headers = [(name, self._key.whole(value)) for name, value in headers]
            self._pool.on_status(self.attempt.api_key, status)
        self.listener.on_head(status, headers)

    def data(self, data: bytes) -> None:
        if self._key is not None:
            data = self._key.feed(data)
        if data:
            self.listener.on_data(data)

    def end(self, connection: EngineConnection, *, is_reusable: bool) -> None:
        """The answer is whole."""
        held = self._key.end() if self._key is not None else b""
        if held:
            self.listener.on_data(held)
        if self.is_over:
            return
        self._over()
        self._connection = None
        if is_reusable and not self._is_paused:
            self._pool.keep(connection)
        else:
            connection.drop()
        self.listener.on_end()

    def lost(self, *, is_reused: bool, has_bytes: bool) -> None:
        """The connection broke, or what came on it is not HTTP."""
        self._connection = None
        if self._again and is_reused and not has_bytes and boot_s() - self.sent_s < STALE_S:
            self._again = False
            self.connect(_address_of(self.attempt.endpoint))
            return
        self._over()
        self.listener.on_failed("cut" if self.has_head else "reset")


class Upstream:
    """The connections of a router to every engine. Use it in one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.calls: set[Call] = set()
        self._idle: dict[Address, deque[EngineConnection]] = {}
        self._keys_missing: set[str] = set()  # logged once each
        self._keys_refused: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def open(self, attempt: Attempt, method: str, listener: Listener) -> Call:
        """Send a request; its answer comes to the listener, perhaps before this returns."""
        call = Call(self, attempt, method, listener)
        self.calls.add(call)
        if self._timer is None:
            self._schedule()
        address = _address_of(attempt.endpoint)
        idle = self._idle.get(address)
        while idle and not attempt.is_fresh:
            connection = idle.pop()
            if not connection.is_closed and not connection.transport.is_closing():
                connection.is_reused = True
                call.write(connection)
                return call
        call.connect(address)
        return call

    async def connect(self, address: Address) -> EngineConnection:
        """A new connection. Raises OSError."""
        scheme, authority = address
        host, port = _host_and_port(scheme, authority)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: EngineConnection(self, address), host, port, ssl=_tls() if scheme == "https" else None
        )
        return connection

    def keep(self, connection: EngineConnection) -> None:
        """The connection is free."""
        idle = self._idle.setdefault(connection.address, deque())
        if self._is_closed or len(idle) >= IDLE_LIMIT or connection.is_closed:
            connection.drop()
            return
        connection.idle_since_s = boot_s()
        idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """The connection is closed."""
        idle = self._idle.get(connection.address)
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

    def on_status(self, reference: KeyReference | None, status: int) -> None:
        """Log once that an endpoint refuses this key, until it accepts it."""
        name = str(reference)
        if status not in (401, 403):
            self._keys_refused.discard(name)
        elif name not in self._keys_refused:
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
            for idle in self._idle.values():
                while idle and idle[0].idle_since_s < now_s - KEEP_ALIVE_S:
                    idle[0].drop()
        finally:  # an error in one must not end the time limits of all
            if self.calls or any(self._idle.values()):
                self._schedule()
            else:
                self._timer = None


@lru_cache(maxsize=1024)
def _start_of(method: str, path: str, authority: str) -> bytes:
    """The first two lines of a request."""
    return f"{method} {path} HTTP/1.1\r\nhost: {authority}\r\n".encode()


def _address_of(endpoint: Endpoint) -> Address:
    return endpoint.scheme, endpoint.authority


@lru_cache(maxsize=4096)
def _host_and_port(scheme: str, authority: str) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        return authority.strip("[]"), 443 if scheme == "https" else 80
    return host.strip("[]"), int(port)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
