"""A router that is told to stop while a request is arriving, on a clock that jumps."""

from __future__ import annotations

import asyncio
import json

import pytest

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
