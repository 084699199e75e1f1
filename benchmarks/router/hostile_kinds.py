"""Kinds of hostile clients, by what they send: `hostile.py` measures what they do to others."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

MIB = 1 << 20
PIECE = 256 << 10
CHAT = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
POOLING = CHAT.replace("/v1/chat/completions", "/pooling")
FORM = "POST /v1/audio/translations HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
OPENING = b'{"model":"chat","messages":[{"role":"user","content":"'


@dataclass(frozen=True, slots=True)
class Hostile:
    """One kind. `pieces`: what a connection sends, made anew for each. `pause_s`: between two pieces.
    `reads`: whether it reads what it is answered. `opens`: sent first, and its answer waited for."""

    connections: int
    pieces: Callable[[], Iterable[bytes]]
    pause_s: float = 0.0
    reads: bool = True
    is_renamed: bool = False  # for endpoints with model names of their own, so that forms are read
    opens: bytes = b""


def _head(size: int, more: str = "", *, start: str = CHAT) -> bytes:
    return f"{start}content-length: {size}\r\n{more}\r\n".encode()


def _large(filler: bytes, *, size: int = 64 * MIB - 1024, before: bytes = OPENING) -> Iterator[bytes]:
    """A body of one filler, just below the most that is read."""
    yield _head(len(before) + size) + before
    piece = filler * (PIECE // len(filler))
    for _ in range(size // len(piece)):
        yield piece
    yield piece[: size % len(piece)]


def _random(size: int = 64 * MIB - 1024) -> Iterator[bytes]:
    yield _head(size)
    for at in range(0, size, PIECE):
        yield os.urandom(min(PIECE, size - at))


def _nested(levels: int) -> Iterator[bytes]:
    value = b'{"a":' * levels + b"1" + b"}" * levels
    body = b'{"model":"chat","messages":[{"role":"user","content":"hello"}],"x":' + value + b"}"
    yield _head(len(body)) + body


def _names(count: int) -> Iterator[bytes]:
    body = b'{"model":"chat",' + b",".join(b'"%d":%d' % (n, n) for n in range(count)) + b"}"
    yield _head(len(body))
    yield body


def _compressed(size: int) -> Iterator[bytes]:
    body = gzip.compress(OPENING + b" " * size + b'"}]}')
    yield _head(len(body), "content-encoding: gzip\r\n") + body


def _chunks(size: int) -> Iterator[bytes]:
    """A body in chunks of one byte."""
    yield f"{CHAT}transfer-encoding: chunked\r\n\r\n".encode()
    piece = b"1\r\n \r\n" * (PIECE // 6)
    for _ in range(size * 6 // len(piece)):
        yield piece


def _form() -> Iterator[bytes]:
    part = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n'
    body = part * (8 * MIB // len(part)) + b"--b--\r\n"
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
    yield head + b"content-type: multipart/form-data; boundary=b\r\n\r\n"
    yield body


def _trickled(head: bytes) -> Iterator[bytes]:
    """The beginning, then a byte at a time."""
    yield head
    while True:
        yield b"a"


def _again(body: bytes, more: str = "", *, start: str = CHAT) -> Callable[[], Iterator[bytes]]:
    """One body with a length, again and again on the same connection."""

    def pieces() -> Iterator[bytes]:
        while True:
            yield _head(len(body), more, start=start) + body

    return pieces


def _growing(size: int) -> Iterator[bytes]:
    """A body of which so many bytes come at a time, in the same moment as those of all others."""
    yield _head(64 * MIB) + OPENING
    while True:
        yield b"a" * size


def _silent() -> Iterator[bytes]:
    """A request whose body never comes."""
    yield _head(64 * MIB)
    while True:
        yield b""


def _ahead() -> Iterator[bytes]:
    """A stream, and behind it requests with as much of a head as is read."""
    stream = _endless_stream()
    yield next(stream)
    head = _head(len(SMALL), "x-filler: " + "a" * 60_000 + "\r\n")
    while True:
        yield head + SMALL


def _framed(before: bytes, filler: bytes) -> Iterator[bytes]:
    """What frames a body in chunks and never ends."""
    yield f"{CHAT}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n".encode() + before
    for _ in range(79 * MIB // PIECE):
        yield filler * PIECE


def _turns(content: bytes) -> bytes:
    """A chat whose first assistant turn has this content."""
    return b'{"model":"chat","messages":[{"role":"user"},{"role":"assistant","content":' + content + b"}]}"


TEXT = OPENING + b"a" * (MIB - 200) + b'"}]}'  # just below what another process reads
ESCAPES = OPENING + b"\\u00e9" * (MIB // 6 - 50) + b'"}]}'
LISTS = _turns(b"[" + b"[]," * 20_000 + b"0]")
FLOATS = _turns(b"[" + b",".join([b"1." + b"2" * 30 + b"e-300"] * 26_000) + b"]")
NAMES = b'{"model":"chat",' + b",".join(b'"%d":%d' % (n, n) for n in range(4700)) + b"}"
NANS = _turns(b"[" + b"NaN," * (MIB // 4 - 50) + b"0]")
TURNS = b'{"model":"chat","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 30_000) + b"]}"
OBJECTS = b'{"x":["file_id"],"messages":[' + b",".join([b'{"content":[{"file":{}}]}'] * 14_000) + b"]}"
TURNS_ALONE = b'{"signature":1,"messages":[' + b",".join([b"{}"] * 20_000) + b"]}"
NAMED_FORM = b'{"signature":1,"messages":[' + b",".join([b"{}"] * (MIB // 3 - 50)) + b"]}"
PART = b"--b\r\ncontent-disposition: form-data; name=m" + b"; name=m" * 7 + b"\r\n\r\nx\r\n"
SMALL = b'{"model":"chat","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}'
VECTORS = b'{"model":"chat","input":[' + b",".join([b"[1,2,3,4]"] * 100_000) + b"]}"
USER = gzip.compress(b'{"model":"chat","messages":[],"user":"' + b"a" * 60 * 10**6 + b'"}')


def _many(one: bytes, count: int = 2000) -> Iterator[bytes]:
    yield one * count


def _endless_stream() -> Iterator[bytes]:
    fields = {"model": "chat", "stream": True, "max_tokens": 10**6, "messages": [{"role": "user"}]}
    body = json.dumps(fields).encode()
    yield _head(len(body)) + body
    while True:
        yield b""


HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
UNANSWERED = HANDSHAKE.replace(b"/v1/realtime", b"/v1/realtime?silent=1")
PING = b"\x89\x80\x00\x00\x00\x00"  # masked, with nothing in it


def _frames(size: int) -> Iterator[bytes]:
    """Binary frames of so many bytes, one after the other."""
    while True:
        yield b"\x82\xff" + size.to_bytes(8, "big") + bytes(4)
        for at in range(0, size, PIECE):
            yield bytes(min(PIECE, size - at))


def _always(piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.repeat(piece)


def _websocket(
    connections: int,
    pieces: Callable[[], Iterable[bytes]],
    pause_s: float = 0.0,
    *,
    reads: bool = True,
) -> Hostile:
    return Hostile(connections, pieces, pause_s, reads, opens=HANDSHAKE)


# The engine sends back what it is sent.
WEBSOCKETS: dict[str, Hostile] = {
    "WebSockets, a frame without an end": _websocket(40, lambda: _frames(1 << 62)),
    "WebSockets, frames of 16 MiB": _websocket(40, lambda: _frames(16 * MIB)),
    "WebSockets, frames of 1 byte": _websocket(40, lambda: _frames(1)),
    "WebSockets, floods of pings": _websocket(200, _always(PING * 10_000)),
    "WebSockets, a ping at a time": _websocket(1000, _always(PING)),
    "WebSockets, 1000 pings at once": _websocket(1000, _always(PING), 1.0),
    "WebSockets, 16 KiB at once": _websocket(1000, _always(bytes(16 << 10)), 1.0),
    "WebSockets that nobody reads": _websocket(200, _always(bytes(PIECE)), reads=False),
    "WebSockets opened and closed": _websocket(64, lambda: iter([b""]), 0.001, reads=False),
    "1000 WebSockets opened at once": _websocket(1000, lambda: iter([b""]), 1.0),
    "upgrades a byte at a time": Hostile(
        1000, lambda: (HANDSHAKE[n : n + 1] for n in range(len(HANDSHAKE))), 0.05
    ),
    "upgrades that no engine answers": Hostile(1000, lambda: iter([UNANSWERED, *[b""] * 60]), 1.0),
    "frames behind the handshake": Hostile(40, lambda: itertools.chain([HANDSHAKE], _frames(16 * MIB))),
    "64 KiB behind an unanswered one": Hostile(
        200, lambda: itertools.chain([UNANSWERED], _frames(1 << 62)), 0.1
    ),
}
KINDS: dict[str, Hostile] = {
    "64 MiB of one string": Hostile(8, lambda: _large(b"a")),
    "64 MiB of escapes": Hostile(8, lambda: _large(b"\\u00e9")),
    "64 MiB of spaces": Hostile(8, lambda: _large(b" ", before=b"")),
    "64 MiB of brackets": Hostile(8, lambda: _large(b"[", before=b"")),
    "64 MiB of numbers": Hostile(8, lambda: _large(b"1,", before=b'{"model":"chat","x":[')),
    "64 MiB of random bytes": Hostile(8, _random),
    "1000 levels": Hostile(32, lambda: _nested(1000)),
    "1,000,000 levels": Hostile(8, lambda: _nested(1_000_000)),
    "500,000 names": Hostile(8, lambda: _names(500_000)),
    "64 MiB from 64 KiB of gzip": Hostile(8, lambda: _compressed(64 * MIB - 1024)),
    "4 GiB from 4 MiB of gzip": Hostile(2, lambda: _compressed(1024 * MIB)),
    "chunks of one byte": Hostile(8, lambda: _chunks(8 * MIB)),
    "form of 160,000 parts": Hostile(8, _form),
    "head without an end": Hostile(8, lambda: _many(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, 1)),
    "head of one long line": Hostile(8, lambda: _many(b"GET /" + b"a" * 8 * MIB, 1)),
    "heads a byte at a time": Hostile(1000, lambda: _trickled(b"GET / HTTP/1.1\r\na: "), 1.0),
    "bodies a byte at a time": Hostile(1000, lambda: _trickled(_head(64 * MIB) + OPENING), 1.0),
    "2000 requests at once, 404": Hostile(16, lambda: _many(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")),
    "2000 bad requests at once": Hostile(16, lambda: _many(_head(2) + b"{]")),
    "connections opened and closed": Hostile(64, lambda: _many(b"", 1), 0.001),
    "streams that nobody reads": Hostile(200, _endless_stream, 1.0, reads=False),
    "100 x 60 KB of lists": Hostile(100, _again(LISTS)),
    "100 x 60 KB of names": Hostile(100, _again(NAMES)),
    "100 x 1 MiB of text": Hostile(100, _again(TEXT)),
    "100 x 1 MiB of escapes": Hostile(100, _again(ESCAPES)),
    "100 x 64 MiB": Hostile(100, lambda: _large(b"a")),
    "4 x 1 MB of floats": Hostile(4, _again(FLOATS)),
    "60 MB of a user's name, as gzip": Hostile(12, _again(USER, "content-encoding: gzip\r\n")),
    "trailer without an end": Hostile(8, lambda: _framed(b"0\r\nx-t: ", b"a")),
    "size of a chunk without an end": Hostile(8, lambda: _framed(b"", b"0")),
    "8 x 1 MiB of NaN": Hostile(8, _again(NANS)),
    "8 x 30,000 turns": Hostile(8, _again(TURNS)),
    "8 x 14,000 turns of small objects": Hostile(8, _again(OBJECTS)),
    "8 x 20,000 turns and a signature": Hostile(8, _again(TURNS_ALONE)),
    "8 x 1 MiB of JSON named a form": Hostile(8, _again(NAMED_FORM, start=FORM)),
    "8 forms of 950 parts": Hostile(8, _again(PART * 950 + b"--b--\r\n", start=FORM), is_renamed=True),
    "400 x chunks of one byte": Hostile(400, lambda: _chunks(8 * MIB)),
    "8 x 1 MB for /pooling": Hostile(8, _again(VECTORS, start=POOLING)),
    "1000 small requests at once": Hostile(1000, _again(SMALL), 1.0),
    "2000 bodies that grow at once": Hostile(2000, lambda: _growing(19_000), 1.0),
    "1000 heads whose bodies do not come": Hostile(1000, _silent, 1.0),
    "heads of 60 KB behind a stream": Hostile(100, _ahead, 0.1, reads=False),
    "all connections from one address": Hostile(17_000, lambda: iter([b"GET"] + [b""] * 60), 1.0),
    "random bytes": Hostile(64, lambda: iter([os.urandom(65536)])),
    **WEBSOCKETS,
}
