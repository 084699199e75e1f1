"""Properties of what is parsed from sockets: any bytes in any pieces, requests and streams alike."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.router.answers.answer_scan import AnswerScan
from serving.router.front import request_parser
from serving.router.front.paths import Found, find_target
from serving.router.front.request_parser import RequestParser
from serving.targets import method_of
from tests.fakes.router_rig import feed

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
pieces = st.lists(st.integers(1, 40), min_size=1, max_size=30)
tokens = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, in turn."""
    parts, start, index = [], 0, 0
    while start < len(data):
        size = sizes[index % len(sizes)]
        parts.append(data[start : start + size])
        start, index = start + size, index + 1
    return parts


def parsed(parts: list[bytes]) -> tuple[object, ...]:
    parser = RequestParser()
    for part in parts:
        feed(parser, part)
    return tuple(parser.requests), parser.refusal and parser.refusal.status


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request with a length or in chunks."""
    headers = draw(st.lists(st.tuples(tokens, values), max_size=6))
    framed = ("content-length", "transfer-encoding", "connection", "expect", "upgrade")
    lines = [f"{name}: {value}" for name, value in headers if name not in framed]
    body = draw(st.binary(max_size=60))
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines])
    if draw(st.booleans()):
        return f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    chunks = cut(body, draw(pieces))
    framed_body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
    return f"{head}\r\ntransfer-encoding: chunked\r\n\r\n".encode() + framed_body


@pytest.mark.slow
@given(data=st.lists(requests(), min_size=1, max_size=3).map(b"".join), sizes=pieces)
def test_valid_requests_are_read_alike_in_any_pieces(data: bytes, sizes: list[int]) -> None:
    assert parsed(cut(data, sizes)) == parsed([data])
    assert parsed([data])[1] is None
    with patch.object(request_parser, "CHUNKED_AT_ONCE", 5):
        assert parsed([data]) == parsed(cut(data, sizes)) == parsed([data])


@given(data=st.binary(max_size=200) | requests().flatmap(lambda one: st.permutations(list(one)).map(bytes)))
@example(data=b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")
@pytest.mark.slow
def test_any_bytes_are_requests_or_one_refusal(data: bytes) -> None:
    found, status = parsed([data])

    assert status in (None, 400, 413, 431)
    assert isinstance(found, tuple)


@pytest.mark.slow
@given(raw=st.binary(max_size=40) | st.text("/%.v1chatompletinsde2FE?#@:", max_size=40).map(str.encode))
def test_a_target_is_listed_or_refused(raw: bytes) -> None:
    found = find_target("POST", raw, ("chat",))

    if isinstance(found, Found):
        assert method_of(found.target.path) in ("GET", "POST")
    else:
        assert found.status in (400, 404, 405)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of events, comments and odd lines, whole or not."""

    def event(value: object) -> bytes:
        return b"data: " + json.dumps(value).encode()

    contents = st.text(max_size=8).map(lambda text: event({"choices": [{"delta": {"content": text}}]}))
    finishes = st.sampled_from(["stop", None, ""]).map(
        lambda why: event({"choices": [{"index": 0, "delta": {}, "finish_reason": why}]})
    )
    others = st.sampled_from([b": keep-alive", b"event: x\ndata: {}", b"data: [DONE]", b"data: {", b"id: 7"])
    blocks = draw(st.lists(contents | finishes | others, max_size=8))
    text = b"".join(block + b"\n\n" for block in blocks)
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


MARKS = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"])  # of byte order; the last is half of one


@pytest.mark.slow
@given(data=st.builds(bytes.__add__, MARKS, streams() | st.binary(max_size=120)), sizes=pieces)
def test_a_stream_is_passed_on_byte_for_byte_and_read_alike_in_any_pieces(
    data: bytes, sizes: list[int]
) -> None:
    ends, facts = [], []
    for parts in ([data] if data else [], cut(data, sizes)):
        scan = AnswerScan(CHAT, SSE)
        passed = b"".join(scan.feed(part) for part in parts)
        ends.append(scan.end())
        whole, rest = data.removeprefix(b"\xef\xbb\xbf"), scan.rest
        if len(parts) == 1:  # None: the beginning of an event, which is no use to anybody
            assert whole.startswith(passed) if rest is None else passed + rest == whole
        facts.append((scan.events, scan.has_content, scan.finish_reason, scan.has_error, scan.answer_id))

    if b"\r" not in data:
        assert ends[0] == ends[1]
        assert facts[0] == facts[1]


