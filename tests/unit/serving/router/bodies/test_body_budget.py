"""Bodies that the router holds: what grows is bounded, and large ones take turns."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.router.bodies import body_reader
from serving.router.bodies.body_budget import BodyBudget, BodyShare
from serving.router.bodies.body_reader import BodyReader
from serving.router.bodies.prepared import Prepared
from tests.fakes.router_rig import CHAT, Rig, router_rig, until
from tests.unit.serving.router.front.test_wire_limits import POST, connect, status
from tests.unit.serving.router.standalone.test_several_services import FILE, PATH, opened

KEYS = Access({digest_of("sk-1"): ClientKey("a")}, keys_required=True)
AUTHORISED = {"authorization": "Bearer sk-1"}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


def require_keys(rig: Rig) -> None:
    assert rig.core.table is not None
    rig.core.on_table(replace(rig.core.table, access=KEYS, change=2), sent_s=boot_s())


async def unfinished(
    rig: Rig, size: int, head: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that sends `size` bytes of a body that has one more."""
    reader, writer = await connect(rig)
    writer.write(POST + head + b"content-length: %d\r\n\r\n" % (size + 1) + b"x" * size)
    await writer.drain()
    return reader, writer


# ---- bodies that grow


def growing(budget: BodyBudget, client: str, sizes: list[int]) -> list[BodyShare]:
    """Bodies of one client, each of which is dropped when it is refused."""
    shares = []
    for size in sizes:
        share = BodyShare(budget, lambda: None)
        share.refuse = lambda one=share: one.hold(0, 0)  # type: ignore[misc]
        share.client = client
        share.hold(0, size)
        shares.append(share)
    return shares


def test_a_largest_body_of_the_largest_client_is_refused() -> None:
    budget = BodyBudget(2000)
    large, many = growing(budget, "a", [400]), growing(budget, "b", [100, 300, 100])
    growing(budget, "c", [80, 80])

    assert [bool(one) for one in (*large, *many)] == [True, True, False, True]
    assert budget.growing == budget.total == 760


def test_the_time_of_a_refusal_does_not_grow_with_the_number_of_bodies() -> None:
    """At 16,000 it took 7 ms, in each read of each."""
    seconds = []
    for count in (50, 5000):
        budget = BodyBudget(2 * count * 1000)
        shares = growing(budget, "a", [1000] * count)
        began_s = time.thread_time()
        for share in shares[:20]:
            share.hold(0, 2000)
        seconds.append(time.thread_time() - began_s)
        assert sum(map(bool, shares)) < count

    assert seconds[1] < 10 * seconds[0] + 0.002


async def test_bodies_that_never_end_are_refused_largest_first_before_the_budget(rig: Rig) -> None:
    rig.front.bodies.limit = 1 << 20
    clients = [await unfinished(rig, size << 10) for size in (100, 400, 90, 300, 80)]
    await until(lambda: rig.front.bodies.growing <= 512 << 10 and rig.front.bodies.growing >= 270 << 10)
    small = await rig.ask(user="u")
    answers = [bytes(reader._buffer) for reader, _ in clients]  # type: ignore[attr-defined]
    held = rig.front.bodies.total
    for _, writer in clients:
        writer.close()
    await until(lambda: rig.front.bodies.total == 0)

    assert [bool(one) for one in answers] == [False, True, False, True, False]
    assert {status(one) for one in answers if one} == {429}
    assert all(b"retry-after: 1" in one for one in answers if one)
    assert held <= 512 << 10
    assert small.status_code == 200


async def test_of_several_clients_the_one_whose_bodies_are_largest_together_is_refused(rig: Rig) -> None:
    require_keys(rig)
    other = Access({**KEYS.keys, digest_of("sk-2"): ClientKey("b")}, keys_required=True)
    assert rig.core.table is not None
    rig.core.on_table(replace(rig.core.table, access=other, change=3), sent_s=boot_s())
    rig.front.bodies.limit = 1 << 20
    honest = await unfinished(rig, 200 << 10, b"authorization: Bearer sk-2\r\n")
    await until(lambda: rig.front.bodies.growing == 200 << 10)
    many = [await unfinished(rig, 100 << 10, b"authorization: Bearer sk-1\r\n") for _ in range(4)]
    await until(lambda: any(reader._buffer for reader, _ in many))  # type: ignore[attr-defined]
    honest[1].write(b"x")
    answer = await asyncio.wait_for(honest[0].readuntil(b"\r\n\r\n"), 20)
    for _, writer in (honest, *many):
        writer.close()

    assert status(answer) == 400  # read, and no JSON


