"""Answers of one connection as bytes of HTTP/1.1: the head, and how the body after it is framed. Pure."""

from __future__ import annotations

import time
from functools import lru_cache

from serving.router.headers import REASONS, TO_WEBSOCKET, date_line, lines_of
from serving.router.types import Deliver, Head

VERSION = b"HTTP/1.1 "


class AnswerFraming:
    """One answer at a time. `begin` before each."""

    __slots__ = (
        *("_is_chunked", "_is_head_request", "_is_http_11", "_left_bytes", "_sent_start"),
        *("has_head", "keep_alive"),
    )

    def __init__(self) -> None:
        self._sent_start = 0  # bytes of the status line that were sent ahead
        self.keep_alive = False  # the connection stays after this answer
        self.begin(is_head_request=False, is_http_11=False, keep_alive=False)

    def begin(self, *, is_head_request: bool, is_http_11: bool, keep_alive: bool) -> None:
        """The next answer is to such a request."""
        self._is_head_request = is_head_request
        self._is_http_11 = is_http_11
        self.keep_alive = keep_alive
        self.begin_anew()

    def begin_anew(self) -> None:
        """Another answer takes the place of one of which no head was sent."""
        self.has_head = self._is_chunked = False  # of this answer, written
        self._left_bytes: int | None = None  # of a body with a declared length

    @property
    def is_short(self) -> bool:
        """True when less of the body has come than its head declared."""
        return bool(self._left_bytes)

    def bytes_of(self, action: Deliver) -> bytes:
        """What is written of this; empty: nothing."""
        if self._is_chunked and action.head is None and action.then == "more":
            data = action.data  # most events of a stream
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        parts: list[bytes] = []
        if action.head is not None:
            self.has_head = True
            head = self._head_bytes(action.head, action.data if action.then == "end" else None)
            parts.append(head[self._sent_start :])
            self._sent_start = 0
        data = action.data
        if data and not self._is_head_request:
            if self._left_bytes is not None:
                data = data[: self._left_bytes]
                self._left_bytes -= len(data)
            parts += (b"%x\r\n" % len(data), data, b"\r\n") if self._is_chunked else (data,)
        if action.then == "end" and self._is_chunked:
            parts.append(b"0\r\n\r\n")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def start_ahead(self) -> bytes:
        """The next byte of the status line, whose beginning is the same whatever follows; empty: no more."""
        if self.has_head or self._sent_start >= len(VERSION):
            return b""
        self._sent_start += 1
        return VERSION[self._sent_start - 1 : self._sent_start]

    def switched(self, head: Head) -> bytes:
        """The head after which the connection speaks WebSocket: a 101."""
        lines = [
            _status_line(head.status),
            date_line(int(time.time())),
            *lines_of(head.headers),
            TO_WEBSOCKET,
        ]
        sent, self._sent_start, self.has_head = self._sent_start, 0, True
        return b"".join(lines)[sent:]

    def _head_bytes(self, head: Head, whole: bytes | None) -> bytes:
        """The head; decides how the body is framed. whole: the body, when that is known."""
        status = head.status
        lines = [_status_line(status), date_line(int(time.time()))]
        length: bytes | None = None
        for name, value in head.headers:
            if name == b"content-length":
                length = value
                continue
            lines += (name, b": ", value, b"\r\n")
        has_no_body = status in (204, 304)
        if length is not None and length.isdigit() and status != 204:  # which has none (RFC 9110, 8.6)
            lines += (b"content-length: ", length, b"\r\n")
            self._left_bytes = None if self._is_head_request or has_no_body else int(length)
        elif has_no_body or self._is_head_request:
            pass
        elif whole is not None:
            lines.append(b"content-length: %d\r\n" % len(whole))
        elif self._is_http_11:
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)


@lru_cache(maxsize=256)
def _status_line(status: int) -> bytes:
    return VERSION + b"%d %b\r\n" % (status, REASONS.get(status, b""))
