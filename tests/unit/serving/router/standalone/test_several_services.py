"""Several services on one port, and a reload of the table file under load; on sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from serving.access import digest_of
from serving.clock import boot_s
from serving.router.front.front_wire import WireFront
from serving.router.standalone import table_file
from serving.router.standalone.table_file import FileTableSource, make_front
from tests.fakes.router_rig import Engine, running, serving, until
from tests.unit.serving.router.test_metrics import read, value

FILE = """
services:
  - {service: chat, stable: {url: "CHAT"}}
  - {service: code, stable: {url: "CODE"}KEYS}
"""
PATH = "/v1/chat/completions"
SERVICES = ("chat", "code")


@dataclass
class Port:
    """One port with the services chat and code."""

    front: WireFront
    client: httpx.AsyncClient
    chat: Engine
    code: Engine
    path: Path

    def write(self, text: str) -> None:
        self.path.write_text(text.replace("CHAT", self.chat.url).replace("CODE", self.code.url))


async def opened(stack: AsyncExitStack, path: Path, text: str) -> Port:
    chat = await stack.enter_async_context(running(Engine("chat")))
    code = await stack.enter_async_context(running(Engine("code")))
    path.write_text(text.replace("CHAT", chat.url).replace("CODE", code.url))
    front = make_front(path)
    base = await stack.enter_async_context(serving(front))
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=30, verify=False))
    return Port(front, client, chat, code, path)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        yield await opened(stack, tmp_path / "table.yaml", FILE.replace("KEYS", ""))


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("path", "model", "service"),
    [
        ("/code" + PATH, "code", "code"),
        ("/code" + PATH, "chat", "code"),  # the prefix wins
        (PATH, "code", "code"),
        (PATH, "chat", "chat"),
        ("/chat" + PATH, "anything", "chat"),
    ],
)
async def test_the_prefix_wins_and_else_the_bodys_model(
    port: Port, path: str, model: str, service: str
) -> None:
    assert text_of(await port.client.post(path, json={"model": model, "messages": []})) == service


@pytest.mark.slow
async def test_a_large_body_is_sent_to_the_service_of_its_model(port: Port) -> None:
    body = {"messages": [{"role": "user", "content": "x" * (2 << 20)}], "model": "code"}

    assert text_of(await port.client.post(PATH, json=body)) == "code"


async def test_a_form_is_sent_to_the_service_of_its_model(port: Port) -> None:
    audio = {"file": ("a.wav", b"RIFF")}
    await port.client.post("/v1/audio/transcriptions", data={"model": "code"}, files=audio)

    assert (len(port.code.seen), len(port.chat.seen)) == (1, 0)


@pytest.mark.parametrize("body", [{"model": "gpt"}, {}, {"model": 5}, {"model": None}])
async def test_another_model_is_404_with_the_services_that_exist(port: Port, body: dict[str, object]) -> None:
    answer = await port.client.post(PATH, json=body)

    assert answer.status_code == 404
    assert "services here are chat, code" in answer.json()["error"]["message"]
    assert (port.chat.seen, port.code.seen) == ([], [])


async def test_a_body_that_is_no_json_is_400_before_any_service_is_asked(port: Port) -> None:
    answer = await port.client.post(PATH, content=b"{", headers={"content-type": "application/json"})

    assert answer.status_code in (400, 404)
    assert (port.chat.seen, port.code.seen) == ([], [])


async def test_the_models_are_the_services(port: Port) -> None:
    answer = await port.client.get("/v1/models")
    head = await port.client.head("/v1/models")

    assert [one["id"] for one in answer.json()["data"]] == ["chat", "code"]
    assert (answer.json()["object"], head.status_code, head.content) == ("list", 200, b"")


async def test_one_model_is_looked_up_at_its_own_service(port: Port) -> None:
    await port.client.get("/v1/models/code")

    assert [request.path for request in port.code.seen] == ["/v1/models/code"]


async def test_a_route_without_a_model_needs_the_prefix(port: Port) -> None:
    answer = await port.client.get("/v1/responses/resp_1")

    assert answer.status_code == 404
    assert "send it to /chat/v1/responses/resp_1" in answer.json()["error"]["message"]


async def test_a_client_sees_the_services_that_its_key_may_use(tmp_path: Path) -> None:
    key = f', keys_required: true, keys: [{{name: ide, sha256: "{digest_of("sk-1")}"}}]'
    async with AsyncExitStack() as stack:
        port = await opened(stack, tmp_path / "table.yaml", FILE.replace("KEYS", key))
        without = await port.client.get("/v1/models")
        with_key = await port.client.get("/v1/models", headers={"authorization": "Bearer sk-1"})
        refused = await port.client.post(PATH, json={"model": "code"})

    assert [one["id"] for one in without.json()["data"]] == ["chat"]
    assert [one["id"] for one in with_key.json()["data"]] == ["chat", "code"]
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


OF_TWO = """
services:
  - {service: chat, stable: {url: "CHAT"}, keys_required: true, keys: [{name: a, sha256: "A"}]}
  - {service: secret, stable: {url: "CODE"}, keys_required: true, keys: [{name: b, sha256: "B"}]}