async def test_beyond_the_budget_large_bodies_are_429_and_small_ones_go_on(rig: Rig) -> None:
    rig.front.bodies.limit = 10_000
    release = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return await rig.canary.well(request)

    rig.canary.behave = waits
    held = asyncio.create_task(rig.ask(pad="x" * 20_000))
    await until(lambda: bool(rig.canary.seen))
    refused = await rig.ask(pad="x" * 20_000)
    release.set()
    small, first, later = await rig.ask(), await held, await rig.ask(pad="x" * 20_000)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert (small.status_code, first.status_code, later.status_code) == (200, 200, 200)


# ---- refused by the head


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"POST /chat/v1/chat/completions", 401),
        (b"POST /v1/chat/completions", 401),
        (b"POST /x", 401),
    ],
)
async def test_a_client_that_is_refused_is_answered_before_its_body_is_read(
    rig: Rig, head: bytes, code: int
) -> None:
    require_keys(rig)
    reader, writer = await connect(rig)
    lines = b" HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 60000000\r\n\r\n"
    writer.write(head + lines + b"x" * 100_000)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    for _ in range(20):
        writer.write(b"x" * 100_000)
        await asyncio.sleep(0)
    held = rig.front.bodies.total
    writer.close()

    assert status(answer) == code
    assert b"connection: close" in answer
    assert held == 0


@pytest.mark.slow
async def test_no_body_is_given_to_the_reader_for_a_client_without_the_key(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_keys(rig)
    read = counted_reads(monkeypatch)
    body = gzip.compress(b'{"messages":[]}')
    headers = {"content-encoding": "gzip"}
    refused = await rig.client.post(CHAT, content=body, headers=headers)
    before = len(read)
    await rig.client.post(CHAT, content=body, headers={**headers, **AUTHORISED})

    assert (refused.status_code, before, len(read)) == (401, 0, 1)


@pytest.mark.slow
async def test_with_several_services_the_key_comes_before_the_body_and_it_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f'keys_required: true\nkeys: [{{name: ide, sha256: "{digest_of("sk-1")}"}}]\n'
    reads = counted_reads(monkeypatch)
    async with AsyncExitStack() as stack:
        port = await opened(stack, tmp_path / "table.yaml", key + FILE.replace("KEYS", ""))
        large = {"messages": [{"role": "user", "content": "x" * (2 << 20)}], "model": "code"}
        refused = await port.client.post(PATH, json=large)
        before = len(reads)
        answer = await port.client.post(PATH, json=large, headers=AUTHORISED)

    assert (refused.status_code, answer.status_code) == (401, 200)
    assert (before, len(reads)) == (0, 1)


@pytest.mark.slow
async def test_a_renamed_body_of_an_unnamed_service_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted_reads(monkeypatch)
    text = FILE.replace("KEYS", "").replace('url: "CODE"', 'url: "CODE", model: other')
    async with AsyncExitStack() as stack:
        port = await opened(stack, tmp_path / "table.yaml", text)
        large = {"messages": [{"role": "user", "content": "x" * (2 << 20)}], "model": "code"}
        answer = await port.client.post(PATH, json=large)
        sent = json.loads(port.code.bodies[0])

    assert (answer.status_code, len(reads), sent["model"]) == (200, 1, "other")


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the reader has been given from now on."""
    given: list[object] = []
    ask = BodyReader._ask

    async def counting(self: BodyReader, job: object) -> Prepared:
        given.append(job)
        return await ask(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(BodyReader, "_ask", counting)
    return given


# ---- the queue


async def begun(reader: BodyReader) -> None:
    await prepare(reader, b"{}")


async def prepare(reader: BodyReader, body: bytes, client: str = "a") -> Prepared:
    return await reader.prepare(body, [], (), route="POST /x", is_eligible=True, client=client)


class Slow(BodyReader):
    """Reads nothing until told."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[bytes] = []
        self.go = asyncio.Event()
        self.fails_at = 0  # bytes of the body that cannot be read

    async def _ask(self, job: body_reader.Job) -> Prepared:
        self.order.append(bytes(job.body))
        await self.go.wait()
        if len(job.body) == self.fails_at:
            raise ValueError("an error of our own")
        return Prepared()


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_clients_take_turns_so_that_one_cannot_hold_the_others_up() -> None:
    reader = Slow()
    asked = [asyncio.create_task(prepare(reader, b"a%d" % n)) for n in range(5)]
    await turn()
    asked.append(asyncio.create_task(prepare(reader, b"b0", "b")))
    await turn()
    reader.go.set()
    await asyncio.gather(*asked)

    # At once, unless what the first took is too little to count.
    assert reader.order.index(b"b0") in (1, 2)
    assert [one for one in reader.order if one != b"b0"] == [b"a0", b"a1", b"a2", b"a3", b"a4"]


async def test_of_one_clients_bodies_the_smallest_is_next_and_the_queue_outlives_an_error() -> None:
    reader = Slow()
    asked = [asyncio.create_task(prepare(reader, b"a" * size)) for size in (5, 9, 2, 7)]
    await turn()
    reader.fails_at = 2
    reader.go.set()
    read = await asyncio.gather(*asked)

    assert [len(one) for one in reader.order] == [2, 5, 7, 9]
    assert [one.refusal is None for one in read] == [True, True, False, True]


async def test_a_full_queue_refuses_the_last_of_the_client_that_has_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_reader, "QUEUE", 4)
    reader = Slow()
    asked = [asyncio.create_task(prepare(reader, b"a%d" % n)) for n in range(5)]
    await turn()
    more = asyncio.create_task(prepare(reader, b"a5"))
    other = asyncio.create_task(prepare(reader, b"b0", "b"))
    await turn()
    refused = [n for n, one in enumerate(asked) if one.done()]
    assert more.done()
    reader.go.set()
    read = await other
    await asyncio.gather(*asked)

    assert read.refusal is None
    assert refused == [4]
    for one in (await more, await asked[4]):
        assert one.refusal is not None
        assert (one.refusal.status, one.refusal.retry_after_s) == (429, 1)


