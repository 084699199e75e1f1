"""Clients that do not read their answers, on a clock that jumps: their connections end all the same."""

from __future__ import annotations

import asyncio

from serving.router.front.time_limits import LINGER_S
from tests.fakes.virtual_wire import LIMITS, Habit, Piece, head, virtual_time, wire

SMALL, LARGE = 100 << 10, 1_000_000  # bytes of an answer: one fits into the buffer for its client


def answer(size: int) -> list[Piece]:
    start = b'{"id":"a","choices":[{"index":0,"message":{"role":"assistant","content":"'
    data = start + b"x" * size + b'"},"finish_reason":"stop"}]}'
    return [(0.1, head(200, "application/json", length=len(data)) + data)]


def test_who_does_not_read_gives_up_its_place_by_being_broken() -> None:
    """It was told to close, and stayed open with its answer until it had read."""

    async def go() -> tuple[list[bool], bool]:
        made = await wire(lambda path, _: answer(LARGE) if path else (), weight_bp=1)
        client = made.send("/v1/chat/completions", {"messages": []}, Habit(reads_bytes_a_s=0.0))
        await asyncio.sleep(0.5)
        found = [client.connection.abort_if_unread()]
        await asyncio.sleep(LINGER_S)
        found.append(client.connection.abort_if_unread())
        await asyncio.sleep(0.1)
        await made.close()
        return found, client.has_left

    with virtual_time() as loop:
        assert loop.run_until_complete(go()) == ([False, True], True)


def test_a_connection_that_reads_is_not_broken_for_its_place() -> None:
    async def go() -> bool:
        made = await wire(lambda path, _: answer(LARGE) if path else (), weight_bp=1)
        client = made.send("/v1/chat/completions", {"messages": []})
        await asyncio.sleep(0.5 + LINGER_S)
        found = client.connection.abort_if_unread()
        await made.close()
        return found

    with virtual_time() as loop:
        assert not loop.run_until_complete(go())


def test_a_closing_connection_whose_client_does_not_read_ends_after_idle_s() -> None:
    """Only one with more than 256 KiB of unread answers did; any other stayed open for good."""

    async def go() -> list[bool]:
        made = await wire(lambda path, _: answer(SMALL) if path else (), weight_bp=1)
        more = b"connection: close\r\n"
        habit = Habit(reads_bytes_a_s=0.0)
        client = made.send("/v1/chat/completions", {"messages": []}, habit, more=more)
        found = []
        for _ in range(2):
            await asyncio.sleep(LIMITS.idle_s - 1.0)
            found.append(client.has_left)
        await made.close()
        return found

    with virtual_time() as loop:
        assert loop.run_until_complete(go()) == [False, True]
