"""Reports from other projects' trackers about what clients send (tests/public_reports.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.credentials import KeyReference
from serving.messages import Arm, Replica, RouteTable
from serving.router.assignment.clients import Clients
from serving.router.bodies.body_facts import read_facts
from serving.router.exchange.exchange import Exchange
from serving.router.front.paths import Found, find_target
from serving.router.front.request_parser import ParsedRequest, RequestParser
from serving.router.headers import SESSION_HEADERS, forwarded
from serving.router.router import RouterCore
from serving.router.types import Limits, Refusal, Request
from serving.targets import Target
from tests.fakes.router_rig import CHAT, SECRET, Rig, feed, router_rig
from tests.unit.serving.router.front.test_wire_limits import exchange, status

LIMITS = Limits(connect_s=10.0, canary_stream_s=1.0, canary_whole_s=1.0, stable_s=20.0, idle_s=20.0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


# ---- an offer to speak another protocol

BODY = b'{"messages": []}'
OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
WITH_LENGTH = b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
IN_CHUNKS = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def parsed(data: bytes, *, size: int) -> list[ParsedRequest]:
    parser = RequestParser()
    for at in range(0, len(data), size):
        feed(parser, data[at : at + size])
    assert parser.refusal is None
    return list(parser.requests)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framed", [WITH_LENGTH, IN_CHUNKS])
def test_a_body_is_read_though_an_upgrade_is_offered(framed: bytes, size: int) -> None:
    one = b"POST /v1/x HTTP/1.1\r\nhost: a\r\n"
    found = parsed((one + OFFER + framed) * 2 + one + framed, size=size)

    assert [(request.body, request.keep_alive) for request in found] == [(BODY, True)] * 3
    assert {name for request in found for name, _ in request.headers} <= {
        *(b"host", b"connection", b"content-length", b"transfer-encoding")
    }


def test_an_offer_of_a_websocket_stays_one() -> None:
    data = b"GET /v1/realtime HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    (found,) = parsed(data, size=10_000)

    assert (found.keep_alive, dict(found.headers)[b"upgrade"]) == (False, b"websocket")


@pytest.mark.parametrize("framed", [WITH_LENGTH, IN_CHUNKS])
async def test_a_java_client_that_offers_h2c_is_answered(rig: Rig, framed: bytes) -> None:
    last = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + WITH_LENGTH
    answer = await exchange(
        rig, b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n" + OFFER + framed + last
    )

    assert (status(answer), answer.count(b"HTTP/1.1 200")) == (200, 2)
    assert rig.canary.bodies == [BODY, BODY]
    assert not {"upgrade", "http2-settings"} & {one.lower() for one in rig.canary.seen[0].headers}


@pytest.mark.parametrize(("version", "waits"), [(b"1.0", False), (b"1.1", True)])
def test_http_1_0_gets_no_interim_answer(version: bytes, waits: bool) -> None:
    parser = RequestParser()
    parser.feed(b"POST /v1/x HTTP/" + version + b"\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")

    assert parser.wants_continue is waits


# ---- errors of /v1/messages

MESSAGES = "/chat/v1/messages"


def events_of(text: str) -> list[tuple[str | None, dict[str, object]]]:
    """Name and data of each event; Anthropic's clients pass over those without a name that they know."""
    found = []
    for event in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line and line[0] != ":")
        if "data" in fields:
            found.append((fields.get("event"), json.loads(fields["data"])))
    return found


def delta(text: str) -> bytes:
    data = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\ndata: " + json.dumps(data).encode() + b"\n\n"


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(delta("Hello"))
    assert request.transport is not None
    request.transport.abort()
    return response


async def test_a_cut_stream_of_messages_ends_with_an_event_that_its_clients_read(rig: Rig) -> None:
    rig.publish(change=2, canary=False)
    rig.stable.behave = cut
    answer = await rig.client.post(MESSAGES, json={"messages": [], "stream": True})
    name, data = events_of(answer.text)[-1]

    assert (name, data["type"]) == ("error", "error")
    assert data["error"]["type"] == "api_error"  # type: ignore[index]


