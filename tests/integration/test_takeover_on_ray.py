"""Takeover between two real engines of equal weights: greedy answers are the same at every cut point.

Between router and canary is a tap that breaks the connection after so many events. The router runs in this
process; the client reads every event (`tests/fakes/token_engine.py`).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from serving.checkpoints import Checkpoint
from serving.credentials import ControlSecret, DataSecret
from serving.fleet.types import Launch
from serving.messages import Arm, Replica, RequestRecord, RouteTable
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.types import Limits
from tests.fakes.router_rig import NoBackground, serving
from tests.fakes.token_engine import Answer
from tests.ray_rig import SECRET, wait_for

if TYPE_CHECKING:
    from serving.fleet.fleet_ray import RayFleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

SERVICE = "same"
CHAT, COMPLETIONS = f"/{SERVICE}/v1/chat/completions", f"/{SERVICE}/v1/completions"
QUESTIONS = ("What is the capital of France?", "Tell me of Zürich, 日本 and 🇫🇷")
TOKENS = 16
KILLS = int(os.environ.get("CANARYCTL_TEST_KILLS", "2"))
CLIENTS = 6


@dataclass
class Pair:
    """Two engines of one checkpoint."""

    fleet: RayFleet
    stable: Launch
    canary: Launch

    def url(self, launch: Launch) -> str:
        return wait_for(self.fleet, SERVICE, launch.version, "ready").urls[0]

    def wait_for_another(self, url: str) -> None:
        """Wait until the canary's replica has been replaced."""
        deadline_s = time.time() + 200
        while self.url(self.canary) == url and time.time() < deadline_s:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def pair(fleet: RayFleet, checkpoints: Mapping[str, Checkpoint], token: Callable[[], int]) -> Iterator[Pair]:
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=10.0)
    traffic.open(SERVICE, SECRET, token=token(), silence_s=None)
    model = str(checkpoints["stable"].path)
    launches = [Launch(SERVICE, name, SECRET, model_dir=model) for name in ("v-stable", "v-canary")]
    for launch in launches:
        fleet.ensure(launch, token=token())
    for launch in launches:
        wait_for(fleet, SERVICE, launch.version, "ready")
    yield Pair(fleet, *launches)
    for launch in launches:
        fleet.stop(SERVICE, launch.version, token=token())
    for launch in launches:
        wait_for(fleet, SERVICE, launch.version, "gone")
    traffic.close(SERVICE, token=token())


