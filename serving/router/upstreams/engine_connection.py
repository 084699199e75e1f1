"""One connection to an engine: HTTP/1.1 answers parsed strictly (llhttp), one call at a time.

What has come is passed on in pieces, for a turn's time at once (`turns.py`): a large read of small events, or
of what was compressed, would else hold up all streams. The engine is read no further meanwhile. The end of a
large answer has a turn too: a whole one is read then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias, cast

import httptools

from serving.clock import boot_s
from serving.router.headers import HEADERS_LIMIT
from serving.router.heads import AnswerHeads, is_of_lengths
from serving.router.turns import LARGE_READ, Reading, is_turn_over, turn_end_s
from serving.router.upstreams.decompressed import PIECE

if TYPE_CHECKING:
    from serving.router.upstreams.upstream import Call, Upstream

HEAD_LIMIT = 256 << 10  # bytes of an answer's head, and of what frames a chunk or follows the last

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

Headers: TypeAlias = list[tuple[bytes, bytes]]


def _as_framed(headers: Headers) -> Headers:
    """The headers without a length that does not count, as there are chunks. Raises ValueError where there
    may be none: the answer might end anywhere."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    others = [one for one in headers if one[0] != b"content-length"] if codings else headers
    if len(others) == len(headers):
        return headers
    if codings[-1].lower().rpartition(b",")[2].strip() != b"chunked":
        raise ValueError("a length beside what are no chunks")
    return others


