"""Reports from other projects' trackers about what engines answer (tests/public_reports.md)."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from aiohttp import web

from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.form import BadForm, read_form, written_form
from serving.router.bodies.model_name import renamed
from serving.router.exchange.outgoing import KEEP_ALIVE, PING
from serving.router.types import Attempt, Deliver, Refusal, Step
from tests.fakes.router_rig import Behaviour, router_rig
from tests.unit.serving.router.exchange.test_exchange import begin, core, request, table

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
JSON = "application/json"
RESPONSES = "/v1/responses"


def scan(
    body: bytes, *, path: str = CHAT, kind: str = SSE, n: int | None = 1, step: int = 10_000
) -> AnswerScan:
    scanned = AnswerScan(path, kind, n)
    for at in range(0, len(body), step):
        scanned.feed(body[at : at + step])
    scanned.end()
    return scanned


# ---- what must not be made twice


@pytest.mark.parametrize("weight_bp", [0, 10_000])
@pytest.mark.parametrize(
    ("why", "attempts"),
    [*((one, 1) for one in ("reset", "timeout", "cut", "malformed")), ("refused", 2), ("key refused", 2)],
)
def test_a_background_response_is_made_once(why: str, attempts: int, weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp, stable=("http://a", "http://b"), external=True))
    exchange = begin(router, request({"background": True, "input": "q"}, path=RESPONSES))
    asked, found = 0, exchange.next_attempt()
    while isinstance(found, Attempt):
        asked += 1
        exchange.broken(why if asked == 1 else "timeout", now_s=10.2)  # type: ignore[arg-type]
        found = exchange.next_attempt()

    assert asked == (1 if why == "key refused" and weight_bp == 0 else attempts)
    assert isinstance(found, Refusal)
    assert why != "reset" or (found.code, dict(found.headers)[b"x-should-retry"]) == ("may_be_made", b"false")


@pytest.mark.parametrize("body", [{"background": False}, {"background": None}, {}])
def test_another_response_is_asked_for_again(body: dict[str, object]) -> None:
    exchange = begin(core(), request({"input": "q", **body}, path=RESPONSES))
    exchange.next_attempt()
    exchange.broken("reset", now_s=10.2)

    assert isinstance(exchange.next_attempt(), Attempt)


# ---- JSON as other programs write it


def spaced(data: object, colon: str) -> bytes:
    return json.dumps(data, separators=(",", colon)).encode()


CHOICE = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
LAST = {"index": 0, "delta": {}, "finish_reason": "stop"}
STREAMS = {
    CHAT: [{"id": "c", "choices": [CHOICE]}, {"id": "c", "choices": [LAST], "usage": {"prompt_tokens": 3}}],
    "/v1/messages": [
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 3}}},
        {"type": "ping"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
    RESPONSES: [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.completed", "response": {"id": "r", "usage": {"input_tokens": 3}}},
    ],
}
WHOLE = {
    "id": "c",
    "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


def facts_of(one: AnswerScan) -> tuple[object, ...]:
    return (one.fault, one.has_content, one.is_finished, one.finish_reason, one.prompt_tokens, one.events)


@pytest.mark.parametrize("colon", [" : ", " :", "\t:\t"])
@pytest.mark.parametrize("path", list(STREAMS))
def test_blanks_before_a_colon_change_nothing(path: str, colon: str) -> None:
    plain, other = (
        scan(b"".join(b"data: " + spaced(one, mark) + b"\n\n" for one in STREAMS[path]), path=path)
        for mark in (":", colon)
    )

    assert facts_of(other) == facts_of(plain)
    assert (plain.fault, plain.has_content, plain.prompt_tokens) == (None, True, 3)


@pytest.mark.parametrize("colon", [" : ", " :"])
def test_blanks_before_a_colon_change_no_whole_answer(colon: str) -> None:
    assert facts_of(scan(spaced(WHOLE, colon), kind=JSON)) == facts_of(scan(spaced(WHOLE, ":"), kind=JSON))
    assert scan(spaced({"error": {"message": "x"}}, colon), kind=JSON).fault == "error in the answer"


# ---- choices


def chunk(index: int, text: str | None, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("ends", "fault"),
    [
        (chunk(0, None, "stop") * 2 + DONE, None),  # every choice finishes as 0
        (chunk(0, None, "stop") + chunk(1, None, "stop"), None),
        (chunk(0, None, "stop") * 2, "cut"),  # perhaps said twice of one
        (chunk(0, None, "stop") + DONE, "cut"),
    ],
)
def test_two_finishes_of_one_index_are_two(ends: bytes, fault: str | None) -> None:
    assert scan(chunk(0, "A") + chunk(1, "B") + ends, n=2).fault == fault


# ---- streams by another name


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("kind", [JSON, "text/plain; charset=utf-8", "application/x-ndjson", ""])
@pytest.mark.parametrize("first", [b"", b": hello\n\n", b"event: x\n", b"\xef\xbb\xbf", b"\n"])
def test_events_are_known_by_their_first_bytes(first: bytes, kind: str, step: int) -> None:
    body = first + chunk(0, "A") + chunk(0, None, "stop") + DONE
    one = AnswerScan(CHAT, kind, streams=True)
    passed = b"".join(one.feed(body[at : at + step]) for at in range(0, len(body), step))

    assert (one.end(), one.is_stream, one.has_content) == (None, True, True)
    assert passed.endswith(chunk(0, "A") + chunk(0, None, "stop") + DONE)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("body", [json.dumps(WHOLE).encode(), b" {}", b"<html>", b"data"])
def test_what_is_no_event_keeps_its_kind(body: bytes, streams: bool) -> None:
    one = AnswerScan(CHAT, JSON, streams=streams)
    passed = b"".join(one.feed(body[at : at + 1]) for at in range(len(body)))
    one.end()

    assert (passed + (one.rest or b""), one.is_stream) == (body, False)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_a_stream_by_another_name_is_sent_as_one_and_at_once(weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", b"application/json"), (b"content-length", b"999")])
    sent = exchange.received(chunk(0, "A"), now_s=10.2)

    assert isinstance(sent, Deliver)
    assert sent.head is not None
    names = dict(sent.head.headers)
    assert (sent.data, names[b"content-type"], b"content-length" in names) == (
        *(chunk(0, "A"), b"text/event-stream", False),
    )


# ---- compressed answers


def compressed(body: bytes, coding: str) -> bytes:
    return gzip.compress(body) if "gzip" in coding else zlib.compress(body)


def gzipped(body: bytes, kind: str, coding: str = "gzip") -> Behaviour:
    async def behave(request: web.Request) -> web.StreamResponse:
        headers = {"content-type": kind, "content-encoding": coding}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for at in range(0, len(body), 50_000):
            await response.write(body[at : at + 50_000])
        return response

    return behave


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(
    "coding", ["gzip", "x-gzip", "deflate", "GZIP", "gzip, identity", "identity,deflate"]
)
async def test_a_compressed_answer_is_not_malformed(coding: str, is_canary: bool) -> None:
    async with router_rig() as rig:
        rig.publish(change=2, canary=is_canary)
        engine = rig.canary if is_canary else rig.stable
        engine.behave = gzipped(compressed(json.dumps(WHOLE).encode(), coding.lower()), JSON, coding)
        answer = await rig.ask()
        one = await rig.record()

    assert (answer.json(), "content-encoding" in answer.headers) == (WHOLE, False)
    assert (one.error, one.served_arm, one.completion_tokens) == (False, int(is_canary), 1)


async def test_a_compressed_stream_is_passed_on_as_events() -> None:
    body = chunk(0, "A") + chunk(0, None, "stop") + DONE
    async with router_rig() as rig:
        rig.canary.behave = gzipped(gzip.compress(body), SSE)
        answer = await rig.ask(stream=True)

    assert answer.content == body


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"x" * 100)[:-20], gzip.compress(b"0" * (65 << 20)), b""]
)
async def test_a_canary_whose_answer_cannot_be_decompressed_is_replaced(body: bytes) -> None:
    async with router_rig() as rig:
        rig.canary.behave = gzipped(body, JSON)
        answer = await rig.ask()

    assert (answer.status_code, answer.json()["id"]) == (200, "id-stable")


# ---- forms and bodies that are renamed


@pytest.mark.parametrize(
    ("written", "filename"),
    [
        (b"filename*=utf-8''%D1%84.wav", "ф.wav".encode()),
        (b"filename*=UTF-8'ru'%D1%84.wav", "ф.wav".encode()),
        (b"filename*=iso-8859-1''%e9.wav", "é.wav".encode()),
        (b"filename=\"a.wav\"; filename*=utf-8''%D1%84.wav", b"a.wav"),
    ],
)
def test_a_file_whose_name_is_encoded_stays_a_file(written: bytes, filename: bytes) -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="file"; ' + written + b"\r\n\r\nRIFF\r\n--B--\r\n"
    (part,) = read_form(form, b"B")

    assert (part.name, part.filename, part.data) == (b"file", filename, b"RIFF")
    assert b'filename="' + filename + b'"' in written_form([part], b"B")


@pytest.mark.parametrize(
    "written", [b"filename*=utf-8", b"filename*=x''a", b"filename*=utf-8''%ff", b"filename*=utf-8''%0d%0a"]
)
def test_a_name_that_cannot_be_decoded_is_refused(written: bytes) -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="file"; ' + written + b"\r\n\r\nRIFF\r\n--B--\r\n"

    with pytest.raises(BadForm, match="filename"):
        read_form(form, b"B")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": "ф\\u00e9🙂", "model": "chat"}', '{"model":"m","a":"ф\\u00e9🙂"}'),
        ('{"n": 1e400, "x": [ 1.50 ], "Model": 1}', '{"model":"m","n":1e400,"x":[ 1.50 ]}'),
        ('{"a": 1, "a": 2}', '{"model":"m","a":2}'),
        ("{}", '{"model":"m"}'),
    ],
)
def test_only_the_models_bytes_change(body: str, expected: str) -> None:
    assert renamed(body.encode(), "application/json", "m") == expected.encode()


# ---- streams that wait for their first content

EVENT_STREAM = [(b"content-type", b"text/event-stream")]
ROLE = b'data: {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize("weight_bp", [0, 5000, 10_000])
@pytest.mark.parametrize(("path", "more"), [(CHAT, {}), (CHAT, TOOLS), ("/v1/messages", {}), (RESPONSES, {})])
def test_a_stream_that_waits_for_its_first_token_is_kept_alive(
    path: str, more: dict[str, object], weight_bp: int
) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({"stream": True, **more}, path=path))
    exchange.next_attempt()
    before = exchange.waited(99.0)
    exchange.answered(200, EVENT_STREAM)
    exchange.received(ROLE + b": PROCESSING\n\n", now_s=10.2)
    waited = [exchange.waited(now_s) for now_s in (14.0, 15.2, 17.0, 20.3)]

    assert before is Step.HOLD
    assert [isinstance(one, Deliver) for one in waited] == [False, True, False, True]
    assert [one.head is not None for one in waited if isinstance(one, Deliver)] == [True, False]
    sent = PING if path == "/v1/messages" else KEEP_ALIVE
    assert {one.data for one in waited if isinstance(one, Deliver)} == {sent}


def test_a_comment_commits_nobody_to_the_canary() -> None:
    router = core(table())
    exchange = begin(router, request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, EVENT_STREAM)
    exchange.waited(15.2)
    exchange.broken("cut", now_s=16.0)
    second = exchange.next_attempt()
    while isinstance(second, Attempt) and "canary" in second.url:  # once more on the arm
        exchange.broken("refused", now_s=16.1)
        second = exchange.next_attempt()
    exchange.answered(200, EVENT_STREAM)
    sent = exchange.received(chunk(0, "A"), now_s=17.0)

    assert isinstance(second, Attempt)
    assert "stable" in second.url
    assert sent == Deliver(None, chunk(0, "A"))


def test_an_answer_that_is_no_stream_is_waited_for_in_silence() -> None:
    exchange = begin(core(table()), request({}))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", b"application/json")])

    assert exchange.waited(99.0) is Step.HOLD
