from __future__ import annotations

import json
import time

import pytest

from serving.router.answers.answer_scan import PARSE_LIMIT, AnswerScan

CHAT = "/v1/chat/completions"
SSE = "text/event-stream; charset=utf-8"


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def delta(content: str | None, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "choices": [choice], **more})


def scan(body: bytes, *, path: str = CHAT, kind: str = SSE, step: int | None = None) -> AnswerScan:
    scanned = AnswerScan(path, kind)
    for start in range(0, len(body), step or len(body)):
        scanned.feed(body[start : start + (step or len(body))])
    return scanned


WHOLE = (
    delta("")
    + delta("Hel")
    + delta("lo", usage={"prompt_tokens": 9, "completion_tokens": 2})
    + delta(None, "stop")
    + event(b"[DONE]")
)


@pytest.mark.parametrize("step", [1, 7, 64, None])
def test_a_chat_stream_is_read_alike_however_it_is_split_into_chunks(step: int | None) -> None:
    scanned = scan(WHOLE, step=step)

    assert scanned.end() is None
    assert (scanned.answer_id, scanned.finish_reason) == ("chatcmpl-1", "stop")
    assert (scanned.prompt_tokens, scanned.completion_tokens, scanned.events) == (9, 2, 4)


def test_compact_json_is_read() -> None:
    body = (
        b'data: {"id":"x","choices":[{"delta":{"content":"a"},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    )
    scanned = scan(body)

    assert (scanned.end(), scanned.finish_reason, scanned.has_content) == (None, "length", True)


def test_a_stream_is_complete_when_every_choice_has_finished_however_it_ends() -> None:
    unfinished = delta("Hel")

    assert scan(WHOLE.removesuffix(event(b"[DONE]"))).end() is None
    assert scan(WHOLE.removesuffix(event(b"[DONE]")).rstrip(b"\n")).end() is None
    assert scan(unfinished).end() == "cut"
    assert scan(unfinished + event(b"[DONE]")).end() == "cut"


def test_a_stream_of_two_choices_is_cut_while_one_has_not_finished() -> None:
    ends = [event({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}) for index in (0, 1)]
    ended = []
    for body in (ends[0], ends[0] + ends[0], ends[0] + ends[1]):
        one = AnswerScan(CHAT, SSE, choices=2)
        one.feed(delta("x") + body)
        ended.append(one.end())

    assert ended == ["cut", "cut", None]


def test_whole_events_are_passed_on_and_the_names_of_tokens_taken_out() -> None:
    one = AnswerScan(CHAT, SSE, takes_ids=True)
    first, second = delta("Hel"), delta("lo", "stop")
    passed = [
        one.feed(part) for part in (b": ids 5,6\n" + first + b": id", b"s 7\n" + second[:9], second[9:])
    ]

    assert passed == [first, b"", second]
    assert list(one.token_ids) == [5, 6, 7]


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\r", b"\n\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("step", [1, 2, 4, 10_000])
def test_every_line_end_and_a_mark_of_byte_order_are_read(step: int, start: bytes, end: bytes) -> None:
    one = AnswerScan(CHAT, SSE)
    body = start + WHOLE.replace(b"\n\n", end)
    passed = b"".join(one.feed(body[at : at + step]) for at in range(0, len(body), step))

    assert passed == WHOLE.replace(b"\n\n", end)
    assert (one.events, one.end()) == (4, None)


def test_a_stream_without_content_is_empty() -> None:
    assert scan(delta("") + delta(None, "stop") + event(b"[DONE]")).end() == "empty"


def test_an_error_inside_a_stream_is_an_error() -> None:
    error = {"error": {"message": "engine died", "code": 500}}

    assert scan(delta("Hel") + event(error) + event(b"[DONE]")).end() == "error in the answer"


def test_content_that_looks_like_metadata_is_only_content() -> None:
    scanned = scan(delta('"finish_reason": "stop" and "error": {"a": 1} [DONE]'))

    assert (scanned.finish_reason, scanned.has_error, scanned.end()) == (None, False, "cut")


def test_a_tool_call_is_content() -> None:
    choice = {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}}

    assert scan(event({"id": "1", "choices": [{**choice, "finish_reason": "tool_calls"}]})).end() is None


def test_the_responses_api_is_read() -> None:
    done = {
        "type": "response.completed",
        "response": {"id": "resp-1", "usage": {"input_tokens": 4, "output_tokens": 5}},
    }
    body = event({"type": "response.output_text.delta", "delta": "hi"})
    scanned = scan(body + event(done), path="/v1/responses")

    assert (scanned.end(), scanned.answer_id, scanned.prompt_tokens, scanned.completion_tokens) == (
        None,
        "resp-1",
        4,
        5,
    )
    assert scan(body, path="/v1/responses").end() == "cut"


