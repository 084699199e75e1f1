"""The front's HTTP: limits, framing, clients that half-close, send ahead, read slowly or never finish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from serving.router import client_connection, request_parser
from serving.router.request_parser import RequestParser
from tests.fakes.router_rig import CHAT, CHUNKS, Rig, chunk, router_rig, until

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
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.write(BODY)
    second = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert status(second) == 200


async def test_a_client_that_waits_for_100_after_a_request_sent_ahead_is_told_too(rig: Rig) -> None:
    reader, writer = await connect(rig)
    head = POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    writer.write(post() + head)
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 5)
    writer.write(BODY)
    second = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
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
        parser.feed(data)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert parser.buffered == 1_000_000
    assert held < 4_000_000


def test_chunks_that_are_mostly_frame_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_parser, "FRAMED_LIMIT", 100_000)
    parser = RequestParser()
    parser.feed(POST + b"transfer-encoding: chunked\r\n\r\n1;")
    for _ in range(20):
        parser.feed(b"a" * 10_000)

    assert parser.refusal is not None
    assert parser.refusal.status == 413


@pytest.mark.parametrize("data", [b"GET /v1/mod", POST + b"content-length: 100\r\n\r\n{"])
async def test_a_request_that_does_not_arrive_in_time_is_408(
    rig: Rig, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "HEAD_S", 0.2)
    monkeypatch.setattr(client_connection, "BODY_S", 0.2)
    reader, writer = await connect(rig)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()

    assert status(answer) == 408


async def test_trickled_bytes_do_not_extend_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HEAD_S", 0.3)
    reader, writer = await connect(rig)

    async def trickle() -> None:
        for byte in POST + b"x-a: " + b"b" * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    answer = await asyncio.wait_for(reader.read(), 5)
    trickling.cancel()

    assert status(answer) == 408


async def test_an_idle_connection_is_closed(rig: Rig) -> None:
    rig.front.load.client_idle_s = 0.2
    reader, writer = await connect(rig)

    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


# ---- clients that close, or do not read


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
    await asyncio.wait_for(rig.canary.aborted.wait(), 5)

    assert (await rig.record()).outcome == "cancelled"


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
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    writer.close()

    assert sent < 30 << 20  # what sockets hold; the answer has 100 MB
    await asyncio.wait_for(rig.canary.aborted.wait(), 5)
