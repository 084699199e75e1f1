"""Reports of other projects: an answer is what it says, not what its label says (tests/public_reports.md)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from serving.messages import RequestRecord
from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.answer_text import said
from serving.router.types import Deliver, Step
from tests.fakes.router_rig import Behaviour, router_rig
from tests.unit.serving.router.exchange.test_exchange import begin, core, record, request, table

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
SSE = "text/event-stream"
JSON = "application/json"
WHOLE = json.dumps(
    {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
).encode()
DONE = b"data: [DONE]\n\n"


def event(data: object, name: str = "") -> bytes:
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(text: str | None, finish: str | None = None, **choice: object) -> bytes:
    delta = {"content": text} if text is not None else {}
    return event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **choice}]})


def scanned(body: bytes, kind: str, *, path: str = CHAT, step: int = 10_000, **more: Any) -> AnswerScan:
    one = AnswerScan(path, kind, **more)
    passed = b"".join(one.feed(body[at : at + step]) for at in range(0, len(body), step))
    one.end()
    assert passed + (one.rest or b"") == body, "an answer is passed on as it came"
    return one


def answers(body: bytes, kind: str | None, status: int = 200) -> Behaviour:
    async def behave(_request: web.Request) -> web.StreamResponse:
        response = web.Response(body=body, status=status, headers={"content-type": kind} if kind else {})
        if kind is None:
            response.headers.pop("content-type", None)
        return response

    return behave


async def asked(
    behave: Behaviour, *, is_canary: bool, path: str = CHAT, **body: object
) -> tuple[int, bytes, RequestRecord, int]:
    """Status and body that the client got, the record, and how often both engines were asked."""
    async with router_rig() as rig:
        rig.stable.behave = rig.canary.behave = behave
        if not is_canary:
            rig.publish(change=2, canary=False)
        answer = await rig.client.post(f"/chat{path}", json={"messages": [], **body})
        one = await rig.record()
        return answer.status_code, answer.content, one, len(rig.stable.seen) + len(rig.canary.seen)


def sound(one: RequestRecord) -> tuple[object, ...]:
    return one.outcome, one.error, one.cause, one.served_arm == one.arm, one.completion_tokens


# ---- a whole answer by another name


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("blanks", [b"", b"\n\n", b" \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "kind", [SSE, "text/plain; charset=utf-8", "application/octet-stream", "text/html", ""]
)
def test_a_whole_answer_is_known_by_its_first_bytes(
    kind: str, blanks: bytes, streams: bool, step: int
) -> None:
    one = scanned(blanks + WHOLE, kind, step=step, streams=streams)

    assert (one.fault, one.is_stream, one.finish_reason, one.completion_tokens) == (None, False, "stop", 1)


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", [SSE, "text/plain", "application/vnd.api+json", None])
async def test_a_whole_answer_by_any_name_reaches_the_user(
    kind: str | None, streams: bool, is_canary: bool
) -> None:
    status, body, one, count = await asked(answers(WHOLE, kind), is_canary=is_canary, stream=streams)

    assert (status, body, count) == (200, WHOLE, 1)
    assert sound(one) == ("answered", False, None, True, 1)


@pytest.mark.parametrize("kind", [SSE, "text/plain", JSON, ""])
@pytest.mark.parametrize("body", [WHOLE[:-5], WHOLE + b"\n\n" + DONE, b"{}", b'{"error": {"message": "x"}}'])
def test_a_broken_whole_answer_is_none_by_any_name(body: bytes, kind: str) -> None:
    assert scanned(body, kind).fault in ("malformed", "empty", "error in the answer")


@pytest.mark.parametrize("kind", [JSON, "text/plain", "text/html", ""])
@pytest.mark.parametrize("body", [b"<html>log in</html>", b"", b"\n", b"[1]", b"hello"])
def test_what_is_no_object_is_malformed_by_any_name(body: bytes, kind: str) -> None:
    assert scanned(body, kind).fault == "malformed"


def test_a_large_whole_answer_is_passed_on_by_any_name() -> None:
    text = json.dumps({"choices": [{"message": {"content": "x" * (1 << 20)}}]}).encode()

    assert {scanned(text, kind, step=65_536).fault for kind in (SSE, "text/plain", JSON, "")} == {None}
    assert scanned(b"<html>" + text, "text/plain", step=65_536).fault == "malformed"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/transcriptions"])
@pytest.mark.parametrize("kind", ["text/plain", SSE])
def test_other_paths_may_answer_what_is_no_json(path: str, kind: str) -> None:
    usage = scanned(b'{"data": [], "usage": {"prompt_tokens": 4}}', kind, path=path)

    assert (usage.fault, usage.prompt_tokens) == (None, 4)
    assert scanned(b"{laughs} hello", "text/plain", path=path).fault is None


def test_blank_lines_before_an_event_stream_are_no_progress() -> None:
    one = AnswerScan(CHAT, SSE, streams=True)
    one.feed(b"\n\n")

    assert not one.is_amid_event
    assert one.feed(chunk("hi")).endswith(chunk("hi"))
    assert one.is_stream


def test_a_canarys_whole_answer_named_a_stream_is_held_to_its_end() -> None:
    exchange = begin(core(table()), request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", SSE.encode())])
    first = exchange.received(WHOLE[:9], now_s=10.2)
    exchange.received(WHOLE[9:], now_s=10.3)
    last = exchange.ended(now_s=10.4)

    assert first is Step.HOLD
    assert isinstance(last, Deliver)
    assert (last.data, last.then) == (WHOLE, "end")


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_who_asked_for_a_whole_answer_is_sent_no_comments(weight_bp: int) -> None:
    """They would begin a stream, in which a whole answer has no place."""
    exchange = begin(core(table(weight_bp=weight_bp)), request({}))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", SSE.encode())])
    waited = exchange.waited(99.0)
    exchange.received(WHOLE, now_s=99.1)
    last = exchange.ended(now_s=99.2)

    assert waited is Step.HOLD
    assert isinstance(last, Deliver)
    assert (last.data, last.then) == (WHOLE, "end")


def test_a_stream_that_has_begun_is_kept_alive_whatever_was_asked() -> None:
    """Of a compressed request it is not known that it asks for a stream."""
    exchange = begin(core(table()), request({}, headers=(("content-encoding", "zstd"),)))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", SSE.encode())])
    exchange.received(b": PROCESSING\n\n", now_s=10.2)

    assert isinstance(exchange.waited(99.0), Deliver)


# ---- any status that says yes


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize("status", [201, 202, 203, 206])
async def test_a_sound_answer_is_one_with_any_2xx(status: int, is_canary: bool) -> None:
    got, body, one, count = await asked(answers(WHOLE, JSON, status), is_canary=is_canary)

    assert (got, body, count) == (status, WHOLE, 1)
    assert (one.status, *sound(one)) == (status, "answered", False, None, True, 1)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [(202, b'{"status": "accepted"}', "empty"), (204, b"", "malformed"), (206, WHOLE[:40], "malformed")],
)
def test_a_2xx_without_an_answer_is_an_error(status: int, body: bytes, cause: str, weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({}))
    exchange.next_attempt()
    exchange.answered(status, [(b"content-type", b"application/json")])
    exchange.received(body, now_s=10.2)
    ended = exchange.ended(now_s=10.3)
    if weight_bp:
        assert ended is Step.AGAIN
        exchange.next_attempt()
        exchange.answered(200, [(b"content-type", b"application/json")])
        exchange.received(WHOLE, now_s=10.4)
        exchange.ended(now_s=10.5)
    one = record(router)

    assert (one.error, one.cause, one.served_arm) == (True, cause, 0)


# ---- no text, and the reason why


EXPLAINED = [
    (CHAT, {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "length"}]}),
    (CHAT, {"choices": [{"index": 0, "message": {"content": None}, "finish_reason": "content_filter"}]}),
    ("/v1/completions", {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "max_tokens"}),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "refusal"}),
    (
        RESPONSES,
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []},
    ),
]


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(("path", "body"), EXPLAINED)
async def test_no_text_for_a_stated_reason_is_an_answer(path: str, body: object, is_canary: bool) -> None:
    text = json.dumps(body).encode()
    status, got, one, count = await asked(answers(text, JSON), is_canary=is_canary, path=path)

    assert (status, got, count) == (200, text, 1)
    assert (*sound(one)[:4], one.empty) == ("answered", False, None, True, True)


STREAMS = [
    (CHAT, chunk("") + chunk(None, "length") + DONE),
    (CHAT, chunk(None, "content_filter") + DONE),
    (
        MESSAGES,
        event({"type": "message_start", "message": {"id": "m", "content": []}})
        + event({"type": "message_delta", "delta": {"stop_reason": "refusal"}})
        + event({"type": "message_stop"}),
    ),
]


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_stream_without_text_for_a_stated_reason_is_an_answer(
    path: str, body: bytes, is_canary: bool
) -> None:
    status, got, one, count = await asked(answers(body, SSE), is_canary=is_canary, path=path, stream=True)

    assert (status, got, count) == (200, body, 1)
    assert (*sound(one)[:4], one.empty) == ("answered", False, None, True, True)


@pytest.mark.parametrize("reason", ["stop", "tool_calls", None])
def test_no_text_without_a_reason_is_an_error(reason: str | None) -> None:
    """`tool_calls` without a call names what is not there."""
    whole = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": reason}]}

    assert scanned(json.dumps(whole).encode(), JSON).fault == "empty"


# ---- events that say nothing


HEARTBEATS = [
    event(b"null"),
    event(b": OPENROUTER PROCESSING"),
    event(b"2026-11-30 08:00:00", "ping"),
    event({"time": 1}, "keepalive"),
    event(b"", "heartbeat"),
    event({"type": "ping"}, "ping"),
]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("heartbeat", HEARTBEATS)
def test_a_heartbeat_is_no_event(heartbeat: bytes, step: int, line_end: bytes) -> None:
    body = heartbeat + chunk("a") + heartbeat + chunk("b") + heartbeat + chunk(None, "stop") + DONE
    one = scanned(body.replace(b"\n", line_end), SSE, step=step)

    assert (one.fault, one.events, one.answer_id) == (None, 3, "c")


@pytest.mark.parametrize("heartbeat", HEARTBEATS)
def test_a_heartbeat_is_no_progress(heartbeat: bytes) -> None:
    exchange = begin(core(table(weight_bp=0)), request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", SSE.encode())])
    exchange.received(chunk("a"), now_s=10.2)
    exchange.received(heartbeat, now_s=19.0)

    assert exchange.seen.last_byte_s == 10.2


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize("heartbeat", HEARTBEATS)
async def test_a_stream_with_a_heartbeat_reaches_the_user(heartbeat: bytes, is_canary: bool) -> None:
    body = heartbeat + chunk("a") + chunk(None, "stop") + DONE
    status, got, one, count = await asked(answers(body, SSE), is_canary=is_canary, stream=True)

    assert (status, got, count) == (200, body, 1)
    assert sound(one)[:4] == ("answered", False, None, True)


@pytest.mark.parametrize("data", [b"5", b"<html>", b"hello", b'"null"'])
def test_other_data_that_is_no_object_is_malformed(data: bytes) -> None:
    assert scanned(event(data) + chunk("a") + chunk(None, "stop"), SSE).fault == "malformed"


# ---- null where others write nothing


@pytest.mark.parametrize("index", [None, "0", 0.0, "x"])
def test_an_index_that_is_no_number_is_that_of_the_first_choice(index: object) -> None:
    stream = chunk("a", index=index) + chunk(None, "stop", index=index)
    whole = {"choices": [{"index": index, "message": {"content": "a"}, "finish_reason": "stop"}]}

    assert (scanned(stream, SSE).fault, scanned(stream + DONE, SSE).fault) == (None, None)
    assert said(stream, is_stream=True) == ({"text": "a"},)
    assert scanned(json.dumps(whole).encode(), JSON).finish_reason == "stop"
    assert said(json.dumps(whole).encode(), is_stream=False) == ({"text": "a"},)


def test_two_choices_without_a_number_finish_twice() -> None:
    ends = chunk(None, "stop", index=None) * 2

    assert scanned(chunk("a", index=None) + ends + DONE, SSE, choices=2).fault is None
    assert (
        scanned(chunk("a", index="0") + chunk(None, "stop", index="1") + DONE, SSE, choices=2).fault == "cut"
    )


def test_a_null_beside_the_other_name_of_a_field_says_nothing() -> None:
    body = {
        "usage": {"prompt_tokens": None, "input_tokens": 3, "completion_tokens": None, "output_tokens": 4},
        "choices": [{"index": 0, "message": None, "delta": {"content": "a"}, "finish_reason": "stop"}],
    }
    text = json.dumps(body).encode()
    one = scanned(text, JSON)

    assert (one.fault, one.prompt_tokens, one.completion_tokens) == (None, 3, 4)
    assert said(text, is_stream=False) == ({"text": "a"},)