def test_the_messages_api_is_read() -> None:
    start = {"type": "message_start", "message": {"id": "msg-1", "usage": {"input_tokens": 4}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    body = event(start) + event(text) + event(stop)
    scanned = scan(body + event({"type": "message_stop"}), path="/v1/messages")

    assert (scanned.end(), scanned.answer_id, scanned.finish_reason) == (None, "msg-1", "end_turn")
    assert (scanned.prompt_tokens, scanned.completion_tokens) == (4, 5)
    assert scan(body, path="/v1/messages").end() is None  # it said why it stops, and ended as it should
    assert scan(body + b"data: [DONE]\n\n", path="/v1/messages").end() is None
    assert scan(event(start) + event(text), path="/v1/messages").end() == "cut"


def whole(content: object) -> bytes:
    message = {"role": "assistant", "content": content}
    answer = {
        "id": "chatcmpl-2",
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("body", "cause"),
    [(whole("hi"), None), (whole(""), "empty"), (whole(None), "empty"), (b'{"id": "x', "malformed")],
)
def test_the_defect_of_a_whole_answer_is_found(body: bytes, cause: str | None) -> None:
    assert scan(body, kind="application/json", step=5).end() == cause


def test_id_and_usage_of_a_whole_answer_are_read() -> None:
    scanned = scan(whole("hi"), kind="application/json")
    scanned.end()

    assert (scanned.answer_id, scanned.finish_reason, scanned.prompt_tokens) == ("chatcmpl-2", "stop", 3)


def test_an_answer_of_a_path_without_text_is_never_empty() -> None:
    body = json.dumps({"data": [{"embedding": [0.1]}]}).encode()

    assert scan(body, path="/v1/embeddings", kind="application/json").end() is None


def test_an_answer_beyond_the_limit_is_not_scanned_and_has_no_defect() -> None:
    scanned = scan(b"x" * (PARSE_LIMIT + 1), kind="application/json", step=1 << 16)

    assert scanned.end() is None
    assert scanned.answer_id is None


@pytest.mark.parametrize(
    ("body", "between"),
    [(delta("a"), True), (delta("a") + b"dat", True), (b"data: " + b"x" * (PARSE_LIMIT + 1), False)],
)
def test_an_event_may_follow_unless_one_beyond_the_limit_was_passed_in_pieces(
    body: bytes, between: bool
) -> None:
    assert scan(body).is_between_events is between


@pytest.mark.parametrize(
    "value",
    ["A" * 257, "", "a\0b", "a\ud800b", "a\nb", 7, True, None, ["a"]],
    ids=lambda value: repr(value)[:12],
)
def test_an_id_or_finish_reason_that_cannot_be_recorded_is_not_kept(value: object) -> None:
    answer = {"id": value, "choices": [{"message": {"content": "x"}, "finish_reason": value}]}
    scanned = scan(json.dumps(answer).encode(), kind="application/json")

    assert (scanned.end(), scanned.answer_id, scanned.finish_reason) == (None, None, None)


@pytest.mark.parametrize(
    "digits", ["1" + "0" * 400, "-1", "true", "1e400", "1000000001", '"9"', "2.5", "null"]
)
def test_a_token_count_that_is_no_plausible_number_is_not_kept(digits: str) -> None:
    usage = f'"usage": {{"prompt_tokens": {digits}, "completion_tokens": {digits}}}'
    body = f'{{"id": "a", {usage}, "choices": [{{"message": {{"content": "x"}}, "finish_reason": "stop"}}]}}'
    scanned = scan(body.encode(), kind="application/json")

    assert (scanned.end(), scanned.prompt_tokens, scanned.completion_tokens) == (None, None, None)


GARBAGE = [b"data: {\x98", b"data: 9", b'data: {"a":1}}', b'data: {"a":"\xff"}', b"data: [[]"]


@pytest.mark.parametrize(
    "garbage", [*GARBAGE, b"\x98\x99", b": ids 12\x00\xffzz\r", b": ids 12", b": ids 12zz"]
)
def test_nothing_of_our_engines_is_passed_on_from_garbage_on(garbage: bytes) -> None:
    event = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    scan = AnswerScan("/v1/chat/completions", "text/event-stream", takes_ids=True)

    assert scan.feed(b": ids 5\n" + event + garbage + b"\n\n: ids 6\n" + event) == event
    assert (list(scan.token_ids), scan.is_malformed, scan.has_error) == ([5], True, True)
    assert not scan.has_bad_ids  # so that another goes on from them


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_of_an_endpoint_is_passed_on_and_a_defect(garbage: bytes) -> None:
    event = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    scan = AnswerScan("/v1/chat/completions", "text/event-stream")
    data = event + garbage + b"\n\ndata: [DONE]\n\n"

    assert scan.feed(data) == data
    assert scan.end() == "malformed"


@pytest.mark.parametrize(
    "odd", [b"data:", b"data: \n: ping", b'data: {"a":\ndata: 1}', b"hello", b"event: x"]
)
def test_what_readers_of_events_accept_is_no_defect_of_an_endpoint(odd: bytes) -> None:
    event = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    scan = AnswerScan("/v1/chat/completions", "text/event-stream")
    scan.feed(event + odd + b"\n\n")

    assert scan.end() is None


def test_an_event_that_comes_byte_by_byte_is_searched_once() -> None:
    one = AnswerScan(CHAT, "text/event-stream")
    one.feed(b'data: {"id":"')

    class Counted(bytearray):
        searched = 0

        def rfind(self, sub: object, start: int = 0, *end: int) -> int:  # type: ignore[override]
            type(self).searched += len(self) - start
            return super().rfind(sub, start, *end)  # type: ignore[arg-type]

    one._buffer = Counted(one._buffer)
    for _ in range(2000):
        one.feed(b"xxxx")

    assert Counted.searched < 2000 * 8


@pytest.mark.parametrize("text", [b": ping\n\n", b'event: ping\ndata: {"type": "ping"}\n\n'])
def test_a_ping_is_no_event(text: bytes) -> None:
    one = AnswerScan("/v1/messages", "text/event-stream")
    start = event({"type": "message_start", "message": {"id": "m"}})

    assert one.feed(start + text) == start + text
    assert (one.events, one.is_amid_event) == (1, False)


def test_of_a_stream_that_broke_off_within_its_usage_only_the_usage_is_missing() -> None:
    one = AnswerScan(CHAT, "text/event-stream")
    one.feed(delta("Hel") + delta(None, "stop") + b'data: {"id":"c","usage":{"pro')

    assert (one.is_whole, one.fault) == (True, None)
    assert (one.end(), one.rest) == (None, None)


def test_a_long_text_in_an_event_of_another_shape_takes_no_time() -> None:
    # It was matched in 2**64 ways: the router stood still for good.
    usual, other = (
        b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%s"}'
        + end
        + b',"finish_reason":null}]}\n\n'
        for end in (b"", b',"logprobs":null')
    )
    scanned = AnswerScan(CHAT, SSE)
    for text in (usual % b"a" * 3, usual % b"a" + other % (b"b" * 64) + usual % b"c"):
        scanned.feed(text)

    assert (scanned.events, scanned.defect) == (6, None)


LARGE = b'"data":[' + b"0.5," * 2000 + b"1]"  # more than is decoded whole
USAGE = b'"usage":{"prompt_tokens":7,"completion_tokens":2}'


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"id":"a",%b,%b}' % (LARGE, USAGE), ("a", 7, 2, None, None)),
        (b'{"id":"a","message":{%b,"id":"b"},%b}' % (USAGE, LARGE), ("a", 7, 2, None, None)),
        (b'{"id":"a","error":{"m":"x"},%b}' % LARGE, ("a", None, None, None, "error in the answer")),
        (b'{"id":"a","error":"%b"}' % (b"x" * 5000), ("a", None, None, None, "error in the answer")),
        (b'{"id":"a","error":null,%b}' % LARGE, ("a", None, None, None, None)),
        (b'{"id":"a","type":"error",%b}' % LARGE, ("a", None, None, None, "error in the answer")),
        (
            b'{"id":"a","error":null,"choices":[{"finish_reason":"stop"}],%b}' % LARGE,
            ("a", None, None, "stop", None),
        ),
        (b'{"stop_reason":"end_turn","id":"a",%b}' % LARGE, ("a", None, None, "end_turn", None)),
        (b'\xef\xbb\xbf{"id":"a","x":[NaN,-Infinity,"\\ud83d"],%b}' % LARGE, ("a", None, None, None, None)),
        (b'{"id":"a",%b' % LARGE, (None, None, None, None, "malformed")),
        (b'{"id":"a","x":"\xff",%b}' % LARGE, (None, None, None, None, "malformed")),
        (b"[{%b}]" % LARGE, (None, None, None, None, None)),  # a value, of which nothing is recorded
        (b"[{%b}" % LARGE, (None, None, None, None, "malformed")),
    ],
)
def test_of_a_large_answer_of_any_shape_what_is_recorded_is_read(
    body: bytes, found: tuple[object, ...]
) -> None:
    scanned = scan(body, path="/v1/embeddings", kind="application/json")
    fault = scanned.end()

    read = (scanned.answer_id, scanned.prompt_tokens, scanned.completion_tokens, scanned.finish_reason, fault)
    assert read == found


def test_a_large_answer_of_numbers_is_passed_over() -> None:
    """Objects of a million values held the loop up for a third of a second."""
    seconds = []
    for filler in (b'"' + b"a" * 1_000_000 + b'"', b"[" + b"[]," * 333_000 + b"0]"):
        scanned = scan(b'{"id":"a","data":' + filler + b"}", path="/pooling", kind="application/json")
        began_s = time.thread_time()
        scanned.end()
        seconds.append(time.thread_time() - began_s)

    assert seconds[1] < 20 * seconds[0] + 0.02