@pytest.mark.slow
async def test_a_held_stream_that_stable_refuses_ends_with_that_event() -> None:
    async def overloaded(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"type": "error"}, status=529)

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(delta("Hello"))
        await asyncio.sleep(0.6)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with router_rig(replace(LIMITS, keep_alive_s=0.1)) as rig:
        rig.publish(weight_bp=9999, change=2)
        rig.canary.behave, rig.stable.behave = slow, overloaded
        answer = await rig.client.post(MESSAGES, json={"messages": [], "stream": True})

    *pings, (name, data) = events_of(answer.text)
    assert {name for name, _ in pings} <= {"ping"}
    assert (name, data["error"]["type"]) == ("error", "overloaded_error")  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "content", "status_code", "kind"),
    [
        (MESSAGES, b"{", 400, "invalid_request_error"),
        ("/v1/messages", b"[]", 400, "invalid_request_error"),
        ("/other/v1/messages?beta=true", b"{}", 404, "not_found_error"),
    ],
)
async def test_errors_of_messages_are_in_anthropics_shape(
    rig: Rig, path: str, content: bytes, status_code: int, kind: str
) -> None:
    answer = await rig.client.post(path, content=content)
    data = answer.json()

    assert answer.status_code == status_code
    assert (data["type"], data["error"]["type"]) == ("error", kind)


async def test_other_errors_stay_in_openais_shape(rig: Rig) -> None:
    answer = await rig.client.post(CHAT, content=b"{")

    assert (answer.json()["error"]["type"], "type" in answer.json()) == ("invalid_request_error", False)


# ---- credentials


async def test_a_clients_organization_reaches_nobody(rig: Rig, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-1")
    keyed = Arm("v-1", (Replica(rig.stable.url),), True, None, KeyReference("file", str(key)))
    rig.publish(change=2, canary=False)
    assert rig.core.table is not None
    rig.core.on_table(replace(rig.core.table, change=3, stable=keyed), sent_s=boot_s())
    named = {"openai-organization": "org-1", "openai-project": "p", "x-goog-user-project": "p"}
    await rig.client.post(CHAT, json={"messages": []}, headers=named)
    rig.publish(change=4, canary=False)
    await rig.client.post(CHAT, json={"messages": []}, headers=named)

    sent = [set(named) & {name.lower() for name in one.headers} for one in rig.stable.seen]

    assert sent == [set(), set()]


CLIENTS = Clients(Access(keys={digest_of("good"): ClientKey("n")}, keys_required=True))


def identified(method: str, headers: dict[str, str]) -> str | int:
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    found = CLIENTS.identify(Request(method, Target("/v1/chat/completions"), raw, b""))
    return found.status if isinstance(found, Refusal) else found.key


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer stale", "x-api-key": "good"}, "n"),
        ({"authorization": "Basic eDp5", "x-api-key": "good"}, "n"),
        ({"authorization": "Bearer", "api-key": "good"}, "n"),
        ({"x-api-key": "stale", "api-key": "good"}, "n"),
        ({"authorization": "Bearer good", "x-api-key": "stale"}, "n"),
        ({"authorization": "Bearer stale", "x-api-key": "staler"}, 401),
        ({"authorization": "Basic good"}, 401),
        ({}, 401),
    ],
)
def test_any_header_with_a_known_key_identifies_its_client(
    headers: dict[str, str], expected: str | int
) -> None:
    assert identified("POST", headers) == expected


ASKS = {"origin": "https://page.example", "access-control-request-method": "POST"}


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("OPTIONS", ASKS, ""),
        ("OPTIONS", {**ASKS, "content-length": "0"}, ""),
        ("OPTIONS", {**ASKS, "content-length": "9"}, 401),
        ("OPTIONS", {}, 401),
        ("POST", ASKS, 401),
    ],
)
def test_a_preflight_needs_no_key(method: str, headers: dict[str, str], expected: str | int) -> None:
    assert identified(method, headers) == expected


# ---- sessions of agents


