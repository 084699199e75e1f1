"""The probe of an external endpoint against local servers: an answer, or the reason why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from serving.credentials import KeyReference
from serving.fleet import endpoint_probe
from serving.fleet.types import EndpointError, Launch


class Server:
    """An endpoint that answers its two routes with these statuses."""

    def __init__(self) -> None:
        self.models, self.chat = 200, 400
        self.delay_s = 0.0
        self.keys: list[str | None] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("authorization"))
        await asyncio.sleep(self.delay_s)
        if request.path == "/api/paas/v4/models":
            return web.Response(status=self.models, headers={"location": "http://elsewhere/"})
        return web.Response(status=self.chat if request.path == "/api/paas/v4/chat/completions" else 404)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one, app = Server(), web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    one.url = f"http://127.0.0.1:{port}/api/paas/v4"
    yield one
    await runner.cleanup()


async def error_of(url: str, *, timeout_s: float = 5.0, key: KeyReference | None = None) -> str | None:
    error = await probed(url, timeout_s=timeout_s, key=key)
    return None if error is None else error.text


async def probed(
    url: str, *, timeout_s: float = 5.0, key: KeyReference | None = None
) -> EndpointError | None:
    launch = Launch("chat", "v-x", "s", url=url, endpoint_model="large", api_key=key)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
        return await endpoint_probe.endpoint_error(session, launch)


@pytest.mark.parametrize(
    ("models", "chat", "reason"),
    [
        (200, 404, None),
        (429, 404, None),
        (404, 400, None),
        (405, 422, None),
        (
            404,
            404,
            "answers 404 to POST /v1/chat/completions: correct its base URL, or set model",
        ),
        (401, 401, "answers 401 to GET /v1/models: it needs a key; set api_key_env or api_key_file"),
        (404, 403, "answers 403 to POST /v1/chat/completions: it needs a key"),
        (308, 400, "answers 308 to GET /v1/models, a redirect; give the address that it leads to"),
        (501, 400, None),
        (501, 503, "answers 503 to POST /v1/chat/completions; check that endpoint"),
        (503, 400, "answers 503 to GET /v1/models; check that endpoint"),
    ],
)
async def test_an_endpoint_answers_or_the_reason_is_told(
    server: Server, models: int, chat: int, reason: str | None
) -> None:
    server.models, server.chat = models, chat

    found = await error_of(server.url)

    assert (found is None) == (reason is None)
    assert found is None or reason is None or found.startswith(f"{server.url} {reason}")


@pytest.mark.slow
async def test_a_hanging_endpoint_is_told_by_its_timeout(server: Server) -> None:
    server.delay_s = 5.0

    assert (
        await error_of(server.url, timeout_s=0.1)
        == f"{server.url} does not answer within 5 s; check that endpoint"
    )


async def test_an_unreachable_endpoint_is_told_at_once() -> None:
    assert str(await error_of("http://127.0.0.1:9")).startswith("http://127.0.0.1:9 does not answer (")


async def test_the_key_is_sent_and_a_refused_one_is_told_by_its_reference(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    key = KeyReference("file", str(tmp_path / "key"))
    server.models = 401

    found = await error_of(server.url, key=key)

    assert server.keys == ["Bearer sk-1"]
    assert found == f"{server.url} answers 401 to GET /v1/models: it refuses the key of {key}; correct it"


async def test_a_key_that_cannot_be_read_is_told_before_the_endpoint_is_asked(server: Server) -> None:
    found = await error_of(server.url, key=KeyReference("env", "NO_SUCH_KEY"))

    assert (server.keys, found) == (
        [],
        "api_key_env NO_SUCH_KEY is not set; export it before this process starts",
    )


@pytest.mark.parametrize(
    ("models", "chat", "may_heal"),
    [
        (401, 400, False),
        (403, 400, False),
        (404, 404, False),
        (404, 401, False),
        (308, 400, False),
        (500, 400, True),
        (502, 400, True),
        (404, 503, True),
    ],
)
async def test_an_answer_that_stays_wrong_is_told_from_one_that_may_heal(
    server: Server, models: int, chat: int, may_heal: bool
) -> None:
    server.models, server.chat = models, chat

    error = await probed(server.url)

    assert error is not None
    assert error.may_heal is may_heal


@pytest.mark.slow
async def test_an_endpoint_that_refuses_or_hangs_may_heal_and_a_missing_key_does_not(server: Server) -> None:
    server.delay_s = 5.0
    errors = (
        await probed("http://127.0.0.1:9"),
        await probed(server.url, timeout_s=0.1),
        await probed(server.url, key=KeyReference("env", "NO_SUCH_KEY")),
    )

    assert [error.may_heal for error in errors if error is not None] == [True, True, False]