class Breaker:
    """A tap that breaks the connection some bytes after event `cut` of a stream; None: never."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.cut: int | None = None
        self.events = 0  # of the last stream
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Breaker]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            yield self
        await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        body, url = await request.read(), self._target + request.raw_path
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower().startswith(("content-type", "x-"))}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            data = b""
            async for part in answer.content.iter_any():
                data += part
                if self.cut is not None and data.count(b"\n\n") > self.cut:
                    place = 0
                    for _ in range(self.cut):
                        place = data.index(b"\n\n", place) + 2
                    await response.write(data[len(data) - len(part) : place + 15])
                    assert request.transport is not None
                    request.transport.close()
                    return response
                await response.write(part)
            self.events = data.count(b"\n\n")
            return response


@asynccontextmanager
async def router(stable: str, canary: str) -> AsyncIterator[tuple[RouterCore, httpx.AsyncClient]]:
    core = RouterCore(SERVICE, router="r", limits=Limits(), lease_s=math.inf)
    one, other = (Arm(name, (Replica(url),)) for name, url in (("v-stable", stable), ("v-canary", canary)))
    table = RouteTable(SERVICE, 1, 1, 1, "r-1", "s", 9999, one, other, 0, DataSecret.of(SECRET))
    core.on_table(table, sent_s=0.0)
    async with (
        serving(WireFront(core, NoBackground())) as base,
        httpx.AsyncClient(base_url=base, timeout=120) as client,
    ):
        yield core, client


def records(core: RouterCore) -> list[RequestRecord]:
    core.on_table(None, sent_s=1e12)
    found = list(core.outbox.next_batch(now_s=1e12).records)
    core.outbox.acknowledge()
    return found


def asked(path: str, question: str, **fields: object) -> dict[str, Any]:
    body: dict[str, Any] = {"model": SERVICE, "stream": True, "temperature": 0, "max_tokens": TOKENS}
    shape = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question}
    return {**body, "ignore_eos": True, "stream_options": {"include_usage": True}, **shape, **fields}


async def answer(
    client: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    on_event: Callable[[str, int], None] | None = None,
) -> Answer:
    """A whole stream. `on_event` gets the version that answers and the number of events so far."""
    data = b""
    async with client.stream("POST", path, json=body) as response:
        async for part in response.aiter_bytes():
            data += part
            if on_event is not None:
                on_event(response.headers["x-canaryctl-version"], data.count(b"\n\n"))
    assert response.status_code == 200, data
    return Answer(data, path == CHAT)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_greedy_answer_is_the_same_at_every_cut_point(pair: Pair, path: str) -> None:
    async with (
        Breaker(pair.url(pair.canary)).running() as breaker,
        router(pair.url(pair.stable), breaker.url) as (core, client),
    ):
        taken_over = 0
        for question, eos in itertools.product(QUESTIONS, (True, False)):
            body = asked(path, question, ignore_eos=eos, user="u1")
            breaker.cut = None
            whole = await answer(client, path, body)
            for cut in range(breaker.events):
                breaker.cut = cut
                broken = await answer(client, path, body)

                assert (broken.text, broken.finish, broken.usage) == (whole.text, whole.finish, whole.usage)
            found = records(core)
            taken_over += sum(one.takeover_at is not None for one in found)
            assert {one.arm for one in found} == {1}
            assert all(one.error is (one.cause is not None) for one in found)
            assert {one.cause for one in found} <= {None, "cut", "empty"}

    assert taken_over > 15


async def test_the_ids_between_the_events_are_vllms_own(pair: Pair) -> None:
    """`return_token_ids` asks vLLM for the ids that our notes name."""
    headers = {"x-canaryctl-secret": DataSecret.of(SECRET).text}
    body = {"model": SERVICE, "prompt": QUESTIONS[1], "max_tokens": 40, "temperature": 0, "stream": True}
    async with httpx.AsyncClient(base_url=pair.url(pair.canary), headers=headers, timeout=120) as client:
        response = await client.post("/v1/completions", json={**body, "return_token_ids": True})
    lines = response.text.split("\n")
    noted = [int(one) for line in lines if line.startswith(": ids ") for one in line[6:].split(",")]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    own = [one for event in events for choice in event["choices"] for one in choice["token_ids"]]

    assert noted == own
    assert response.headers["x-canaryctl-tokens"].endswith(" 40")


@dataclass
class Load:
    """Clients that stream without a pause and check every byte, until they are told to stop."""

    client: httpx.AsyncClient
    expected: Mapping[tuple[str, str], tuple[str, str | None, object]]
    is_stopping: bool = False
    count: int = 0
    is_warm: asyncio.Event = field(default_factory=asyncio.Event)  # streams are at every stage
    halfway: set[int] = field(default_factory=set)  # clients to which the canary has said up to half
    is_any_halfway: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, worker: int) -> None:
        for (path, question), (text, finish, usage) in itertools.cycle(self.expected.items()):
            if self.is_stopping:
                return
            body = asked(path, question, max_tokens=200, user=f"u-{worker}")
            one = await answer(self.client, path, body, functools.partial(self._on_event, worker))
            self.count += 1
            if self.count >= CLIENTS:
                self.is_warm.set()
            assert (one.text, one.finish, one.usage) == (text, finish, usage)

    def _on_event(self, worker: int, version: str, events: int) -> None:
        change = self.halfway.add if version == "v-canary" and 2 <= events <= 100 else self.halfway.discard
        change(worker)
        (self.is_any_halfway.set if self.halfway else self.is_any_halfway.clear)()


@asynccontextmanager
async def under_load(client: httpx.AsyncClient) -> AsyncIterator[Load]:
    expected = {}
    for path, question in itertools.product((CHAT, COMPLETIONS), QUESTIONS):
        one = await answer(client, path, asked(path, question, max_tokens=200, user="u-0"))
        expected[path, question] = one.text, one.finish, one.usage
    load = Load(client, expected)
    async with asyncio.TaskGroup() as group:
        for worker in range(CLIENTS):
            group.create_task(load.run(worker))
        yield load
        load.is_stopping = True


async def test_a_drain_that_cancels_is_not_seen_by_any_client(pair: Pair) -> None:
    headers = ControlSecret.of(SECRET).headers
    url = pair.url(pair.canary)
    async with (
        router(pair.url(pair.stable), url) as (core, client),
        httpx.AsyncClient(base_url=url, headers=headers) as control,
        under_load(client) as load,
    ):
        cancelled = 0
        while cancelled < 20:
            await asyncio.sleep(0.3)
            cancelled += (await control.post("/_canaryctl/cancel")).json()["cancelled"]
    found = records(core)

    taken_over = [one for one in found if one.takeover_at is not None]
    assert load.count + 4 == len(found)
    assert len(taken_over) > 5
    assert {(one.arm, one.error, one.cause, one.outcome) for one in taken_over} == {
        (1, True, "cut", "fallback")
    }


@pytest.mark.parametrize("kill", range(KILLS))
async def test_a_canary_killed_in_mid_stream_under_load_is_not_seen_by_any_client(
    pair: Pair, kill: int
) -> None:
    url = pair.url(pair.canary)
    async with httpx.AsyncClient(base_url=url, headers=ControlSecret.of(SECRET).headers) as control:
        state = (await control.get("/_canaryctl/state")).json()
    async with router(pair.url(pair.stable), url) as (core, client), under_load(client) as load:
        await asyncio.wait_for(load.is_warm.wait(), 120)
        await asyncio.sleep(0.137 * kill)
        await asyncio.wait_for(load.is_any_halfway.wait(), 120)
        os.kill(state["pid"], signal.SIGKILL)
        await asyncio.sleep(1.0)
    found = records(core)

    outcomes = Counter((one.outcome, one.cause, one.takeover_at is not None) for one in found)
    assert sum(one.takeover_at is not None for one in found) >= 1, outcomes
    # A busy machine's router stops drawing: what is stable's from the start has met no fault.
    drawn = [one for one in found if one.arm == 1]
    assert [one for one in drawn if one.served_arm == 0 and not one.error] == []
    assert {one.status for one in found} == {200}
    await asyncio.to_thread(pair.wait_for_another, url)
