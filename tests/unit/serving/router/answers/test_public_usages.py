"""Usages of public reports: zeros, other names of cached tokens, thoughts that no count of the answer has.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.router.answers.answer_scan import AnswerScan

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ANSWER = {"id": "a", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "hi"}}]}
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
TRUE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
PROMPT = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}


def counts(scan: AnswerScan) -> tuple[int | None, int | None, int | None]:
    assert scan.end() is None
    return scan.prompt_tokens, scan.completion_tokens, scan.cached_tokens


def whole(usage: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    scan = AnswerScan(CHAT, "application/json")
    scan.feed(json.dumps({**ANSWER, "usage": usage}).encode())
    return counts(scan)


def streamed(*usages: dict[str, Any] | None) -> tuple[int | None, int | None, int | None]:
    """Of a chat whose events have these usages; the last says why it ends."""
    scan = AnswerScan(CHAT, "text/event-stream")
    for n, usage in enumerate(usages):
        reason = "stop" if n == len(usages) - 1 else None
        choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": reason}
        scan.feed(b"data: " + json.dumps({"id": "a", "choices": [choice], "usage": usage}).encode() + b"\n\n")
    scan.feed(b"data: [DONE]\n\n")
    return counts(scan)


def message(start: dict[str, Any], delta: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Of a stream of Anthropic's API that begins and ends with these usages."""
    events: tuple[dict[str, Any], ...] = (
        {"type": "message_start", "message": {"id": "m", "type": "message", "content": [], "usage": start}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta},
        {"type": "message_stop"},
    )
    scan = AnswerScan(MESSAGES, "text/event-stream")
    for event in events:
        scan.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    return counts(scan)


@pytest.mark.parametrize(
    ("start", "delta", "expected"),
    [
        ({"input_tokens": 10, "output_tokens": 1}, {"input_tokens": 0, "output_tokens": 20}, (10, 20, None)),
        (
            {"input_tokens": 10, "cache_read_input_tokens": 9},
            {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 20},
            (10, 20, 9),
        ),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 10, "output_tokens": 20}, (10, 20, None)),
    ],
)
def test_a_zero_replaces_no_count(
    start: dict[str, Any], delta: dict[str, Any], expected: tuple[int | None, int | None, int | None]
) -> None:
    assert message(start, delta) == expected


def test_zeros_at_the_end_of_a_stream_replace_no_count() -> None:
    assert streamed(TRUE, ZEROS) == (9, 2, None)


def test_zeros_at_first_are_replaced_by_the_last_usage() -> None:
    assert streamed(ZEROS, None, TRUE) == (9, 2, None)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_cache_hit_tokens": 900, "prompt_cache_miss_tokens": 100},
        {"cached_tokens": 900},
        {"prompt_tokens_details": {}, "cache_read_input_tokens": 900},
        {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 900},
        {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 900},
        {"prompt_tokens_details": {"cached_tokens": 900}, "cache_read_input_tokens": 900},
    ],
)
def test_cached_tokens_are_read_by_every_vendors_name(usage: dict[str, Any]) -> None:
    assert whole({**PROMPT, **usage}) == (1000, 10, 900)
    assert streamed(None, {**PROMPT, **usage}) == (1000, 10, 900)


@pytest.mark.parametrize(
    ("usage", "completion"),
    [
        ({"total_tokens": 623}, 603),  # no word of the thoughts but their sum
        ({"total_tokens": 623, "completion_tokens_details": {"reasoning_tokens": 405}}, 603),
        ({"total_tokens": 218, "completion_tokens_details": {"reasoning_tokens": 94}}, 198),  # within
        ({"total_tokens": 623, "completion_tokens_details": {"reasoning_tokens": 94}}, 292),
        ({"total_tokens": 623, "cache_read_input_tokens": 405}, 198),  # the rest may be of the cache
        ({"total_tokens": 623, "cache_creation_input_tokens": 405}, 198),
        ({"total_tokens": 623, "prompt_tokens": 0}, 198),  # or of a prompt that was not counted
        ({"total_tokens": None}, 198),
        ({"total_tokens": 100}, 198),
    ],
)
def test_thoughts_that_only_the_total_has_are_tokens_of_the_answer(
    usage: dict[str, Any], completion: int
) -> None:
    given = {"prompt_tokens": 20, "completion_tokens": 198, **usage}

    assert whole(given)[1] == completion
    assert streamed(None, given)[1] == completion