""".replace('"A"', f'"{digest_of("ka")}"').replace('"B"', f'"{digest_of("kb")}"')


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/x", None), ("POST", PATH, {"model": "gpt-4"}), ("GET", "/none/v1/models", None)],
)
async def test_an_error_names_only_services_that_the_client_may_use(
    tmp_path: Path, method: str, path: str, body: object
) -> None:
    async with AsyncExitStack() as stack:
        port = await opened(stack, tmp_path / "table.yaml", OF_TWO)
        without = await port.client.request(method, path, json=body)
        with_key = await port.client.request(method, path, json=body, headers={"x-api-key": "ka"})

    assert (without.status_code, with_key.status_code) == (401, 404)
    assert "secret" not in without.text + with_key.text
    assert "chat" not in without.text
    assert "chat" in with_key.text


async def test_an_unknown_path_names_a_single_service_only_to_its_clients(tmp_path: Path) -> None:
    text = f"""
service: chat
stable: {{url: "CHAT"}}
keys_required: true
keys: [{{name: a, sha256: "{digest_of("ka")}"}}]
"""
    async with AsyncExitStack() as stack:
        port = await opened(stack, tmp_path / "table.yaml", text)
        answers = [await port.client.get("/x", headers=headers) for headers in ({}, {"x-api-key": "ka"})]

    assert [one.status_code for one in answers] == [401, 404]


async def test_a_trusted_header_counts_by_the_address_of_the_connection(tmp_path: Path) -> None:
    text = """
