"""One connection to an engine: HTTP/1.1 answers parsed strictly (llhttp), one call at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias, cast

import httptools

from serving.clock import boot_s

if TYPE_CHECKING:
    from serving.router.upstream import Call, Upstream

HEAD_LIMIT = 256 << 10  # bytes of an answer's head

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

Headers: TypeAlias = list[tuple[bytes, bytes]]
Address: TypeAlias = tuple[str, str]  # scheme, host[:port]


class EngineConnection(asyncio.Protocol):
    """One connection to an engine; it serves one call at a time."""

    def __init__(self, pool: Upstream, address: Address) -> None:
        self._pool = pool
        self.address = address
        self.call: Call | None = None
        self.made_s = boot_s()
        self.idle_since_s = 0.0
        self.is_reused = False
        self.is_closed = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._status = 0
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._keeps_alive = self._is_framed = False
        self._is_in_body = self._is_head_told = self._is_complete = self._ends_with_connection = False

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:  # nothing was asked
            self.drop()
            return
        is_broken = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # a 101 that nobody asked for
            is_broken = True
        if not self._is_in_body:
            self._head_bytes += len(data)
            if is_broken or self._head_bytes > HEAD_LIMIT:
                self._break(call)
            return
        # Listeners are not called inside the parser, which would take their errors for its own.
        if not self._is_head_told:
            self._is_head_told = True
            call.head(self._status, self._headers)
        if self._body and self.call is call:
            body, self._body = self._body, []
            call.data(body[0] if len(body) == 1 else b"".join(body))
        if self.call is not call:
            return
        if self._is_complete:
            # Bytes after an answer make the connection useless.
            self._complete(call, is_reusable=not is_broken)
        elif is_broken:
            self._break(call)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._pool.forget(self)
        call, self.call = self.call, None
        if call is None or call.is_over:
            return
        if self._is_in_body and self._ends_with_connection and exc is None:
            call.end(self, is_reusable=False)
        else:
            call.lost(is_reused=self.is_reused, has_bytes=self._head_bytes > 0 or self._is_in_body)

    def drop(self) -> None:
        """Close without waiting."""
        self.call = None
        self.is_closed = True
        self._pool.forget(self)
        self.transport.abort()

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        self._headers = []
        self._is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_body:  # else a trailer
            name = name.lower()
            self._headers.append((name, value))
            if name in _FRAMING:
                self._is_framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self.call is None:  # an interim answer
            return
        self._is_in_body, self._status = True, status
        has_no_body = status in (204, 304) or self.call.method == "HEAD"
        self._ends_with_connection = not (has_no_body or self._is_framed)
        if self.call.method == "HEAD":
            self._is_complete = True

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._is_in_body:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()

    # ---- inside

    def _complete(self, call: Call, *, is_reusable: bool) -> None:
        is_reusable = (
            is_reusable and not self._ends_with_connection and self._keeps_alive and call.method != "HEAD"
        )
        self.call = None
        self._is_in_body = self._is_complete = self._is_head_told = False
        self._head_bytes = 0
        call.end(self, is_reusable=is_reusable)

    def _break(self, call: Call) -> None:
        """What came is not HTTP, or too long."""
        self.drop()
        if not call.is_over:
            call.lost(is_reused=False, has_bytes=True)
