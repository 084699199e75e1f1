"""What an engine answers is read in turns, and bounded, whatever it sends and however much at once."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from serving.messages import STABLE
from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.usual_answer import usual_answer
from serving.router.headers import HEADERS_LIMIT
from serving.router.types import Attempt, Failure, Limits
from serving.router.upstreams.engine_connection import HEAD_LIMIT, Headers
from serving.router.upstreams.upstream import Call, Upstream
from serving.targets import Endpoint
from tests.fakes.router_rig import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended: str | None = None
        self.over = asyncio.Event()

    def may_start(self) -> bool:
        return True

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_data(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_end(self) -> None:
        self.ended = "end"
        self.over.set()

    def on_silent(self) -> bool:
        return True

    def on_failed(self, why: Failure) -> None:
        self.ended = why
        self.over.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@asynccontextmanager
async def asked(serve: Serve, body: bytes = b"{}") -> AsyncIterator[tuple[Told, Upstream, Call, Attempt]]:
    """A request to this engine."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await serve(reader, writer)

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream, told = Upstream(Limits()), Told()
    attempt = Attempt(STABLE, Endpoint.parsed(url), "/v1/chat/completions", [], body, 20.0)
    call = upstream.open(attempt, "POST", told)
    try:
        yield told, upstream, call, attempt
    finally:
        upstream.close()
        server.close()


async def finished(told: Told) -> None:
    async with asyncio.timeout(10):
        await told.over.wait()


def whole(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (more, len(body), body)


EVENTS = b"".join(b'data: {"n": %d}\n\n' % n for n in range(40_000))


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
async def test_a_large_read_is_passed_on_in_pieces_and_the_loop_turns_in_between(
    coding: str, closes: bool
) -> None:
    """8 MB of small events at once stopped all streams for 3.5 s, compressed ones for 5.6 s."""
    packed = {"": EVENTS, "gzip": gzip.compress(EVENTS), "deflate": zlib.compress(EVENTS)}[coding]
    head = b"content-encoding: %b\r\n" % coding.encode() if coding else b""
    loop, turns, spent = asyncio.get_running_loop(), [0], list[int]()

    def count() -> None:
        turns[0] += 1
        loop.call_soon(count)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(packed, head))
        if closes:
            writer.close()

    async with asked(serve) as (told, _, _, _):

        def on_data(data: bytes) -> None:
            Told.on_data(told, data)
            time.sleep(0.0005)  # to scan it
            spent.append(turns[0])

        told.on_data = on_data  # type: ignore[method-assign]
        count()
        await finished(told)

    assert (told.ended, told.body) == ("end", EVENTS)
    assert max(map(len, told.pieces)) <= 16 << 10
    assert max(spent.count(one) for one in set(spent)) <= 4  # 2 ms of work


@pytest.mark.slow
async def test_a_call_that_is_paused_reads_no_more() -> None:
    sent = [0]

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        while sent[0] < 100_000_000:
            writer.write(b"a" * 1_000_000)
            sent[0] += 1_000_000
            await writer.drain()

    async with asked(serve) as (told, _, call, _):
        await until(lambda: len(told.body) > 1_000_000)
        call.pause()
        await asyncio.sleep(0.05)
        held = len(told.body)
        await asyncio.sleep(0.05)
        assert len(told.body) == held < 50_000_000
        call.resume()
        await until(lambda: len(told.body) > held)


@pytest.mark.slow
async def test_what_becomes_too_large_is_malformed() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(gzip.compress(b"a" * (9 << 20)), b"content-encoding: gzip\r\n"))

    async with asked(serve) as (told, _, _, _):
        await finished(told)

    assert told.ended == "malformed"