@pytest.mark.slow
@given(
    blocks=st.lists(
        st.tuples(st.lists(st.integers(0, 10**6), min_size=1, max_size=4), st.text(max_size=6)), max_size=6
    ),
    sizes=pieces,
)
def test_the_ids_of_tokens_are_taken_out_whole_in_any_pieces(
    blocks: list[tuple[list[int], str]], sizes: list[int]
) -> None:
    events = [b"data: " + json.dumps({"choices": [{"delta": {"content": t}}]}).encode() for _, t in blocks]
    named = [b": ids " + ",".join(map(str, ids)).encode() + b"\n" for ids, _ in blocks]
    scan = AnswerScan(CHAT, SSE, takes_ids=True)
    data = b"".join(name + event + b"\n\n" for name, event in zip(named, events, strict=True))
    passed = b"".join(scan.feed(part) for part in cut(data, sizes))

    assert passed == b"".join(event + b"\n\n" for event in events)
    assert list(scan.token_ids) == [one for ids, _ in blocks for one in ids]


@st.composite
def json_answers(draw: st.DrawFn) -> bytes:
    """A JSON answer of the usual shape, or nearly."""
    texts: st.SearchStrategy[object] = st.text(max_size=3)
    odd = texts | st.none() | st.booleans() | st.integers(-1, 10**10) | st.just(1.0)
    counts = st.integers(0, 9) | odd
    usage = st.fixed_dictionaries({}, optional={"prompt_tokens": counts, "completion_tokens": counts})
    message = st.fixed_dictionaries({"content": odd})
    choice = st.fixed_dictionaries(
        {}, optional={"index": st.integers(0, 2) | odd, "finish_reason": odd, "message": message}
    )
    others = dict.fromkeys(("error", "type", "response", "message", "delta", "stop_reason"), odd)
    fields = {"id": odd, "usage": usage | odd, "choices": st.lists(choice | odd, max_size=3) | odd}
    return json.dumps(draw(st.fixed_dictionaries({}, optional=fields | others))).encode()


@pytest.mark.slow
@example(data=b'{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":10000000000}}', choices=1)
@given(data=json_answers(), choices=st.integers(1, 2))
def test_an_answer_of_the_usual_shape_is_read_as_any_other(data: bytes, choices: int) -> None:
    facts = []
    for text in (data, data[:-1] + (b"," if len(data) > 2 else b"") + b'"type": null}'):  # the same, unusual
        scan = AnswerScan(CHAT, "application/json", choices)
        scan.feed(text)
        words = scan.end(), scan.answer_id, scan.finish_reason
        facts.append((words, scan.prompt_tokens, scan.completion_tokens, scan.is_finished, scan.has_content))

    if b'"type"' not in data:
        assert facts[0] == facts[1]


TEXTS = st.text(max_size=6) | st.sampled_from(
    ['"', "\\", "\n", "[DONE]", '"usage": {', "\u2028", "\ud800", ""]
)
RAW = st.sampled_from([b"a", b"\xff", b"\x00", b"\\", b"\\u00e9", b'","finish_reason":"stop"', b"\n\n", b'"'])


@pytest.mark.slow
@given(texts=st.lists(TEXTS | RAW, min_size=2, max_size=6), takes_ids=st.booleans(), is_ascii=st.booleans())
def test_an_event_of_a_known_shape_is_read_as_any_other(
    texts: list[str | bytes], takes_ids: bool, is_ascii: bool
) -> None:
    facts = []
    for has_shape in (True, False):
        scan, passed = AnswerScan(CHAT, SSE, takes_ids=takes_ids), []
        for text in ["first", "second", *texts]:
            text = json.dumps(text, ensure_ascii=is_ascii)[1:-1] if isinstance(text, str) else text
            raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % raw
            scan._shape = scan._shape if has_shape else None
            passed.append(scan.feed(b": ids 7\n" + event if takes_ids else event))
        defects = scan.is_malformed, scan.has_error, scan.error_tail
        facts.append((passed, scan.events, scan.end(), list(scan.token_ids), defects))

    assert facts[0] == facts[1]


@pytest.mark.slow
@example(texts=["a", "b", b"\\", "next"], sizes=[100])  # together, the last two would be one sound text
@given(texts=st.lists(TEXTS | RAW, min_size=2, max_size=8), sizes=st.lists(st.integers(100, 400), min_size=1))
def test_events_that_come_together_are_read_as_one_by_one(texts: list[str | bytes], sizes: list[int]) -> None:
    raws = [json.dumps(text)[1:-1].encode() if isinstance(text, str) else text for text in texts]
    shape = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    data = b"".join(shape % raw for raw in raws) + b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
    facts = []
    for parts in ([data], cut(data, sizes)):
        scan = AnswerScan(CHAT, SSE)
        passed = b"".join(scan.feed(part) for part in parts)
        facts.append((passed, scan.events, scan.has_content, scan.finish_reason, scan.is_malformed))

    assert facts[0] == facts[1]
    assert facts[0][0] == data
