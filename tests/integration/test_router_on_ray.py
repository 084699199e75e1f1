"""Three routers behind Serve's ingress in front of two real engines, under load.

Between routers and engines is a tap: a proxy that records when each request arrived and which status the
engine's front returned. "No request starts on the canary" is therefore measured at the canary itself.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import httpx
import pytest
from aiohttp import web

from serving.credentials import ControlSecret
from serving.messages import FULL_BP, MirrorRecord, Replica, RequestRecord, RouteTable, SplitStatus
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.table.orders import Split

if TYPE_CHECKING:
    # Imported where it is used: Ray reads the cluster's token when it is first imported.
    from serving.table.traffic_ray import RayTraffic

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

E = TypeVar("E", RequestRecord, MirrorRecord)

ROUTERS = 3
WORKERS = 6
TOKENS = 4


class Loop:
    """An event loop in its own thread, so that taps and clients continue while the test waits."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine: Any, timeout_s: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)


@dataclass
class Tap:
    """A proxy to `target` that records (arrival time, status) of each request."""

    target: str
    notes: list[tuple[float, int]] = field(default_factory=list)
    url: str = ""

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        arrived_s = time.time()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        body = await request.read()
        url = self.target + request.raw_path
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            if not request.path.startswith("/_canaryctl"):
                self.notes.append((arrived_s, answer.status))
            names = ("content-type", "x-canaryctl-refused")
            kept = {name: answer.headers[name] for name in names if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            return response

    def started_after(self, moment_s: float) -> list[tuple[float, int]]:
        """Requests that arrived after that moment and were not refused by the fence."""
        return [note for note in self.notes if note[0] > moment_s and note[1] != 409]


@dataclass(frozen=True)
class Reply:
    sent_s: float
    status: int
    arm: str


class Load:
    """Closed-loop clients, each with its own users; inside the block they send requests without a pause."""

    def __init__(self, rig: Rig, base: str, *, workers: int = WORKERS) -> None:
        self._rig, self._base, self._workers = rig, base, workers
        self.replies: list[Reply] = []

    def __enter__(self) -> Load:
        self._stop = asyncio.Event()
        self._done = asyncio.run_coroutine_threadsafe(self._run(), self._rig.loop.loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None):  # type: ignore[no-untyped-def]
        self._rig.loop.loop.call_soon_threadsafe(self._stop.set)
        self._done.result(60)

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._ask_on(session, index) for index in range(self._workers)))

    async def _ask_on(self, session: aiohttp.ClientSession, worker: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            one = await ask(session, self._base, f"load-{worker}-{count}", stream=count % 2 == 0)
            self.replies.append(one)

    @property
    def failed(self) -> list[Reply]:
        return [one for one in self.replies if one.status != 200]


async def ask(session: aiohttp.ClientSession, base: str, user: str, *, stream: bool = False) -> Reply:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": TOKENS,
        "user": user,
        "stream": stream,
    }
    sent_s = time.time()
    async with session.post(base + "/v1/chat/completions", json=body) as answer:
        text = await answer.text()
        ended = answer.status == 200 and (not stream or text.rstrip().endswith("[DONE]"))
        status = answer.status if ended or answer.status != 200 else 599
        return Reply(sent_s, status, answer.headers.get("x-canaryctl-arm", ""))


