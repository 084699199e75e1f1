"""Requests of one client connection, parsed strictly (llhttp) and within limits. No socket, no clock.

Rules:
1. What llhttp refuses in its strict mode is refused: a length and chunks at once, spaces before a colon,
   bare line feeds, folded lines. So is what says twice where it goes (RFC 9112, 3.2): a second host header.
   Two servers could read such a request differently.
2. Head, number of headers, body and the bytes that frame it are bounded. What is beyond a bound gets one
   clear answer, and the connection is closed.
3. Requests that a client sends ahead (pipelining) are answered in order. No more than PIPELINE_LIMIT are
   parsed ahead, and none when the heads of those cost AHEAD_LIMIT; what follows them waits as bytes, and the
   connection is read no further (`is_full`).
   A body in chunks is parsed CHUNKED_AT_ONCE bytes at a time, by each `go_on`: chunks of one byte cost a
   hundred times what others cost, and other clients' requests are read in between.
4. An offer of another protocol (h2c, as clients in Java make with every request) is ignored, and the request
   read as if it had not been made (RFC 9110, 7.8). llhttp ends such a request with its head, so the head is
   parsed anew without the offer. The one offer that is kept is a WebSocket's, a GET without a body.
5. Equal lengths are one, and the head is parsed anew with it (`heads.py`). Where the beginning of the head
   came in one read with the end of a body it may not be known where that is: it is refused.
"""

from __future__ import annotations

from collections import deque

import httptools
from msgspec import Struct

from serving.router.headers import HEADERS_LIMIT, is_websocket
from serving.router.heads import HEAD_END, after_heads, is_of_lengths, with_one_length
from serving.router.types import Body, Pieces, Refusal

HEAD_LIMIT = 64 << 10  # bytes of a request's head
BODY_LIMIT = 64 << 20  # bytes
PIPELINE_LIMIT = 8  # requests that wait, parsed
AHEAD_LIMIT = 16 << 10  # bytes of memory of their heads
HEADER_COST = 160  # bytes of memory of a header, beside its text
FRAMED_LIMIT = BODY_LIMIT + (16 << 20)  # bytes of a body with what frames its chunks
CHUNKED_AT_ONCE = 4 << 10  # bytes of a body in chunks

_OF_OFFER = frozenset({b"upgrade", b"http2-settings"})
# Headers with a meaning here.
_READ = frozenset({b"content-length", b"content-encoding", b"expect", b"host", b"transfer-encoding"})
CODED = Refusal(
    501, "transfer_coding", "transfer-encoding can only be `chunked`; use content-encoding to compress a body"
)
TWO_HOSTS = Refusal(400, "bad_request", "the request has more than one host header; send one")


