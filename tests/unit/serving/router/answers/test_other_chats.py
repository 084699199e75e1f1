"""Answers of drawn paths beside the four of text: Cohere's chats, generated tokens, transcriptions; and those
that hold nothing at all, on every path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.outgoing import cut_event
from serving.targets import ELIGIBLE_PATHS

COHERE, GENERATE, SPOKEN = "/cohere/v2/chat", "/inference/v1/generate", "/v1/audio/transcriptions"
SSE, JSON = "text/event-stream", "application/json"
DONE = b"data: [DONE]\n\n"
USAGE = {"tokens": {"input_tokens": 3, "output_tokens": 2}}


def scanned(path: str, kind: str, body: bytes, *, step: int = 7) -> AnswerScan:
    scan = AnswerScan(path, kind)
    for at in range(0, len(body), step):
        scan.feed(body[at : at + step])
    scan.end()
    return scan


def events(*given: object) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in given)


def said(kind: str, **message: Any) -> dict[str, Any]:
    return {"type": kind, "index": 0, "delta": {"message": message}}


def end(**delta: Any) -> dict[str, Any]:
    return {"type": "message-end", "id": "a", "delta": delta}


def whole(reason: str = "COMPLETE", *content: object, **message: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": list(content), **message}
    return {"id": "a", "finish_reason": reason, "message": message, "usage": USAGE}


START = {"type": "message-start", "id": "a", "delta": {"message": {"role": "assistant"}}}
WORD = said("content-delta", content={"text": "hi"})
TEXT = {"type": "text", "text": "hi"}
FUNCTION = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("answer", "fault", "reason"),
    [
        (whole("COMPLETE", TEXT), None, "COMPLETE"),
        (whole("COMPLETE", {"type": "thinking", "thinking": "h" * 5000}, TEXT), None, "COMPLETE"),
        (whole("TOOL_CALL", tool_calls=[FUNCTION]), None, "TOOL_CALL"),
        (whole("MAX_TOKENS"), None, "MAX_TOKENS"),
        (whole("COMPLETE"), "empty", "COMPLETE"),
        (whole("ERROR"), "error in the answer", "ERROR"),
        (whole("TIMEOUT", TEXT), "error in the answer", "TIMEOUT"),
        ({"id": "a", "finish_reason": "COMPLETE"}, "empty", "COMPLETE"),
        ({"message": "internal server error"}, "empty", None),
    ],
)
def test_a_whole_chat_of_coheres_api_is_read(answer: object, fault: str | None, reason: str | None) -> None:
    scan = scanned(COHERE, JSON, json.dumps(answer).encode(), step=1000)

    assert (scan.fault, scan.finish_reason) == (fault, reason)
    if reason == "COMPLETE" and fault is None:
        assert (scan.answer_id, scan.prompt_tokens, scan.completion_tokens) == ("a", 3, 2)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ([START, WORD, end(finish_reason="COMPLETE", usage=USAGE)], None),
        ([START, said("tool-plan-delta", tool_plan="I"), end(finish_reason="TOOL_CALL", usage=USAGE)], None),
        (
            [
                START,
                said("tool-call-start", tool_calls=FUNCTION),
                end(finish_reason="TOOL_CALL", usage=USAGE),
            ],
            None,
        ),
        ([START, end(finish_reason="MAX_TOKENS", usage=USAGE)], None),
        ([START, end(finish_reason="COMPLETE", usage=USAGE)], "empty"),
        ([START, WORD, end(finish_reason="ERROR", error="oom")], "error in the answer"),
        ([START, WORD], "cut"),
        ([], "cut"),
    ],
)
@pytest.mark.parametrize("is_done", [True, False])
def test_a_stream_of_coheres_chat_ends_with_message_end(
    given: list[object], fault: str | None, is_done: bool
) -> None:
    scan = scanned(COHERE, SSE, events(*given) + DONE * is_done)

    assert scan.fault == fault
    assert scan.is_whole is (fault in (None, "empty"))
    if fault is None:
        assert (scan.answer_id, scan.prompt_tokens, scan.completion_tokens) == ("a", 3, 2)
    assert scan.has_last_event is scan.is_whole


def test_a_cut_chat_of_coheres_api_ends_with_its_event_of_errors() -> None:
    scan = AnswerScan(COHERE, SSE)
    scan.feed(events(START, WORD))
    event = json.loads(cut_event("chat", scan).removeprefix(b"data: "))

    assert event["type"] == "message-end"
    assert event["delta"]["finish_reason"] == "ERROR"
    assert "was cut before its end" in event["delta"]["error"]


@pytest.mark.parametrize("message", [{"tool_calls": [FUNCTION]}, {"tool_calls": FUNCTION}])
def test_what_tools_a_chat_of_coheres_api_calls_is_not_known(message: dict[str, object]) -> None:
    excerpt = AnswerExcerpt(COHERE)
    excerpt.add(events(said("tool-call-start", **message)))

    assert excerpt.text() == ("", 0)
    assert excerpt.calls() is None


TOKENS = {"request_id": "r", "choices": [{"index": 0, "token_ids": [1], "finish_reason": None}]}
LAST = {"request_id": "r", "choices": [{"index": 0, "token_ids": [2], "finish_reason": "stop"}]}
PART = {"object": "transcription.chunk", "choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
DELTA, ENDED = {"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.done", "text": "a"}


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        (GENERATE, events(TOKENS, LAST) + DONE, None),
        (GENERATE, events(TOKENS, LAST), None),
        (GENERATE, events(TOKENS) + DONE, None),
        (GENERATE, events(TOKENS), "cut"),
        (GENERATE, events(TOKENS, {"error": {"message": "oom"}}) + DONE, "error in the answer"),
        (GENERATE, DONE, "cut"),
        (GENERATE, b": hi\n\n", "cut"),
        (SPOKEN, events(PART) + DONE, None),
        (SPOKEN, events(PART), "cut"),
        (SPOKEN, events(DELTA, ENDED), None),
        (SPOKEN, events(DELTA), "cut"),
        (SPOKEN, events({"text": "a"}), None),  # of servers whose streams have no last event
    ],
)
def test_a_stream_of_tokens_or_speech_that_lacks_its_end_is_cut(
    path: str, body: bytes, fault: str | None
) -> None:
    assert scanned(path, SSE, body).fault == fault


def test_the_ids_of_generated_tokens_are_content() -> None:
    scan = AnswerScan(GENERATE, SSE)
    scan.feed(events(TOKENS))

    assert scan.has_content


@pytest.mark.parametrize("body", [b"", b" \n"])
@pytest.mark.parametrize("kind", [JSON, "text/plain", ""])
@pytest.mark.parametrize("path", sorted(ELIGIBLE_PATHS))
def test_an_answer_without_a_byte_is_none_on_any_path(path: str, kind: str, body: bytes) -> None:
    may_be_silent = path.startswith("/v1/audio/") and kind == "text/plain"

    assert scanned(path, kind, body).fault == (None if may_be_silent else "malformed")


@pytest.mark.parametrize("path", sorted(ELIGIBLE_PATHS))
def test_a_stream_without_an_event_is_none_on_any_path(path: str) -> None:
    assert scanned(path, SSE, b": hi\n\n").fault == "cut"
