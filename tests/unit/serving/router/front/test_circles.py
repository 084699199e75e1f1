"""A request that has passed this router before goes round in a circle."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serving.engine_headers import VIA_HEADER
from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.judging.questions import revision
from serving.messages import Arm, Replica
from serving.router.router import RouterCore
from serving.router.types import Limits
from tests.fakes.router_rig import Rig, router_rig

ASKED = {"messages": [{"role": "user", "content": "q"}]}
LIMITS = Limits(connect_s=10.0, stable_s=60.0, canary_whole_s=60.0, canary_stream_s=60.0)


def points_to_itself(rig: Rig, *, canary: bool) -> None:
    assert rig.core.table is not None
    itself = Arm("itself", (Replica(rig.base),), True)
    named = {"canary": itself, "weight_bp": 10_000} if canary else {"stable": itself, "canary": None}
    rig.core.on_table(
        replace(rig.core.table, change=9, revision=9, **named), sent_s=rig.core._polled_s or 0.0
    )


async def test_a_router_that_is_its_own_upstream_answers_508_after_one_round() -> None:
    async with router_rig(LIMITS) as rig:
        points_to_itself(rig, canary=False)
        answer = await rig.client.post("/chat/v1/chat/completions", json=ASKED, timeout=60)
        under_way = sum(rig.core.in_flight.values())

    assert answer.status_code == 508
    assert answer.json()["error"]["code"] == "loop"
    assert "an upstream of service chat leads back to this router" in answer.json()["error"]["message"]
    assert under_way == 0


async def test_a_canary_that_is_the_router_itself_is_an_error_and_stable_answers() -> None:
    async with router_rig(LIMITS) as rig:
        points_to_itself(rig, canary=True)
        answer = await rig.client.post("/chat/v1/chat/completions", json=ASKED, timeout=60)
        record = await rig.record()

    assert answer.status_code == 200
    assert (record.error, record.cause, record.served_arm) == (True, "status 508", 0)


@pytest.mark.slow
async def test_a_judge_that_is_the_services_own_route_is_asked_nothing() -> None:
    async with router_rig(LIMITS) as rig:
        table, records = rig.core.table, list[JudgeRecord]()
        assert table is not None
        rig.core.judge._on_record = records.append
        order = JudgeOrder(f"{rig.base}/chat/v1", "m", None, revision("m"), 10_000, "quality", 6000)
        rig.core.on_table(replace(table, change=9, judge=order), sent_s=rig.core._polled_s or 0.0)
        await rig.client.post("/chat/v1/chat/completions", json=ASKED, timeout=60)
        async with asyncio.timeout(60):
            while not any(one.label is None for one in records):  # noqa: ASYNC110 - from another thread
                await asyncio.sleep(0.02)
        asked = len(rig.stable.seen) + len(rig.canary.seen)

    assert {one.cause for one in records if one.label is None} == {"no judge"}
    assert asked == 1  # by the client


@pytest.mark.parametrize("via", ["", "0123456789abcdef", "x, y", "a" * 9000])
async def test_a_request_through_other_routers_is_answered(via: str) -> None:
    async with router_rig(LIMITS) as rig:
        headers = {VIA_HEADER.decode(): via}
        answer = await rig.client.post("/chat/v1/chat/completions", json=ASKED, headers=headers, timeout=60)

    assert answer.status_code == 200


def test_each_service_of_a_router_has_a_name_of_its_own() -> None:
    hops = {RouterCore(one, router=two).hop for one in ("a", "b") for two in ("r", "s")}

    assert len(hops) == 4  # one service may be reached through another
