"""The front on a socket, in front of local HTTP servers with scripted behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import httpx
import openai
import pytest
from aiohttp import web

from tests.fakes.router_rig import CHAT, CHUNKS, Behaviour, Rig, chunk, router_rig, until


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


@pytest.mark.slow
async def test_a_router_without_a_table_holds_requests_until_it_has_one(rig: Rig) -> None:
    rig.core.table = None
    request = asyncio.create_task(rig.ask())
    await asyncio.sleep(0.1)
    is_held = not request.done()
    rig.publish()

    assert is_held
    assert (await request).status_code == 200


async def test_a_router_that_gets_no_table_answers_503_with_retry_after(rig: Rig) -> None:
    rig.core.table = None
    rig.core.limits = replace(rig.core.limits, table_s=0.05)

    answer = await rig.ask()

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "chat has no version in service yet" in answer.text


async def test_a_whole_answer_passes_byte_for_byte_with_its_headers(rig: Rig) -> None:
    direct = await httpx.AsyncClient(verify=False).post(
        rig.canary.url + "/v1/chat/completions", json={"messages": []}
    )
    through = await rig.ask()

    assert through.content == direct.content
    assert through.headers["x-extra"] == "1"
    assert through.headers["content-type"] == direct.headers["content-type"]


async def test_a_stream_passes_byte_for_byte(rig: Rig) -> None:
    answer = await rig.ask(stream=True)

    assert answer.content == b"".join(CHUNKS)
    assert answer.headers["content-type"] == "text/event-stream"


async def test_chunks_arrive_as_the_engine_sends_them(rig: Rig) -> None:
    release = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNKS[0])
        await release.wait()
        await response.write(b"".join(CHUNKS[1:]))
        return response

    rig.canary.behave = slowly
    async with rig.client.stream("POST", CHAT, json={"stream": True, "messages": []}) as answer:
        parts = answer.aiter_raw()
        first = await anext(parts)
        release.set()
        rest = b"".join([part async for part in parts])

    assert first == CHUNKS[0]
    assert first + rest == b"".join(CHUNKS)


async def test_answers_name_version_arm_and_revision_in_headers(rig: Rig) -> None:
    canary = await rig.ask()
    rig.publish(canary=False, change=2)
    stable = await rig.ask()

    names = ("x-canaryctl-version", "x-canaryctl-arm", "x-canaryctl-revision")
    assert [canary.headers[name] for name in names] == ["v-2", "canary", "1.1"]
    assert [stable.headers[name] for name in names] == ["v-1", "stable", "1.2"]
    assert canary.headers["x-canaryctl-request-id"].startswith("req-")


async def test_the_record_has_the_answers_id_finish_reason_and_usage(rig: Rig) -> None:
    answer = await rig.ask()
    one = await rig.record()

    assert one.request_id == answer.headers["x-canaryctl-request-id"]
    assert (one.answer_id, one.finish_reason) == ("id-canary", "stop")
    assert (one.prompt_tokens, one.completion_tokens, one.error) == (3, 2, False)
    assert one.latency_ms is not None
    assert 0 < one.latency_ms < 5000


async def test_a_listed_path_and_its_query_reach_stable_with_the_body_untouched(rig: Rig) -> None:
    body = b'{ "a" : 1}'
    await rig.client.post("/chat/tokenize?b=%2F&c=1", content=body)
    seen = rig.stable.seen[-1]

    assert (seen.method, seen.raw_path) == ("POST", "/tokenize?b=%2F&c=1")
    assert rig.stable.bodies[-1] == body


async def test_a_path_without_the_services_prefix_is_served(rig: Rig) -> None:
    await rig.client.get("/v1/models")

    assert rig.stable.seen[-1].path == "/v1/models"


async def test_another_services_name_is_404_with_a_reason(rig: Rig) -> None:
    answer = await rig.client.post("/other/v1/chat/completions", json={})

    assert answer.status_code == 404
    assert "service other does not exist here" in answer.json()["error"]["message"]


async def test_the_clients_authorization_never_reaches_an_engine(rig: Rig) -> None:
    headers = {"authorization": "Bearer sk", "cookie": "a=b", "x-canaryctl-revision": "9.9"}
    await rig.client.post(CHAT, json={"messages": []}, headers=headers)
    seen = rig.canary.seen[-1].headers

    assert "authorization" not in seen
    assert "cookie" not in seen
    assert seen.getall("x-canaryctl-revision") == ["1.1"]
    assert seen["x-canaryctl-secret"] == "s3cret"


async def status_503(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def status_429(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=429)


async def silence(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3)
    return web.Response()


async def head_then_silence(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(3)
    return response


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def head_then_hang_up(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(0.02)
    return await hang_up(request)


async def half_a_whole_answer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "100"})
    await response.prepare(request)
    await response.write(b'{"half":')
    await asyncio.sleep(0.02)
    return await hang_up(request)


async def error_event(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"error": {"message": "engine dead", "code": 500}}\n\ndata: [DONE]\n\n')
    return response


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (status_503, "status 503"),
        (status_429, "status 429"),
        (silence, "timeout"),
        (head_then_silence, "timeout"),
        (hang_up, "reset"),
        (head_then_hang_up, "cut"),
        (half_a_whole_answer, "cut"),
        (error_event, "error in the answer"),
    ],
)
async def test_a_canary_that_fails_before_its_first_byte_is_invisible_to_the_client(
    rig: Rig, behaviour: Behaviour, cause: str
) -> None:
    rig.canary.behave = behaviour
    answer = await rig.ask(stream=behaviour not in (half_a_whole_answer, status_503))
    one = await rig.record()

    assert answer.status_code == 200
    assert answer.headers["x-canaryctl-arm"] == "stable"
    assert (one.arm, one.served_arm, one.error, one.cause) == (1, 0, True, cause)


async def test_an_unreachable_canary_is_invisible_to_the_client(rig: Rig) -> None:
    rig.canary.url = "http://127.0.0.1:9"
    rig.publish(change=2)
    answer = await rig.ask()

    assert answer.status_code == 200
    assert (await rig.record()).cause == "refused"


async def test_a_fenced_request_is_served_by_stable_and_is_no_error(rig: Rig) -> None:
    async def fence(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=409, headers={"x-canaryctl-refused": "fence"})

    rig.canary.behave = fence
    answer = await rig.ask()
    one = await rig.record()

    assert (answer.status_code, answer.headers["x-canaryctl-arm"]) == (200, "stable")
    assert "x-canaryctl-refused" not in answer.headers
    assert (one.outcome, one.error) == ("fenced", False)


async def test_a_canary_withdrawn_while_connecting_is_sent_nothing(rig: Rig) -> None:
    rig.core.may_start = lambda canary, now_s: False  # type: ignore[method-assign]
    answer = await rig.ask()

    assert answer.headers["x-canaryctl-arm"] == "stable"
    assert rig.canary.seen == []
    assert (await rig.record()).outcome == "fenced"


@pytest.mark.slow
async def test_a_stream_cut_in_the_middle_is_the_canarys_error_and_makes_openai_clients_raise(
    rig: Rig,
) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        await rig.canary.stream(request, CHUNKS[:2], 0.02)
        return await hang_up(request)

    rig.canary.behave = cut
    client = openai.AsyncOpenAI(base_url=rig.base + "/chat/v1", api_key="none", max_retries=0)
    stream = await client.chat.completions.create(model="chat", messages=[], stream=True)
    text = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
    with pytest.raises(openai.APIError, match="was cut before its end"):
        await anext(stream)
    one = await rig.record()

    assert text == ["Hel", "lo"]
    assert (one.outcome, one.error, one.cause, one.served_arm) == ("cut", True, "cut", 1)


async def test_a_stream_that_ends_without_done_gets_an_error_event(rig: Rig) -> None:
    async def stop_early(request: web.Request) -> web.StreamResponse:
        return await rig.canary.stream(request, CHUNKS[:2])

    rig.canary.behave = stop_early
    answer = await rig.ask(stream=True)

    assert answer.content.startswith(b"".join(CHUNKS[:2]) + b'data: {"error"')
    assert (await rig.record()).outcome == "cut"


async def test_of_a_stream_cut_inside_an_event_the_client_gets_whole_events_and_an_error(rig: Rig) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        await rig.canary.stream(request, [CHUNKS[0], CHUNKS[1][:20]], 0.02)
        return await hang_up(request)

    rig.canary.behave = cut
    answer = await rig.ask(stream=True)

    assert answer.content.startswith(CHUNKS[0] + b'data: {"error"')


@pytest.mark.slow
async def test_an_openai_client_streams_through(rig: Rig) -> None:
    client = openai.AsyncOpenAI(base_url=rig.base + "/chat/v1", api_key="none")
    stream = await client.chat.completions.create(model="chat", messages=[], stream=True)
    text = "".join([one.choices[0].delta.content or "" async for one in stream])

    assert text == "Hello"
    assert (await rig.record()).outcome == "answered"


@pytest.mark.slow
@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_disconnects_stops_the_engine_and_is_recorded_as_cancelled(
    rig: Rig, begun: bool
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        return await rig.stable.stream(request, [chunk("x")] * 1000 if begun else [], 0.02 if begun else 5)

    async def mute(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    rig.publish(canary=False, change=2)
    rig.stable.behave = endless if begun else mute
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(rig.base + CHAT, json={"stream": True, "messages": []}))
        await until(lambda: bool(rig.stable.seen))
        if begun:
            await (await asking).content.readany()
        asking.cancel()
    await asyncio.wait_for(rig.stable.aborted.wait(), 20)
    one = await rig.record()

    assert (one.outcome, one.error, one.status) == ("cancelled", None, 200 if begun else None)
    assert rig.core.in_flight == {}


async def test_when_stable_is_unreachable_too_the_answer_is_503_with_a_reason(rig: Rig) -> None:
    rig.stable.url = rig.canary.url = "http://127.0.0.1:9"
    rig.publish(change=2)
    answer = await rig.ask()

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "no replica of stable version v-1 answers" in answer.json()["error"]["message"]
    assert (await rig.record()).outcome == "failed"


async def test_stables_own_error_passes_through_unchanged(rig: Rig) -> None:
    rig.publish(canary=False, change=2)
    rig.stable.behave = status_429
    answer = await rig.ask()
    one = await rig.record()

    assert answer.status_code == 429
    assert (one.outcome, one.error, one.cause) == ("failed", True, "status 429")


@pytest.mark.slow
async def test_a_hundred_concurrent_requests_all_end_and_none_stays_in_flight(rig: Rig) -> None:
    rig.publish(weight_bp=5000, change=2)
    requests = [rig.ask(user=f"u{index}", stream=index % 2 == 0) for index in range(100)]
    answers = await asyncio.gather(*requests)
    records = rig.records()

    assert [answer.status_code for answer in answers] == [200] * 100
    assert len({one.request_id for one in records}) == 100
    assert {one.served_arm for one in records} == {0, 1}
    assert rig.core.in_flight == {}


async def test_head_requests_and_empty_answers_are_passed_on(rig: Rig) -> None:
    async def empty(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    head = await rig.client.head("/chat/v1/models")
    rig.stable.behave = empty
    nothing = await rig.client.get("/chat/v1/models")

    assert (head.status_code, nothing.status_code, nothing.content) == (200, 204, b"")


async def test_the_router_chooses_the_request_id_that_engines_make_answer_ids_of(rig: Rig) -> None:
    answer = await rig.client.post(CHAT, json={"messages": []}, headers={"x-request-id": "victim"})
    (sent,) = rig.canary.seen

    assert sent.headers.getall("x-request-id") == [answer.headers["x-canaryctl-request-id"]]
    assert answer.headers["x-request-id"] == "victim"


async def test_a_repeated_attempt_has_a_request_id_of_its_own(rig: Rig) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    rig.canary.behave = busy
    answer = await rig.ask()

    ids = [one.headers["x-request-id"] for one in (*rig.canary.seen, *rig.stable.seen)]
    assert ids == [answer.headers["x-canaryctl-request-id"], answer.headers["x-canaryctl-request-id"] + "-2"]
    assert "x-request-id" not in answer.headers
