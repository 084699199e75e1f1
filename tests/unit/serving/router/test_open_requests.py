"""Requests that never end, over real HTTP: a router, two engines, the log, the gate.."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
import uvicorn
from aiohttp import web

from controller.evidence.feed import Feed, GateConfig
from controller.rollout.observation import EvidenceStatus
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S as WAIT_OF_THE_EVIDENCE_S
from evaluation.report import Verdict
from serving.clock import boot_s
from serving.messages import Arm, RecordPage, Replica, RequestRecord, RouteTable
from serving.router.exchange import Limits
from serving.router.front_asgi import RouterFront
from serving.router.outbox import SETTLE_S
from serving.router.router import RouterCore
from serving.table.records_log import RecordLog
from tests.unit.serving.router.test_front_asgi import CHAT, CHUNKS, Engine, running

WAIT_S = 1.5  # instead of a minute


def test_the_router_and_the_evidence_wait_for_an_answer_alike() -> None:
    assert SETTLE_S == WAIT_OF_THE_EVIDENCE_S == Limits().settle_s


async def until(holds: Callable[[], bool]) -> None:
    """Waits for something that another task does; half a minute at most, on a busy machine."""
    for _ in range(1500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen within half a minute")


class Line:
    """Confirms every draw and takes what the router tells, as the actors do."""

    def __init__(self) -> None:
        self.log = RecordLog()
        self._task: asyncio.Task[None] | None = None

    async def start(self, core: RouterCore) -> None:
        self._task = asyncio.create_task(self._run(core))

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _run(self, core: RouterCore) -> None:
        while True:
            await asyncio.sleep(0.01)
            core.heard(None, sent_s=boot_s())
            batch = core.report(now_s=boot_s(), wall_s=time.time())
            self.log.append_batch(batch, now_s=boot_s(), wall_s=time.time())
            core.outbox.sent()


async def behave(engine: Engine, request: web.Request) -> web.StreamResponse:
    """As the request's body says."""
    asked = json.loads(engine.bodies[-1])["model"]
    if asked == "hang":
        await asyncio.sleep(30)
    if asked == "drip":
        return await engine.stream(request, [CHUNKS[0]] * 600, gap_s=0.05)
    if asked == "fail":
        raise web.HTTPInternalServerError
    return await engine.well(request)


async def given_up(asked: list[asyncio.Task[httpx.Response]]) -> None:
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


class Rig:
    def __init__(self, core: RouterCore, line: Line, engines: tuple[Engine, Engine], base: str) -> None:
        self.core, self.line = core, line
        self.stable, self.canary = engines
        self.client = httpx.AsyncClient(base_url=base, timeout=60, limits=httpx.Limits())
        self._change = 0

    def split(self, weight_bp: int) -> None:
        self._change += 1
        arms = [Arm(name, (Replica(one.url),)) for name, one in (("v-1", self.stable), ("v-2", self.canary))]
        table = RouteTable(
            "chat", 1, self._change, self._change, "r-1", "salt", weight_bp, arms[0], arms[1], 0, "s3cret"
        )
        self.core.heard(table, sent_s=boot_s())

    async def ask(self, model: str = "well") -> httpx.Response:
        return await self.client.post(CHAT, json={"messages": [], "stream": True, "model": model})

    @asynccontextmanager
    async def never_ending(self, *models: str) -> AsyncIterator[float]:
        """Asks, of the canary, what never ends; when the last of them was assigned."""
        self.split(10_000)
        asked = [asyncio.create_task(self.ask(model)) for model in models]
        await until(lambda: len(self.canary.seen) == len(models))
        try:
            yield time.time()
            assert not any(one.done() for one in asked)
        finally:
            await given_up(asked)

    def page(self) -> RecordPage:
        return self.line.log.read(0, 100_000, now_s=boot_s(), wall_s=time.time())

    def records(self) -> list[RequestRecord]:
        return [one for one in self.page().events if isinstance(one, RequestRecord)]

    async def sight(self, count: int) -> EvidenceStatus:
        """What the gate of errors says when `count` requests have been told, and all of them have settled."""
        await until(lambda: len(self.records()) == count)
        last_s = max(one.at_s for one in self.records())
        await until(lambda: self.page().low_watermark_s > last_s)
        feed = Feed("r-1", GateConfig(GatePolicy.default().only("error"), (StagePlan(0.5, 0),)))
        feed.take(self.page(), time.time())
        sight = feed.sight()
        assert sight is not None
        return sight


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    limits = Limits(settle_s=WAIT_S, canary_stream_s=20.0)
    core, line = RouterCore("chat", router="r", limits=limits, lease_s=1e9), Line()
    front = RouterFront(core, line)
    config = uvicorn.Config(
        front, port=0, lifespan="on", log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    async with AsyncExitStack() as stack:
        engines = Engine("stable"), Engine("canary")
        for one in engines:
            one.behave = lambda request, one=one: behave(one, request)  # type: ignore[misc]
            await stack.enter_async_context(running(one))
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        one_rig = Rig(core, line, engines, f"http://127.0.0.1:{port}")
        yield one_rig
        await one_rig.client.aclose()
        server.should_exit = True
        await serving


async def test_requests_that_never_end_are_told_as_they_stand_and_hold_nothing_back(rig: Rig) -> None:
    async with rig.never_ending("hang", "drip") as asked_s:
        rig.split(5_000)
        for _ in range(20):
            await rig.ask()
        await until(lambda: rig.page().low_watermark_s > asked_s + WAIT_S)
        drip, hung = sorted((one for one in rig.records() if one.w == 1.0), key=lambda one: one.error is True)

        assert (hung.outcome, hung.arm, hung.error, hung.cause) == ("open", 1, True, "silent")
        assert (drip.outcome, drip.arm, drip.error, drip.served_arm) == ("open", 1, False, 1)
        assert hung.latency_ms is None
        assert drip.latency_ms == pytest.approx(WAIT_S * 1000)
        assert drip.ttft_ms is not None
        assert drip.ttft_ms < WAIT_S * 1000
        assert rig.core.in_flight[rig.canary.url] == 2  # both still hold a drain


async def test_their_end_is_not_told_again(rig: Rig) -> None:
    async with rig.never_ending("hang", "drip"):
        await until(lambda: len(rig.records()) == 2)
    await until(lambda: not rig.core.in_flight)
    last_s = time.time()
    await until(lambda: rig.page().low_watermark_s > last_s)

    assert [one.outcome for one in rig.records()] == ["open", "open"]


@pytest.mark.calibration
@pytest.mark.parametrize("harm", ["hang", "fail"])
async def test_a_rollback_by_errors_is_found_although_some_requests_never_end(rig: Rig, harm: str) -> None:
    rig.stable.behave = rig.stable.well
    asked = []
    async with rig.never_ending("hang", "drip"):
        rig.split(5_000)
        for number in range(80):
            asked.append(asyncio.create_task(rig.ask(harm if number % 2 else "well")))
            await asyncio.sleep(0.02)
        sight = await rig.sight(82)
        still = sum(not one.done() for one in asked)
        await given_up(asked)

    assert sight.rollback is not None
    # Where stable stood in for a failed answer at once, the share that the canary served may tell first.
    found = {gate.gate for gate in sight.gates if gate.verdict is Verdict.FAIL}
    assert found & ({"error", "served_rate"} if harm == "fail" else {"error"})
    assert still >= 8 or harm == "fail"
