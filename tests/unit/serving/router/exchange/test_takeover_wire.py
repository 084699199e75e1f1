"""Streams that a canary drops, through a router on sockets: the client reads one valid stream."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.messages import STABLE, Arm, Replica
from serving.router.types import Limits
from tests.fakes.router_rig import CHAT, Behaviour, Engine, Rig, router_rig, running
from tests.fakes.token_engine import PROMPT, Answer, TokenEngine

COMPLETIONS = "/chat/v1/completions"
TEXT = "naïve 日本語 🇫🇷 end"
QUESTION = [{"role": "user", "content": "q"}]


def asked(path: str, **fields: object) -> dict[str, Any]:
    shape = {"messages": QUESTION} if path == CHAT else {"prompt": "q", "max_tokens": 100}
    return {"model": "chat", "stream": True, "stream_options": {"include_usage": True}, **shape, **fields}


def served_by(engine: Engine, one: TokenEngine, *, cut: int | None = None) -> Behaviour:
    async def behave(request: web.Request) -> web.StreamResponse:
        return await one.serve(request, engine.bodies[-1], cut)

    return behave


def script(rig: Rig, *, cut: int | None = None, vocabulary: str = "d1") -> None:
    rig.stable.behave = served_by(rig.stable, TokenEngine(TEXT))
    rig.canary.behave = served_by(
        rig.canary, TokenEngine(TEXT, name="canary", vocabulary=vocabulary), cut=cut
    )


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_connection_that_breaks_after_any_event_is_no_event_for_the_client(path: str) -> None:
    async with router_rig() as rig:
        taken_over = 0
        for cut in range(len(TEXT.encode()) + 3):
            script(rig, cut=cut)
            response = await rig.client.post(path, json=asked(path))
            answer, record = Answer(response.content, path == CHAT), await rig.record()

            tokens = len(TEXT.encode()) + 1
            assert (answer.text, answer.finish) == (TEXT, "stop")
            assert answer.usage == (len(PROMPT), tokens, len(PROMPT) + tokens)
            assert (record.outcome in ("fallback", "answered"), record.status, record.arm) == (True, 200, 1)
            if record.takeover_at is not None:
                taken_over += 1
                assert (record.error, record.cause, record.taken_over_by) == (True, "cut", STABLE)
                assert record.completion_tokens == tokens
                assert record.takeover_at <= cut

    assert taken_over > len(TEXT)


@pytest.mark.parametrize("asks_usage", [True, False])
@pytest.mark.parametrize("short", [1, 2, 9])
async def test_a_clean_end_within_the_event_of_the_finish_loses_no_byte(short: int, asks_usage: bool) -> None:
    """short: so many bytes of the finish and its blank line do not come."""
    async with router_rig() as rig:
        script(rig)
        one = TokenEngine(TEXT, name="canary")

        async def behave(request: web.Request) -> web.StreamResponse:
            body = json.loads(rig.canary.bodies[-1])
            events = one.events(request.path, body)
            last = next(index for index, event in enumerate(events) if b'"finish_reason":"' in event)
            headers = {name.decode(): value.decode() for name, value in one.head(request.path, body)}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            await response.write(b"".join(events[: last + 1])[:-short])
            return response

        rig.canary.behave = behave
        fields = asked(CHAT) if asks_usage else {**asked(CHAT), "stream_options": None}
        answer, record = Answer((await rig.client.post(CHAT, json=fields)).content, True), await rig.record()

    tokens = len(TEXT.encode()) + 1
    assert (answer.text, answer.finish) == (TEXT, "stop")
    assert answer.usage == ((len(PROMPT), tokens, len(PROMPT) + tokens) if asks_usage else None)
    assert record.error is (short == 9)


async def test_what_stable_is_asked_to_continue() -> None:
    async with router_rig() as rig:
        script(rig, cut=4)
        fields = {"temperature": 0.5, "seed": 7, "max_completion_tokens": 50, "top_p": 0.9, "user": "u"}
        await rig.client.post(CHAT, json=asked(CHAT, chat_template_kwargs={"a": 1}, **fields))
        tokenize, continued = (json.loads(one) for one in rig.stable.bodies)
        paths = [one.path for one in rig.stable.seen]
        secrets = {one.headers["x-canaryctl-secret"] for one in rig.stable.seen}

    assert paths == ["/tokenize", "/v1/completions"]
    assert tokenize == {"model": "chat", "messages": QUESTION, "chat_template_kwargs": {"a": 1}}
    assert continued.pop("prompt") == [*PROMPT, *b"na"]  # the ids of 'ï' are of no whole text yet
    assert continued.pop("stream_options") == {"include_usage": True, "continuous_usage_stats": False}
    assert continued == {
        "model": "chat",
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "stream": True,
        "max_tokens": 48,
        "seed": 9,
    }
    assert secrets == {"s3cret"}


@pytest.mark.slow
async def test_openais_client_sees_one_stream() -> None:
    async with router_rig() as rig:
        script(rig, cut=6)
        client = openai.AsyncOpenAI(base_url=f"{rig.base}/chat/v1", api_key="x", max_retries=0)
        stream = await client.chat.completions.create(**asked(CHAT))
        chunks = [one async for one in stream]
        await client.close()

    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == TEXT
    assert len({one.id for one in chunks}) == 1
    assert [one.choices[0].delta.role for one in chunks if one.choices and one.choices[0].delta.role] == [
        "assistant"
    ]


async def test_another_vocabulary_continues_nothing_and_the_router_learns_it() -> None:
    async with router_rig() as rig:
        script(rig, cut=4, vocabulary="d2")
        first = await rig.client.post(CHAT, json=asked(CHAT))
        asked_first = [one.path for one in rig.stable.seen]
        records = [await rig.record()]
        second = await rig.client.post(CHAT, json=asked(CHAT))
        records.append(await rig.record())

    for response in (first, second):
        last = json.loads(response.content.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: "))
        assert last["error"]["code"] == "cut"
    assert asked_first == ["/tokenize"]
    assert len(rig.stable.seen) == 1
    assert [(one.outcome, one.covered, one.taken_over_by) for one in records] == [
        ("cut", True, None),
        ("cut", False, None),
    ]


@pytest.mark.slow
async def test_a_canary_that_hangs_in_mid_answer_is_replaced() -> None:
    async with router_rig(Limits(canary_stream_s=1.0, stall_s=0.3)) as rig:
        script(rig)
        engine = TokenEngine(TEXT, name="canary")

        async def hang(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"x-canaryctl-tokens": "d1 90"})
            response.content_type = "text/event-stream"
            await response.prepare(request)
            for event in engine.events("/v1/chat/completions", json.loads(rig.canary.bodies[-1]))[:5]:
                await response.write(event)
            await asyncio.sleep(30)
            return response

        rig.canary.behave = hang
        response = await rig.client.post(CHAT, json=asked(CHAT))
        record = await rig.record()
        await asyncio.wait_for(rig.canary.aborted.wait(), 20)

    assert Answer(response.content, True).text == TEXT
    assert (record.outcome, record.error, record.cause) == ("fallback", True, "stalled")


@pytest.mark.slow
async def test_a_stable_that_pauses_as_long_has_the_same_error_and_goes_on() -> None:
    async with router_rig(Limits(stall_s=0.2)) as rig:
        script(rig)
        rig.publish(weight_bp=0, change=2, canary=False)
        engine = TokenEngine(TEXT)

        async def pause(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            events = engine.events("/v1/chat/completions", json.loads(rig.stable.bodies[-1]))
            for index, event in enumerate(events):
                await response.write(event)
                await asyncio.sleep(0.5 if index == 5 else 0)
            return response

        rig.stable.behave = pause
        response = await rig.client.post(CHAT, json=asked(CHAT))
        record = await rig.record()

    assert Answer(response.content, True).text == TEXT
    assert (record.outcome, record.error, record.cause) == ("answered", True, "stalled")


@pytest.mark.slow
async def test_an_error_inside_an_answer_is_not_passed_on_and_what_came_before_is() -> None:
    async with router_rig() as rig:
        script(rig)
        engine = TokenEngine(TEXT, name="canary")

        async def fail(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"x-canaryctl-tokens": "d1 90"})
            response.content_type = "text/event-stream"
            await response.prepare(request)
            events = engine.events("/v1/chat/completions", json.loads(rig.canary.bodies[-1]))
            await response.write(events[0] + events[1])
            await asyncio.sleep(0.05)
            error = b'data: {"error":{"message":"dead","code":500}}\n\ndata: [DONE]\n\n'
            await response.write(events[2] + events[3] + b": ids 9\n" + error)
            return response

        rig.canary.behave = fail
        response = await rig.client.post(CHAT, json=asked(CHAT))
        record = await rig.record()

    assert Answer(response.content, True).text == TEXT
    assert (record.outcome, record.error, record.cause, record.takeover_at) == ("fallback", True, "cut", 2)


@pytest.mark.parametrize("line", [b": ids x\n", b": ids 99999999999\n", b": ids \n"])
async def test_ids_that_are_none_continue_nothing(line: bytes) -> None:
    async with router_rig() as rig:
        script(rig)
        events = TokenEngine(TEXT, name="canary").events("/v1/chat/completions", asked(CHAT))

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"x-canaryctl-tokens": "d1 90"})
            response.content_type = "text/event-stream"
            await response.prepare(request)
            await response.write(line + events[0] + b"".join(events[1:4]))
            assert request.transport is not None
            request.transport.close()
            return response

        rig.canary.behave = answer
        response = await rig.client.post(CHAT, json=asked(CHAT))

    assert b'"code": "cut"' in response.content
    assert b": ids" not in response.content


@pytest.mark.slow
async def test_a_client_that_waits_for_a_held_answer_gets_comments() -> None:
    async with router_rig(Limits(canary_stream_s=5.0, keep_alive_s=0.3)) as rig:
        script(rig)
        engine = TokenEngine(TEXT, name="canary")
        rig.publish(weight_bp=9999, change=2)

        async def slow(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0)
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            events = engine.events("/v1/chat/completions", json.loads(rig.canary.bodies[-1]))
            for event in events[:-3]:
                await response.write(event)
                await asyncio.sleep(0.05)
            if request.transport is not None:
                request.transport.close()
            return response

        rig.canary.behave = slow
        response = await rig.client.post(CHAT, json=asked(CHAT, stop=["zz"], user="u1"))
        record = await rig.record()

    assert response.content.startswith(b": keep-alive\n")
    assert Answer(response.content, True).text == TEXT
    assert response.headers["x-canaryctl-arm"] == "canary"  # of the attempt that began
    assert (record.outcome, record.error, record.served_arm, record.covered) == ("fallback", True, 0, None)


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


def hanging_at(path: str, engine: Engine, otherwise: Behaviour) -> Behaviour:
    """An engine that never answers this path."""

    async def behave(request: web.Request) -> web.StreamResponse:
        return await (hangs if request.path == path else otherwise)(request)

    return behave


LIMITS = Limits(canary_stream_s=2.0, stable_s=0.3, tokenize_s=0.3, stall_s=0.2, idle_s=20.0)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
async def test_a_step_of_a_takeover_that_hangs_ends_at_its_limit(path: str) -> None:
    async with router_rig(LIMITS) as rig:
        script(rig, cut=4)
        rig.stable.behave = hanging_at(path, rig.stable, rig.stable.behave)
        began_s = boot_s()
        response = await rig.client.post(CHAT, json=asked(CHAT))
        passed_s = boot_s() - began_s

    assert b'"code": "cut"' in response.content
    assert passed_s < 3.0  # and not idle_s


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
async def test_a_hung_step_of_a_takeover_is_asked_of_the_next_replica(path: str) -> None:
    async with router_rig(LIMITS) as rig, running(Engine("other")) as other:
        script(rig, cut=4)
        for first, second in ((rig.stable, other), (other, rig.stable)):
            second.behave = served_by(second, TokenEngine(TEXT))
            first.behave = hanging_at(path, first, served_by(first, TokenEngine(TEXT)))
            assert rig.core.table is not None
            stable = Arm("v-1", (Replica(rig.stable.url), Replica(other.url)))
            change = rig.core.table.change + 1
            rig.core.on_table(replace(rig.core.table, stable=stable, change=change), sent_s=boot_s())
            response = await rig.client.post(CHAT, json=asked(CHAT))

            assert Answer(response.content, True).text == TEXT


@pytest.mark.slow
async def test_a_tokenizer_that_trickles_ends_at_its_limit() -> None:
    async with router_rig(LIMITS) as rig:
        script(rig, cut=4)

        async def trickles(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"x-canaryctl-tokens": "d1 90"})
            await response.prepare(request)
            for _ in range(40):
                await response.write(b" ")
                await asyncio.sleep(0.1)
            return response

        rig.stable.behave = trickles
        began_s = boot_s()
        response = await rig.client.post(CHAT, json=asked(CHAT))

        assert boot_s() - began_s < 2.0
    assert b'"code": "cut"' in response.content
