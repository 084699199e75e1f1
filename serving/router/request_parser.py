"""Requests of one client connection, parsed strictly (llhttp) and within limits. No socket, no clock.

Rules:
1. What llhttp refuses in its strict mode is refused: a length and chunks at once, spaces before a colon,
   bare line feeds, folded lines. Two servers could read such a request differently.
2. Head, number of headers, body and the bytes that frame it are bounded. What is beyond a bound gets one
   clear answer, and the connection is closed.
3. Requests that a client sends ahead (pipelining) are answered in order. No more than PIPELINE_LIMIT are
   parsed ahead; what follows them waits as bytes, and the connection is read no further (`is_full`).
"""

from __future__ import annotations

from collections import deque

import httptools
from msgspec import Struct

from serving.router.types import Refusal

HEAD_LIMIT = 64 << 10  # bytes of a request's head
HEADERS_LIMIT = 200
BODY_LIMIT = 64 << 20  # bytes
PIPELINE_LIMIT = 8  # requests that wait, parsed
FRAMED_LIMIT = BODY_LIMIT + (16 << 20)  # bytes of a body with what frames its chunks


_READ = frozenset({b"content-length", b"content-encoding", b"expect"})  # headers with a meaning here
_HEAD_END = b"\r\n\r\n"  # of every head; llhttp takes no other


class ParsedRequest(Struct, frozen=True, gc=False):
    """A whole request. Names of headers are in lower case."""

    method: str
    target: bytes  # as it was sent, with the query
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    keep_alive: bool
    is_http_11: bool
    is_encoded: bool = False  # the body has a content-encoding


