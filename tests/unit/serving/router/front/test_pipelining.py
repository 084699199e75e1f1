"""Requests that a client sends ahead: few are parsed, all answered in order, none while answers wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from serving.router.front import client_connection
from serving.router.front.client_connection import ClientConnection
from serving.router.front.request_parser import HEAD_LIMIT, RequestParser
from tests.fakes.router_rig import CHAT, Rig, feed, router_rig, until

NOWHERE = b"GET /no/%05d HTTP/1.1\r\nhost: x\r\n\r\n"
LIMIT = 8  # requests that may wait


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


def post(body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return head % (CHAT.encode(), len(body)) + body


def taken(parser: RequestParser) -> list[bytes]:
    """The targets and bodies of all requests, in their order."""
    found = []
    while parser.requests or parser.has_unread:
        parser.go_on()
        while parser.has_chunks:
            parser.go_on()
        assert 0 < len(parser.requests) <= LIMIT
        one = parser.requests.popleft()
        found.append(one.target + bytes(one.body))
    return found


@pytest.mark.parametrize(
    ("size", "more", "most"),
    [(10, b"a: b\r\n", 8), (190, b"a: b\r\n", 1), (190, b"a: %b\r\n" % (b"b" * 290), 1)],
)
def test_few_large_heads_are_parsed_ahead(size: int, more: bytes, most: int) -> None:
    """Of 400 connections that sent eight behind a stream the parsed heads held 280 MB, in no budget."""
    parser = RequestParser()
    data = (b"GET /a HTTP/1.1\r\n" + more * size + b"\r\n") * 8
    for start in range(0, len(data), 1000):
        parser.feed(data[start : start + 1000])
    waiting = len(parser.requests)

    assert waiting == most
    assert parser.is_full
    assert taken(parser) == [b"/a"] * 8


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 18])
def test_of_many_requests_a_few_are_parsed_and_the_rest_waits_as_bytes(step: int) -> None:
    parser = RequestParser()
    data = b"".join(NOWHERE % index for index in range(2000))
    found = []
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
        assert len(parser.requests) <= LIMIT
        if parser.is_full:
            found += taken(parser)
    found += taken(parser)

    assert found == [b"/no/%05d" % index for index in range(2000)]
    assert parser.refusal is None
    assert not parser.is_full


def test_a_body_full_of_blank_lines_arrives_as_it_is() -> None:
    parser = RequestParser()
    body = b"\r\n\r\n" * 5000
    chunked = b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    feed(parser, chunked + (b"POST /d HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)) + body + chunked)

    assert taken(parser) == [b"/c" + body, b"/d" + body, b"/c" + body]
    assert parser.refusal is None


def test_the_beginning_of_a_head_after_a_long_body_is_no_long_head() -> None:
    parser = RequestParser()
    body = b"x" * 100_000
    one = post(body)
    parser.feed(one + one[:40])
    refusal = parser.refusal
    parser.feed(one[40:])

    assert refusal is None
    assert [request.body for request in parser.requests] == [body, body]


def test_an_endless_head_after_a_whole_request_is_431() -> None:
    parser = RequestParser()
    parser.feed(post(b"{}") + b"GET / HTTP/1.1\r\nx-a: ")
    parser.feed(b"a" * (HEAD_LIMIT + 1))

    assert parser.refusal is not None
    assert parser.refusal.status == 431


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests waited, of any connection, whenever bytes came."""
    waiting: list[int] = []
    received = ClientConnection.data_received

    def counted(connection: ClientConnection, data: bytes) -> None:
        received(connection, data)
        waiting.append(len(connection._parser.requests))

    monkeypatch.setattr(ClientConnection, "data_received", counted)
    return waiting


@pytest.mark.slow
async def test_a_client_that_sends_on_and_reads_nothing_is_read_no_further(
    rig: Rig, parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "WRITE_BUFFER", 32 << 10)
    host, port = rig.base.removeprefix("http://").split(":")
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect((host, int(port)))
        one.setblocking(False)
        _, writer = await asyncio.open_connection(sock=one.dup(), limit=1)
    writer.write(b"".join(NOWHERE % index for index in range(99_999)) * 6)  # 22 MB
    await until(lambda: any(one._blocked_s is not None for one in rig.front._connections))
    (connection,) = rig.front._connections
    answer = await rig.ask()
    left = writer.transport.get_write_buffer_size()

    assert answer.status_code == 200  # another client's
    assert left > 1 << 20  # it could send no more
    assert max(parsed) <= LIMIT
    assert connection.transport.get_write_buffer_size() < 64 << 10
    writer.transport.abort()


@pytest.mark.slow
async def test_a_client_that_sends_on_and_reads_gets_every_answer(rig: Rig, parsed: list[int]) -> None:
    host, port = rig.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"".join(NOWHERE % index for index in range(3000)))
    writer.write(b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answers = await asyncio.wait_for(reader.read(), 20)
    writer.close()

    assert answers.count(b"HTTP/1.1 404 ") == 3001
    assert max(parsed) <= LIMIT


async def test_requests_of_both_kinds_are_answered_in_their_order(rig: Rig) -> None:
    host, port = rig.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(30):  # in reads of their own, so that some come between an answer and the next request
        writer.write(NOWHERE % 0)
        writer.write(post(b'{"messages": []}'))
        await asyncio.sleep(0)
    writer.write(b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answers = await asyncio.wait_for(reader.read(), 20)
    writer.close()

    found = [one.split(b" ", 1)[0] for one in answers.split(b"HTTP/1.1 ")[1:]]
    assert found == [b"404", b"200"] * 30 + [b"404"]
