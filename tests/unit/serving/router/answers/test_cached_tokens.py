"""Tokens of a prompt that an engine read from its cache, in each vendor's form of the usage."""

from __future__ import annotations

import json

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.usual_answer import usual_answer

CHAT = {"id": "a", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "hi"}}]}
OPENAI = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
RESPONSES = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
ANTHROPIC = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 4}


def scanned(path: str, answer: object) -> AnswerScan:
    scan = AnswerScan(path, "application/json")
    scan.feed(json.dumps(answer).encode())
    scan.end()
    return scan


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/chat/completions", {**CHAT, "usage": OPENAI}),
        ("/v1/chat/completions", {**CHAT, "usage": ANTHROPIC}),
        (
            "/v1/responses",
            {"id": "a", "object": "response", "status": "completed", "output": [], "usage": RESPONSES},
        ),
        (
            "/v1/messages",
            {"id": "a", "type": "message", "content": [], "stop_reason": "end_turn", "usage": ANTHROPIC},
        ),
    ],
)
def test_cached_tokens_are_read_in_each_form(path: str, answer: object) -> None:
    assert scanned(path, answer).cached_tokens == 4


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"cached_tokens": -1}])
def test_without_a_count_they_are_not_known(details: object) -> None:
    usage = {**OPENAI, "prompt_tokens_details": details}

    scan = scanned("/v1/chat/completions", {**CHAT, "usage": usage})

    assert (scan.cached_tokens, scan.prompt_tokens, scan.completion_tokens) == (None, 9, 2)


def test_the_usual_answer_is_still_decoded_in_one_go() -> None:
    found = usual_answer(json.dumps({**CHAT, "usage": OPENAI}).encode())

    assert found is not None
    assert found[-1] == 4


def test_a_streams_last_usage_counts() -> None:
    scan = AnswerScan("/v1/chat/completions", "text/event-stream")
    events = [
        {"choices": [{"index": 0, "delta": {"content": "hi"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": OPENAI},
    ]
    for event in events:
        scan.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    scan.feed(b"data: [DONE]\n\n")

    assert scan.end() is None
    assert scan.cached_tokens == 4