class EngineConnection(asyncio.Protocol):
    """One connection to an engine; it serves one call at a time."""

    def __init__(self, pool: Upstream, origin: str) -> None:
        """origin: of its endpoint, scheme://host[:port]."""
        self._pool = pool
        self.origin = origin
        self.call: Call | None = None
        self.made_s = boot_s()
        self.idle_since_s = 0.0
        self.is_closed = False
        self._parser = self._new_parser()
        self._headers: Headers = []
        self._lines = 0  # of the answer's heads, interim ones too, and of its trailers
        self._status = 0
        self._head_bytes = self._answer_bytes = 0  # of the answer: with all that frames it
        self._head = b""  # of the answer as it came, while it is not whole
        # Whose end is waited for: one has two lengths, perhaps equal ones. None: it is not.
        self._heads: AnswerHeads | None = None
        self._body: list[bytes] = []
        self._pieces: Iterator[bytes] | None = None  # of the body, which have come and are not passed on yet
        self._why = ""  # it is no HTTP; empty: it is
        self._is_broken = False  # what came after them is no HTTP
        self._lost: tuple[Exception | None] | None = None  # the connection, after them
        self._keeps_alive = self._is_framed = self._is_framed_twice = False
        self._is_in_body = self._is_head_told = self._is_complete = self._ends_with_connection = False

    def _new_parser(self) -> httptools.HttpResponseParser:
        # Some servers pad a chunk's size with blanks, which nginx, httpd, HAProxy and Go read. What is
        # passed on is framed anew, so nobody behind us can read another size.
        # Others name a length beside the chunks, which count alone (RFC 9112, 6.3).
        parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_chunked_length=True)
        return parser

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._reading = Reading(self.transport, self._pool.turns)

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:  # nothing was asked
            self.drop()
            return
        self._answer_bytes += len(data)
        if len(data) >= LARGE_READ:
            self._reading.came()
        is_broken = not self._is_parsed(data)
        if not self._is_in_body:
            self._head_bytes += len(data)
            if is_broken or self._head_bytes > HEAD_LIMIT:
                self._break(call)
            return
        # Of a trailer each piece is joined to all before it.
        self._head_bytes = 0 if self._body else self._head_bytes + len(data)
        self._is_broken = self._is_broken or is_broken or self._head_bytes > HEAD_LIMIT
        # Listeners are not called inside the parser, which would take their errors for its own.
        if not self._is_head_told:
            self._is_head_told = True
            call.head(self._status, self._headers)
        if self._body and self.call is call:
            body, self._body = self._body, []
            self._pass_on(call, body[0] if len(body) == 1 else b"".join(body))
        if self.call is call and self._pieces is None:
            if self._is_complete and self._is_large:
                self._wait_to_end()
            elif self._is_complete or self._is_broken or self._lost is not None:
                self._finish(call)

    def _is_parsed(self, data: bytes) -> bool:
        """Parse these bytes; False: they are no HTTP, `_why`. What has several lengths waits for the end of
        its head, and is parsed again with one where they are equal (`heads.py`)."""
        if not self._is_in_body:
            self._head += data
        try:
            if self._heads is None:
                self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._why = str(exc.__context__ or exc)
            if self._is_in_body or not is_of_lengths(exc):
                return False
            self._heads, data = AnswerHeads(), self._head
        except httptools.HttpParserUpgrade:
            self._why = "a 101 that nobody asked for"
            return False
        if self._is_in_body:
            self._head = b""
        if self._heads is None:
            return True
        if (again := self._heads.add(data)) is None:
            return not self._heads.has_too_many_lines
        if again == self._head:
            return False
        self._heads, self._head, self._lines = None, b"", 0
        self._why, self._parser = "", self._new_parser()
        return self._is_parsed(again)

    def pace(self) -> None:
        """Read on, unless the call is paused or what has come is not passed on yet."""
        self._reading.hold(self._pieces is not None or (self.call is not None and self.call.is_paused))

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._pool.forget(self)
        if self._pieces is None and not (self.call is not None and self._is_large):
            self._end(exc)
            return
        self._lost = (exc,)
        if self._pieces is None:
            self._wait_to_end()

    def _end(self, exc: Exception | None) -> None:
        """The connection is closed, and all that had come is passed on."""
        call, self.call = self.call, None
        if call is None or call.is_over:
            return
        if self._is_in_body and self._ends_with_connection and exc is None:
            call.end(self, is_reusable=False)
        else:
            call.lost(has_bytes=self._head_bytes > 0 or self._is_in_body)

    def drop(self) -> None:
        """Close without waiting."""
        self.call = self._pieces = None
        self.is_closed = True
        self._pool.forget(self)
        self.transport.abort()

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        if self._is_complete:  # the parser stops here: no byte of a second answer changes the first
            raise ValueError("bytes after the answer")
        self._headers = []
        self._is_framed = self._is_framed_twice = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        if self._lines > HEADERS_LIMIT:  # the parser stops here
            raise ValueError(f"more than {HEADERS_LIMIT} header lines")
        if not self._is_in_body:  # else a trailer
            name = name.lower()
            self._headers.append((name, value))
            if name in _FRAMING:
                self._is_framed_twice = self._is_framed
                self._is_framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self.call is None:  # an interim answer
            return
        if self._is_framed_twice:
            self._headers = _as_framed(self._headers)
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

    def _pass_on(self, call: Call, data: bytes) -> None:
        """Pass on bytes of the body, now or in turns."""
        if self._pieces is not None:
            self._pieces = chain(self._pieces, call.pieces(data))
        elif len(data) <= PIECE and call.decompressor is None:
            call.data(data)
        else:
            self._pieces = call.pieces(data)
            self._take_turn()

    def _take_turn(self) -> None:
        """Pass on pieces for a turn's time; when all have been, what came after them has its effect."""
        call, end_s = self.call, turn_end_s()
        while call is not None and self._pieces is not None:
            try:
                piece = next(self._pieces, None)
            except ValueError:
                call.fail("malformed")
                return
            if piece is None:
                self._pieces = None
                self.pace()
                self._finish(call)
                return
            if piece:
                call.data(piece)
            if self.call is not call:
                return
            if is_turn_over(end_s):
                self.pace()
                self._pool.turns.join(self._take_turn)
                return

    @property
    def _is_large(self) -> bool:
        return self._answer_bytes >= LARGE_READ

    def _wait_to_end(self) -> None:
        """Everything has come and is passed on; what that brings about waits for its turn."""
        self._pieces = iter(())
        self.pace()
        self._pool.turns.join(self._take_turn)

    def _finish(self, call: Call) -> None:
        """Everything that has come is passed on: whether it was the last."""
        if self._is_complete:
            # Bytes after an answer make the connection useless.
            self._complete(call, is_reusable=not self._is_broken)
        elif self._is_broken:
            self._break(call)
        elif self._lost is not None:
            self._end(*self._lost)

    def _complete(self, call: Call, *, is_reusable: bool) -> None:
        is_reusable = (
            is_reusable
            and not (self._ends_with_connection or self.is_closed)
            and self._keeps_alive
            and call.method != "HEAD"
            # Of a request that was answered early the rest would go before the next one.
            and self.transport.get_write_buffer_size() == 0
        )
        self.call = None
        self._is_in_body = self._is_complete = self._is_head_told = False
        self._head = b""
        self._head_bytes = self._answer_bytes = self._lines = 0
        call.end(self, is_reusable=is_reusable)

    def _break(self, call: Call) -> None:
        """What came is not HTTP, or too long."""
        why = self._why or f"more than {HEAD_LIMIT} bytes that frame an answer"
        self._pool.reachability.garbled(self.origin, why, now_s=boot_s())
        self.drop()
        if not call.is_over:
            call.lost(has_bytes=True)
