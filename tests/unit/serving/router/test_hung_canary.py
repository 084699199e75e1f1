"""Clients who wait for a canary that does not answer: when it leaves the table, and when the router stops."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from serving.messages import RequestRecord
from serving.router.front.front_wire import WireFront
from serving.router.front.load import KEEP_ALIVE_S
from serving.router.standalone.table_file import FileTableSource, front_of, source_of
from serving.router.standalone.table_reader import TableFileError, read_file
from serving.router.standalone.table_schema import LimitsSpec
from serving.router.types import Limits
from tests.fakes.router_rig import CHUNKS, Engine, running, serving, until

FILE = """
service: chat
stable: {url: "STABLE"}
canary: {url: "CANARY"ENABLED}
weight_bp: 10000
"""
PATH = "/chat/v1/chat/completions"
WHOLE: dict[str, object] = {"messages": []}
STREAM: dict[str, object] = {"messages": [], "stream": True}


@dataclass
class Hung:
    """A router whose canary takes requests and never answers."""

    front: WireFront
    source: FileTableSource
    client: httpx.AsyncClient
    stable: Engine
    canary: Engine
    path: Path

    def write(self, enabled: str = "", more: str = "") -> str | None:
        text = FILE.replace("STABLE", self.stable.url).replace("CANARY", self.canary.url)
        self.path.write_text(text.replace("ENABLED", enabled) + more)
        return self.source.reload()

    def records(self) -> list[RequestRecord]:
        return list(self.front.core.report(now_s=1e9, wall_s=1e9).records)


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
async def hung(tmp_path: Path) -> AsyncIterator[Hung]:
    path = tmp_path / "table.yaml"
    async with AsyncExitStack() as stack:
        stable = await stack.enter_async_context(running(Engine("stable")))
        canary = await stack.enter_async_context(running(Engine("canary")))
        canary.behave = never
        text = FILE.replace("STABLE", stable.url).replace("CANARY", canary.url)
        path.write_text(text.replace("ENABLED", ""))
        source = source_of(path)
        front = front_of(source)
        base = await stack.enter_async_context(serving(front))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=20, verify=False))
        yield Hung(front, source, client, stable, canary, path)


@pytest.mark.parametrize("body", [WHOLE, STREAM])
async def test_a_canary_that_leaves_the_table_frees_those_who_wait(
    hung: Hung, body: dict[str, object]
) -> None:
    asking = asyncio.create_task(hung.client.post(PATH, json=body))
    await until(lambda: len(hung.canary.seen) == 1)
    error = hung.write(", enabled: false")
    answer = await asyncio.wait_for(asking, 20)
    await asyncio.wait_for(hung.canary.aborted.wait(), 20)

    assert (error, answer.status_code, answer.headers["x-canaryctl-arm"]) == (None, 200, "stable")


async def test_a_canary_that_stays_keeps_its_requests(hung: Hung) -> None:
    may_answer = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        await may_answer.wait()
        return await hung.canary.well(request)

    hung.canary.behave = late
    asking = asyncio.create_task(hung.client.post(PATH, json=WHOLE))
    await until(lambda: len(hung.canary.seen) == 1)
    hung.write(more="burst_cap: 100\n")
    may_answer.set()

    assert (await asking).headers["x-canaryctl-arm"] == "canary"


@pytest.mark.slow
async def test_a_router_that_stops_asks_stable_where_the_canary_is_silent(hung: Hung) -> None:
    asking = asyncio.create_task(hung.client.post(PATH, json=WHOLE))
    await until(lambda: len(hung.canary.seen) == 1)
    await hung.front.stop(drain_s=2.0)
    counters = hung.front.core.counters

    assert (await asking).headers["x-canaryctl-arm"] == "stable"
    assert [(arm, outcome) for arm, outcome, _ in counters.requests] == [(1, "fenced")]
    assert (counters.errors, sum(counters.latency[1].counts)) == ([0, 0], 0)


@pytest.mark.slow
async def test_a_router_that_stops_asks_stable_beside_a_canary_that_may_still_answer(hung: Hung) -> None:
    async def late(request: web.Request) -> web.StreamResponse:
        await until(lambda: len(hung.stable.seen) == 1)
        return await hung.canary.well(request)

    hung.canary.behave, hung.stable.behave = late, never
    asking = asyncio.create_task(hung.client.post(PATH, json=WHOLE))
    await until(lambda: len(hung.canary.seen) == 1)
    await hung.front.stop(drain_s=1.0)

    assert (await asking).headers["x-canaryctl-arm"] == "canary"
    await asyncio.wait_for(hung.stable.aborted.wait(), 20)


@pytest.mark.slow
async def test_a_router_that_stops_tells_those_whom_nobody_has_answered(hung: Hung) -> None:
    hung.stable.behave = never
    asking = asyncio.create_task(hung.client.post(PATH, json=WHOLE))
    await until(lambda: len(hung.canary.seen) == 1)
    await hung.front.stop(drain_s=0.4)
    answer = await asking

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")


@pytest.mark.slow
async def test_a_stream_that_is_cut_by_the_stop_says_so(hung: Hung) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNKS[0])
        return await never(request)

    hung.write(", enabled: false")
    hung.stable.behave = half
    asking = asyncio.create_task(hung.client.post(PATH, json=STREAM))
    await until(lambda: len(hung.stable.seen) == 1)
    await until(lambda: any(one._has_begun for one in hung.front._relays()))
    await hung.front.stop(drain_s=0.4)
    answer = await asking

    assert answer.content.startswith(CHUNKS[0])
    assert b'"code": "cut"' in answer.content


@pytest.mark.slow
async def test_the_time_outs_of_the_table_hold_from_its_reload_on(hung: Hung) -> None:
    hung.write(more="limits: {canary_whole_s: 0.2, connect_s: 1}\n")
    answer = await asyncio.wait_for(hung.client.post(PATH, json=WHOLE), 20)

    assert answer.headers["x-canaryctl-arm"] == "stable"
    assert hung.front.upstream is not None
    assert hung.front.upstream.limits.connect_s == 1


def test_the_defaults_of_a_table_are_those_of_the_router() -> None:
    assert LimitsSpec().limits() == Limits()
    others = {"failures", "client_idle_s", "upstream_age_s"}
    assert LimitsSpec().upstream_age_s == Limits().connection_age_s
    assert LimitsSpec().client_idle_s == KEEP_ALIVE_S
    assert set(LimitsSpec.model_fields) - others <= {one.name for one in dataclasses.fields(Limits)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: {stable_s: 0}", "limits.stable_s 0: is not above 0"),
        (
            "limits: {stabel_s: 5}",
            "limits.stabel_s 5: is no key here; did you mean stable_s?; keys are connect_s",
        ),
        ("limits: {failures: 1.5}", "limits.failures 1.5: is no whole number"),
    ],
)
def test_a_limit_that_is_none_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f"service: chat\nstable: {{url: 'http://a'}}\n{text}")
    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1)

    assert message in str(caught.value)


def test_limits_of_one_of_several_services_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("services: [{service: a, stable: {url: 'http://a'}, limits: {idle_s: 5}}]")
    with pytest.raises(
        TableFileError, match=r"services.0.limits: limits hold for the port; write them beside"
    ):
        read_file(path, change=1)