@pytest.mark.parametrize("before", [b"0\r\nx-t: ", b"1;"])
async def test_a_trailer_or_an_extension_without_an_end_breaks_the_answer(before: bytes) -> None:
    sent = [0]

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\n{}\r\n" + before)
        while not writer.is_closing() and sent[0] < 40 * HEAD_LIMIT:
            writer.write(b"a" * 65536)
            sent[0] += 65536
            await writer.drain()

    async with asked(serve) as (told, _, _, _):
        await finished(told)

    assert (told.ended, told.body) == ("cut", b"{}")
    assert sent[0] < 40 * HEAD_LIMIT


@pytest.mark.parametrize(
    ("head", "after", "ended"),
    [
        (b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n\r\n{}", b"", ("end", b"{}")),
        (b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n\r\n{}", b"a: b\r\n", ("reset", b"")),
        (b"HTTP/1.1 103 X\r\n%b\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"", ("end", b"{}")),
        (b"HTTP/1.1 103 X\r\n\r\n" * 20 + b"HTTP/1.1 103 X\r\n%b\r\n", b"a: b\r\n" * 2, ("reset", b"")),
        (CHUNKED + b"2\r\n{}\r\n0\r\n%b\r\n", b"a: b\r\n" * 2, ("cut", b"{}")),
    ],
)
async def test_an_answer_has_as_many_headers_and_trailers_as_a_request(
    head: bytes, after: bytes, ended: tuple[str, bytes]
) -> None:
    """62,000 lines of one head, 256 KiB, took 77 ms."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = b"".join(b"x-%d: b\r\n" % n for n in range(HEADERS_LIMIT - 1))
        writer.write(head.replace(b"%b", lines + after))

    async with asked(serve) as (told, _, _, _):
        await finished(told)

    assert (told.ended, told.body) == ended


@pytest.mark.parametrize("size", [10, 20_000_000])
async def test_a_connection_that_still_holds_a_request_is_not_used_again(size: int) -> None:
    """An engine that answers early and reads no more: the next user's request waited behind the rest."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
        await asyncio.sleep(2)

    async with asked(serve, b"a" * size) as (told, upstream, _, attempt):
        await finished(told)
        kept = [one for one in upstream._idle.get(attempt.endpoint.origin, ()) if not one.is_closed]

    assert told.ended == "end"
    assert len(kept) == (1 if size == 10 else 0)


# ---- the scan


def test_line_ends_before_a_first_event_are_bounded() -> None:
    scan = AnswerScan("/v1/chat/completions", "text/plain", streams=True)
    passed = sum(len(scan.feed(b"\n" * 16_384)) for _ in range(200))

    assert len(scan._buffer) <= 1 << 20
    assert passed > 2 << 20
    assert scan.end() == "malformed"


@pytest.mark.parametrize("index", [-1, 1 << 61, 5 * ((1 << 61) - 1), True])
def test_an_index_that_no_choice_has_is_not_kept(index: int) -> None:
    data = b'{"choices": [{"index": %d, "finish_reason": "stop"}], "usage": null}' % index
    scan = AnswerScan("/v1/chat/completions", "text/event-stream", choices=2)
    scan.feed(b"data: " + data + b"\n\n")
    usual = usual_answer(data)

    assert usual is not None
    assert max(usual[4] | scan._finished, default=0) < 1 << 16


@pytest.mark.parametrize("more", [b"content-length: 80001\r\n", b""])  # without: it ends with the connection
async def test_the_end_of_a_large_answer_waits_for_its_turn(more: bytes) -> None:
    """It is read whole then: of sixty indexing clients' the loop read all in one turn."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + more + b"\r\n")
        for piece in (b"a" * 40_000, b"b" * 40_000, b"c"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async with asked(serve) as (told, upstream, _, _):
        works: list[Callable[[], object]] = []

        def join(work: Callable[[], object], least_s: float = 0.0, client: str = "") -> None:
            works.append(work)

        upstream.turns.join = join  # type: ignore[method-assign]
        await until(lambda: bool(works))
        before = told.ended
        works[0]()

    assert (before, told.ended, len(told.body)) == (None, "end", 80_001)
