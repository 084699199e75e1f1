"""When an answer is whole, what the record does to a stream, what is sent again, what a rejection is."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.messages import Arm, Replica, RouteTable
from serving.router.answers.answer_scan import AnswerScan
from serving.router.assignment.assignment import bucket_of, salt_of
from serving.router.bodies.body_facts import read_facts
from serving.router.exchange.exchange import Exchange
from serving.router.types import Limits
from tests.fakes.router_rig import CHAT, SECRET, Engine, router_rig, until

DONE = b"data: [DONE]\n\n"


def event(index: int, text: str, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
    return b"data: %b\n\n" % json.dumps({**fields, "choices": [choice]}).encode()


# ---- the number of choices


@pytest.mark.parametrize(
    ("written", "choices"),
    [
        ("null", 1),
        ("1", 1),
        ("2", 2),
        ("2.0", None),
        ('"2"', None),
        ("true", None),
        ("0", None),
        ("[2]", None),
    ],
)
def test_an_n_that_is_no_count_is_unknown_and_never_one(written: str, choices: int | None) -> None:
    facts = read_facts(b'{"stream": true, "messages": [], "n": %b}' % written.encode())

    assert facts is not None
    assert facts.choices == choices
    assert facts.continuable == (choices == 1)


@pytest.mark.parametrize(
    ("events", "is_whole", "defect"),
    [
        ([event(0, "A", "stop")], False, None),
        ([event(0, "A", "stop"), DONE], True, None),
        ([event(0, "A")], False, "cut"),
        ([event(0, "A"), DONE], False, "cut"),
    ],
)
def test_of_unknown_choices_a_stream_is_whole_only_as_its_engine_ends_it(
    events: list[bytes], is_whole: bool, defect: str | None
) -> None:
    scan = AnswerScan("/v1/chat/completions", "text/event-stream", None)
    for one in events:
        scan.feed(one)

    assert scan.is_whole is is_whole
    assert scan.end() == defect


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 2.0, "2"])
async def test_a_canary_that_breaks_in_its_second_answer_is_replaced_however_n_is_written(n: object) -> None:
    begun = [event(0, "A"), event(1, "B1 "), event(0, "", "stop"), event(1, "B2 ")]
    async with router_rig() as rig:
        rig.publish(weight_bp=9999, change=2)

        async def breaks(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for one in begun:
                await response.write(one)
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response

        async def whole(request: web.Request) -> web.StreamResponse:
            return await rig.stable.stream(request, [*begun, event(1, "B3"), event(1, "", "stop"), DONE])

        rig.canary.behave, rig.stable.behave = breaks, whole
        answer = await rig.ask(stream=True, n=n)
        record = await rig.record()

    assert b"B3" in answer.content
    assert answer.content.endswith(DONE)
    assert (record.arm, record.error, record.cause) == (1, True, "cut")


# ---- the record at the deadline


async def test_a_record_at_the_deadline_takes_no_byte_from_the_stream() -> None:
    usage = {"id": "c", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    last = b"data: %b\n\n" % json.dumps(usage).encode()
    events = [event(0, "A"), event(0, "", "stop"), last, DONE]
    half = asyncio.Event()
    async with router_rig(Limits(settle_s=0.0, canary_stream_s=20.0, stable_s=20.0)) as rig:
        rig.publish(weight_bp=10_000, change=2)

        async def slowly(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(events[0] + events[1] + last[:30])
            await half.wait()
            await response.write(last[30:] + DONE)
            return response

        rig.canary.behave = slowly
        asking = asyncio.create_task(rig.ask(stream=True, stream_options={"include_usage": True}))
        await until(lambda: bool(rig.core._unrecorded))
        (exchange,) = rig.core._unrecorded.values()
        assert isinstance(exchange, Exchange)
        await until(lambda: exchange.has_begun)
        exchange.settle_deadline_s = boot_s()
        rig.core.report(now_s=boot_s(), wall_s=time.time())
        half.set()
        answer = await asking

    assert exchange.is_recorded
    assert answer.content == b"".join(events)


# ---- what is sent again


@pytest.mark.parametrize(("path", "made"), [("batches", 1), ("files", 1), ("embeddings", 2)])
async def test_what_creates_something_is_never_sent_again_on_a_new_connection(path: str, made: int) -> None:
    async with router_rig() as rig:
        stable = Arm("v-1", (Replica(rig.stable.url),), external=True)
        table = RouteTable("chat", 1, 5, 5, "r-1", "salt", 0, stable, None, 0, SECRET)
        rig.core.on_table(table, sent_s=boot_s())
        seen: list[str] = []

        async def takes_it_and_resets(request: web.Request) -> web.StreamResponse:
            if request.method == "POST":
                seen.append(request.path)
                if len(seen) == 1:
                    assert request.transport is not None
                    request.transport.abort()
            return web.json_response({"id": f"id-{len(seen)}"})

        rig.stable.behave = takes_it_and_resets
        await rig.client.get("/chat/v1/models")  # leaves a connection that may be stale
        answer = await rig.client.post(f"/chat/v1/{path}", json={"input_file_id": "f", "input": "x"})

    assert len(seen) == made
    assert answer.status_code == (200 if made == 2 else 502)


# ---- rejections


@pytest.mark.parametrize("arm", [0, 1])
async def test_a_4xx_that_breaks_after_its_head_is_a_rejection_on_either_arm(arm: int) -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=5000, change=2)
        salt = salt_of("chat", "salt")
        key = next(f"s{i}" for i in range(999) if (bucket_of(salt, f"s{i}") < 5000) == bool(arm))

        def breaks(engine: Engine) -> Any:
            async def behave(request: web.Request) -> web.StreamResponse:
                if len(rig.stable.seen) + len(rig.canary.seen) > 1:
                    return await engine.well(request)
                response = web.StreamResponse(status=400, headers={"content-length": "200"})
                await response.prepare(request)
                await asyncio.sleep(0.05)
                assert request.transport is not None
                request.transport.abort()
                return response

            return behave

        rig.stable.behave, rig.canary.behave = breaks(rig.stable), breaks(rig.canary)
        answer = await rig.client.post(CHAT, json={"messages": []}, headers={"x-session-id": key})
        record = await rig.record()

    assert answer.status_code == 200
    assert record.arm == arm
    assert (record.error, record.rejected, record.cause) == (False, True, "status 400")
    assert record.latency_ms is None


# ---- answers of drawn paths that hold no text


@pytest.mark.parametrize(
    "path", ["v1/embeddings", "v1/rerank", "v1/audio/transcriptions", "inference/v1/generate"]
)
@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (200, "text/html", "malformed"),
        (202, "application/json", "status 202"),
        (204, "text/plain", "status 204"),
        (206, "application/json", "status 206"),
    ],
)
async def test_what_is_no_answer_on_any_drawn_path_is_a_failure_and_stable_is_asked(
    path: str, status: int, kind: str, cause: str
) -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=10_000, change=2)

        async def no_answer(_request: web.Request) -> web.StreamResponse:
            text = {"text/html": "<html>log in", "application/json": "{}"}.get(kind, "")
            return web.Response(status=status, text=text, content_type=kind)

        rig.canary.behave = no_answer
        answer = await rig.client.post(f"/chat/{path}", json={"input": "x"})
        record = await rig.record()

    assert answer.status_code == 200
    assert answer.json()["id"] == "id-stable"
    assert (record.outcome, record.error, record.cause) == ("fallback", True, cause)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/json"])
async def test_other_answers_of_these_paths_are_passed_on(kind: str) -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=10_000, change=2)

        async def answers(_request: web.Request) -> web.StreamResponse:
            return web.Response(text='{"text": "hello"}', content_type=kind)

        rig.canary.behave = answers
        answer = await rig.client.post("/chat/v1/audio/transcriptions", json={"input": "x"})
        record = await rig.record()

    assert answer.text == '{"text": "hello"}'
    assert (record.outcome, record.error) == ("answered", False)
