"""Endpoints that reset a connection at once: how often the request is sent, and whose error it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.virtual_wire import Piece, Wire, head, virtual_time, wire

CHAT = "/v1/chat/completions"
ANSWER = b'{"id": "a", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
WELL: list[Piece] = [(0.1, head(kind="application/json", length=len(ANSWER)) + ANSWER)]
ARMS = [(1, "stable"), (9999, "canary")]
PLAIN: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}]}
ACTING = {**PLAIN, "tools": [{"type": "mcp", "server_url": "x"}]}


async def after_others(made: Wire, body: dict[str, Any], kept: int) -> dict[str, int]:
    """How often each arm was sent this request, after others that left connections open."""
    for user in range(kept):
        made.send(CHAT, {"messages": [], "user": f"u{user}"}, more=b"connection: close\r\n")
    await asyncio.sleep(1.0)
    await made.records()
    before = {arm: one.requests for arm, one in made.engines.items()}
    made.send(CHAT, {**body, "seed": 7}, more=b"connection: close\r\n")
    await asyncio.sleep(1.0)
    return {arm: one.requests - before[arm] for arm, one in made.engines.items()}


@pytest.mark.parametrize("kept", [0, 12])
@pytest.mark.parametrize(("body", "times"), [(PLAIN, 2), (ACTING, 1)])
@pytest.mark.parametrize(("weight_bp", "arm"), ARMS)
def test_a_request_that_ends_its_engine_is_sent_twice_an_arm_and_once_if_it_acts(
    weight_bp: int, arm: str, body: dict[str, Any], times: int, kept: int
) -> None:
    def ends(_: str, body: dict[str, Any]) -> list[Piece]:
        return [(0.01, "reset")] if "seed" in body else WELL

    async def run() -> tuple[dict[str, int], bool | None]:
        made = await wire(ends, weight_bp=weight_bp, external=True)
        sent = await after_others(made, body, kept)
        (record,) = await made.records()
        await made.close()
        return sent, record.error

    with virtual_time() as loop:
        sent, is_error = loop.run_until_complete(run())

    assert sent == {"stable": times, "canary": times if arm == "canary" else 0}
    assert is_error is True


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize(("weight_bp", "arm"), ARMS)
def test_one_quick_reset_is_nobodys_error_whatever_connections_are_open(
    weight_bp: int, arm: str, kept: int
) -> None:
    """The arm with fewer requests finds a connection open less often."""
    seen = 0

    def resets_once(_: str, body: dict[str, Any]) -> list[Piece]:
        nonlocal seen
        seen += "seed" in body
        return [(0.01, "reset")] if "seed" in body and seen == 1 else WELL

    async def run() -> tuple[dict[str, int], tuple[bool | None, int]]:
        made = await wire(resets_once, weight_bp=weight_bp, external=True)
        sent = await after_others(made, PLAIN, kept)
        (record,) = await made.records()
        await made.close()
        return sent, (record.error, record.retries)

    with virtual_time() as loop:
        sent, (is_error, retries) = loop.run_until_complete(run())

    assert sent == {"stable": 0, "canary": 0, arm: 2}
    assert (is_error, retries) == (False, 0)


@pytest.mark.parametrize("kept", [0, 3])
def test_what_may_be_sent_but_once_takes_a_new_connection_and_is_forgiven_no_reset(kept: int) -> None:
    seen = 0

    def resets_once(_: str, body: dict[str, Any]) -> list[Piece]:
        nonlocal seen
        seen += "seed" in body
        return [(0.01, "reset")] if "seed" in body and seen == 1 else WELL

    async def run() -> tuple[int, int, bool | None]:
        made = await wire(resets_once, weight_bp=1, external=True)
        sent = await after_others(made, ACTING, kept)
        (record,) = await made.records()
        await made.close()
        return sent["stable"], made.connections["stable"], record.error

    with virtual_time() as loop:
        sent, connections, is_error = loop.run_until_complete(run())

    assert (sent, connections > kept, is_error) == (1, True, True)