class RequestParser:
    """Feed it every byte; whole requests appear in `requests`, and what is wrong in `refusal`.

    When requests have been taken out, `go_on` parses what waits.
    """

    def __init__(self) -> None:
        self.requests: deque[ParsedRequest] = deque()
        self.refusal: Refusal | None = None  # of the request that follows those; nothing is read after it
        self.wants_continue = False  # the client waits for 100 before it sends its body
        self.has_new_head = False  # of a request whose body has not come whole, not judged yet
        self._parser = httptools.HttpRequestParser(self)
        self._target: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._head_size = self._body_bytes = self._framed_bytes = self._declared = 0
        self._is_encoded = False
        self._body: bytes | bytearray = b""
        self._is_begun = self._is_in_body = self._has_ended = False
        self._unread = b""  # what waits until requests are taken out

    @property
    def is_idle(self) -> bool:
        """True between two requests."""
        return not self._is_begun

    @property
    def buffered(self) -> int:
        """Bytes that are held: of an unfinished body, and not parsed yet."""
        return self._body_bytes + len(self._unread)

    @property
    def has_unread(self) -> bool:
        """True when there is something for `go_on`."""
        return bool(self._unread)

    @property
    def is_full(self) -> bool:
        """True when no more bytes should be read from the client."""
        return bool(self._unread) or len(self.requests) >= PIPELINE_LIMIT

    def feed(self, data: bytes) -> None:
        """Parse the next bytes, or keep them, when enough requests wait."""
        if self.refusal is not None:
            return
        if self._unread:
            self._unread += data
        elif len(self.requests) + data.count(_HEAD_END) <= PIPELINE_LIMIT:
            self._parse(data)  # it holds no more requests than may wait
        else:
            self._unread = data
            self.go_on()

    def go_on(self) -> None:
        """Parse what waits, as far as there is room for requests."""
        data, self._unread, at = self._unread, b"", 0
        while at < len(data) and self.refusal is None:
            room = PIPELINE_LIMIT - len(self.requests)
            if room <= 0:
                self._unread = data[at:]
                return
            end = len(data)
            if not (self._is_in_body and self._body_left >= end - at):
                end = _after_heads(data, at, room)
            self._parse(data[at:end])
            at = end

    def _parse(self, data: bytes) -> None:
        was_in_body, self._has_ended = self._is_in_body, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if the client had not asked; the connection ends after it
        except httptools.HttpParserError as exc:
            if self.refusal is None:
                reason = str(exc).partition("\n")[0][:100] or "malformed"
                text = f"the request is not valid HTTP/1.1 ({reason}); correct the client"
                self.refusal = Refusal(400, "bad_request", text)
            return
        if self._has_ended:
            return  # where in these bytes the next request begins is not known; they are one read at most
        if self._is_in_body:
            self._framed_bytes += len(data) if was_in_body else 0
            if self._framed_bytes > FRAMED_LIMIT:
                self._refuse_body()
        elif self._is_begun:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                self._refuse_head()

    @property
    def _body_left(self) -> int:
        """Bytes of a declared length that have not come; 0: none is declared."""
        return self._declared - self._body_bytes

    @property
    def is_in_body(self) -> bool:
        """True after a head, before the end of its body."""
        return self._is_in_body

    @property
    def head(self) -> tuple[str, bytes, tuple[tuple[bytes, bytes], ...]]:
        """Method, target and headers of the request whose body is being read."""
        return self._parser.get_method().decode("ascii"), b"".join(self._target), tuple(self._headers)

    def refuse(self, refusal: Refusal) -> None:
        """Read no more; this is the answer to the request that is being read, whose body is dropped."""
        self.refusal = self.refusal or refusal
        self.has_new_head = False
        self._body, self._body_bytes, self._unread = b"", 0, b""

    def _refuse_head(self) -> None:
        text = f"a request's head has at most {HEAD_LIMIT} bytes and {HEADERS_LIMIT} headers; send fewer"
        self.refusal = Refusal(431, "head_too_large", text)

    def _refuse_body(self) -> None:
        text = f"body of more than {BODY_LIMIT} bytes; send a smaller request"
        self.refusal = Refusal(413, "body_too_large", text)
        self._body, self._body_bytes = b"", 0

    # ---- the parser's callbacks; an exception here is an HttpParserError for `feed`

    def on_message_begin(self) -> None:
        self._is_begun, self._is_in_body = True, False
        self._target, self._headers, self._body = [], [], b""
        self._head_bytes = self._head_size = self._body_bytes = self._framed_bytes = self._declared = 0
        self._is_encoded = self.wants_continue = False

    def on_url(self, url: bytes) -> None:
        self._target.append(url)
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_body:
            return  # a trailer
        name = name.lower()
        self._headers.append((name, value))
        self._head_size += len(name) + len(value) + 4
        if self._head_size > HEAD_LIMIT or len(self._headers) > HEADERS_LIMIT:
            self._refuse_head()
            raise ValueError("head too large")
        if name not in _READ:
            return
        if name == b"content-length":
            self._declared = int(value)
            if self._declared > BODY_LIMIT:
                self._refuse_body()
                raise ValueError("body too large")
        elif name == b"content-encoding":
            self._is_encoded = True
        elif value.strip().lower() == b"100-continue":
            self.wants_continue = True

    def on_headers_complete(self) -> None:
        self._is_in_body = self.has_new_head = True

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > BODY_LIMIT:
            self._refuse_body()
            raise ValueError("body too large")
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body)
            self._body += data

    def on_message_complete(self) -> None:
        self._is_begun = self._is_in_body = self.has_new_head = False
        self._has_ended = True
        is_upgrade = self._parser.should_upgrade()
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        self.requests.append(
            ParsedRequest(
                self._parser.get_method().decode("ascii"),
                b"".join(self._target),
                tuple(self._headers),
                body,
                self._parser.should_keep_alive() and not is_upgrade,
                self._parser.get_http_version() == "1.1",
                self._is_encoded,
            )
        )
        self._body = b""
        self._body_bytes = 0


def _after_heads(data: bytes, start: int, count: int) -> int:
    """Where the `count`-th end of a head after `start` is over; the end of the data when there are fewer."""
    end = start
    for _ in range(count):
        found = data.find(_HEAD_END, end)
        if found < 0:
            return len(data)
        end = found + len(_HEAD_END)
    return end
