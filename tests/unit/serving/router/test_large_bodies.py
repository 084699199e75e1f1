"""Large and hostile request bodies: one clear answer, and no other stream waits."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator

import pytest

from serving.router import body_reader
from serving.router.body_facts import BodyFacts
from serving.router.body_reader import LARGE_BODY, BodyReader
from serving.router.prepared import Prepared
from serving.router.request_parser import ParsedRequest
from serving.router.service_choice import is_large
from tests.fakes.router_rig import CHAT, Rig, router_rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


@pytest.fixture
async def reader() -> AsyncIterator[BodyReader]:
    one = BodyReader()
    yield one
    one.close()


async def longest_pause(until: asyncio.Task[Prepared]) -> float:
    """The longest time that the event loop did not turn, in seconds."""
    longest = 0.0
    while not until.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - began)
    return longest


@pytest.mark.slow
async def test_a_large_body_is_read_by_another_process_while_the_loop_turns(reader: BodyReader) -> None:
    body = b'{"user": "alice", "messages": [' + b"[]," * 4_000_000 + b"[]]}"
    await reader.prepare(
        b'{"user": "x"}', [], (), route="POST /", is_eligible=True
    )  # the process has started
    reading = asyncio.create_task(reader.prepare(body, [], (), route="POST /", is_eligible=True))
    pause_s = await longest_pause(reading)
    alone = time.perf_counter()
    json.loads(body)
    alone = time.perf_counter() - alone

    assert (await reading).facts.key == "alice"
    assert pause_s < alone / 2  # the loop did not wait for the reading


@pytest.mark.parametrize(
    ("body", "large"),
    [
        (b'{"x": "' + b"y" * (900 << 10) + b'"}', False),
        (b'{"messages": [' + b"1," * 100_000 + b"1]}", True),
        (b'{"messages": [' + b"1," * 10_000 + b"1]}", False),
    ],
)
def test_a_body_with_very_many_values_is_large_too(body: bytes, large: bool) -> None:
    assert is_large(ParsedRequest("POST", b"/", (), body, True, True)) is large


@pytest.mark.slow
async def test_a_large_body_is_drawn_by_its_key_and_reaches_the_engine_untouched(rig: Rig) -> None:
    body = json.dumps({"user": "alice", "messages": [{"role": "user", "content": "x" * LARGE_BODY}]}).encode()
    answer = await rig.client.post(CHAT, content=body)
    one = await rig.record()

    assert answer.status_code == 200
    assert rig.canary.bodies == [body]
    assert (one.assigned_by, one.body_bytes) == ("sticky", len(body))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_keeps_its_key(rig: Rig, encoding: str) -> None:
    import zlib

    plain = json.dumps({"user": "alice", "messages": []}).encode()
    body = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    rig.canary.behave = rig.canary.well
    sent = await rig.client.post(CHAT, content=body, headers={"content-encoding": encoding})
    plainly = await rig.ask(user="alice")
    records = rig.records()

    assert plainly.status_code == 200
    assert sent.status_code != 400
    assert len({one.unit for one in records}) == 1


async def test_a_body_that_takes_too_long_is_refused_and_the_next_one_read(
    reader: BodyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "READ_S", 0.0)
    refused = await reader.prepare(b"{}", [], (), route="POST /x", is_eligible=True)
    monkeypatch.setattr(body_reader, "READ_S", 20.0)
    read = await reader.prepare(b'{"user": "u"}', [], (), route="POST /x", is_eligible=True)

    assert refused.refusal is not None
    assert (refused.refusal.status, refused.refusal.code) == (413, "body_too_complex")
    assert read.facts == BodyFacts(key="u")


async def test_a_child_that_dies_is_replaced(reader: BodyReader) -> None:
    await reader.prepare(b"{}", [], (), route="POST /x", is_eligible=True)
    assert reader._child is not None
    reader._child.kill()
    await reader._child.wait()

    assert (
        await reader.prepare(b'{"user": "u"}', [], (), route="POST /x", is_eligible=True)
    ).facts.key == "u"


@pytest.mark.parametrize("depth", [1000, 100_000, 3_000_000])
async def test_a_body_nested_too_deep_is_400(rig: Rig, depth: int) -> None:
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    answer = await rig.client.post(CHAT, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


async def test_a_large_body_is_renamed_for_an_endpoint_by_the_same_process(reader: BodyReader) -> None:
    body = json.dumps({"model": "chat", "messages": ["x" * LARGE_BODY]}).encode()
    prepared = await reader.prepare(body, [], ("gpt-x",), route="POST /", is_eligible=True)

    assert json.loads(prepared.bodies["gpt-x"])["model"] == "gpt-x"
    assert prepared.facts.model == "chat"
