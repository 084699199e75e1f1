"""Unusual forms of answers that other tools stumbled over in public, and that this router reads as meant."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.messages import Arm, Replica
from tests.fakes.router_rig import CHAT, Engine, Rig, router_rig, running
from tests.unit.serving.router.test_public_reports_answers import SSE, scan


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


def chunk(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"id": "a", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


TEXT = chunk(delta={"content": "x"}, finish_reason=None)
FIN = chunk(delta={}, finish_reason="stop")
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 1}


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


STREAMS: dict[str, tuple[list[bytes], str | None]] = {
    "no space": ([one.replace(b"data: ", b"data:") for one in (TEXT, FIN, DONE)], None),
    "carriage returns": ([one.replace(b"\n", b"\r\n") for one in (TEXT, FIN, DONE)], None),
    "data of two lines": ([TEXT.replace(b', "delta"', b',\ndata: "delta"'), FIN, DONE], None),
    "separators inside": ([chunk(delta={"content": "a\u2028b\u0085c"}), FIN, DONE], None),
    "comments, id, retry": ([b": PROCESSING\n\n", b"retry: 10\nid: 1\n", TEXT, FIN, DONE], None),
    "no finish": ([TEXT, DONE], "cut"),
    "no done": ([TEXT, FIN], None),
    "finish with content": ([chunk(delta={"content": "x"}, finish_reason="length"), DONE], None),
    "no index": ([one.replace(b'"index": 0, ', b"") for one in (TEXT, FIN)], None),
    "error null": ([TEXT.replace(b'{"id"', b'{"error": null, "id"'), FIN, DONE], None),
    "no choices at first": ([sse({"id": "", "choices": [], "prompt_filter_results": []}), TEXT, FIN], None),
    "usage": ([TEXT, FIN, sse({"id": "a", "choices": [], "usage": USAGE}), DONE], None),
    "reasoning only": ([chunk(delta={"reasoning_content": "x"}), FIN, DONE], None),
    "tool call": ([chunk(delta={"tool_calls": [{"index": 0, "id": "c"}]}), FIN, DONE], None),
    "error": ([TEXT, sse({"error": {"message": "boom", "code": 500}})], "error in the answer"),
}


@pytest.mark.parametrize("name", list(STREAMS))
def test_odd_streams(name: str) -> None:
    events, fault = STREAMS[name]

    assert scan(b"".join(events), kind=SSE).fault == fault


def test_usage_is_found_in_a_response() -> None:
    usage = {"input_tokens": 3, "output_tokens": 1}
    events = sse({"type": "response.output_text.delta", "delta": "x"})
    last = sse({"type": "response.completed", "response": {"id": "r", "usage": usage}})
    one = scan(events + last, path="/v1/responses")

    assert (one.fault, one.prompt_tokens, one.completion_tokens) == (None, 3, 1)


# ---- heads


@asynccontextmanager
async def raw_engine(answer: bytes, *, reads_body: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An engine that answers each request with these bytes, then closes; its URL, and the heads it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        lines = heads[-1].lower().split(b"\r\n")
        length = next((int(one[15:]) for one in lines if one.startswith(b"content-length:")), 0)
        if reads_body:
            await reader.readexactly(length)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


def publish(rig: Rig, url: str) -> None:
    rig.publish(change=2, canary=False)
    assert rig.core.table is not None
    stable = Arm("v-1", (Replica(url),), True)
    rig.core.on_table(replace(rig.core.table, change=3, stable=stable), sent_s=boot_s())


CHOICE = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
BODY = json.dumps({"id": "a", "choices": [CHOICE]})
KIND = b"content-type: application/json\r\n"
SIZED = b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY.encode())
OK = b"HTTP/1.1 200 OK\r\n"
IN_CHUNKS = b"transfer-encoding: Chunked\r\ntrailer: x-t\r\n\r\n%x;a=b\r\n%s\r\n0\r\nx-t: 1\r\n\r\n"
PADDED = b"transfer-encoding: chunked\r\n\r\n%x%s\r\n%s\r\n0%s\r\n\r\n"
HEADS = {
    "early hints": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK + KIND + SIZED,
    "100 that nobody asked for": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + KIND + SIZED,
    "no length": OK + KIND + b"\r\n" + BODY.encode(),
    "http/1.0": b"HTTP/1.0 200 OK\r\n" + KIND + b"\r\n" + BODY.encode(),
    "no reason": b"HTTP/1.1 200\r\n" + KIND + SIZED,
    "trailer": OK + KIND + IN_CHUNKS % (len(BODY), BODY.encode()),
    "blanks after a chunk's size": OK + KIND + PADDED % (len(BODY), b" \t  ", BODY.encode(), b"   "),
    "blanks before an extension": OK + KIND + PADDED % (len(BODY), b" ;a=b", BODY.encode(), b""),
    "both lengths": OK + KIND + b"content-length: 5\r\n" + IN_CHUNKS % (len(BODY), BODY.encode()),
    "not ascii": OK + KIND + "x-n: é\r\n".encode() + SIZED,
    "a header of 100 kB": OK + KIND + b"x-big: " + b"a" * 100_000 + b"\r\n" + SIZED,
    "charset": OK + b"Content-Type: Application/JSON; Charset=UTF-8\r\n" + SIZED,
}


@pytest.mark.parametrize("name", list(HEADS))
async def test_odd_heads(rig: Rig, name: str) -> None:
    async with raw_engine(HEADS[name]) as (url, _):
        publish(rig, url)
        answer = await rig.ask()
        one = await rig.record()

    assert (answer.status_code, answer.text) == (200, BODY)
    assert (one.error, one.outcome) == (False, "answered")


@pytest.mark.parametrize("size", [b"%x 0", b" %x", b"%x x", b"%xx"])
async def test_what_is_no_size_of_a_chunk_is_no_answer(rig: Rig, size: bytes) -> None:
    head = OK + KIND + b"transfer-encoding: chunked\r\n\r\n" + size % len(BODY)
    async with raw_engine(head + b"\r\n%s\r\n0\r\n\r\n" % BODY.encode()) as (url, _):
        publish(rig, url)
        answer = await rig.ask()

    assert answer.status_code == 503


@pytest.mark.slow
async def test_a_connection_with_both_lengths_is_closed_after_the_chunks(rig: Rig) -> None:
    """RFC 9112, 6.3: the chunks are what counts; what comes after them might be of another length."""
    rest: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{")
        writer.write(OK + KIND + b"content-length: 5\r\n" + IN_CHUNKS % (len(BODY), BODY.encode()))
        rest.set_result(await reader.read())  # to the end of the connection
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        publish(rig, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        answer = await rig.ask()
        async with asyncio.timeout(60):
            await rest

    assert (answer.text, answer.headers["content-length"]) == (BODY, str(len(BODY)))


@pytest.mark.parametrize("coding", ["identity", "chunked, identity"])
async def test_a_length_beside_what_are_no_chunks_is_no_answer(rig: Rig, coding: str) -> None:
    both = b"transfer-encoding: %s\r\n" % coding.encode() + SIZED
    async with raw_engine(OK + KIND + both) as (url, _):
        publish(rig, url)
        answer = await rig.ask()

    assert answer.status_code == 503


async def test_a_101_that_nobody_asked_for_is_no_answer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with raw_engine(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n") as (url, _):
        publish(rig, url)
        answer = await rig.ask()

    assert answer.status_code == 503
    assert [one for one in caplog.records if one.exc_info] == []


async def test_an_early_413_of_an_engine_reaches_the_client(rig: Rig) -> None:
    early = b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    async with raw_engine(early, reads_body=False) as (url, heads):
        publish(rig, url)
        answer = await rig.ask(user="x" * 200_000)

    assert (answer.status_code, len(heads)) == (413, 1)


@pytest.mark.parametrize("status", [429, 503, 502, 504, 529])
@pytest.mark.parametrize("wait", ["7", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_the_wait_that_stable_names_reaches_the_client(rig: Rig, status: int, wait: str) -> None:
    async def busy(_request: web.Request) -> web.StreamResponse:
        headers = {"retry-after": wait, "retry-after-ms": "1500"}
        return web.json_response({"error": {"message": "slow down"}}, status=status, headers=headers)

    rig.stable.behave = rig.canary.behave = busy
    answer = await rig.ask()

    assert (answer.status_code, answer.headers["retry-after"]) == (status, wait)
    assert answer.headers["retry-after-ms"] == "1500"


async def test_headers_of_an_api_reach_the_engine(rig: Rig) -> None:
    named = {"anthropic-beta": "tools-1", "anthropic-version": "2023-06-01"}
    await rig.client.post("/chat/v1/messages", json={"messages": []}, headers=named)

    assert {name: rig.canary.seen[0].headers[name] for name in named} == named


async def test_an_ipv6_endpoint_is_reached(rig: Rig) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with running(Engine("six"), host="::1") as engine:
        publish(rig, f"http://[::1]:{engine.port}")
        answer = await rig.ask()

    assert (answer.json()["id"], engine.seen[0].headers["host"]) == ("id-six", f"[::1]:{engine.port}")


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("coding", ["zstd", "br"])
async def test_a_body_in_an_unknown_coding_goes_on_untouched(rig: Rig, coding: str) -> None:
    async def fixed(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=BODY, content_type="application/json")

    rig.canary.behave = fixed
    async with raw_engine(OK + KIND + SIZED) as (url, heads):
        publish(rig, url)
        headers = {"content-type": "application/json", "content-encoding": coding}
        answer = await rig.client.post(CHAT, content=b"\x28\xb5\x2f\xfd", headers=headers)

    assert answer.status_code == 200
    assert f"content-encoding: {coding}".encode() in heads[0]


async def test_a_stream_outlives_the_end_of_the_router(rig: Rig) -> None:
    """What SIGTERM does: no new connections, idle ones are closed, requests under way end first."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": SSE})
        await response.prepare(request)
        await response.write(TEXT)
        begun.set()
        await goes_on.wait()
        for one in (FIN, DONE):
            await response.write(one)
        return response

    rig.canary.behave = slow
    asking = asyncio.create_task(rig.ask(stream=True))
    await begun.wait()
    stopping = asyncio.create_task(rig.front.stop(drain_s=10.0))
    await asyncio.sleep(0)
    goes_on.set()
    answer = await asking
    await stopping

    assert answer.content == TEXT + FIN + DONE