@pytest.mark.parametrize(
    ("headers", "body", "path", "key"),
    [
        ({"x-claude-code-session-id": "c"}, {}, "/v1/messages", "c"),
        ({"x-claude-code-session-id": "c", "x-session-id": "s"}, {}, "/v1/messages", "s"),
        ({"x-claude-code-session-id": "c", "x-session-id": " "}, {}, "/v1/messages", "c"),
        ({}, {"metadata": {"user_id": "user_1_session_2"}}, "/v1/messages", "user_1_session_2"),
        ({}, {"metadata": {"user_id": "m"}, "user": "u"}, "/v1/messages", "u"),
        ({}, {"metadata": {"user_id": ""}}, "/v1/messages", "r-1"),
        ({}, {"metadata": {"user_id": 7}, "n": "2"}, "/v1/messages", "r-1"),
        ({}, {"metadata": {"user_id": "m"}, "n": "2"}, "/v1/messages", "m"),
        ({}, {"metadata": {"user_id": "m"}}, "/v1/chat/completions", "r-1"),
        ({"x-claude-code-session-id": "c"}, {}, "/v1/chat/completions", "r-1"),
        ({"x-session-affinity": "a"}, {"user": "u"}, "/v1/chat/completions", "a"),
        ({"x-opencode-session": "o", "x-session-affinity": ""}, {}, "/v1/chat/completions", "o"),
        ({"session_id": "c"}, {}, "/v1/responses", "c"),
        ({"session-id": "c", "x-session-id": "s"}, {}, "/v1/responses", "s"),
    ],
)
def test_an_agents_session_is_one_key(
    headers: dict[str, str], body: dict[str, object], path: str, key: str
) -> None:
    core = RouterCore("chat", router="r", lease_s=1e9)
    arms = (Arm("v-1", (Replica("http://a:1"),)), Arm("v-2", (Replica("http://b:1"),)))
    core.on_table(RouteTable("chat", 1, 1, 1, "r-1", "salt", 5000, *arms, 0, SECRET), sent_s=boot_s())
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    sent = Request("POST", Target(path), raw, json.dumps({"messages": [], **body}).encode())
    exchange = core.begin(sent, request_id="r-1", now_s=boot_s(), wall_s=1.0)

    assert isinstance(exchange, Exchange)
    assert exchange.start.assignment.key == key


def test_no_agents_session_reaches_an_external_endpoint() -> None:
    headers = [(name, b"raw") for name in (*SESSION_HEADERS, b"accept")]

    assert forwarded(headers, is_external=True) == [(b"accept", b"raw")]


LOOP = [
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "ok"},
]
ASKED = {"type": "message", "role": "user", "content": "mend the test"}


def opening(*items: object) -> str | None:
    facts = read_facts(json.dumps({"input": items}).encode())
    assert facts is not None
    return facts.opening


@pytest.mark.parametrize("loop", [LOOP, LOOP[1:]], ids=["reasoning", "call"])
def test_a_tool_loop_of_responses_is_one_conversation(loop: list[object]) -> None:
    """Each of its requests was drawn by itself until an assistant's message came."""
    reply = {"type": "message", "role": "assistant", "content": "done"}
    openings = {opening(ASKED, *loop), opening(ASKED, *loop, *loop), opening(ASKED, *loop, reply, ASKED)}

    assert len(openings) == 1
    assert None not in openings


def test_what_a_client_answers_a_call_with_is_no_turn_of_the_model() -> None:
    assert opening(ASKED) is None
    assert opening(ASKED, LOOP[2]) is None


# ---- ids


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/v1/responses/resp_bGl0ZWxsbTo=", "/v1/responses/resp_bGl0ZWxsbTo="),
        ("/v1/responses/resp_bGl0ZWxsbTo%3D", "/v1/responses/resp_bGl0ZWxsbTo="),
        ("/v1/responses/" + "r" * 600, "/v1/responses/" + "r" * 600),
        ("/v1/files/file-a:b/content", "/v1/files/file-a:b/content"),
        ("/v1/models/llama3:8b", "/v1/models/llama3:8b"),
        ("/v1/models/ft:gpt-4o-mini:acme::abc", "/v1/models/ft:gpt-4o-mini:acme::abc"),
        ("/v1/models/meta-llama/Llama-3.1-8B", "/v1/models/meta-llama/Llama-3.1-8B"),
        ("/chat/v1/models/meta-llama%2FLlama-3.1-8B", "/v1/models/meta-llama/Llama-3.1-8B"),
    ],
)
def test_ids_of_other_gateways_are_found(raw: str, path: str) -> None:
    found = find_target("GET", raw.encode(), ("chat",))

    assert isinstance(found, Found)
    assert found.target.path == path


@pytest.mark.parametrize(
    "raw",
    [
        *("/v1/models/..%2fresponses", "/v1/models/a/../b", "/v1/models/a%2F%2e%2e%2Fb", "/v1/files/a%2Fb"),
        *("/v1/responses/a/b", "/v1/models/a%5Cb", "/v1/responses/a%2fcancel", "/v1/models/=a"),
    ],
)
def test_a_slash_is_part_of_a_models_name_alone(raw: str) -> None:
    assert isinstance(find_target("GET", raw.encode(), ("chat",)), Refusal)


# ---- bodies


@pytest.mark.parametrize("stream", [True, False])
def test_a_mark_of_byte_order_is_no_part_of_a_body(stream: bool) -> None:
    body = json.dumps({"user": "u", "stream": stream}).encode()

    assert read_facts(b"\xef\xbb\xbf" + body) == read_facts(body)
