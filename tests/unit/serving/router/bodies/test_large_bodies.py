"""Large and hostile request bodies: one clear answer, and no other stream waits."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator

import pytest

from serving.router.bodies import body_reader, model_name, prepared
from serving.router.bodies.body_facts import BodyFacts
from serving.router.bodies.body_reader import BodyReader
from serving.router.bodies.form import Part, read_form
from serving.router.bodies.prepared import PLAIN_LIMIT, VALUES_LIMIT, Prepared, prepare
from serving.router.front.request_parser import ParsedRequest
from serving.router.front.service_choice import COUNTED_FROM, MANY_LINES, is_large
from serving.router.types import LARGE_BODY
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
    body = b'{"user": "alice", "messages": ["' + b"\\u00e9" * 10_000_000 + b'"]}'
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
        (b'{"messages": [' + b"123, " * 20_000 + b"1]}", True),
        (b'{"messages": [' + b"1," * 10_000 + b"1]}", False),
        (b'{"messages": [' + b'{"content":[{"file":{}}]},' * 5_000 + b"{}]}", True),
        (b'{"messages": [' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"]}", True),
        (b'{"x": "' + b"y" * (900 << 10) + b'", "messages": [' + b"[]," * 34_000 + b"1]}", True),
    ],
)
def test_a_body_with_very_many_values_is_large_too(body: bytes, large: bool) -> None:
    assert is_large(ParsedRequest("POST", b"/", (), body, True, True)) is large


FORM = ((b"content-type", b"multipart/form-data; boundary=XX"),)
PART = b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@pytest.mark.parametrize(
    ("form", "large"),
    [
        (PART % (b"file", b"a" * COUNTED_FROM), True),
        (PART % (b"file", b"a" * (COUNTED_FROM - 200)), False),
        (PART % (b"f", b"x") * (MANY_LINES // 4 + 1), True),
        (PART % (b"f", b"x") * (MANY_LINES // 5), False),
    ],
)
def test_a_form_is_large_by_its_bytes_or_its_lines_where_it_is_read(form: bytes, large: bool) -> None:
    """One of a megabyte, or of 55 KB in 6,000 lines, was read in the loop, once for each model."""
    parsed = ParsedRequest("POST", b"/", FORM, form + b"--XX--\r\n", True, True)

    assert is_large(parsed, is_renamed=True) is large
    assert not is_large(parsed)


@pytest.mark.parametrize("kind", [b"multipart/form-data-x", b"multipart/mixed; boundary=b"])
def test_what_is_renamed_as_json_is_counted_whatever_it_is_named(kind: bytes) -> None:
    body = b'{"messages": [' + b"{}," * (VALUES_LIMIT + 1) + b"{}]}"
    headers = ((b"content-type", kind),)
    refusal = prepare(body, headers, ("a",), route="POST /x", is_eligible=True).refusal

    assert is_large(ParsedRequest("POST", b"/", headers, body[: LARGE_BODY // 2], True, True))
    assert refusal is not None
    assert refusal.code == "body_too_complex"


def test_a_form_is_read_once_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = list[bytes]()

    def read(body: bytes, boundary: bytes) -> list[Part]:
        forms.append(body)
        return read_form(body, boundary)

    monkeypatch.setattr(model_name, "read_form", read)
    body = PART % (b"model", b"chat") + b"--XX--\r\n"
    found = prepare(body, FORM, ("a", "b"), route="POST /x", is_eligible=True)

    assert found.bodies == {name: body.replace(b"chat", name.encode()) for name in ("a", "b")}
    assert forms == [body]


@pytest.mark.parametrize("more", [b"NaN", b'"\\ud800"'])
def test_a_body_that_is_renamed_as_objects_is_large(more: bytes) -> None:
    parsed = ParsedRequest(
        "POST", b"/", (), b'{"x": "' + b"y" * (64 << 10) + b'", "z": ' + more + b"}", True, True
    )
    plain = ParsedRequest("POST", b"/", (), b'{"x": "' + b"y" * (64 << 10) + b'"}', True, True)

    assert (is_large(parsed), is_large(parsed, is_renamed=True)) == (False, True)
    assert not is_large(plain, is_renamed=True)


@pytest.mark.slow
async def test_a_large_body_is_drawn_by_its_key_and_reaches_the_engine_untouched(rig: Rig) -> None:
    body = json.dumps({"user": "alice", "messages": [{"role": "user", "content": "x" * LARGE_BODY}]}).encode()
    answer = await rig.client.post(CHAT, content=body)
    one = await rig.record()

    assert answer.status_code == 200
    assert rig.canary.bodies == [body]
    assert (one.assigned_by, one.body_bytes) == ("sticky", len(body))


@pytest.mark.slow
@pytest.mark.sample(1)
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


@pytest.mark.slow
async def test_a_body_that_takes_too_long_is_refused_and_the_next_one_read(
    reader: BodyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "READ_S", 0.0)
    refused = await reader.prepare(b"{}", [], (), route="POST /x", is_eligible=True)
    monkeypatch.setattr(body_reader, "READ_S", 20.0)  # a busy machine
    read = await reader.prepare(b'{"user": "u"}', [], (), route="POST /x", is_eligible=True)

    assert refused.refusal is not None
    assert (refused.refusal.status, refused.refusal.code) == (413, "body_too_complex")
    assert read.facts == BodyFacts(key="u", asks_whole=True)


@pytest.mark.slow
async def test_a_child_that_dies_is_replaced(reader: BodyReader) -> None:
    await reader.prepare(b"{}", [], (), route="POST /x", is_eligible=True)
    assert reader._child is not None
    reader._child.kill()
    await reader._child.wait()

    assert (
        await reader.prepare(b'{"user": "u"}', [], (), route="POST /x", is_eligible=True)
    ).facts.key == "u"


@pytest.mark.sample(1)
@pytest.mark.parametrize("depth", [1000, 100_000, 1_000_000])
async def test_a_body_nested_too_deep_is_400(rig: Rig, depth: int) -> None:
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    answer = await rig.client.post(CHAT, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.slow
async def test_a_large_body_is_renamed_for_an_endpoint_by_the_same_process(reader: BodyReader) -> None:
    body = json.dumps({"model": "chat", "messages": ["x" * LARGE_BODY]}).encode()
    prepared = await reader.prepare(body, [], ("gpt-x",), route="POST /", is_eligible=True)

    assert json.loads(bytes(prepared.bodies["gpt-x"]))["model"] == "gpt-x"
    assert prepared.facts.model == "chat"


GZIP = [(b"content-encoding", b"gzip")]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "body",
    [
        b'{"stream": true, "prompt": [' + b"1," * VALUES_LIMIT + b"1]}",
        b'{"stream": true, "messages": [' + b"{}," * VALUES_LIMIT + b"{}]}",
        b'{"stream": true, "prompt": [' + b'"",' * VALUES_LIMIT + b'""]}',
        b'{"prompt": ' + b"[" * (VALUES_LIMIT + 1),
    ],
)
@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_body_with_too_many_values_is_413_before_any_is_decoded(
    body: bytes, is_compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(prepared, "read_facts", decoded.append)
    headers, sent = (GZIP, gzip.compress(body, 1)) if is_compressed else ([], body)
    refusal = prepare(sent, headers, ("a",), route="POST /x", is_eligible=True).refusal

    assert refusal is not None
    assert (refusal.status, refusal.code) == (413, "body_too_complex")
    assert str(VALUES_LIMIT) in refusal.message
    assert "send fewer" in refusal.message
    assert decoded == []


@pytest.mark.slow
def test_commas_in_a_text_are_no_values() -> None:
    text = json.dumps('1,2,"a",[\\' * 400_000)
    body = b'{"user": "alice", "prompt": ' + text.encode() + b"}"

    assert prepare(body, [], (), route="POST /x", is_eligible=True).facts.key == "alice"


@pytest.mark.slow
def test_a_compressed_body_that_is_too_large_without_its_compression_is_413() -> None:
    bodies = [b'{"prompt": "' + b"a" * (PLAIN_LIMIT - 14 + more) + b'"}' for more in (0, 1)]
    first, second = (
        prepare(gzip.compress(one, 1), GZIP, (), route="POST /x", is_eligible=True).refusal for one in bodies
    )

    assert first is None
    assert second is not None
    assert (second.status, second.code) == (413, "body_too_large")
    assert str(PLAIN_LIMIT) in second.message


@pytest.mark.slow
async def test_a_body_that_needs_too_much_memory_is_413_and_the_next_one_read(
    reader: BodyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "MEMORY_LIMIT", 160 << 20)
    monkeypatch.setattr(body_reader, "READ_S", 20.0)  # a busy machine
    body = b'{"prompt": "' + b"a" * (40 << 20) + b'"}'
    refusal = (await reader.prepare(body, [], ("a", "b", "c"), route="POST /x", is_eligible=True)).refusal
    child = reader._child
    read = await reader.prepare(b'{"user": "u"}', [], (), route="POST /x", is_eligible=True)

    assert refusal is not None
    assert (refusal.status, refusal.code) == (413, "body_too_complex")
    assert str(160 << 20) in refusal.message
    assert read.facts == BodyFacts(key="u", asks_whole=True)
    assert reader._child is child


@pytest.mark.slow
def test_a_turn_is_a_fraction_of_what_others_wait() -> None:
    assert body_reader.READ_S * 3 < body_reader.WAIT_S
