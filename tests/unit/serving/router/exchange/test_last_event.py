"""What an engine has said to its end is the client's, however its body ends, and is no error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.types import Deliver, Step
from tests.unit.serving.router.exchange.test_late_commit import (
    CHAT,
    DONE,
    EVENT,
    FINISH,
    PARSED,
    TOOLS,
    attempt,
    begin,
    record,
)

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
TEXT = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n'
STOP = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
STOPPED = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DELTA = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
COMPLETED = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'


def said(actions: Sequence[object]) -> bytes:
    return b"".join(one.data for one in actions if isinstance(one, Deliver))


@pytest.mark.parametrize("weight_bp", [0, 9999])
@pytest.mark.parametrize("how", ["cut", "timeout"])
@pytest.mark.parametrize("part", [b"", b'event: message_stop\ndata: {"type":"mess'])
def test_a_message_that_has_stopped_is_finished_however_its_body_ends(
    part: bytes, how: str, weight_bp: int
) -> None:
    router, exchange = begin({}, path=MESSAGES, weight_bp=weight_bp)
    attempt(exchange, PARSED)
    actions: list[object] = [exchange.received(TEXT + STOP + part, now_s=11.0)]
    if how == "timeout":
        assert exchange.stalled()
    actions.append(exchange.broken(how, now_s=12.0))  # type: ignore[arg-type]
    found = record(router)

    assert said(actions) == TEXT + STOP + STOPPED
    assert (found.error, found.cause, found.outcome) == (False, None, "answered")


def test_the_end_of_a_message_comes_with_its_reason() -> None:
    scan = AnswerScan(MESSAGES, "text/event-stream")
    scan.feed(TEXT)
    before = scan.is_finished
    scan.feed(STOP)

    assert (before, scan.is_finished, scan.lacks_message_stop) == (False, True, True)


@pytest.mark.parametrize(
    ("fields", "path", "events"),
    [
        (TOOLS, CHAT, [EVENT, FINISH, DONE]),
        ({}, MESSAGES, [TEXT, STOP, STOPPED]),
        ({"input": "q"}, RESPONSES, [DELTA, COMPLETED]),
    ],
)
@pytest.mark.parametrize("how", ["ended", "cut", "timeout"])
def test_a_held_stream_is_the_clients_at_its_last_event(
    how: str, fields: dict[str, object], path: str, events: list[bytes]
) -> None:
    """Stable's clients have the text by then, though the body may stay open."""
    router, exchange = begin(fields, path=path)
    attempt(exchange, PARSED)
    actions = [exchange.received(one, now_s=11.0 + n) for n, one in enumerate(events)]
    if how == "ended":
        end = exchange.ended(now_s=60.0)
    else:
        assert how != "timeout" or exchange.stalled()
        end = exchange.broken(how, now_s=60.0)  # type: ignore[arg-type]
    found = record(router)

    assert actions[:-1] == [Step.HOLD] * (len(events) - 1)
    assert said(actions[-1:]) == b"".join(events)
    assert isinstance(end, Deliver)
    assert (end.data, end.then) == (b"", "end")
    assert (found.error, found.outcome, found.served_arm, found.covered) == (False, "answered", 1, True)
    assert found.latency_ms == pytest.approx(900 + 1000 * (len(events) - 1))


def test_a_held_stream_that_lacks_its_usage_at_its_last_event_is_answered_anew() -> None:
    _, exchange = begin({**TOOLS, "stream_options": {"include_usage": True}})
    attempt(exchange)
    first = exchange.received(EVENT + FINISH, now_s=10.5)
    last = exchange.received(DONE, now_s=10.6)

    assert (first, last) == (Step.HOLD, Step.AGAIN)
    assert attempt(exchange).arm == 0


def test_a_held_message_without_a_word_is_answered_anew_at_its_last_event() -> None:
    _, exchange = begin({}, path=MESSAGES)
    attempt(exchange, PARSED)
    first, last = exchange.received(STOP, now_s=10.5), exchange.received(STOPPED, now_s=10.6)

    assert (first, last) == (Step.HOLD, Step.AGAIN)
    assert attempt(exchange).arm == 0
