"""A browser's question (CORS preflight), which needs no API key: what it may reach, and carry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.credentials import KeyReference
from tests.fakes.router_rig import CHAT, Rig, router_rig
from tests.unit.serving.router.front.test_tunnel import EchoEngine, engine, use

PREFLIGHT = b"host: x\r\norigin: https://app\r\naccess-control-request-method: GET\r\n"
HANDSHAKE = (
    b"upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
)


async def first_line(rig: Rig, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.base.rpartition(":")[2]))
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    return line


@pytest.mark.slow
@pytest.mark.parametrize("connection", [b"x-upgrade", b"upgrade", b"upgraded, keep-alive", b"keep-alive"])
async def test_a_preflight_opens_no_tunnel(connection: bytes) -> None:
    app = EchoEngine()
    async with engine(app) as (url, _), router_rig() as rig:
        use(rig, url)
        table = rig.core.table
        assert table is not None
        access = Access(keys={}, keys_required=True)
        rig.core.on_table(replace(table, access=access, change=3), sent_s=boot_s())
        request = b"OPTIONS /chat/v1/realtime HTTP/1.1\r\n" + PREFLIGHT
        line = await first_line(rig, request + b"connection: " + connection + b"\r\n" + HANDSHAKE + b"\r\n")

    assert line.startswith(b"HTTP/1.1 426 ")
    assert app.headers == {}


@pytest.mark.slow
async def test_a_get_whose_connection_header_does_not_say_upgrade_opens_no_tunnel() -> None:
    app = EchoEngine()
    async with engine(app) as (url, _), router_rig() as rig:
        use(rig, url)
        request = b"GET /chat/v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: x-upgrade\r\n" + HANDSHAKE
        line = await first_line(rig, request + b"\r\n")

    assert line.startswith(b"HTTP/1.1 426 ")
    assert app.headers == {}


@pytest.mark.slow
async def test_a_connection_header_of_several_lines_opens_a_tunnel() -> None:
    async with engine(EchoEngine()) as (url, _), router_rig() as rig:
        use(rig, url)
        lines = b"host: x\r\nconnection: keep-alive\r\nconnection: Upgrade\r\n"
        line = await first_line(rig, b"GET /chat/v1/realtime HTTP/1.1\r\n" + lines + HANDSHAKE + b"\r\n")

    assert line.startswith(b"HTTP/1.1 101 ")


async def test_a_preflight_carries_its_own_headers_alone_and_no_key_of_the_service(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-service")
    path.chmod(0o600)
    async with router_rig() as rig:

        async def allow(request: web.Request) -> web.Response:
            return web.Response(status=204, headers={"access-control-allow-origin": "https://app"})

        rig.stable.behave = allow
        table = rig.core.table
        assert table is not None
        assert table.stable is not None
        stable = replace(table.stable, external=True, api_key=KeyReference("file", str(path)))
        access = Access(keys={}, keys_required=True)
        changed = replace(table, stable=stable, canary=None, access=access, change=3)
        rig.core.on_table(changed, sent_s=boot_s())
        asked = {"origin": "https://app", "access-control-request-method": "GET"}
        more = {"access-control-request-headers": "x-n"}
        others = {"x-http-method-override": "GET", "x-method-override": "GET", "openai-beta": "a"}
        answer = await rig.client.options("/chat/v1/files", headers={**asked, **more, **others})
        (seen,) = rig.stable.seen

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://app"
    assert {name: seen.headers.get(name) for name in {**asked, **more}} == {**asked, **more}
    assert not {"authorization", *others} & {name.lower() for name in seen.headers}


async def test_a_page_can_read_what_it_did_wrong_and_nothing_of_what_stands_behind() -> None:
    origin = {"origin": "https://app"}
    async with router_rig() as rig:
        malformed = await rig.client.post(CHAT, content=b"x", headers=origin)
        unknown = await rig.client.post("/none/v1/files", headers=origin)
        plain = await rig.client.post(CHAT, content=b"x")
        table = rig.core.table
        assert table is not None
        access = Access(keys={}, keys_required=True)
        rig.core.on_table(replace(table, access=access, change=3), sent_s=boot_s())
        keyless = await rig.client.post(CHAT, json={"messages": []}, headers=origin)

    name = "access-control-allow-origin"
    assert [(one.status_code, one.headers.get(name)) for one in (malformed, keyless)] == [
        (400, "*"),
        (401, "*"),
    ]
    assert [(one.status_code, one.headers.get(name)) for one in (unknown, plain)] == [
        (404, None),
        (400, None),
    ]


async def test_no_proxy_collects_the_events_of_a_stream() -> None:
    async with router_rig() as rig:
        streamed, whole = await rig.ask(stream=True), await rig.ask()

    assert [one.headers.get("x-accel-buffering") for one in (streamed, whole)] == ["no", None]


PAGE = {"origin": "https://app.example"}
OF_VOTES = {**PAGE, "access-control-request-method": "POST"}


async def test_a_page_of_another_origin_may_vote() -> None:
    """Its browser asks first, without a key; then it sends the vote with one, and reads what came of it."""
    async with router_rig() as rig:
        assert rig.core.table is not None
        access = Access({digest_of("sk-a-0123456789"): ClientKey("app")}, keys_required=True)
        rig.core.on_table(replace(rig.core.table, access=access, change=9), sent_s=boot_s())
        wanted = {**OF_VOTES, "access-control-request-headers": "authorization,content-type"}
        asked = await rig.client.options("/chat/v1/feedback", headers=wanted)
        vote = {"id": "chatcmpl-1", "thumb": "up"}
        bearer = {"authorization": "Bearer sk-a-0123456789"}
        sent = await rig.client.post("/chat/v1/feedback", json=vote, headers={**PAGE, **bearer})
        keyless = await rig.client.post("/chat/v1/feedback", json=vote, headers=PAGE)

    allowed = {name: value for name, value in asked.headers.items() if name.startswith("access-control-")}
    assert (asked.status_code, asked.content) == (204, b"")
    assert allowed == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "600",
    }
    assert [(one.status_code, one.headers.get("access-control-allow-origin")) for one in (sent, keyless)] == [
        (202, "*"),
        (401, "*"),
    ]
    assert not rig.stable.seen


@pytest.mark.parametrize("headers", [{}, PAGE])
async def test_a_question_for_votes_that_is_no_preflight_is_refused(headers: dict[str, str]) -> None:
    async with router_rig() as rig:
        asked = await rig.client.options("/chat/v1/feedback", headers=headers)

    assert (asked.status_code, asked.headers["allow"]) == (405, "POST")


async def test_who_is_no_page_is_told_nothing_of_pages() -> None:
    async with router_rig() as rig:
        sent = await rig.client.post("/chat/v1/feedback", json={"id": "chatcmpl-1", "thumb": "up"})

    assert (sent.status_code, sent.headers.get("access-control-allow-origin")) == (202, None)
