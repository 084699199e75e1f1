"""A content-length that is written several times: equal ones are one (RFC 9110, 8.6), others are refused."""

from __future__ import annotations

import pytest

from serving.router import heads
from serving.router.front.request_parser import HEAD_LIMIT, RequestParser
from serving.router.headers import HEADERS_LIMIT
from serving.router.heads import AnswerHeads
from tests.fakes.virtual_wire import Habit, Seen, ask, chunked, virtual_time

POST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\n"
BODY = b'{"messages": []}'
TWICE = b"content-length: 16\r\nx-a: b\r\nContent-Length:16 \r\n"
LISTED = b"content-length: 16, 16\r\n"
EQUAL = [TWICE, LISTED, LISTED + LISTED, TWICE + TWICE]
OTHERS = [
    b"content-length: 16\r\ncontent-length: 15\r\n",
    b"content-length: 16\r\ncontent-length: 016\r\n",
    b"content-length: 16, 15\r\n",
    b"content-length: 16,\r\n",
    b"content-length: +16\r\ncontent-length: +16\r\n",
    b"content-length: \r\ncontent-length: \r\n",
    b"content-length: 16\r\ncontent-length: 16\r\ntransfer-encoding: chunked\r\n",
    b"content-length: 16\r\nx-a: b\r\ncontent-length: 16\r\n folded\r\n",
    b"content-length: 16\r\nx-a: b\ncontent-length: 15\r\ncontent-length: 16\r\n",
    b"content-length: 16\r\ncontent-length : 16\r\ncontent-length: 16\r\n",
]
STEPS = [1, 7, 50, 1 << 18]


def parsed(data: bytes, step: int) -> RequestParser:
    parser = RequestParser()
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
    parser.go_on()
    return parser


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lengths", EQUAL)
def test_equal_lengths_of_a_request_are_one(lengths: bytes, step: int) -> None:
    one = POST + lengths + b"\r\n" + BODY
    before = b"GET /first HTTP/1.1\r\n\r\n"
    parser = parsed((before if step != 7 else b"") + one, step)
    request = parser.requests[-1]

    assert parser.refusal is None
    assert len(parser.requests) == 1 + (step != 7)
    assert (request.target, request.body) == (b"/v1/x", BODY)
    assert [value for name, value in request.headers if name == b"content-length"] == [b"16"]
    assert (b"host", b"x") in request.headers


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lengths", OTHERS)
def test_other_lengths_of_a_request_are_refused(lengths: bytes, step: int) -> None:
    parser = parsed(POST + lengths + b"\r\n" + BODY, step)

    assert parser.refusal is not None
    assert (parser.refusal.status, parser.refusal.code) == (400, "bad_request")
    assert not parser.requests


def test_one_that_follows_a_body_is_one_too() -> None:
    parser = parsed(2 * (POST + TWICE + b"\r\n" + BODY), 1 << 18)

    assert parser.refusal is None
    assert [one.body for one in parser.requests] == [BODY, BODY]


def test_a_head_that_does_not_end_after_two_lengths_is_431() -> None:
    parser = parsed(POST + TWICE + b"x-b: " + b"b" * HEAD_LIMIT, 1000)

    assert parser.refusal is not None
    assert parser.refusal.status == 431


def answered(head: bytes, step: int, *, body: bytes) -> Seen:
    data = head + body
    pieces = [(0.001, data[start : start + step]) for start in range(0, len(data), step)]
    with virtual_time() as loop:
        asked = ask(lambda _path, _body: pieces, Habit(), arm=0, path="/v1/chat/completions", body={})
        return loop.run_until_complete(asked)


ANSWER = b'{"id": "a", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
OF_ANSWER = b"content-length: %d" % len(ANSWER)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
@pytest.mark.parametrize("more", [b"\r\nServer: x\r\nContent-Length: %d" % len(ANSWER), b",%d" % len(ANSWER)])
def test_equal_lengths_of_an_answer_are_one(more: bytes, before: bytes, step: int) -> None:
    seen = answered(before + OK + OF_ANSWER + more + b"\r\n\r\n", step, body=ANSWER)

    assert seen.answer.startswith(b"HTTP/1.1 200 ")
    assert seen.answer.lower().count(b"content-length") == 1
    assert seen.answer.endswith(ANSWER)
    assert [one.error for one in seen.records] == [False]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("more", [b"\r\ncontent-length: 1", b", 1", b"\r\ncontent-length: x"])
def test_other_lengths_of_an_answer_are_an_error(more: bytes, step: int) -> None:
    seen = answered(OK + OF_ANSWER + more + b"\r\n\r\n", step, body=ANSWER)

    assert [one.error for one in seen.records] == [True]


@pytest.mark.parametrize("step", STEPS)
def test_chunks_beside_two_lengths_count_alone(step: int) -> None:
    head = OK + OF_ANSWER + b"\r\n" + OF_ANSWER + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    seen = answered(head, step, body=chunked(ANSWER) + b"0\r\n\r\n")

    assert [one.error for one in seen.records] == [False]


@pytest.mark.parametrize("step", [1, 7, 1 << 18])
def test_each_head_of_an_answer_is_read_once(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """All were read again with each byte: 98 ms each after 16,000 interim ones, for 30 s."""
    seen, read = list[bytes](), heads.with_one_length

    def counted(head: bytes) -> bytes | None:
        seen.append(head)
        return read(head)

    monkeypatch.setattr(heads, "with_one_length", counted)
    interim, last = b"HTTP/1.1 103 Early Hints\r\n\r\n", OK + OF_ANSWER + b"," + OF_ANSWER[16:] + b"\r\n\r\n"
    found, data, given = AnswerHeads(), 50 * interim + last + ANSWER, list[bytes | None]()
    for start in range(0, len(data), step):
        given.append(found.add(data[start : start + step]))
        if given[-1] is not None:
            break

    assert seen == [*50 * [interim], last]
    assert given[:-1] == [None] * (len(given) - 1)
    assert (given[-1] or b"").startswith(50 * interim + OK[:15])


@pytest.mark.parametrize(("lines", "is_refused"), [(HEADERS_LIMIT, False), (HEADERS_LIMIT + 1, True)])
def test_heads_that_wait_for_their_end_have_so_many_lines(lines: int, is_refused: bool) -> None:
    found = AnswerHeads()
    interim = 300 * b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert found.add(interim + b"HTTP/1.1 200 OK\r\n" + (lines - 1) * b"a: b\r\n") is None
    assert found.has_too_many_lines is False
    assert found.add(b"a: b\r\n") is None
    assert found.has_too_many_lines is is_refused


def test_an_answer_with_too_many_lines_after_two_lengths_is_an_error_at_once() -> None:
    head = OK + OF_ANSWER + b"\r\n" + OF_ANSWER + b"\r\n" + (HEADERS_LIMIT + 9) * b"a: b\r\n"
    (record,) = answered(head, 50, body=b"").records

    assert (record.error, record.cause != "timeout") == (True, True)
