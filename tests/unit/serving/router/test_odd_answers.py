"""Answers of an odd form: what a client reads of them, and what the record says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from serving.router.answers.answer_events import TOKEN_COMMENT
from serving.router.answers.answer_scan import AnswerScan
from serving.router.front.answer_framing import AnswerFraming
from serving.router.types import Deliver, Head
from serving.router.upstreams.decompressed import Decompressor
from tests.fakes.virtual_wire import LAST_CHUNK, Habit, Seen, ask, chunked, head, virtual_time

CHAT = "/v1/chat/completions"
WHOLE = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
).encode()
USUAL = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}'
FINISHED = USUAL % (b"c", b'"stop"')


def answered(answer: bytes, *, path: str = CHAT, pipelines: bool = False, arm: int = 1, **body: Any) -> Seen:
    """What comes of a request whose engine answers this in one read."""
    with virtual_time() as loop:
        asked = ask(
            lambda _path, _body: [(0.1, answer)],
            Habit(pipelines=pipelines),
            arm=arm,
            path=path,
            body={"messages": [], **body},
            external=True,
        )
        return loop.run_until_complete(asked)


def streamed(data: bytes, *, path: str = CHAT, arm: int = 1) -> Seen:
    answer = head() + chunked(data) + LAST_CHUNK
    return answered(answer, path=path, arm=arm, stream=True, max_tokens=3)


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\nno!",
        b"HTTP/1.1 200 OK\r\nx-secret: 1\r\nx-b: ",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"EXTRA",
    ],
)
def test_bytes_after_an_answer_in_the_same_read_change_no_answer(more: bytes) -> None:
    whole = head(kind="application/json", length=len(WHOLE)) + WHOLE
    alone, found = (answered(whole + rest, pipelines=True) for rest in (b"", more))

    own = rb"(?m)^(?:date|x-canaryctl-request-id): .*$"  # of a request, of a second
    assert re.sub(own, b"", found.answer) == re.sub(own, b"", alone.answer)
    assert [one.status for one in found.records] == [200, 200]


def test_a_whole_answer_of_invalid_utf_8_is_malformed_in_any_field() -> None:
    for text in (WHOLE.replace(b"hi", b"a\xffb"), WHOLE[:-1] + b', "x": "\xe6\x97"}'):
        (record,) = answered(head(kind="application/json", length=len(text)) + text).records
        assert record.cause == "malformed"


def test_two_objects_in_one_event_are_malformed() -> None:
    event = USUAL % (b"a", b"null") + b"\n" + USUAL % (b"b", b"null") + b"\n\n"
    (record,) = streamed(event + FINISHED + b"\n\n").records

    assert record.cause == "malformed"


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r"])
def test_lines_may_end_in_every_way_that_events_know(end: bytes, arm: int) -> None:
    found = streamed(end.join([USUAL % (b"a", b"null"), FINISHED, b"data: [DONE]", b""]), arm=arm)

    assert [(one.outcome, one.status) for one in found.records] == [("answered", 200)]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_last_event_without_a_blank_line_gets_one(path: str) -> None:
    last = b'data: {"type":"message_stop"}' if path == "/v1/messages" else b"data: [DONE]"
    begun = (
        b'data: {"type":"content_block_delta","delta":{"text":"a"}}\n\n' if path == "/v1/messages" else b""
    )
    found = streamed(begun + FINISHED + b"\n\n" + last, path=path)

    assert last + b"\n\n" in found.answer


@pytest.mark.parametrize("ids", [b"1_0", b"+5", b" 5", b"", "\u0665".encode(), b"7,"])
def test_ids_are_plain_numbers(ids: bytes) -> None:
    scan = AnswerScan(CHAT, "text/event-stream", 1, True, False)
    scan.feed(TOKEN_COMMENT + ids + b"\n" + USUAL % (b"a", b"null") + b"\n\n")

    assert scan.has_bad_ids


def test_an_answer_without_a_byte_is_a_whole_compressed_one() -> None:
    assert Decompressor().is_whole


def test_a_204_has_no_length() -> None:
    framing = AnswerFraming()
    framing.begin(is_head_request=False, is_http_11=True, keep_alive=True)

    assert b"content-length" not in framing.bytes_of(
        Deliver(Head(204, [(b"content-length", b"5")]), b"", "end")
    )


def test_an_open_websocket_gets_nothing_of_a_status_line() -> None:
    """A client that had closed its sending side was probed on: `P/1.1 ` stood between its frames."""
    framing = AnswerFraming()
    framing.begin(is_head_request=False, is_http_11=True, keep_alive=True)
    ahead = framing.start_ahead() + framing.start_ahead()
    switched = framing.switched(Head(101, []))

    assert (ahead + switched).startswith(b"HTTP/1.1 101 ")
    assert [framing.start_ahead() for _ in range(9)] == [b""] * 9
