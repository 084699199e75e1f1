"""Clients that leave in mid-answer: the record of a held kind of request is the same on both arms."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from serving.messages import RequestRecord
from serving.router.front import departed
from serving.router.types import Limits
from tests.fakes.router_rig import CHAT, Rig, chunk, router_rig, until

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
ANSWER = [chunk("Hel"), chunk("lo"), *[chunk("x")] * 20, chunk("", "stop"), b"data: [DONE]\n\n"]


def slow(rig: Rig) -> None:
    async def behave(request: web.Request) -> web.StreamResponse:
        return await rig.stable.stream(request, ANSWER, 0.01)

    rig.canary.behave = rig.stable.behave = behave


async def left_at_the_second_word(rig: Rig, arm: int, **fields: object) -> RequestRecord:
    """The record of a request of this arm whose client leaves when it reads the second word."""
    rig.publish(weight_bp=9999 if arm else 1, change=2)
    slow(rig)
    body = {"messages": [{"role": "user", "content": "q"}], "stream": True, "user": "u", **fields}
    async with rig.client.stream("POST", CHAT, json=body) as response:
        async for data in response.aiter_bytes():
            if b"lo" in data:
                break
    record = await rig.record()
    assert record.arm == arm
    return record


@pytest.mark.slow
@pytest.mark.parametrize("fields", [TOOLS, {"stop": ["zz"]}, {"presence_penalty": 0.5}])
async def test_whoever_stops_reading_a_held_kind_leaves_the_same_record_on_both_arms(
    fields: dict[str, object],
) -> None:
    found = []
    for arm in (0, 1):
        async with router_rig() as rig:
            record = await left_at_the_second_word(rig, arm, **fields)
            assert record.latency_ms is not None
            assert record.latency_ms > 100
            found.append((record.outcome, record.error, record.finish_reason, record.empty))
            await until(lambda rig=rig: not len(rig.front.departed) and not rig.front.bodies.total)  # type: ignore[misc]

    assert found == [("answered", False, "stop", False)] * 2


@pytest.mark.slow
async def test_nothing_is_kept_of_an_answer_that_nobody_reads_and_its_record_is_the_same() -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=9999, change=2)
        go_on = asyncio.Event()

        async def waits(request: web.Request) -> web.StreamResponse:
            response = await rig.canary.stream(request, ANSWER[:4])
            await go_on.wait()
            for one in ANSWER[4:]:
                await response.write(one)
            return response

        rig.canary.behave = waits
        asking = asyncio.create_task(rig.ask(user="u", stream=True, **TOOLS))
        await until(lambda: rig.core.held.total > 0)
        asking.cancel()
        await until(lambda: len(rig.front.departed) == 1)
        held = rig.core.held.total
        go_on.set()
        record = await rig.record()

    assert (held, rig.core.held.total) == (0, 0)
    assert (record.outcome, record.finish_reason, record.covered) == ("answered", "stop", True)


async def test_what_is_not_held_is_cancelled_as_before() -> None:
    async with router_rig() as rig:
        record = await left_at_the_second_word(rig, 0)
        await asyncio.wait_for(rig.stable.aborted.wait(), 20)

    assert (record.outcome, record.latency_ms) == ("cancelled", None)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
async def test_without_a_draw_the_answer_ends_with_its_client(weight_bp: int) -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=weight_bp, change=2)
        slow(rig)
        async with rig.client.stream(
            "POST", CHAT, json={"messages": [], "stream": True, **TOOLS}
        ) as response:
            async for _ in response.aiter_bytes():
                break
        record = await rig.record()

    assert record.outcome == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("arm", [0, 1])
async def test_a_client_that_leaves_before_the_first_word_is_cancelled_on_both_arms(arm: int) -> None:
    async with router_rig(Limits(canary_stream_s=20.0)) as rig:
        rig.publish(weight_bp=9999 if arm else 1, change=2)

        async def never(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            return web.Response()

        rig.canary.behave = rig.stable.behave = never
        asking = asyncio.create_task(rig.ask(user="u", stream=True, **TOOLS))
        await until(lambda: bool(rig.canary.seen or rig.stable.seen))
        asking.cancel()
        record = await rig.record()

    assert (record.arm, record.outcome) == (arm, "cancelled")


async def test_beyond_the_limit_the_answer_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departed, "LIMIT", 0)
    async with router_rig() as rig:
        record = await left_at_the_second_word(rig, 0, **TOOLS)

    assert record.outcome == "cancelled"


@pytest.mark.slow
async def test_a_departed_answer_that_fails_is_a_failure_of_its_arm() -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=1, change=2)

        async def cut(request: web.Request) -> web.StreamResponse:
            response = await rig.stable.stream(request, ANSWER[:8], 0.03)
            assert request.transport is not None
            request.transport.close()
            return response

        rig.stable.behave = cut
        body = {"messages": [], "stream": True, "user": "u", **TOOLS}
        async with rig.client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_bytes():
                break
        record = await rig.record()

    assert (record.outcome, record.error, record.cause) == ("cut", True, "cut")


@pytest.mark.slow
async def test_a_departed_canary_that_fails_is_asked_no_more_and_stable_neither() -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=9999, change=2)
        may_cut = asyncio.Event()

        async def cut(request: web.Request) -> web.StreamResponse:
            response = await rig.canary.stream(request, ANSWER[:8])
            await may_cut.wait()
            assert request.transport is not None
            request.transport.abort()
            return response

        rig.canary.behave = cut
        asking = asyncio.create_task(rig.ask(user="u", stream=True, **TOOLS))
        await until(lambda: rig.core.held.total > 0)
        asking.cancel()
        await until(lambda: len(rig.front.departed) == 1)
        may_cut.set()
        record = await rig.record()

    assert (record.arm, record.error, record.cause, record.outcome) == (1, True, "cut", "cut")
    assert (len(rig.canary.seen), len(rig.stable.seen)) == (1, 0)


async def test_answers_without_a_client_end_with_the_front() -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=1, change=2)
        slow(rig)
        endless = [chunk("x")] * 10_000

        async def behave(request: web.Request) -> web.StreamResponse:
            return await rig.stable.stream(request, endless, 0.01)

        rig.stable.behave = behave
        body = {"messages": [], "stream": True, "user": "u", **TOOLS}
        async with rig.client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_bytes():
                break
        await until(lambda: len(rig.front.departed) == 1)
        rig.front.departed.close()
        await asyncio.wait_for(rig.stable.aborted.wait(), 20)

    assert len(rig.front.departed) == 0
