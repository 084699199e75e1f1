"""A router that is told to stop while a request is arriving, on a clock that jumps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving.router.bodies.body_reader import BodyReader
from serving.router.front.client_connection import ClientConnection
from tests.fakes.virtual_wire import Habit, _ClientTransport, head, virtual_time, wire

BODY = json.dumps({"messages": [{"role": "user", "content": "q"}]}).encode()
ANSWER = b'{"id":"a","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
HEAD = b"POST /chat/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(BODY)
DRAIN_S = 25.0


def stopped(arrived: bytes, rest: bytes, *, rest_s: float = 5.0) -> tuple[bytes, float]:
    """What a client read of which so much had arrived at the stop, and the seconds until its connection's
    end. rest: sent `rest_s` after the stop, unless that has ended."""

    async def go() -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()
        answer = [(0.5, head(200, "application/json", length=len(ANSWER)) + ANSWER)]
        made = await wire(lambda path, body: answer if path else (), weight_bp=1)
        connection = ClientConnection(made.front)
        transport = _ClientTransport(Habit(), loop)
        transport.connection = connection
        connection.connection_made(transport)
        if arrived:
            connection.data_received(arrived)
        stopping, began_s = loop.create_task(made.front.stop(drain_s=DRAIN_S)), loop.time()
        while not transport.has_left:
            await asyncio.sleep(0.1)
            if left and loop.time() >= began_s + rest_s and not transport.is_closing():
                connection.data_received(left.pop())
        took_s = loop.time() - began_s
        await stopping
        return transport.read, took_s

    left = [rest] if rest else []
    with virtual_time() as loop:
        return loop.run_until_complete(go())


WHOLE = HEAD + BODY


@pytest.mark.parametrize("cut", [30, len(HEAD), len(HEAD) + 10])
def test_a_request_that_is_arriving_is_answered(cut: int) -> None:
    read, took_s = stopped(WHOLE[:cut], WHOLE[cut:])

    assert read.startswith(b"HTTP/1.1 200 ")
    assert read.endswith(ANSWER)
    assert took_s < 7.0


@pytest.mark.parametrize("cut", [len(HEAD), len(HEAD) + 10])
def test_one_that_has_not_arrived_at_the_end_is_told_so(cut: int) -> None:
    read, took_s = stopped(WHOLE[:cut], b"")

    assert read.startswith(b"HTTP/1.1 503 ")
    assert b'"stopping"' in read
    assert DRAIN_S <= took_s <= DRAIN_S + 2.5


def test_an_idle_connection_is_closed_at_once() -> None:
    read, took_s = stopped(b"", b"")

    assert read == b""
    assert took_s < 0.5


LARGE = b'{"messages":[{"role":"user","content":"' + b"a" * (2 << 20) + b'"}]}'
COSTLY = b'{"messages":[{"role":"user","content":"' + b"a" * 8192 + b'"}]}'
POST = HEAD.split(b"content-length")[0] + b"content-length: %d\r\n\r\n"


def told(*sent: bytes, has_table: bool = True, is_hurried: bool = True) -> tuple[list[bytes], int]:
    """What clients read that had sent this before the router was told to stop twice; requests at engines
    afterwards. The process that reads bodies reads none."""

    async def go() -> tuple[list[bytes], int]:
        loop, asked = asyncio.get_running_loop(), list[str]()

        def silent(path: str, body: dict[str, Any]) -> tuple[()]:
            asked.append(path)
            return ()

        made = await wire(silent, weight_bp=1)
        if not has_table:
            made.core.table = None
        clients = []
        for one in sent:
            transport = _ClientTransport(Habit(), loop)
            transport.connection = ClientConnection(made.front)
            transport.connection.connection_made(transport)
            transport.connection.data_received(one)
            clients.append(transport)
        if not is_hurried:  # and what waits for a turn still waits
            made.front._is_stopping = True
            made.front._tell_all()
        else:
            await asyncio.sleep(0.1)
        stopping = loop.create_task(made.front.stop(drain_s=DRAIN_S))
        await asyncio.sleep(0.1)
        made.front.hurry()
        await stopping
        return [one.read for one in clients], len([path for path in asked if path])

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(1e9)

    with pytest.MonkeyPatch.context() as patched, virtual_time() as loop:
        patched.setattr(BodyReader, "prepare", never)
        return loop.run_until_complete(go())


def test_a_client_whose_body_is_being_read_is_told() -> None:
    """Its connection was broken without a word: the request had no call yet."""
    (read,), asked = told(POST % len(LARGE) + LARGE)

    assert read.startswith(b"HTTP/1.1 503 ")
    assert read.count(b"HTTP/1.1") == read.count(b'"stopping"') == 1
    assert asked == 0


def test_a_client_whose_request_waits_for_the_table_is_told() -> None:
    (read,), asked = told(POST % len(BODY) + BODY, has_table=False)

    assert read.startswith(b"HTTP/1.1 503 ")
    assert b'"stopping"' in read
    assert asked == 0


def test_a_client_whose_request_waits_for_its_turn_is_told_and_no_engine_is_asked() -> None:
    read, asked = told(*[POST % len(COSTLY) + COSTLY] * 3, is_hurried=False)

    assert [one.count(b'"stopping"') for one in read] == [1, 1, 1]
    assert {one[:13] for one in read} == {b"HTTP/1.1 503 "}
    assert asked == 0


def test_a_request_sent_ahead_that_is_about_to_begin_keeps_its_place() -> None:
    """Between an answer and the next turn of the loop it was begun, and its connection lost its place."""

    async def go() -> tuple[bool, bytes]:
        loop = asyncio.get_running_loop()
        made = await wire(lambda path, body: (), weight_bp=1)
        transport = _ClientTransport(Habit(), loop)
        connection = transport.connection = ClientConnection(made.front)
        connection.connection_made(transport)
        connection.data_received(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n" * 2)
        has_ended = connection.close_if_idle(made.front.load.crowd_refusal())
        read = transport.read
        await asyncio.sleep(1)
        await made.close()
        return has_ended, read

    with virtual_time() as loop:
        has_ended, read = loop.run_until_complete(go())

    assert not has_ended
    assert read.count(b"HTTP/1.1 404 ") == 1
