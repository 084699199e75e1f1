"""Reports from other projects' trackers about keep-alives, offers of a WebSocket, and the Responses API."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from serving.messages import STABLE
from serving.router.front.paths import find_target
from serving.router.types import Limits, Refusal
from serving.targets import is_stateful, methods_of
from tests.fakes.router_rig import CHAT, Behaviour, Engine, Rig, router_rig
from tests.fakes.token_engine import Answer, TokenEngine

TEXT = "Hello"
MESSAGES = "/chat/v1/messages"
LIMITS = Limits(connect_s=20.0, canary_stream_s=20.0, stable_s=20.0, keep_alive_s=0.1)
SILENT_S = 1.0  # of an engine: a few times the keep-alive and the front's sweep
OFFER = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def asked(**fields: object) -> dict[str, Any]:
    shape = {"model": "chat", "messages": [{"role": "user", "content": "q"}], "stream": True}
    return {**shape, "stream_options": {"include_usage": True}, **fields}


def late(
    engine: Engine, name: str, *, after: int, cut: int | None = None, path: str = "/v1/chat/completions"
) -> Behaviour:
    """Streams of a `TokenEngine` that pause after so many events, on this path. cut: they break off then."""
    one = TokenEngine(TEXT, name=name)

    async def behave(request: web.Request) -> web.StreamResponse:
        body = engine.bodies[-1]
        if request.path != path:
            return await one.serve(request, body)
        headers = {name.decode(): value.decode() for name, value in one.head(path, json.loads(body))}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for index, event in enumerate(one.events(path, json.loads(body))[:cut]):
            if index == after:
                await asyncio.sleep(SILENT_S)
            await response.write(event)
        if cut is not None and request.transport is not None:
            request.transport.close()
        return response

    return behave


def at_each_blank_line(data: bytes) -> list[str]:
    """The data of the events of a decoder that ends one at each blank line, as openai-go's did."""
    found: list[str] = []
    lines: list[str] = []
    for line in data.decode().split("\n")[:-1]:
        if not line:
            found.append("\n".join(lines))
            lines = []
        elif line.startswith("data:"):
            lines.append(line[5:].strip())
    return found


def parts_with_data(data: bytes) -> list[str]:
    """The events of a client that splits on blank lines and looks at the first bytes of each part."""
    return [one[6:] for one in data.decode().split("\n\n") if one.startswith("data: ")]


async def waiting(rig: Rig, how: str, lang: str) -> bytes:
    """A stream whose client waits: for stable's first token, for a held answer, for one that continues."""
    rig.stable.behave = late(rig.stable, "stable", after=0)
    rig.canary.behave = late(rig.canary, "canary", after=3)
    more: dict[str, object] = {}
    if how == "stable":
        rig.publish(change=2, canary=False)
    elif how == "held":
        rig.publish(change=2, weight_bp=9999)
        more = {"stop": ["zz"], "user": "u1"}
    else:
        rig.canary.behave = late(rig.canary, "canary", after=99, cut=4)
        rig.stable.behave = late(rig.stable, "stable", after=0, path="/v1/completions")
    headers = {"x-stainless-lang": lang}
    return (await rig.client.post(CHAT, json=asked(**more), headers=headers)).content


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stable", "held", "continued"])
@pytest.mark.parametrize(("lang", "read"), [("go", at_each_blank_line), ("js", parts_with_data)])
async def test_a_keep_alive_is_no_event(how: str, lang: str, read: Callable[[bytes], list[str]]) -> None:
    async with router_rig(LIMITS) as rig:
        data = await waiting(rig, how, lang)

    assert b": keep-alive\n" in data
    assert Answer(data, True).text == TEXT
    events = read(data)
    assert events[-1] == "[DONE]"
    assert all(json.loads(one)["object"] == "chat.completion.chunk" for one in events[:-1])


# ---- Anthropic's API


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "chat", "stop_reason": None}
USAGE = {"input_tokens": 3, "output_tokens": 0}
START = event("message_start", message={**MESSAGE, "content": [], "stop_sequence": None, "usage": USAGE})
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
END = [
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
    event("message_stop"),
]


