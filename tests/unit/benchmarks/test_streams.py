"""The benchmark of long streams: what counts as every byte of an answer."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from benchmarks.router.engine import END, LAST, chunk
from benchmarks.router.pacing import EVENT, HEAD, PacingEngine
from benchmarks.router.streams import Measured, read_streams


def event(number: int) -> bytes:
    return EVENT % (number, number, 0)


WHOLE = HEAD + chunk(event(0)) + chunk(event(1) + event(2)[:20]) + chunk(event(2)[20:]) + chunk(LAST) + END


async def errors_of(answer: bytes) -> list[str | None]:
    """What a client that wants three events says of an answer, which comes in pieces of 50 bytes."""

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            for start in range(0, len(answer), 50):
                self.transport.write(answer[start : start + 50])
            self.transport.close()

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        opened, late_us = await read_streams(server.sockets[0].getsockname()[1], 1, 3, open_s=0.0)
    assert all(late > 0 for late in late_us)
    return [stream.error for stream in opened]


async def test_a_whole_stream_has_no_error_however_it_is_cut() -> None:
    assert await errors_of(WHOLE) == [None]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (WHOLE.replace(chunk(event(0)), b""), "event b'1' came instead of 0"),
        (WHOLE.replace(chunk(event(0)), chunk(event(0)) * 2), "event b'0' came instead of 1"),
        (WHOLE.replace(chunk(LAST), b""), "ends with b''"),
        (WHOLE.replace(chunk(LAST), chunk(LAST) * 2), "ends with"),
        (WHOLE.removesuffix(END), "connection lost after 3 events"),
        (WHOLE.replace(b"200 OK", b"503 No"), "answered b'HTTP/1.1 503"),
        (WHOLE.replace(b'"index":0', b'"index":1', 1), "ends with"),
    ],
)
async def test_any_other_byte_is_an_error(answer: bytes, says: str) -> None:
    (error,) = await errors_of(answer)

    assert (error or "").startswith(says)


async def test_the_engine_writes_as_many_events_as_were_asked_for() -> None:
    server = await asyncio.get_running_loop().create_server(PacingEngine, "127.0.0.1", 0)
    async with server:
        reading = asyncio.create_task(read_streams(server.sockets[0].getsockname()[1], 2, 3, open_s=0.0))
        while not reading.done():
            await asyncio.sleep(0.001)
            for group in PacingEngine.groups:
                for stream in list(group):
                    stream.write_next()

    opened, late_us = reading.result()
    assert [stream.error for stream in opened] == [None, None]
    assert len(late_us) == 6
    assert not any(PacingEngine.groups)


@pytest.mark.parametrize(("memory", "growth"), [((), 1.0), ((10.0, 20.0, 30.0, 33.0, 36.0, 44.0), 44 / 30)])
def test_memory_is_compared_with_that_of_the_first_third(memory: tuple[float, ...], growth: float) -> None:
    row = Measured(1, 1, (), 1.0, 1.0, 1.0, memory_mib=memory)

    assert row.growth == pytest.approx(growth)
