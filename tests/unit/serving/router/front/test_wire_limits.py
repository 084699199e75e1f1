"""The front's HTTP: limits, framing, clients that half-close, send ahead, read slowly or never finish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from serving.router.front import request_parser, time_limits
from serving.router.front.request_parser import RequestParser
from tests.fakes.router_rig import CHAT, CHUNKS, Rig, chunk, feed, router_rig, until

BODY = b'{"messages": []}'
POST = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


async def connect(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = rig.base.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def exchange(rig: Rig, data: bytes, *, half_close: bool = False) -> bytes:
    """All that is answered to these bytes until the router closes."""
    reader, writer = await connect(rig)
    writer.write(data)
    if half_close:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    lines = b"".join(one + b"\r\n" for one in headers)
    return POST + lines + b"content-length: %d\r\n\r\n%s" % (len(body), body)


# ---- framing


@pytest.mark.parametrize(
    "data",
    [
        POST + b"content-length: 16\r\ntransfer-encoding: chunked\r\n\r\n" + BODY,
        POST + b"content-length: 16\r\ncontent-length: 15\r\n\r\n" + BODY,
        POST + b"content-length: +16\r\n\r\n" + BODY,
        POST + b"content-length : 16\r\n\r\n" + BODY,
        POST + b"host: y\r\ncontent-length: 16\r\n\r\n" + BODY,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        POST + b"x-a: 1\r\n  folded: 2\r\ncontent-length: 0\r\n\r\n",
        POST + b"x-a: 1\0\r\ncontent-length: 0\r\n\r\n",
        b"GET /v1/models HTTP/3.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_two_servers_could_read_differently_is_400_and_reaches_no_engine(
    rig: Rig, data: bytes
) -> None:
    answer = await exchange(rig, data)

    assert status(answer) == 400
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
    assert (rig.stable.seen, rig.canary.seen) == ([], [])


async def test_an_error_after_a_head_request_has_its_body(rig: Rig) -> None:
    # It was taken for another answer to HEAD: a length, and nothing after it.
    answer = await exchange(rig, b"HEAD /chat/v1/models HTTP/1.1\r\nhost: x\r\n\r\nnonsense\r\n\r\n")
    _, _, refused = answer.partition(b"HTTP/1.1 400 ")

    assert b'"bad_request"' in refused.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection(
    rig: Rig, stream: bool
) -> None:
    body = json.dumps({"messages": [], "stream": stream}).encode()
    request = post(body=body).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, rest = (await exchange(rig, request)).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert rest == b"".join(CHUNKS) if stream else json.loads(rest)["id"] == "id-canary"


async def test_requests_sent_ahead_are_answered_in_order(rig: Rig) -> None:
    bodies = [json.dumps({"messages": [], "user": f"u{index}"}).encode() for index in range(20)]
    data = b"".join(post(body=body) for body in bodies[:-1]) + post(b"connection: close", body=bodies[-1])
    answer = await exchange(rig, data)

    assert answer.count(b"HTTP/1.1 200 OK") == 20
    assert rig.canary.bodies == bodies


async def test_a_chunked_request_is_sent_on_with_its_length(rig: Rig) -> None:
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in (BODY[:3], BODY[3:]))
    data = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-t: 1\r\n\r\n"
    answer = await exchange(rig, data)

    assert status(answer) == 200
    assert rig.canary.bodies == [BODY]
    assert "x-t" not in rig.canary.seen[0].headers


async def test_a_client_that_waits_for_100_is_told_to_go_on(rig: Rig) -> None:
    reader, writer = await connect(rig)
    writer.write(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.write(BODY)
    second = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.close()

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert status(second) == 200


async def test_a_client_that_waits_for_100_after_a_request_sent_ahead_is_told_too(rig: Rig) -> None:
    reader, writer = await connect(rig)
    head = POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    writer.write(post() + head)
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 20)
    writer.write(BODY)
    second = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.close()

    assert [status(one) for one in (first, second)] == [200, 200]


async def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for(rig: Rig) -> None:
    answer = await exchange(
        rig, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )

    assert status(answer) == 200
    assert b"connection: close" in answer


# ---- limits


async def test_a_head_beyond_the_limit_is_431(rig: Rig) -> None:
    long = POST + b"x-a: " + b"a" * (80 << 10) + b"\r\n\r\n"
    endless = POST + b"x-a: " + b"a" * (200 << 10)
    many = POST + b"".join(b"x-%d: 1\r\n" % index for index in range(300)) + b"\r\n"

    assert [status(await exchange(rig, data)) for data in (long, endless, many)] == [431] * 3
    assert rig.canary.seen == []


async def test_a_body_beyond_the_limit_is_413_before_it_is_sent(rig: Rig) -> None:
    answer = await exchange(rig, POST + b"content-length: %d\r\n\r\n" % (65 << 20))

    assert status(answer) == 413


@pytest.mark.slow
def test_a_body_in_a_million_chunks_costs_little_more_than_its_bytes() -> None:
    import tracemalloc

    parser = RequestParser()
    parser.feed(POST + b"transfer-encoding: chunked\r\n\r\n")
    data = b"1\r\na\r\n" * 10_000
    tracemalloc.start()
    for _ in range(100):
        feed(parser, data)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert parser.buffered == 1_000_000
    assert held < 4_000_000


def test_chunks_that_are_mostly_frame_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_parser, "FRAMED_LIMIT", 100_000)
    parser = RequestParser()
    parser.feed(POST + b"transfer-encoding: chunked\r\n\r\n")
    for _ in range(20):
        feed(parser, b"1\r\na\r\n" * 2000)

    assert parser.refusal is not None
    assert parser.refusal.status == 413


@pytest.mark.parametrize("before", [b"1;", b"0\r\nx-t: ", b"0\r\n" + b"x: y\r\n" * 9 + b"x-", b"0"])
def test_what_frames_one_chunk_or_follows_the_last_is_bounded(before: bytes) -> None:
    """Of a trailer every piece was joined to all before it: 4 KB took 15 ms at 20 MB."""
    parser = RequestParser()
    parser.feed(POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n" + before)
    fed = 0
    while parser.refusal is None and fed < 1 << 20:
        feed(parser, before[:1] * 10_000)
        fed += 10_000

    assert parser.refusal is not None
    assert (parser.refusal.status, parser.buffered) == (431, 0)
    assert fed <= request_parser.HEAD_LIMIT + 10_000


def test_trailers_of_the_usual_size_are_read_and_dropped() -> None:
    parser = RequestParser()
    feed(parser, POST + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nx-t: a\r\n\r\n")

    assert [(bytes(one.body), parser.refusal) for one in parser.requests] == [(b"{}", None)]


def test_of_a_body_in_chunks_a_little_is_parsed_at_a_time() -> None:
    # A read of 256 KiB in chunks of one byte stopped all streams for 60 ms, and each connection may send one.
    parser = RequestParser()
    parser.feed(POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 40_000)
    parsed = []
    while parser.has_chunks:
        before = parser.buffered
        parser.go_on()
        parsed.append(before - parser.buffered)

    assert parser.buffered == 40_000
    assert max(parsed) <= request_parser.CHUNKED_AT_ONCE


async def test_chunks_of_one_byte_make_a_body_that_is_sent_on(rig: Rig) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 20_000}]}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
    head = POST + b"transfer-encoding: chunked\r\n\r\n"
    answers = await exchange(rig, (head + chunks) * 2, half_close=True)

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert rig.canary.bodies == [body, body]


async def test_a_body_in_chunks_that_ends_too_soon_ends_the_connection(rig: Rig) -> None:
    data = POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 10_000

    assert await exchange(rig, data, half_close=True) == b""


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"GET /v1/mod", POST + b"content-length: 100\r\n\r\n{"])
async def test_a_request_that_does_not_arrive_in_time_is_408(
    rig: Rig, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limits, "HEAD_S", 0.2)
    monkeypatch.setattr(time_limits, "BODY_S", 0.2)
    reader, writer = await connect(rig)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()

    assert status(answer) == 408


@pytest.mark.slow
async def test_trickled_bytes_do_not_extend_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "HEAD_S", 0.3)
    reader, writer = await connect(rig)

    async def trickle() -> None:
        for byte in POST + b"x-a: " + b"b" * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    answer = await asyncio.wait_for(reader.read(), 20)
    trickling.cancel()

    assert status(answer) == 408


@pytest.mark.slow
async def test_an_idle_connection_is_closed(rig: Rig) -> None:
    rig.front.load.client_idle_s = 0.2
    reader, writer = await connect(rig)

    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


# ---- clients that close, or do not read


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_closes_only_its_sending_side_gets_its_answer(rig: Rig, stream: bool) -> None:
    async def later(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return await rig.canary.well(request)

    rig.canary.behave = later
    body = json.dumps({"messages": [], "stream": stream}).encode()
    answer = await exchange(rig, post(body=body), half_close=True)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await rig.record()).outcome == "answered"


async def test_a_client_that_closes_its_sending_side_gets_the_answers_to_all_that_it_asked(rig: Rig) -> None:
    answer = await exchange(rig, post() * 3 + post()[:50], half_close=True)

    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3


@pytest.mark.slow
async def test_a_client_that_has_gone_is_found_out_before_an_answer_exists(rig: Rig) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    rig.canary.behave = never
    rig.core.limits = replace(rig.core.limits, canary_whole_s=30.0)
    _, writer = await connect(rig)
    writer.write(post())
    await until(lambda: bool(rig.canary.seen))
    writer.close()  # an orderly close, which looks like the end of sending
    await asyncio.wait_for(rig.canary.aborted.wait(), 20)

    assert (await rig.record()).outcome == "cancelled"


@pytest.mark.slow
async def test_a_client_that_does_not_read_stops_the_reading_of_its_engine(rig: Rig) -> None:
    sent = 0
    size = len(chunk("x" * 50_000))

    async def floods(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(2000):
            await response.write(chunk("x" * 50_000))
            sent += size
        return response

    rig.canary.behave = floods
    reader, writer = await connect(rig)
    writer.write(post(body=b'{"messages": [], "stream": true}'))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    writer.close()

    assert sent < 30 << 20  # what sockets hold; the answer has 100 MB
    await asyncio.wait_for(rig.canary.aborted.wait(), 20)


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"deflate, chunked"])
def test_a_transfer_coding_that_would_be_forgotten_is_501(coding: bytes) -> None:
    parser = RequestParser()
    feed(parser, POST + b"transfer-encoding: " + coding + b"\r\n\r\n0\r\n\r\n")

    assert parser.refusal is not None
    assert parser.refusal.status == 501
    assert not parser.requests


async def test_the_routers_own_paths_take_no_body(rig: Rig) -> None:
    """Nobody needs a key for them, so nobody's bodies were kept by them."""

    async def own(path: str) -> tuple[int, bytes]:
        return 200, path.encode()

    rig.front.serve_own_routes(own, (b"/health",))
    reader, writer = await connect(rig)
    writer.write(b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n" + b"a" * 1000)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    other, sender = await connect(rig)
    sender.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    plain = await other.readuntil(b"\r\n\r\n")
    for one in (writer, sender):
        one.close()

    assert (status(answer), status(plain)) == (413, 200)
    assert rig.front.bodies.total == 0
