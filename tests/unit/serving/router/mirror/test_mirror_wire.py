"""Copies to a mirrored canary on sockets: what users see, what the canary may do, what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import httpx
import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.judging.samples import SampleStore
from serving.messages import Arm, MirrorRecord, Replica, RequestRecord, RouteTable
from serving.router.front import front_wire
from serving.router.front.front_wire import WireFront
from serving.router.mirror import mirror
from serving.router.mirror.mirror_copy import ANSWER_LIMIT
from serving.router.router import RouterCore
from serving.router.types import Limits
from tests.fakes.router_rig import (
    CHAT,
    CHUNKS,
    SECRET,
    Behaviour,
    Engine,
    NoBackground,
    Rig,
    chunk,
    running,
    serving,
    until,
)

LIMITS = Limits(canary_stream_s=2.0, canary_whole_s=2.0, mirror_s=2.0, stall_s=2.0, stable_s=20.0)


class MirrorRig(Rig):
    """A router whose canary gets copies alone, of every request."""

    front: WireFront

    def mirror(self, share_bp: int = 10_000, *, change: int = 1, replicas: int = 1) -> None:
        canary = Arm("v-2", (Replica(self.canary.url),) * replicas)
        stable = Arm("v-1", (Replica(self.stable.url),))
        table = RouteTable("chat", 1, change, change, "r-1", "r-1", 0, stable, None, 0, SECRET)
        table = replace(table, mirror=canary if share_bp else None, mirror_bp=share_bp)
        self.core.on_table(table, sent_s=boot_s())

    def events(self) -> list[RequestRecord | MirrorRecord]:
        batch = self.core.outbox.next_batch(now_s=1e12)
        self.core.outbox.acknowledge()
        return [*batch.records, *batch.mirrored]

    async def pairs(self, count: int = 1) -> list[MirrorRecord]:
        found: list[MirrorRecord] = []

        def have_come() -> bool:
            found.extend(one for one in self.events() if isinstance(one, MirrorRecord))
            return len(found) >= count

        await until(have_come)
        return found


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MirrorRig]:
    monkeypatch.setattr(front_wire, "STRAINED_S", math.inf)  # engines and client share this loop
    core = RouterCore("chat", router="r", limits=LIMITS, lease_s=1e9)
    front = WireFront(core, NoBackground())
    front.mirror.samples = SampleStore(tmp_path / "samples")
    async with (
        running(Engine("the text")) as stable,
        running(Engine("the text")) as canary,
        serving(front) as base,
    ):
        one = MirrorRig(core, stable, canary, base, front)
        one.mirror()
        yield one
        await one.client.aclose()


def busy(front: WireFront) -> tuple[int, int, int]:
    return front.mirror.counts


async def test_a_copy_is_sent_with_the_body_as_it_came_and_its_answer_is_compared(rig: MirrorRig) -> None:
    answer = await rig.ask(temperature=0, seed=7, user="someone")
    (pair,) = await rig.pairs()

    assert rig.canary.bodies == rig.stable.bodies
    sent = rig.canary.seen[0].headers
    assert sent["x-request-id"] == pair.request_id + "-mirror"
    assert (sent["x-canaryctl-secret"], sent["x-canaryctl-revision"]) == ("s3cret", "1.1")
    assert answer.json()["id"] == "id-the text"
    assert answer.headers["x-canaryctl-request-id"] == pair.request_id
    assert (pair.outcome, pair.cause, pair.status, pair.same_text) == ("ok", None, 200, True)
    assert (pair.completion_tokens, pair.stable_completion_tokens) == (2, 2)
    assert (pair.finish_reason, pair.stable_finish_reason) == ("stop", "stop")
    assert pair.latency_ms is not None
    assert 0 < pair.latency_ms < 2000
    assert 0 < pair.stable_latency_ms < 2000


async def test_the_request_stays_stables_and_is_no_evidence_of_a_draw(rig: MirrorRig) -> None:
    await rig.ask()
    records: list[RequestRecord | MirrorRecord] = []

    def have_both() -> bool:
        records.extend(rig.events())
        return len(records) == 2

    await until(have_both)
    (request,) = [one for one in records if isinstance(one, RequestRecord)]

    assert (request.arm, request.w, request.served_arm, request.attempts) == (0, 0.0, 0, ())
    assert rig.core.counters.requests == {(0, "answered", "request"): 1}


@pytest.mark.slow
async def test_users_get_the_same_bytes_with_and_without_copies(rig: MirrorRig) -> None:
    rig.canary.text = "another text"
    seen = []
    for share_bp in (0, 10_000):
        rig.mirror(share_bp, change=2 + share_bp)
        for body in ({}, {"stream": True}, {"stream": True, "n": 1, "stop": ["x"]}):
            answer = await rig.ask(**body)
            own = ("x-canaryctl-request-id", "x-canaryctl-revision", "date")
            headers = [one for one in answer.headers.raw if one[0].decode() not in own]
            seen.append((answer.status_code, headers, answer.content))
    pairs = await rig.pairs(3)

    assert seen[:3] == seen[3:]
    assert [one.same_text for one in pairs] == [False, True, True]
    assert len(rig.canary.seen) == 3


async def test_no_request_of_a_user_reaches_a_canary_that_is_mirrored_only(rig: MirrorRig) -> None:
    rig.mirror(share_bp=1)
    rig.stable.behave = failing(500)

    answer = await rig.ask()
    found = await rig.client.get("/chat/v1/responses/resp_1")

    assert (answer.status_code, found.status_code) == (500, 503)
    assert rig.canary.seen == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [], "store": True}),
        ("/v1/chat/completions", {"messages": [], "web_search_options": {}}),
        ("/v1/chat/completions", {"messages": [], "tools": [{"type": "web_search"}]}),
        ("/v1/completions", {"prompt": "x" * (256 << 10)}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/files", {}),
    ],
)
async def test_what_may_do_more_than_answer_is_never_copied(
    rig: MirrorRig, path: str, body: dict[str, object]
) -> None:
    await rig.client.post("/chat" + path, json=body)
    await rig.ask(tools=[{"type": "function", "function": {"name": "f"}}])
    await rig.pairs()

    assert len(rig.stable.seen) == 2
    assert len(rig.canary.seen) == 1


async def test_a_tool_call_of_the_canary_is_compared_and_thrown_away(rig: MirrorRig) -> None:
    async def call(request: web.Request) -> web.StreamResponse:
        function = {"name": "delete_all", "arguments": "{}"}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}
        return web.json_response(
            {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        )

    rig.canary.behave = call
    answer = await rig.ask()
    (pair,) = await rig.pairs()

    assert answer.json()["choices"][0]["message"]["content"] == "the text"
    assert (pair.outcome, pair.same_text, pair.finish_reason) == ("ok", False, "tool_calls")
    assert (len(rig.canary.seen), len(rig.stable.seen)) == (1, 1)


def failing(status: int) -> Behaviour:
    async def fail(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=status)

    return fail


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(CHUNKS[0])
    assert request.transport is not None
    request.transport.abort()
    return response


async def garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff{[" * 100, content_type="application/json")


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def trickling(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b": \n\n")
        await asyncio.sleep(0.05)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(chunk("x" * 65_536))


async def error_inside(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no"}})


async def refusing(request: web.Request) -> web.StreamResponse:
    return web.Response(status=409, headers={"x-canaryctl-refused": "fence"})


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("behave", "outcome", "cause"),
    [
        (failing(500), "failed", "status 500"),
        (failing(404), "failed", "status 404"),
        (cut, "failed", "cut"),
        (garbage, "failed", "malformed"),
        (silent, "failed", "timeout"),
        (trickling, "failed", "timeout"),
        (endless, "failed", "too large"),
        (error_inside, "failed", "error in the answer"),
        (refusing, "withheld", "refused"),
    ],
)
async def test_a_canary_that_fails_is_recorded_and_nobody_notices(
    rig: MirrorRig, behave: Behaviour, outcome: str, cause: str
) -> None:
    rig.canary.behave = behave
    answer = await rig.ask(stream=True)
    began_s = asyncio.get_running_loop().time()
    again = await rig.ask(stream=True)  # on the same connection, while the copy is under way
    took_s = asyncio.get_running_loop().time() - began_s
    found: list[MirrorRecord] = []

    def have_come() -> bool:
        found.extend(one for one in rig.events() if isinstance(one, MirrorRecord))
        return len(found) >= 2

    for _ in range(3):
        try:
            await until(have_come)
            break
        except AssertionError:
            continue

    assert (answer.content, again.content) == (b"".join(CHUNKS), b"".join(CHUNKS))
    assert took_s < 1.0
    assert [(one.outcome, one.cause) for one in found] == [(outcome, cause)] * 2
    assert [(one.same_text, one.latency_ms) for one in found] == [(None, None)] * 2
    assert rig.core.counters.mirrored == {outcome: 2}
    assert busy(rig.front) == (0, 0, 0)
    assert len(rig.canary.seen) == 2  # none was sent again


async def test_a_canary_that_refuses_connections_is_recorded(rig: MirrorRig) -> None:
    rig.canary.url = "http://127.0.0.1:9"
    rig.mirror(change=2)
    answer = await rig.ask()
    (pair,) = await rig.pairs()

    assert answer.status_code == 200
    assert (pair.outcome, pair.cause, pair.status) == ("failed", "refused", None)


async def test_copies_beyond_the_limits_are_dropped_and_users_do_not_wait(rig: MirrorRig) -> None:
    rig.canary.behave = silent
    total = mirror.IN_FLIGHT + mirror.QUEUE + 5
    answers = [await rig.ask() for _ in range(total)]
    await until(lambda: len(rig.canary.seen) == mirror.IN_FLIGHT)

    assert {one.status_code for one in answers} == {200}
    assert busy(rig.front) == (0, mirror.QUEUE, mirror.IN_FLIGHT)
    assert rig.core.counters.mirrored == {"dropped": 5}


async def test_nothing_is_copied_to_a_canary_without_a_replica_nor_by_a_strained_front(
    rig: MirrorRig,
) -> None:
    rig.mirror(change=2, replicas=0)
    await rig.ask()
    rig.mirror(change=3)
    rig.front.mirror.check(is_strained=True)
    await rig.ask()

    assert rig.core.counters.mirrored == {"dropped": 2}
    assert rig.canary.seen == []


@pytest.mark.slow
async def test_a_withdrawn_canary_gets_no_more_and_what_runs_is_ended(rig: MirrorRig) -> None:
    rig.canary.behave = silent
    for _ in range(mirror.IN_FLIGHT + 1):
        await rig.ask()
    await until(lambda: len(rig.canary.seen) == mirror.IN_FLIGHT)
    rig.mirror(0, change=2)
    pairs = await rig.pairs(mirror.IN_FLIGHT)
    await until(rig.canary.aborted.is_set)
    await rig.ask()

    assert {one.outcome for one in pairs} == {"withheld"}
    assert busy(rig.front) == (0, 0, 0)
    assert len(rig.canary.seen) == mirror.IN_FLIGHT


@pytest.mark.slow
@pytest.mark.parametrize("body", [{}, {"stream": True}])
async def test_what_stable_did_not_answer_whole_is_not_copied(
    rig: MirrorRig, body: dict[str, object]
) -> None:
    for behave in (failing(500), failing(400), endless_for(4 * ANSWER_LIMIT), cut):
        rig.stable.behave = behave
        with contextlib.suppress(httpx.RemoteProtocolError):  # cut off
            await rig.ask(**body)
    rig.stable.behave = rig.stable.well
    await rig.ask(**body)
    await rig.pairs()

    assert len(rig.canary.seen) == 1
    assert busy(rig.front) == (0, 0, 0)


def endless_for(size: int) -> Behaviour:
    async def long(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(size // 65_536):
            await response.write(chunk("x" * 65_536))
        for one in CHUNKS:
            await response.write(one)
        return response

    return long


async def test_what_a_client_did_not_wait_for_is_not_copied(rig: MirrorRig) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(CHUNKS[0])
            await asyncio.sleep(0.01)

    rig.stable.behave = slowly
    async with aiohttp.ClientSession() as session:
        answer = await session.post(rig.base + CHAT, json={"stream": True, "messages": []})
        await answer.content.readany()
        assert busy(rig.front) == (1, 0, 0)
    await until(lambda: busy(rig.front) == (0, 0, 0))

    assert rig.canary.seen == []


async def test_one_unit_has_one_pair(rig: MirrorRig) -> None:
    for _ in range(3):
        await rig.client.post(CHAT, json={"messages": []}, headers={"x-session-id": "s"})
    await rig.pairs()

    assert (len(rig.stable.seen), len(rig.canary.seen)) == (3, 1)


@pytest.mark.slow
async def test_the_share_is_drawn_by_request(rig: MirrorRig) -> None:
    rig.mirror(2500, change=2)
    for _ in range(200):
        await rig.ask()
    await until(lambda: busy(rig.front) == (0, 0, 0))

    assert 25 <= len(rig.canary.seen) <= 75


async def test_the_text_of_a_pair_is_stored_and_in_no_record(rig: MirrorRig) -> None:
    rig.canary.text = "another text for a@x.org"
    await rig.ask(messages=[{"role": "user", "content": "a secret question of a@x.org"}], user="jane")
    (pair,) = await rig.pairs()
    samples = rig.front.mirror.samples
    assert samples is not None
    await until(lambda: len(samples.read()) == 1)
    (sample,) = samples.read()

    assert sample["request"]["messages"][0]["content"] == "a secret question of [email-1]"
    assert sample["stable"] == [{"text": "the text"}]
    assert sample["canary"] == [{"text": "another text for [email-1]"}]
    assert (sample["stable_version"], sample["canary_version"]) == ("v-1", "v-2")
    assert (sample["request_id"], sample["same_text"]) == (pair.request_id, False)
    assert "jane" not in json.dumps(sample)
    assert "text" not in str(pair).replace("same_text", "")
    assert "secret question" not in str(pair)


async def test_a_store_that_cannot_be_written_costs_the_text_alone(rig: MirrorRig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rig.front.mirror.samples = SampleStore(tmp_path / "file")
    await rig.ask()
    (pair,) = await rig.pairs()

    assert pair.outcome == "ok"


async def test_an_engine_that_schedules_by_priority_gets_the_copy_last(rig: MirrorRig) -> None:
    table = rig.core.table
    assert table is not None
    assert table.mirror is not None
    arm = replace(table.mirror, takes_priority=True)
    rig.core.on_table(replace(table, change=2, mirror=arm), sent_s=boot_s())
    await rig.ask(temperature=0, seed=3, priority=5)
    await rig.pairs()
    sent, copied = json.loads(rig.stable.bodies[0]), json.loads(rig.canary.bodies[0])

    assert sent.pop("priority") == 5
    assert copied.pop("priority") == 1_000_000
    assert copied == sent


async def test_an_error_in_the_tap_is_no_error_of_the_request(
    rig: MirrorRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(mirror.Mirror, "ended", fail)
    answer = await rig.ask(stream=True)
    again = await rig.ask()

    assert answer.content == b"".join(CHUNKS)
    assert again.status_code == 200


@pytest.mark.slow
async def test_in_a_stage_only_what_was_drawn_for_stable_is_copied(rig: MirrorRig) -> None:
    canary = Arm("v-2", (Replica(rig.canary.url),))
    stable = Arm("v-1", (Replica(rig.stable.url),))
    table = RouteTable("chat", 1, 2, 2, "r-1", "r-1", 5000, stable, canary, 1, SECRET)
    rig.core.on_table(replace(table, mirror=canary, mirror_bp=10_000), sent_s=boot_s())
    for index in range(12):
        await rig.ask(user=f"u{index}")
    await until(lambda: busy(rig.front) == (0, 0, 0))
    rig.core.on_table(None, sent_s=boot_s() + 1)
    events = rig.events()
    drawn = {one.request_id: one.arm for one in events if isinstance(one, RequestRecord)}
    copied = [one.request_id for one in events if isinstance(one, MirrorRecord)]

    assert len(drawn) == 12
    assert 0 < len(copied) < 12
    assert sorted(copied) == sorted(one for one, arm in drawn.items() if arm == 0)
    assert len(rig.canary.seen) == 12  # its own requests, and the copies
    assert rig.core.in_flight == {}