class ParsedRequest(Struct, frozen=True, gc=False):
    """A whole request. Names of headers are in lower case."""

    method: str
    target: bytes  # as it was sent, with the query
    headers: tuple[tuple[bytes, bytes], ...]
    body: Body
    keep_alive: bool
    is_http_11: bool
    is_encoded: bool = False  # the body has a content-encoding
    is_websocket: bool = False  # a WebSocket's handshake: a GET that offers nothing else
    head_cost: int = 0  # bytes of memory of its head


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
        self._between = 0  # bytes since the last ones of the body: of a chunk's size, an extension, trailers
        self._is_encoded = False
        self._body: Body = b""
        self._is_begun = self._is_in_body = False
        self._ended = 0  # requests in the bytes that were parsed last
        self._has_host = False
        self._has_offer = False  # of another protocol, which the last request makes; it is parsed again
        self._unread = b""  # what waits until requests are taken out
        self._head = b""  # the beginning of a head as it came; empty: none has begun, or it is not known
        self._is_for_length = False  # its end is waited for: it has two lengths, perhaps equal ones

    @property
    def is_idle(self) -> bool:
        """True between two requests."""
        return not self._is_begun

    @property
    def is_empty(self) -> bool:
        """True when nothing waits and no request is arriving."""
        return not (self._is_begun or self.requests or self._unread)

    @property
    def buffered(self) -> int:
        """Bytes that are held: of an unfinished body, and not parsed yet."""
        return self._body_bytes + len(self._unread)

    @property
    def has_unread(self) -> bool:
        """True when there is something for `go_on`."""
        return bool(self._unread)

    @property
    def has_more(self) -> bool:
        """True when something waits: whole requests, or bytes for `go_on`."""
        return bool(self.requests) or bool(self._unread)

    @property
    def has_whole(self) -> bool:
        """True when a whole request waits, as far as can be known before its bytes are parsed."""
        return bool(self.requests) or (bool(self._unread) and not self.has_chunks)

    @property
    def has_chunks(self) -> bool:
        """True when `go_on` has to be called again and again, for a body in chunks."""
        if not self._unread or not self._is_chunked:
            return False
        return self.refusal is None and self._room > 0

    @property
    def is_full(self) -> bool:
        """True when no more bytes should be read from the client."""
        return bool(self._unread) or self._room <= 0

    @property
    def _room(self) -> int:
        """How many more requests may wait."""
        waiting = self.requests
        if not waiting:
            return PIPELINE_LIMIT
        is_small = sum(one.head_cost for one in waiting) < AHEAD_LIMIT
        return PIPELINE_LIMIT - len(waiting) if is_small else 0

    def feed(self, data: bytes) -> None:
        """Parse the next bytes, or keep them, when enough requests wait."""
        if self.refusal is not None:
            return
        is_in_body = self._is_in_body
        if self._unread or (is_in_body and self._is_chunked):
            self._unread += data
        elif is_in_body and self._body_left >= len(data):
            self._parse(data)
        elif not is_in_body and len(data) <= CHUNKED_AT_ONCE and data.count(HEAD_END) <= min(1, self._room):
            self._parse(data)  # it holds one request at most
        else:
            self._unread = data
            self.go_on()

    def go_on(self) -> None:
        """Parse what waits, as far as there is room for requests."""
        data, self._unread, at = self._unread, b"", 0
        while at < len(data) and self.refusal is None:
            end, is_chunked = len(data), self._is_chunked
            room = self._room
            if room <= 0:
                break
            if is_chunked:
                end = min(after_heads(data, at, room), at + CHUNKED_AT_ONCE)
            elif self._body_left < end - at:
                end = at + self._body_left if self._is_in_body else after_heads(data, at, 1)
            self._parse(data[at:end])
            at = end
            if is_chunked and self._is_chunked:
                break
        if self.refusal is None:
            self._unread = data[at:]

    def _parse(self, data: bytes) -> None:
        was_in_body, known, self._ended = self._is_in_body, self._body_bytes, 0
        head = self._head + data if self._head or not self._is_begun else b""
        self._head = b""
        if self._is_for_length:
            self._parse_with_one_length(head)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._has_offer:
                self._parse_without_offer(data[exc.args[0] :])
                return
        except httptools.HttpParserError as exc:
            head = self._begun_after(head) if self._ended else head
            if is_of_lengths(exc) and head:
                self._parse_with_one_length(head)
            elif self.refusal is None:
                self._refuse_malformed(str(exc).partition("\n")[0][:100] or "malformed")
            return
        if self._ended:
            self._head = self._begun_after(head) if self._is_begun else b""
            return  # where in these bytes the next request begins is not known; they are one read at most
        if self._is_in_body:
            framed = len(data) if was_in_body else 0
            self._framed_bytes += framed
            self._between = self._between + framed if self._body_bytes == known else 0
            if self._framed_bytes > FRAMED_LIMIT:
                self._refuse_body()
            elif self._between > HEAD_LIMIT:
                self._refuse_framing()
        elif self._is_begun:
            self._head = head
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                self._refuse_head()

    def _begun_after(self, data: bytes) -> bytes:
        """The beginning of the head that follows a whole request, from whose own head on this came; empty: it
        is not known where that is."""
        data, one = data.lstrip(b"\r\n"), self.requests[-1] if self._ended == 1 and self.requests else None
        if not data or one is None or any(name == b"transfer-encoding" for name, _ in one.headers):
            return b""
        return data[data.find(HEAD_END) + len(HEAD_END) + len(one.body) :]

    def _parse_with_one_length(self, data: bytes) -> None:
        """Parse a head with several lengths again, and what follows it, when it has come whole. By rule 5."""
        data = data.lstrip(b"\r\n")
        end = data.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            self._head, self._is_for_length = data, True
            if len(data) > HEAD_LIMIT:
                self._refuse_head()
            return
        self._is_for_length = False
        if (head := with_one_length(data[:end])) is None:
            self._refuse_malformed("no single Content-Length")
            return
        self._parser = httptools.HttpRequestParser(self)
        self._parse(head)
        if end < len(data) and self.refusal is None:
            self._parse(data[end:])

    def _parse_without_offer(self, rest: bytes) -> None:
        """Parse the last head again as if no other protocol were offered, then what follows it. By rule 4."""
        start = b"%s %s HTTP/%s\r\n" % (
            self._parser.get_method(),
            b"".join(self._target),
            self._parser.get_http_version().encode(),
        )
        head = [name + b": " + value + b"\r\n" for name, value in _without_offer(self._headers)]
        self._has_offer, self._parser = False, httptools.HttpRequestParser(self)
        self._parse(b"".join([start, *head, b"\r\n"]))
        if rest and self.refusal is None:
            self._parse(rest)

    @property
    def _body_left(self) -> int:
        """Bytes of a declared length that have not come; 0: none is declared, or no body is being read."""
        return self._declared - self._body_bytes if self._is_in_body else 0

    @property
    def _is_chunked(self) -> bool:
        """True while a body in chunks is being read."""
        return self._is_in_body and not self._declared

    @property
    def is_in_body(self) -> bool:
        """True after a head, before the end of its body."""
        return self._is_in_body

    @property
    def target(self) -> bytes:
        """The target of the request that is being read, or was read last; empty: there is none yet."""
        return b"".join(self._target)

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Headers of that request, as far as they have come."""
        return tuple(self._headers)

    @property
    def head(self) -> tuple[str, bytes, tuple[tuple[bytes, bytes], ...]]:
        """Method, target and headers of the request whose body is being read."""
        return self._parser.get_method().decode("ascii"), self.target, self.headers

    def refuse(self, refusal: Refusal) -> None:
        """Read no more; this is the answer to the request that is being read, whose body is dropped."""
        self.refusal = self.refusal or refusal
        self.has_new_head = False
        self._body, self._body_bytes, self._unread = b"", 0, b""

    def _refuse_malformed(self, reason: str) -> None:
        text = f"the request is not valid HTTP/1.1 ({reason}); correct the client"
        self.refusal = Refusal(400, "bad_request", text)

    def _refuse_head(self) -> None:
        text = f"a request's head has at most {HEAD_LIMIT} bytes and {HEADERS_LIMIT} headers; send fewer"
        self.refusal = Refusal(431, "head_too_large", text)

    def _refuse_body(self) -> None:
        text = f"body of more than {BODY_LIMIT} bytes; send a smaller request"
        self.refusal = Refusal(413, "body_too_large", text)
        self._body, self._body_bytes = b"", 0

    def _refuse_framing(self) -> None:
        text = f"a chunk's extension and a body's trailers have at most {HEAD_LIMIT} bytes; send fewer"
        self.refuse(Refusal(431, "trailers_too_large", text))

    # ---- the parser's callbacks; an exception here is an HttpParserError for `feed`

    def on_message_begin(self) -> None:
        self._is_begun, self._is_in_body = True, False
        self._target, self._headers, self._body = [], [], b""
        self._head_bytes = self._head_size = self._body_bytes = self._framed_bytes = self._declared = 0
        self._between = 0
        self._is_encoded = self.wants_continue = self._has_host = False

    def on_url(self, url: bytes) -> None:
        self._target.append(url)
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_body:
            return  # a trailer
        name, headers = name.lower(), self._headers
        headers.append((name, value))
        self._head_size = size = self._head_size + len(name) + len(value) + 4
        if size > HEAD_LIMIT or len(headers) > HEADERS_LIMIT:
            self._refuse_head()
            raise ValueError("head too large")
        if name not in _READ:
            return
        if name == b"content-length":
            self._declared = int(value)
            if self._declared > BODY_LIMIT:
                self._refuse_body()
                raise ValueError("body too large")
        elif name == b"host":
            if self._has_host:
                self.refusal = TWO_HOSTS
                raise ValueError("two hosts")
            self._has_host = True
        elif name == b"content-encoding":
            self._is_encoded = True
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                self.refusal = CODED  # its coding is not passed on (RFC 9112, 6.1)
                raise ValueError("transfer coding")
        elif value.strip().lower() == b"100-continue":
            self.wants_continue = True

    def on_headers_complete(self) -> None:
        if self.wants_continue and self._parser.get_http_version() != "1.1":
            self.wants_continue = False  # HTTP/1.0 knows no interim answers
        self._is_in_body = self.has_new_head = True

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > BODY_LIMIT:
            self._refuse_body()
            raise ValueError("body too large")
        if not self._body:
            self._body = data
            return
        if isinstance(self._body, bytes):
            self._body = Pieces(self._body)
        self._body.add(data)

    def on_message_complete(self) -> None:
        self._is_begun = self._is_in_body = self.has_new_head = False
        self._ended += 1
        is_upgrade, method = self._parser.should_upgrade(), self._parser.get_method()
        is_handshake = is_upgrade and method == b"GET" and is_websocket(self._headers)
        if is_upgrade and not is_handshake and method != b"CONNECT":
            self._has_offer = True
            return
        body = self._body if isinstance(self._body, bytes) else self._body.body
        self.requests.append(
            ParsedRequest(
                method.decode("ascii"),
                b"".join(self._target),
                tuple(self._headers),
                body,
                self._parser.should_keep_alive() and not is_upgrade,
                self._parser.get_http_version() == "1.1",
                self._is_encoded,
                is_handshake,
                self._head_size + HEADER_COST * len(self._headers),
            )
        )
        self._body = b""
        self._body_bytes = 0


def _without_offer(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those that offer another protocol."""
    kept = []
    for name, value in headers:
        if name == b"connection":
            tokens = (token.strip() for token in value.split(b","))
            value = b", ".join(one for one in tokens if one.lower() not in _OF_OFFER)
        if name not in _OF_OFFER:
            kept.append((name, value))
    return kept
