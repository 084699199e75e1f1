"""Upstreams that behave oddly on the wire: headers, kept connections; and errors of the router's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from serving.clock import boot_s
from serving.messages import Arm, Replica, RouteTable
from serving.router.exchange.exchange import Exchange
from tests.fakes.router_rig import CHAT, SECRET, Rig, router_rig
from tests.unit.serving.router.test_public_reports_forms import KIND, OK, SIZED, publish, raw_engine

NAME = "é".encode()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


async def sent(rig: Rig, head: bytes) -> bytes:
    """The head of the answer to a request with this line in its head."""
    host, port = rig.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\n%b\r\ncontent-length: 2\r\n\r\n{}" % (CHAT.encode(), head))
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    return answer


async def test_bytes_of_a_header_that_are_no_ascii_pass_unchanged_both_ways(rig: Rig) -> None:
    async with raw_engine(OK + KIND + b"x-out: " + NAME + b"\r\n" + SIZED) as (url, heads):
        publish(rig, url)
        answer = await sent(rig, b"user-agent: " + NAME)  # a header that goes on to endpoints

    assert b"user-agent: " + NAME + b"\r\n" in heads[0]
    assert b"x-out: " + NAME + b"\r\n" in answer


async def test_of_several_kept_connections_that_are_dead_one_alone_is_tried(rig: Rig) -> None:
    """An endpoint that answers once a connection: the repeat of a dead one goes to a new connection."""
    started, together = 0, asyncio.Event()

    async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal started
        await reader.readuntil(b"}")
        started += 1
        if started >= 4:
            together.set()
        await together.wait()
        writer.write(OK + KIND + SIZED)
        await reader.readuntil(b"}")  # the next request, which gets no answer
        writer.transport.abort()

    async with await asyncio.start_server(serve_once, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        one_of = (Replica(url),)
        stable, canary = Arm("v-1", one_of, external=True), Arm("v-2", one_of, external=True)
        table = RouteTable("chat", 1, 2, 2, "r-1", "s", 10_000, stable, canary, 0, SECRET)
        rig.core.on_table(table, sent_s=boot_s())
        before = await asyncio.gather(*(rig.ask(user=f"u{n}") for n in range(4)))
        rig.records()
        after = await rig.ask()
        one = await rig.record()

    assert {answer.status_code for answer in (*before, after)} == {200}
    assert (started, one.error, one.outcome, one.served_arm) == (5, False, "answered", 1)


async def test_an_error_of_the_routers_own_on_both_arms_is_500_and_recorded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Exchange, "answered", fails)
    answer = await rig.ask()
    one = await rig.record()

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert (one.outcome, one.error, len(one.attempts)) == ("failed", True, 2)  # stable was asked too


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
async def test_no_credential_of_a_client_reaches_an_engine(rig: Rig, name: str) -> None:
    await rig.client.post(CHAT, json={"messages": []}, headers={name: "secret of a client"})

    [seen] = rig.canary.seen
    assert name not in seen.headers
    assert "secret of a client" not in seen.headers.values()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OK + KIND + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "Content-Length"),
        ((OK + KIND + SIZED).replace(b"\r\n", b"\n"), ""),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "101"),
        (b"hello\r\n\r\n", ""),
        (OK + b"x: y\r\n" * 300 + SIZED, "more than 200 header lines"),
        (OK + b"x: " + b"y" * (900 << 10) + b"\r\n" + SIZED, "more than 262144 bytes"),
    ],
)
async def test_an_answer_that_is_no_http_is_told_with_its_reason(
    rig: Rig, answer: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_engine(answer) as (url, _):
        publish(rig, url)
        got = [(await rig.ask()).status_code for _ in range(2)]
    told = [one for one in caplog.records if "is no HTTP" in one.message]

    assert got == [503, 503]
    assert [one.__dict__["endpoint"] for one in told] == [url]  # once a minute
    assert why in told[0].__dict__["error"]
    assert told[0].__dict__["error"]
