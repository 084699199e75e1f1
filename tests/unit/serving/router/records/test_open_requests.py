"""Endless requests over real HTTP: a router, two engines, the records log, the gate."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from aiohttp import web

from controller.evidence.feed import Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig
from controller.evidence.score_join import ScoreJoin
from controller.rollout.observation import EvidenceStatus
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S as EVIDENCE_SETTLE_S
from evaluation.report import Verdict
from serving.clock import boot_s
from serving.messages import Arm, RecordPage, Replica, RequestRecord, RouteTable
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.types import SETTLE_S, Limits
from serving.table.records_log import RecordLog
from tests.fakes.router_rig import CHAT, CHUNKS, SECRET, Engine, running, serving

TEST_SETTLE_S = 1.5  # instead of a minute


def test_router_and_evidence_have_the_same_settle_time() -> None:
    assert SETTLE_S == EVIDENCE_SETTLE_S == Limits().settle_s


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that another task fulfils; half a minute at most, on a busy machine."""
    for _ in range(1500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not hold within half a minute")


class MemoryTableClient:
    """Confirms every assignment and appends the router's batches to a log, as the actors do."""

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
            core.on_table(None, sent_s=boot_s())
            batch = core.report(now_s=boot_s(), wall_s=time.time())
            self.log.append_batch(batch, now_s=boot_s(), wall_s=time.time())
            core.outbox.acknowledge()


async def behave(engine: Engine, request: web.Request) -> web.StreamResponse:
    """Behave as the `model` of the request's body names."""
    behaviour = json.loads(engine.bodies[-1])["model"]
    if behaviour == "hang":
        await asyncio.sleep(30)
    if behaviour == "drip":
        return await engine.stream(request, [CHUNKS[0]] * 600, gap_s=0.05)
    if behaviour == "fail":
        raise web.HTTPInternalServerError
    return await engine.well(request)


async def cancel_all(requests: list[asyncio.Task[httpx.Response]]) -> None:
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)


class Rig:
    def __init__(
        self, core: RouterCore, client: MemoryTableClient, engines: tuple[Engine, Engine], base: str
    ) -> None:
        self.core, self.table_client = core, client
        self.stable, self.canary = engines
        self.client = httpx.AsyncClient(base_url=base, timeout=60, limits=httpx.Limits(), verify=False)
        self._change = 0

    def split(self, weight_bp: int) -> None:
        self._change += 1
        arms = [Arm(name, (Replica(one.url),)) for name, one in (("v-1", self.stable), ("v-2", self.canary))]
        table = RouteTable(
            "chat", 1, self._change, self._change, "r-1", "salt", weight_bp, arms[0], arms[1], 0, SECRET
        )
        self.core.on_table(table, sent_s=boot_s())

    async def ask(self, model: str = "well") -> httpx.Response:
        return await self.client.post(CHAT, json={"messages": [], "stream": True, "model": model})

    @asynccontextmanager
    async def never_ending(self, *models: str) -> AsyncIterator[float]:
        """Endless requests to the canary; yields when the last of them was assigned."""
        self.split(10_000)
        requests = [asyncio.create_task(self.ask(model)) for model in models]
        await until(lambda: len(self.canary.seen) == len(models))
        try:
            yield time.time()
            assert not any(request.done() for request in requests)
        finally:
            await cancel_all(requests)

    def page(self) -> RecordPage:
        return self.table_client.log.read(0, 100_000, now_s=boot_s(), wall_s=time.time())

    def records(self) -> list[RequestRecord]:
        return [one for one in self.page().events if isinstance(one, RequestRecord)]

    async def evidence(self, count: int) -> EvidenceStatus:
        """The error gate's evidence once `count` requests are in the log and below the watermark."""
        await until(lambda: len(self.records()) == count)
        last_s = max(one.at_s for one in self.records())
        await until(lambda: self.page().low_watermark_s > last_s)
        feed = Feed("r-1", GateConfig(GatePolicy.default().only("error"), (StagePlan(0.5, 0),)))
        page = self.page()
        joined = ScoreJoin().join(page.events)
        feed.on_page(JoinedPage(joined, page.lost, page.low_watermark_s, is_end=False), time.time())
        evidence = feed.status()
        assert evidence is not None
        return evidence


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    limits = Limits(settle_s=TEST_SETTLE_S, canary_stream_s=20.0)
    core, table_client = RouterCore("chat", router="r", limits=limits, lease_s=1e9), MemoryTableClient()
    async with AsyncExitStack() as stack:
        engines = Engine("stable"), Engine("canary")
        for one in engines:
            one.behave = lambda request, one=one: behave(one, request)  # type: ignore[misc]
            await stack.enter_async_context(running(one))
        base = await stack.enter_async_context(serving(WireFront(core, table_client)))
        one_rig = Rig(core, table_client, engines, base)
        yield one_rig
        await one_rig.client.aclose()


@pytest.mark.slow
async def test_endless_requests_are_recorded_as_open_and_do_not_hold_the_watermark(rig: Rig) -> None:
    async with rig.never_ending("hang", "drip") as assigned_s:
        rig.split(5_000)
        for _ in range(20):
            await rig.ask()
        await until(lambda: rig.page().low_watermark_s > assigned_s + TEST_SETTLE_S)
        drip, hung = sorted((one for one in rig.records() if one.w == 1.0), key=lambda one: one.error is True)

        assert (hung.outcome, hung.arm, hung.error, hung.cause) == ("open", 1, True, "silent")
        assert (drip.outcome, drip.arm, drip.error, drip.served_arm) == ("open", 1, False, 1)
        assert hung.latency_ms is None
        assert drip.latency_ms == pytest.approx(TEST_SETTLE_S * 1000)
        assert drip.ttft_ms is not None
        assert drip.ttft_ms < TEST_SETTLE_S * 1000
        assert rig.core.in_flight[rig.canary.url] == 2  # a drain still waits for both


@pytest.mark.slow
async def test_the_end_of_an_open_request_is_not_recorded_again(rig: Rig) -> None:
    async with rig.never_ending("hang", "drip"):
        await until(lambda: len(rig.records()) == 2)
    await until(lambda: not rig.core.in_flight)
    last_s = time.time()
    await until(lambda: rig.page().low_watermark_s > last_s)

    assert [one.outcome for one in rig.records()] == ["open", "open"]


@pytest.mark.calibration
@pytest.mark.parametrize("harm", ["hang", "fail"])
async def test_errors_cause_a_rollback_although_some_requests_never_end(rig: Rig, harm: str) -> None:
    rig.stable.behave = rig.stable.well
    requests = []
    async with rig.never_ending("hang", "drip"):
        rig.split(5_000)
        for number in range(120):
            requests.append(asyncio.create_task(rig.ask(harm if number % 2 else "well")))
            await asyncio.sleep(0.02)
        evidence = await rig.evidence(122)
        open_count = sum(not request.done() for request in requests)
        await cancel_all(requests)

    assert evidence.rollback is not None
    # Stable replaces failed answers at once, so that the served rate may fail before the error rate.
    failed = {gate.gate for gate in evidence.gates if gate.verdict is Verdict.FAIL}
    assert failed & ({"error", "served_rate"} if harm == "fail" else {"error"})
    assert open_count >= 8 or harm == "fail"