def said(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def messages(text: str, *, is_cut: bool = False) -> Behaviour:
    """A stream of the Messages API that pauses after its first text. is_cut: it breaks off then."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(START + BLOCK + said(text))
        await asyncio.sleep(SILENT_S)
        if is_cut:
            assert request.transport is not None
            request.transport.abort()
            return response
        for one in (said(text), *END):
            await response.write(one)
        return response

    return behave


@pytest.mark.slow
@pytest.mark.parametrize("is_cut", [False, True])
async def test_who_waits_for_a_message_gets_pings_as_anthropic_sends_them(is_cut: bool) -> None:
    async with router_rig(LIMITS) as rig:
        rig.publish(change=2, weight_bp=9999)
        rig.canary.behave, rig.stable.behave = messages("canary ", is_cut=is_cut), messages("stable ")
        body = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 9, "metadata": {"user_id": "u"}}
        data = (await rig.client.post(MESSAGES, json={**body, "stream": True})).content
        record = await rig.record()

    text = "stable " if is_cut else "canary "
    pings, _, answer = data.partition(b"event: message_start")
    assert set(pings.split(b"\n\n")[:-1]) == {b'event: ping\ndata: {"type": "ping"}'}
    assert b"event: message_start" + answer == START + BLOCK + said(text) * 2 + b"".join(END)
    assert (record.error, record.served_arm) == (is_cut, STABLE if is_cut else 1)
    assert record.completion_tokens == 2


@pytest.mark.slow
async def test_anthropics_client_reads_a_held_message() -> None:
    anthropic = pytest.importorskip("anthropic")
    async with router_rig(LIMITS) as rig:
        rig.publish(change=2, weight_bp=9999)
        rig.canary.behave = rig.stable.behave = messages("Hi")
        client = anthropic.AsyncAnthropic(base_url=f"{rig.base}/chat", api_key="x", max_retries=0)
        fields = {"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
        async with client.messages.stream(**fields) as stream:
            kinds = [one.type async for one in stream]
            message = await stream.get_final_message()
        await client.close()

    assert kinds[0] == "message_start"
    assert [one.text for one in message.content] == ["HiHi"]


@pytest.mark.slow
async def test_a_ping_of_the_router_is_no_answer_of_the_canary() -> None:
    async def hangs(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async with router_rig(replace(LIMITS, canary_stream_s=SILENT_S)) as rig:
        rig.canary.behave, rig.stable.behave = hangs, messages("Hi")
        answer = await rig.client.post(MESSAGES, json={"messages": [], "stream": True, "max_tokens": 9})
        record = await rig.record()

    assert answer.content.startswith(b"event: ping\n")
    assert answer.content.endswith(START + BLOCK + said("Hi") * 2 + b"".join(END))
    assert (record.outcome, record.error, record.cause) == ("fallback", True, "timeout")


# ---- WebSockets


@pytest.mark.parametrize("path", ["/chat/v1/responses", "/v1/responses", CHAT, MESSAGES])
async def test_an_offer_of_a_websocket_where_none_is_served_is_426(path: str) -> None:
    async with router_rig() as rig:
        offered = await rig.client.get(path, headers=OFFER)
        plain = await rig.client.get(path)
        after = await rig.ask()

    assert (offered.status_code, offered.headers["upgrade"]) == (426, "HTTP/1.1")
    assert offered.headers["connection"].lower().replace(" ", "").split(",") == ["upgrade", "close"]
    assert "over HTTP" in json.dumps(offered.json())
    assert (plain.status_code, plain.headers["allow"]) == (405, "POST")
    assert after.status_code == 200


def test_an_offer_of_a_websocket_to_one_of_several_services_is_426_too() -> None:
    found = find_target("GET", b"/v1/responses", ("a", "b"), is_websocket=True)
    unknown = find_target("GET", b"/responses", ("a", "b"), is_websocket=True)

    assert isinstance(found, Refusal)
    assert isinstance(unknown, Refusal)
    assert (found.status, found.code, unknown.status) == (426, "upgrade_required", 404)


# ---- routes of the Responses API


def test_every_verb_of_openais_client_is_a_route() -> None:
    folder = Path(openai.__file__).parent / "resources" / "responses"
    verbs = {
        one for file in folder.glob("*.py") for one in re.findall(r'"(/responses/\w+)"', file.read_text())
    }

    assert verbs >= {"/responses/compact", "/responses/input_tokens"}
    assert {methods_of(f"/v1{verb}") for verb in verbs} == {("POST",)}
    assert not any(is_stateful(f"/v1{verb}") for verb in verbs)


@pytest.mark.parametrize("one", ["resp_1", "compact_1", "compact-1", "input_tokens.2"])
def test_an_id_may_begin_like_a_verb(one: str) -> None:
    assert methods_of(f"/v1/responses/{one}") == ("GET", "DELETE")
    assert methods_of(f"/v1/responses/{one}/cancel") == ("POST",)


@pytest.mark.parametrize("verb", ["compact", "input_tokens"])
async def test_what_is_done_with_responses_is_no_id_of_one(verb: str) -> None:
    async with router_rig() as rig:
        posted = await rig.client.post(f"/chat/v1/responses/{verb}", json={"model": "chat", "input": "q"})
        got = await rig.client.get(f"/chat/v1/responses/{verb}")
        below = await rig.client.post(f"/chat/v1/responses/{verb}/cancel")
        seen = [(one.method, one.path) for one in rig.stable.seen]
        records = rig.records()

    assert (posted.status_code, posted.headers["x-canaryctl-arm"]) == (200, "stable")
    assert seen == [("POST", f"/v1/responses/{verb}")]
    assert (rig.canary.seen, records) == ([], [])
    assert (got.status_code, got.headers["allow"], below.status_code) == (405, "POST", 404)
