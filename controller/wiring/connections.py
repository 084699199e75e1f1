"""Bounds on the connections of the API: how many there are, and how long one may go without a request.

uvicorn has no limit on the time of a head, and `limit_concurrency` refuses whoever comes last, which may be
the person who rolls back. So its protocol is bounded here, as the router's front is.

Invariants: a connection that waits for a request is never worth more than one that has just come; a client
that takes nothing of its answer holds it for `UNREAD_S` at most.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 10.0  # from the connection, or the last answer, to the end of a request's head
UNREAD_S = 30.0  # that a client may take nothing of an answer which waits for it
MAX_CONNECTIONS = 512
MIN_CONNECTIONS = 16
FILES_SHARE = 4  # a quarter of this process's open files; the database, Ray and the ticks need the rest


def max_connections() -> int:
    """At most `MAX_CONNECTIONS`, fewer where this process may open few files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, files // FILES_SHARE))


class Connections:
    """The open connections of one server. Of one event loop."""

    def __init__(
        self, limit: int | None = None, *, head_s: float = HEAD_S, unread_s: float = UNREAD_S
    ) -> None:
        """limit: None: as many as this process may have."""
        self.limit = max_connections() if limit is None else limit
        self.head_s = head_s
        self.unread_s = unread_s
        self._idle: dict[BoundedProtocol, None] = {}  # those that wait for a request, the oldest first
        self._open: set[BoundedProtocol] = set()

    def __len__(self) -> int:
        return len(self._open)

    def made(self, connection: BoundedProtocol) -> None:
        """A new connection. Where there are too many, the one goes that has waited longest; if none waits,
        the new one."""
        if len(self._open) >= self.limit:
            oldest = next(iter(self._idle), connection)
            self._forget(oldest)
            oldest.end()
            if oldest is connection:
                return
        self._open.add(connection)
        self._idle[connection] = None

    def is_waiting(self, connection: BoundedProtocol, *, is_idle: bool) -> None:
        """The connection has a request in progress, or none."""
        if not is_idle:
            self._idle.pop(connection, None)
        elif connection in self._open:
            self._idle.setdefault(connection)

    def lost(self, connection: BoundedProtocol) -> None:
        """The connection has ended."""
        self._forget(connection)

    def _forget(self, connection: BoundedProtocol) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's own, with time limits for a head and for an unread answer, counted among `bounds`."""

    bounds: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self.bounds.made(self)
        self._follow()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self._later(self.bounds.unread_s, self._wait_for_reader)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        self.bounds.lost(self)
        super().connection_lost(exc)

    def end(self) -> None:
        """End it at once."""
        self._stop_timer()
        self._stop_unread_timer()
        self.transport.abort()

    def _follow(self) -> None:
        """Start the time of a head, or end it where the head has come."""
        is_idle = self.cycle is None or self.cycle.response_complete
        self.bounds.is_waiting(self, is_idle=is_idle)
        if not is_idle:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self._later(self.bounds.head_s, self._wait_for_head)

    def _later(self, delay_s: float, wait_on: Callable[[int], None]) -> asyncio.TimerHandle:
        """The timer after which `wait_on` is told how much was unread when it was started."""
        unread = self.transport.get_write_buffer_size()
        timer: asyncio.TimerHandle = self.loop.call_later(delay_s, wait_on, unread)
        return timer

    def _is_reading(self, unread: int) -> bool:
        """Whether the client has read of its answer since this much was unread."""
        return bool(self.transport.get_write_buffer_size() < unread)

    def _wait_for_head(self, unread: int) -> None:
        """The time of a head is over, unless the client still read of the last answer, which may be long."""
        self._head_timer = None
        if self._is_reading(unread):
            self._head_timer = self._later(self.bounds.head_s, self._wait_for_head)
        else:
            self.end()

    def _wait_for_reader(self, unread: int) -> None:
        self._unread_timer = None
        if self._is_reading(unread):
            self._unread_timer = self._later(self.bounds.unread_s, self._wait_for_reader)
        else:
            self.end()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(bounds: Connections) -> type[Any]:
    """The protocol class for `uvicorn.Config(http=...)` whose connections `bounds` counts."""
    return type("BoundedHttp", (BoundedProtocol,), {"bounds": bounds})
