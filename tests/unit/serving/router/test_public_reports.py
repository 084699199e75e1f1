"""Reports from other projects' trackers, against this router with real sockets (tests/public_reports.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.credentials import KeyReference
from serving.messages import Arm, Replica
from tests.fakes.router_rig import CHAT, Engine, Rig, router_rig, running


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


def publish(rig: Rig, stable: Arm, canary: Arm | None = None, *, weight_bp: int = 0, change: int = 2) -> None:
    rig.publish(change=change, canary=False)
    assert rig.core.table is not None
    table = replace(rig.core.table, change=change + 1, stable=stable, canary=canary, weight_bp=weight_bp)
    rig.core.on_table(table, sent_s=boot_s())


def refusing(status: int) -> object:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        error = {"message": "The model `chat` does not exist.", "type": "invalid_request_error"}
        return web.json_response({"error": error}, status=status)

    return refuse


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("status", [401, 404])
async def test_no_user_sees_a_canary_that_refuses_every_request(rig: Rig, status: int) -> None:
    """Case 07: the new backend does not know the model's name, and only 5xx count as errors."""
    rig.publish(weight_bp=5000, change=2)
    before = [await rig.ask(user=f"u{n}", stream=n % 2 == 0) for n in range(20)]
    rig.canary.behave = refusing(status)  # type: ignore[assignment]
    after = [await rig.ask(user=f"u{n}", stream=n % 2 == 0) for n in range(40)]
    records = rig.records()

    assert {one.status_code for one in before + after} == {200}
    rejected = {one.arm: [r.rejected for r in records[20:] if r.arm == one.arm] for one in records[20:]}
    assert (set(rejected[0]), set(rejected[1])) == ({False}, {True})
    assert {one.error for one in records} == {False}