@dataclass
class Rig:
    loop: Loop
    traffic: RayTraffic
    service: str
    base: str  # behind Serve's ingress
    stable: Tap
    canary: Tap

    def split(self, weight_bp: int, *, rollout: str | None = None, mirror_bp: int = 0) -> SplitStatus:
        """Set the weight and the share of copies, then wait until they are applied."""
        canary = "v-canary" if weight_bp or mirror_bp else None
        name = rollout or self.service
        deadline_s = time.time() + 20
        while time.time() < deadline_s:
            split = Split(name, name, "v-stable", canary, weight_bp, 1, mirror_bp=mirror_bp)
            status = self.traffic.set_split(self.service, split, token=1)
            if status is not None and status.applied:
                return status
            time.sleep(0.005)
        raise AssertionError(f"weight {weight_bp} bp was not applied: {status}")

    def ask_all(self, users: list[str], at_once: int = 8) -> list[Reply]:
        async def run() -> list[Reply]:
            gate = asyncio.Semaphore(at_once)

            async def one(session: aiohttp.ClientSession, user: str) -> Reply:
                async with gate:
                    return await ask(session, self.base, user)

            async with aiohttp.ClientSession() as session:
                return list(await asyncio.gather(*(one(session, user) for user in users)))

        replies: list[Reply] = self.loop.run(run(), 120)
        return replies

    def records(self, *, until: Callable[[list[RequestRecord]], bool]) -> list[RequestRecord]:
        """Read the log until the condition holds; ten seconds at most."""
        return self._events(RequestRecord, until)

    def copies(self, *, until: Callable[[list[MirrorRecord]], bool]) -> list[MirrorRecord]:
        """The same of the copies to a mirrored canary."""
        return self._events(MirrorRecord, until)

    def _events(self, kind: type[E], until: Callable[[list[E]], bool]) -> list[E]:
        found: list[E] = []
        after = 0
        deadline_s = time.time() + 10
        while not until(found) and time.time() < deadline_s:
            page = self.traffic.read_records(self.service, after)
            if page is not None:
                after = page.next_seq
                found += [event for event in page.events if isinstance(event, kind)]
            time.sleep(0.05)
        return found

    def router_pids(self) -> dict[str, int]:
        routers = self.traffic.routers(self.service) or {}
        pids = {name: int(name.split(":")[1]) for name, age_s in routers.items() if age_s < 0.9}
        return {name: pid for name, pid in pids.items() if pid}


@pytest.fixture(scope="module")
def rig(two_versions: Any, run_router: Callable[[str, int], str]) -> Iterator[Rig]:
    from serving.table.traffic_ray import RayTraffic

    loop = Loop()
    service = f"s{uuid.uuid4().hex[:6]}"
    traffic = RayTraffic(timeout_s=5.0)
    traffic.open(service, two_versions.secret, token=1)
    stable, canary = Tap(two_versions.stable_url), Tap(two_versions.canary_url)
    loop.run(stable.start())
    loop.run(canary.start())
    traffic.set_replicas(service, "v-stable", [Replica(stable.url)])
    traffic.set_replicas(service, "v-canary", [Replica(canary.url)])
    base = run_router(service, ROUTERS)
    one = Rig(loop, traffic, service, base, stable, canary)
    deadline_s = time.time() + 60
    while len(one.router_pids()) < ROUTERS and time.time() < deadline_s:
        time.sleep(0.1)
    one.split(0)
    yield one
    loop.run(stable.stop())
    loop.run(canary.stop())
    traffic.close(service, token=1)


def test_the_canarys_share_matches_the_weight_and_the_records_agree(rig: Rig) -> None:
    n, w = 500, 0.2
    rig.split(2000, rollout=f"share-{rig.service}")
    replies = rig.ask_all([f"user-{index}" for index in range(n)])
    found = rig.records(until=lambda r: sum(x.rollout.startswith("share") for x in r) >= n)
    records = [one for one in found if one.rollout.startswith("share")]
    canary = sum(one.arm == "canary" for one in replies)

    assert [one.status for one in replies] == [200] * n
    assert abs(canary - n * w) < 4.5 * math.sqrt(n * w * (1 - w))
    assert sum(one.arm for one in records) == canary
    assert {(one.w, one.assigned_by, one.error, one.outcome) for one in records} == {
        (w, "sticky", False, "answered")
    }
    assert len({one.router for one in records}) == ROUTERS
    assert all(one.completion_tokens for one in records)