async def test_a_body_that_waits_too_long_is_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader, "WAIT_S", 0.01)
    reader = Slow()
    first = asyncio.create_task(prepare(reader, b"a"))
    await turn()
    refused = await prepare(reader, b"b")
    reader.go.set()

    assert (await first).refusal is None
    assert refused.refusal is not None
    assert refused.refusal.status == 429


@pytest.mark.slow
async def test_a_body_leaves_the_queue_with_its_client_and_is_counted_until_then(rig: Rig) -> None:
    slow = rig.front.reader = Slow()
    slow.budget = rig.front.bodies
    body = b'{"messages":[],"x":"' + b"y" * 2_000_000 + b'"}'
    writers = []
    for _ in range(4):
        _, writer = await connect(rig)
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writers.append(writer)
    await until(lambda: slow.waiting == 3)
    held = rig.front.bodies.total
    for writer in writers:
        writer.transport.abort()
    await until(lambda: slow.waiting == 0)
    left = rig.front.bodies.total  # of the one that is being handed over
    slow.go.set()
    await until(lambda: rig.front.bodies.total == 0)

    assert held == 4 * len(body)
    assert left == len(body)
    assert len(slow.order) == 1


@pytest.mark.slow
async def test_the_tasks_of_clients_that_have_gone_end(rig: Rig) -> None:
    slow = rig.front.reader = Slow()
    _, writer = await connect(rig)
    body = gzip.compress(b'{"messages":[]}')
    writer.write(POST + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: len(rig.front._tasks) == 1)
    writer.transport.abort()
    await until(lambda: not rig.front._tasks)
    slow.go.set()

    assert rig.canary.seen == []


@pytest.mark.slow
async def test_the_bodies_that_are_made_for_endpoints_are_counted_too(rig: Rig) -> None:
    """Five of 40 MB took 400 MB, of which the budget said 200."""
    held: list[int] = []

    async def look(request: web.Request) -> web.Response:
        held.append(rig.front.bodies.total)
        return web.json_response({})

    rig.stable.behave = rig.canary.behave = look
    table = rig.core.table
    assert table is not None
    assert table.stable is not None
    stable = replace(table.stable, external=True, model="gpt-x")
    rig.core.on_table(replace(table, stable=stable, canary=None, change=2), sent_s=boot_s())
    for size in (300_000, 3_000_000):  # read on the loop, and by another process
        body = json.dumps({"model": "chat", "prompt": "a" * size}).encode()
        await rig.client.post("/chat/v1/completions", content=body)
        await until(lambda: rig.front.bodies.total == 0)
        assert len(body) * 1.9 < held[-1] < len(body) * 2.1