@pytest.fixture
async def vendor() -> AsyncIterator[Engine]:
    """An endpoint that wants a key and its own name of the model, at a path of its own."""
    one = Engine("vendor")

    async def guarded(request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != "Bearer sk-1":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if not request.path.startswith("/v1beta/openai/"):
            return web.json_response({"error": f"no {request.path}"}, status=404)
        if request.content_type == "multipart/form-data":
            is_right = b'name="model"\r\n\r\nlarge\r\n' in one.bodies[-1]
            return web.json_response({"text": "hi"}, status=200 if is_right else 404)
        if json.loads(one.bodies[-1]).get("model") != "large":
            return web.json_response({"error": "no such model"}, status=404)
        return await one.well(request)

    one.behave = guarded
    async with running(one):
        yield one


async def test_an_endpoint_gets_its_own_key_and_model_name_and_never_the_clients(
    rig: Rig, vendor: Engine, tmp_path: Path
) -> None:
    """Case 08: the backend wants an API key, for multipart transcriptions too."""
    key = tmp_path / "key"
    key.write_text("sk-1\n")
    url = (Replica(vendor.url + "/v1beta/openai"),)
    publish(rig, Arm("v-1", url, True, "large", KeyReference("file", str(key))))
    credentials = {"authorization": "Bearer client", "api-key": "client", "x-api-key": "client"}
    form: list[tuple[str, tuple[str | None, str | bytes]]] = [
        ("model", (None, "chat")),
        ("file", ("a.wav", b"RIFF0000")),
    ]

    chat = await rig.client.post(CHAT, json={"model": "chat", "messages": []}, headers=credentials)
    audio = await rig.client.post("/chat/v1/audio/transcriptions", files=form, headers=credentials)

    assert (chat.status_code, audio.status_code, audio.json()) == (200, 200, {"text": "hi"})
    sent = [value for seen in vendor.seen for value in seen.headers.values()]
    assert [value for value in sent if "client" in value] == []
    assert "sk-1" not in chat.text + str(chat.headers) + repr(rig.core.table) + repr(rig.records())


async def test_a_rotated_key_is_used_from_the_next_request_on(
    rig: Rig, vendor: Engine, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-0\n")
    url = (Replica(vendor.url + "/v1beta/openai"),)
    publish(rig, Arm("v-1", url, True, "large", KeyReference("file", str(key))))
    before = await rig.ask()
    key.write_text("sk-1\n")

    assert (before.status_code, (await rig.ask()).status_code) == (502, 200)


async def test_a_canary_whose_key_cannot_be_read_is_sent_nothing_and_is_invisible(
    rig: Rig, vendor: Engine
) -> None:
    url = (Replica(vendor.url + "/v1beta/openai"),)
    canary = Arm("v-2", url, True, "large", KeyReference("env", "NO_SUCH_KEY"))
    publish(rig, Arm("v-1", (Replica(rig.stable.url),)), canary, weight_bp=10_000)
    answer = await rig.ask()
    one = await rig.record()

    assert (answer.status_code, vendor.seen) == (200, [])
    assert (one.error, one.cause) == (True, "refused")


@pytest.mark.parametrize(
    "base", ["/v1beta/openai", "/api/paas/v4", "/inference", "/openai/v1", "/v1", "/v1/", "/", ""]
)
async def test_a_base_url_is_used_as_written(rig: Rig, base: str) -> None:
    """Case 09: OpenAI-compatible endpoints whose base URL does not end in /v1."""
    expected = (base.rstrip("/") or "/v1") + "/chat/completions"
    publish(rig, Arm("v-1", (Replica(rig.stable.url + base),), external=True))

    assert (await rig.ask()).status_code == 200
    assert rig.stable.seen[-1].raw_path == expected


async def test_a_trailing_slash_is_drawn_and_no_redirect_names_the_engine(rig: Rig) -> None:
    """Case 11: a slash at the end or a doubled one; FastAPI upstreams answer 307 to their own address."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        location = f"http://{request.headers['host']}{request.path}"
        return web.Response(status=307, headers={"location": location})

    slash = await rig.client.post(CHAT + "/", json={"messages": []})
    doubled = [
        await rig.client.post(path, json={"messages": []})
        for path in (CHAT.replace("/v1", "//v1"), "/" + CHAT)
    ]
    rig.stable.behave = rig.canary.behave = redirect
    redirected = await rig.ask()

    assert [one.headers["x-canaryctl-arm"] for one in (slash, *doubled)] == ["canary"] * 3
    assert {one.path for one in rig.canary.seen} == {"/v1/chat/completions"}
    assert "location" not in redirected.headers


async def test_headers_of_an_endpoints_own_origin_do_not_reach_the_client(rig: Rig) -> None:
    own = {"set-cookie": "a=b", "alt-svc": 'h3=":443"', "strict-transport-security": "max-age=1"}

    async def with_headers(_request: web.Request) -> web.StreamResponse:
        answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
        return web.json_response(answer, headers={**own, "location": "http://private/", "x-kept": "1"})

    rig.canary.behave = with_headers
    answer = await rig.ask()

    assert answer.headers["x-kept"] == "1"
    assert [name for name in (*own, "location") if name in answer.headers] == []


@pytest.mark.parametrize("external", [True, False])
async def test_a_stale_connection_of_an_endpoint_is_nobodys_error_and_of_an_engine_its_own(
    rig: Rig, external: bool
) -> None:
    """A peer that closes a kept-alive connection while the next request is on its way."""
    body = b'{"id": "a", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    connections = 0

    async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"}")
        writer.write(head + body)
        await reader.readuntil(b"}")  # the next request, which gets no answer
        writer.transport.abort()

    async with await asyncio.start_server(serve_once, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        arms = [Arm(name, (Replica(url),), external) for name in ("v-1", "v-2")]
        publish(rig, arms[0], arms[1], weight_bp=10_000)
        answers = [await rig.ask() for _ in range(4)]
        records = rig.records()

    assert [one.status_code for one in answers] == [200] * 4
    assert {one.served_arm for one in records} == {1}
    assert (sum(one.error is True for one in records), sum(one.retries for one in records)) == (
        (0, 0) if external else (connections - 1, connections - 1)
    )
    assert connections > 1