def test_a_mirrored_canary_gets_a_copy_of_each_request_and_answers_no_user(rig: Rig) -> None:
    name, n = f"mirror-{rig.service}", 24
    rig.split(0, rollout=name, mirror_bp=FULL_BP)
    replies = rig.ask_all([f"mirror-user-{index}" for index in range(n)], at_once=3)
    copies = rig.copies(until=lambda c: sum(one.rollout == name for one in c) >= n)
    rig.split(0, rollout=name)
    ended_s = time.time()
    afterwards = rig.ask_all([f"later-user-{index}" for index in range(6)])
    time.sleep(0.5)
    records = [one for one in rig.records(until=lambda r: False) if one.rollout == name]

    assert [(one.status, one.arm) for one in replies + afterwards] == [(200, "stable")] * (n + 6)
    assert {(one.rollout, one.outcome, one.status) for one in copies} == {(name, "ok", 200)}
    assert len({one.unit for one in copies}) == len(copies) == n
    # Each is a pair: both answers are known, of as many tokens as were asked for.
    assert {(one.completion_tokens, one.stable_completion_tokens) for one in copies} == {(TOKENS, TOKENS)}
    assert rig.canary.started_after(ended_s) == []
    assert {one.arm for one in records} == {0}


def test_an_unknown_service_is_404_at_the_ingress(rig: Rig) -> None:
    ingress = rig.base.removesuffix(f"/{rig.service}")
    known, unknown = (httpx.get(f"{ingress}/{name}/v1/models") for name in (rig.service, "nobody"))

    assert (known.status_code, unknown.status_code) == (200, 404)


def test_a_raised_weight_never_moves_a_key_back_to_stable(rig: Rig) -> None:
    users = [f"ladder-{index}" for index in range(80)]
    arms: list[list[str]] = []
    for weight_bp in (500, 2000, 5000, 9000):
        rig.split(weight_bp)
        arms.append([one.arm for one in rig.ask_all(users)])

    moves = [move for low, high in itertools.pairwise(arms) for move in zip(low, high, strict=True)]
    assert ("canary", "stable") not in moves
    assert ("stable", "canary") in moves


@pytest.mark.parametrize("round_", range(3))
def test_after_weight_zero_is_applied_no_request_starts_on_the_canary_under_load(
    rig: Rig, round_: int
) -> None:
    rig.split(5000)
    with Load(rig, rig.base) as load:
        time.sleep(1.5)
        status = rig.split(0)
        applied_s = time.time()
        time.sleep(1.0)

    assert rig.canary.started_after(applied_s) == []
    assert [one for one in load.replies if one.sent_s > applied_s and one.arm == "canary"] == []
    assert {one.arm for one in load.replies if one.sent_s < applied_s - 0.5} == {"stable", "canary"}
    assert load.failed == []
    assert status.how in ("fenced", "acknowledged")


def test_after_weight_zero_no_request_starts_on_the_canary_although_a_router_is_frozen(rig: Rig) -> None:
    rig.split(5000)
    frozen = next(iter(rig.router_pids().values()))
    with Load(rig, rig.base) as load:
        time.sleep(1.0)
        os.kill(frozen, signal.SIGSTOP)
        try:
            time.sleep(0.3)
            began_s = time.time()
            status = rig.split(0)
            applied_s = time.time()
            time.sleep(2.0)
        finally:
            os.kill(frozen, signal.SIGCONT)
        time.sleep(1.0)  # the requests it held continue now, with an old table

    assert rig.canary.started_after(applied_s) == []
    assert applied_s - began_s < 1.5
    assert status.how in ("fenced", "lease")
    assert load.failed == []


def test_a_frozen_router_delays_the_withdrawal_of_an_unfenced_canary_by_one_lease(rig: Rig) -> None:
    """An external endpoint has no fence: only the lease protects it."""
    rig.traffic.set_replicas(rig.service, "v-canary", [Replica(rig.canary.url)], external=True)
    frozen = next(iter(rig.router_pids().values()))
    try:
        rig.split(5000)
        os.kill(frozen, signal.SIGSTOP)
        began_s = time.time()
        status = rig.split(0)
        took_s = time.time() - began_s
    finally:
        os.kill(frozen, signal.SIGCONT)
        rig.traffic.set_replicas(rig.service, "v-canary", [Replica(rig.canary.url)])

    assert status.how == "lease"
    assert 0.5 < took_s < 2.5


class PartitionedTableClient:
    """A router's table client whose connection can be cut, as by a network partition."""

    def __init__(self, service: str) -> None:
        from serving.router.ray_serve.replica_ray import RayTableClient

        self._client = RayTableClient(service)
        self._watch = self._client.watch
        self._client.watch = self._watch_or_fail  # type: ignore[method-assign]
        self.start, self.stop = self._client.start, self._client.stop
        self.is_cut = False

    async def _watch_or_fail(self, core: RouterCore) -> RouteTable | None:
        if self.is_cut:
            raise TimeoutError("partitioned")
        return await self._watch(core)