service: chat
stable: {url: "CHAT"}
canary: {url: "CODE"}
audience_bp: {staff: 10000}
trust: {audience_header: x-audience, from: [NETWORK]}
"""
    answers = []
    for network in ("127.0.0.0/8", "10.0.0.0/8"):
        async with AsyncExitStack() as stack:
            port = await opened(stack, tmp_path / "table.yaml", text.replace("NETWORK", network))
            headers = {"x-audience": "staff"}
            answers.append(text_of(await port.client.post("/chat" + PATH, json={}, headers=headers)))
            seen = [*port.chat.seen, *port.code.seen]
            assert "x-audience" not in seen[0].headers

    assert answers == ["code", "chat"]


@pytest.mark.slow
async def test_the_metrics_tell_services_apart_and_count_each_refusal_once(port: Port) -> None:
    for path in ("/chat" + PATH, "/code" + PATH, "/code" + PATH):
        await port.client.post(path, json={})
    await port.client.post("/code" + PATH, content=b"{", headers={"content-type": "application/json"})
    await port.client.get("/v1/responses/resp_1")
    port.front._sweep()
    port.front._sweep()
    for core in port.front.cores.values():
        core.on_table(None, sent_s=boot_s())
        core.report(now_s=boot_s(), wall_s=time.time())
    metrics = read(port.front)

    requests = "canaryctl_router_requests_total"
    assert [value(metrics, requests, service=name) for name in SERVICES] == [1, 2]
    refusals = metrics["canaryctl_router_refusals"].samples
    assert {(one.labels["service"], one.labels["code"]): one.value for one in refusals} == {
        ("code", "invalid_json"): 1,
        ("", "unknown_service"): 1,
    }
    lags = [
        value(metrics, "canaryctl_router_event_loop_lag_seconds_count", service=name) for name in SERVICES
    ]
    assert lags[0] == lags[1] > 0


ONE = 'service: chat\nstable: {url: "CHAT"}'


async def test_a_reload_adds_and_removes_services(port: Port) -> None:
    source = port.front._background
    assert isinstance(source, FileTableSource)
    chat = port.front.cores["chat"]
    found = []
    for text in (ONE, FILE.replace("code", "new").replace("KEYS", "")):
        port.write(text)
        assert source.reload() is None
        answers = [await port.client.post(f"/{name}{PATH}", json={}) for name in ("chat", "code", "new")]
        found.append(([one.status_code for one in answers], port.front.services))
    models = (await port.client.get("/v1/models")).json()["data"]

    assert found == [([200, 404, 404], ("chat",)), ([200, 404, 200], ("chat", "new"))]
    assert port.front.cores["chat"] is chat  # its counters and its requests under way go on
    assert port.front.cores["new"].held is port.front.held
    assert [one["id"] for one in models] == ["chat", "new"]


async def test_a_request_of_a_service_that_is_removed_ends_where_it_began(port: Port) -> None:
    source = port.front._background
    assert isinstance(source, FileTableSource)
    may_answer = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        await may_answer.wait()
        return await port.code.well(request)

    port.code.behave = late
    asking = asyncio.create_task(port.client.post("/code" + PATH, json={}))
    await until(lambda: len(port.code.seen) == 1)
    port.write(ONE)
    assert source.reload() is None
    refused = await port.client.post("/code" + PATH, json={})
    may_answer.set()

    assert (text_of(await asking), refused.status_code) == ("code", 404)


@pytest.mark.slow
async def test_the_command_says_which_services_are_served_after_a_change(
    port: Port, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_file, "RELOAD_CHECK_S", 0.001)
    caplog.set_level("INFO", "canaryctl")

    def is_shown(text: str) -> bool:
        return text in caplog.text

    port.write(ONE)
    await until(lambda: is_shown("services are now chat\n"))
    port.write(ONE.replace("service: chat", "service: other"))
    await until(lambda: is_shown("service other is none of those that are served, chat; keep one"))

    assert (port.front.services, caplog.text.count("services are now")) == (("chat",), 1)


@pytest.mark.slow
async def test_no_request_is_lost_while_tables_are_reloaded_under_load(port: Port) -> None:
    source = port.front._background
    assert isinstance(source, FileTableSource)
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        while not is_over.is_set():
            body: dict[str, object] = {
                "model": ("chat", "code")[number % 2],
                "messages": [],
                "stream": number % 3 == 0,
            }
            statuses.append((await port.client.post(PATH, json=body)).status_code)

    clients = [asyncio.create_task(client(number)) for number in range(6)]
    errors = []
    for turn in range(30):
        urls = ("CHAT", "CODE") if turn % 2 else ("CODE", "CHAT")
        text = json.dumps({"services": [
            {"service": name, "stable": {"url": url}, "salt": str(turn)}
            for name, url in zip(("chat", "code"), urls, strict=True)
        ]})  # fmt: skip
        port.write("nonsense" if turn % 5 == 4 else text)
        errors.append(source.reload())
        await asyncio.sleep(0.02)
    is_over.set()
    await asyncio.gather(*clients)

    assert set(statuses) == {200}
    assert len(statuses) > 60
    assert sum(error is not None for error in errors) == 6


@pytest.mark.parametrize("path", ["/health", "/healthz", "/-/healthz", "/v1/models"])
async def test_a_head_of_what_the_router_itself_answers_is_its_get_without_a_body(
    port: Port, path: str
) -> None:
    get, head = await port.client.get(path), await port.client.head(path)
    others = {"date", "x-canaryctl-request-id"}

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {one: value for one, value in head.headers.items() if one not in others} == {
        one: value for one, value in get.headers.items() if one not in others
    }
