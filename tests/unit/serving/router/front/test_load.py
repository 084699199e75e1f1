"""Overload: drawing stops first, then the answer is 429 with retry-after; nothing waits."""

from __future__ import annotations

import asyncio
import resource

import pytest
from aiohttp import web

from serving.router.front import load
from serving.router.front.load import Load, open_files
from tests.fakes.router_rig import Rig, router_rig, until


def test_half_of_the_requests_or_of_a_budget_of_bytes_ends_the_draw() -> None:
    one = Load(requests_limit=10)
    found = []
    for requests, has_many_bytes in ((5, False), (6, False), (0, True)):
        one.swept(late_s=0.0, requests=requests, has_many_bytes=has_many_bytes)
        found.append((one.is_undrawn, one.is_late))

    assert found == [(False, False), (True, False), (True, False)]


def test_one_late_turn_changes_nothing_and_a_loop_that_is_always_late_ends_the_draw_then_all() -> None:
    one = Load()
    found = []
    for late_s in (9.0, 0.0, *[0.6] * load.REFUSED_TURNS, 0.0):
        one.swept(late_s=late_s, requests=0, has_many_bytes=False)
        found.append((one.is_undrawn, one.is_late))

    undrawn = load.REFUSED_TURNS - load.UNDRAWN_TURNS
    assert found == [
        *[(False, False)] * 3,
        *[(True, False)] * undrawn,
        (True, True),
        (False, False),
    ]


def test_idle_connections_end_early_while_there_are_many() -> None:
    one = Load(connections_limit=100)
    kept = []
    for one.connections in (75, 76, 10):
        one.swept(late_s=0.0, requests=0, has_many_bytes=False)
        kept.append(one.idle_now_s)

    assert kept == [load.KEEP_ALIVE_S, load.SHORT_KEEP_ALIVE_S, load.KEEP_ALIVE_S]


@pytest.mark.parametrize(
    ("files", "limits"),
    [(1024, (416, 416, 64)), (64, (16, 16, 64)), (65_536, (16_384, 8_192, 40_832))],
)
def test_the_limits_fit_the_files_that_may_be_open(files: int, limits: tuple[int, int, int]) -> None:
    one = Load.of_files(files)

    assert (one.connections_limit, one.requests_limit, one.turned_away_limit) == limits


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: now.append(limits))

    assert (open_files(), now[-1]) == (4096, (4096, 4096))
    assert (open_files(), len(now)) == (4096, 2)


def waiting(rig: Rig, go_on: asyncio.Event) -> None:
    async def behave(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return await rig.stable.well(request)

    rig.stable.behave = rig.canary.behave = behave


async def test_beyond_the_requests_under_way_the_answer_is_429_with_retry_after() -> None:
    go_on = asyncio.Event()
    async with router_rig() as rig:
        waiting(rig, go_on)
        rig.front.load.requests_limit = 2
        under_way = [asyncio.create_task(rig.ask(user=f"u{i}")) for i in range(2)]
        await until(lambda: len(rig.canary.seen) == 2)
        refused = await rig.ask()
        go_on.set()
        served = [(await one).status_code for one in under_way]
        after = await rig.ask()

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert (served, after.status_code) == ([200, 200], 200)
    assert rig.core.counters.refusals == {"overloaded": 1}


@pytest.mark.slow
async def test_at_half_of_the_requests_nothing_is_drawn_and_all_are_served() -> None:
    go_on = asyncio.Event()
    async with router_rig() as rig:
        waiting(rig, go_on)
        rig.front.load.requests_limit = 4
        under_way = [asyncio.create_task(rig.ask(user=f"u{i}")) for i in range(3)]
        await until(lambda: rig.front.load.is_strained)
        under_way.append(asyncio.create_task(rig.ask(user="u9")))
        await until(lambda: bool(rig.stable.seen))
        go_on.set()
        served = [(await one).status_code for one in under_way]
        found = sorted(one.assigned_by for one in rig.records())

    assert served == [200] * 4
    assert found == ["capped", "sticky", "sticky", "sticky"]


async def test_a_client_beyond_the_connections_is_answered_429_and_closed() -> None:
    async with router_rig() as rig:
        await rig.ask()
        rig.front.load.connections_limit = 1
        port = int(rig.base.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n")
        refused = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        kept = await rig.ask()

    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1\r\n" in refused
    assert b"connection: close\r\n" in refused
    assert kept.status_code == 200