def test_after_weight_zero_no_request_starts_on_the_canary_although_a_router_is_partitioned(rig: Rig) -> None:
    client = PartitionedTableClient(rig.service)
    front = WireFront(RouterCore(rig.service, router="cut:0:1"), client)
    rig.loop.run(front.start())
    port = rig.loop.run(front.listen(socket.create_server(("127.0.0.1", 0))))
    base = f"http://127.0.0.1:{port}/{rig.service}"
    rig.split(5000)
    with Load(rig, base, workers=3) as load, Load(rig, rig.base, workers=3) as others:
        time.sleep(1.0)
        client.is_cut = True
        status = rig.split(0)
        applied_s = time.time()
        time.sleep(2.0)
        after = len(load.replies)
        time.sleep(0.5)
    rig.loop.run(front.stop())

    assert rig.canary.started_after(applied_s) == []
    assert status.how in ("fenced", "lease")
    assert {one.arm for one in load.replies if one.sent_s < applied_s - 0.5} == {"stable", "canary"}
    assert len(load.replies) > after  # it continued to serve stable without its table
    assert load.failed + others.failed == []


def test_a_client_that_disconnects_stops_the_engine_and_is_recorded_as_cancelled(
    rig: Rig, two_versions: Any
) -> None:
    async def leave() -> str:
        body = {"model": "chat", "prompt": "What is", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        async with aiohttp.ClientSession() as session:
            answer = await session.post(rig.base + "/v1/completions", json=body)
            await answer.content.readany()
            answer.close()
            return answer.headers["x-canaryctl-request-id"]

    async def in_flight() -> int:
        headers = ControlSecret.of(two_versions.secret).headers
        async with aiohttp.ClientSession(headers=headers) as session:
            state = await session.get(rig.stable.target + "/_canaryctl/state")
            return int((await state.json())["in_flight"])

    rig.split(0)
    request_id = rig.loop.run(leave())
    found = rig.records(until=lambda r: any(one.request_id == request_id for one in r))
    (one,) = [one for one in found if one.request_id == request_id]

    assert (one.outcome, one.error, one.status, one.finish_reason) == ("cancelled", None, 200, None)
    assert rig.loop.run(in_flight()) == 0


def test_a_tombstone_under_load_is_permanent(rig: Rig) -> None:
    name = f"dead-{rig.service}"
    rig.split(5000, rollout=name)
    with Load(rig, rig.base) as load:
        time.sleep(0.5)
        rig.traffic.tombstone(rig.service, name)
        rig.split(9000, rollout=name)
        applied_s = time.time()
        time.sleep(0.7)

    assert rig.canary.started_after(applied_s) == []
    assert load.failed == []


def test_running_the_router_again_does_not_restart_its_processes(
    rig: Rig, run_router: Callable[[str, int], str]
) -> None:
    before = rig.router_pids()
    run_router(rig.service, ROUTERS)
    time.sleep(2.0)

    assert rig.router_pids() == before


def test_a_crash_of_the_table_actor_withdraws_the_canary_and_fails_no_request(rig: Rig) -> None:
    import ray

    rig.split(5000)
    epoch = rig.traffic.observe(rig.service).epoch  # type: ignore[union-attr]
    with Load(rig, rig.base) as load:
        time.sleep(0.5)
        ray.kill(ray.get_actor(f"table:{rig.service}", namespace="canaryctl"), no_restart=False)
        deadline_s = time.time() + 30
        status = None
        while (status is None or status.epoch == epoch or not status.applied) and time.time() < deadline_s:
            status = rig.traffic.observe(rig.service)
            time.sleep(0.02)
        applied_s = time.time()
        time.sleep(1.0)

    assert status is not None
    assert status.epoch > epoch
    assert (status.stable, status.canary) == ("v-stable", None)
    assert rig.canary.started_after(applied_s) == []
    assert load.failed == []
