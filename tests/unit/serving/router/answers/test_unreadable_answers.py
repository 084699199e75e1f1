"""An answer that the router cannot read is malformed on either arm: stable answers in place of a canary, and
its own answer is passed on as it came."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from serving.router.answers import answer_scan
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_scan import AnswerScan
from tests.fakes.virtual_wire import LAST_CHUNK, Habit, Seen, ask, chunked, head, virtual_time

CHAT, RESPONSES, STREAM = "/v1/chat/completions", "/v1/responses", "text/event-stream"
DEEP = b'{"a":' * 1500 + b"1" + b"}" * 1500
CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"tools":' + DEEP + b"}}\n\n"
DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Zebulon"}\n\n'
)
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n'


def _fail(*_args: Any) -> Any:
    raise KeyError("Zebulon")


def _asked(answer: bytes, *, arm: int = 0, **body: Any) -> Seen:
    with virtual_time() as loop:
        body = {"messages": [{"role": "user", "content": "Hi"}], **body}
        parts = (lambda _path, _body: [(0.1, answer)]), Habit()
        asked = ask(*parts, arm=arm, path=CHAT, body=body, external=True)
        return loop.run_until_complete(asked)


@pytest.mark.parametrize("events", [[CREATED, DELTA, COMPLETED], [DELTA, CREATED, COMPLETED]])
def test_an_event_of_any_depth_is_passed_on(events: list[bytes]) -> None:
    """Stable's `response.created` repeats the schema that its client sent."""
    scan = AnswerScan(RESPONSES, STREAM)
    assert [scan.feed(event) for event in events] == events


@pytest.mark.parametrize("cut", [1, 700, 10_000])
def test_what_cannot_be_read_is_passed_on_byte_for_byte(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    monkeypatch.setattr(answer_scan, "is_sound", _fail)
    scan, events = AnswerScan(CHAT, STREAM), DELTA * 9 + b"data: half"
    passed = b"".join(scan.feed(events[at : at + cut]) for at in range(0, len(events), cut))
    scan.end()
    assert passed + (scan.rest or b"") == events
    assert (scan.is_malformed, scan.has_error, scan.fault, scan.is_too_large) == (
        True,
        True,
        "malformed",
        True,
    )
    assert [record.message for record in caplog.records] == ["an answer could not be read"]
    assert caplog.records[0].__dict__["kind"] == "KeyError"
    assert caplog.records[0].__dict__["at"].startswith("test_unreadable_answers.py:")
    assert "Zebulon" not in caplog.text


def test_the_ids_of_an_engine_of_ours_are_not_passed_on_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnswerExcerpt, "add", _fail)
    scan = AnswerScan(CHAT, STREAM, takes_ids=True)
    scan.excerpt = AnswerExcerpt(CHAT)
    assert scan.feed(b": ids 1,2\n" + DELTA) == DELTA
    assert not scan.is_between_events


def test_a_whole_answer_that_cannot_be_read_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_scan, "usual_answer", _fail)
    scan, answer = AnswerScan(CHAT, "application/json"), b'{"choices":[]}'
    assert scan.feed(answer) == answer
    assert scan.end() == "malformed"
    assert scan.rest == b""


EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n' * 3 + b"data: [DONE]\n\n"
WHOLE = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop","index":0}]}'


def _written(*, is_stream: bool) -> bytes:
    if is_stream:
        return head() + chunked(EVENTS) + LAST_CHUNK
    return head(kind="application/json", length=len(WHOLE)) + WHOLE


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_user_gets_the_answer_of_stable_that_the_router_cannot_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_stream: bool
) -> None:
    """It was a 500, or a broken connection in mid-stream, with a traceback each time."""
    monkeypatch.setattr(AnswerExcerpt, "add", _fail)
    with caplog.at_level(logging.ERROR):
        seen = _asked(_written(is_stream=is_stream), stream=is_stream)
    (record,) = seen.records
    assert (record.status, record.outcome, record.error, record.cause) == (200, "answered", True, "malformed")
    assert record.signals is None
    assert (EVENTS if is_stream else WHOLE) in seen.answer
    assert [one.message for one in caplog.records] == ["an answer could not be read"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_stable_answers_in_place_of_a_canary_that_the_router_cannot_read(
    monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    """It was passed on unread: what a canary says is a user's only when it has been looked at."""
    monkeypatch.setattr(AnswerExcerpt, "add", _fail)
    seen = _asked(_written(is_stream=is_stream), arm=1, stream=is_stream)
    (record,) = seen.records
    assert (record.outcome, record.served_arm) == ("fallback", 0)
    assert (record.error, record.cause) == (
        True,
        "malformed",
    )  # as on stable: no arm pays for our fault alone
    assert seen.asked == {"canary": 1, "stable": 1}
    assert (EVENTS if is_stream else WHOLE) in seen.answer
    assert b"x-canaryctl-arm: stable" in seen.answer
