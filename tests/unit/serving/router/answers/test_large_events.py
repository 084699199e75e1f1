"""A large event of a stream: what is recorded is read, and no objects are made of all the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from serving.router.answers import answer_events, outline
from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.answer_text import VALUES_LIMIT, said
from serving.router.answers.outline import LARGE, OBJECTS_LIMIT, event_of
from serving.router.answers.usual_answer import usual_answer

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
PADDING: dict[str, Any] = {"padding": [[]] * (answer_events.WHOLE // 3)}


def delta(content: str | None, finish: str | None = None, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "created": 7, "model": "m", "choices": [choice], **more}


STREAMS: dict[str, tuple[str, list[Any]]] = {
    "chat": (
        CHAT,
        [delta(None), delta("a"), delta(None, "stop"), {"choices": [], "usage": {"prompt_tokens": 1}}],
    ),
    "a call": (CHAT, [delta(None), {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f"}}]}}]}]),
    "an error": (CHAT, [delta("a"), {"error": {"message": "no"}}]),
    "an engine gave up": (CHAT, [delta("a"), delta(None, "abort")]),
    "a response": (
        "/v1/responses",
        [
            {"type": "response.created", "response": {"id": "r", "instructions": "be kind"}},
            {
                "type": "response.output_item.added",
                "item": {"type": "message", "role": "assistant", "id": "i"},
            },
            {"type": "response.output_text.delta", "delta": "a"},
            {"type": "response.completed", "response": {"id": "r", "usage": {"input_tokens": 3}}},
        ],
    ),
    "a message": (
        "/v1/messages",
        [
            {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 3}}},
            {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ],
    ),
}
FACTS = (
    *(
        "answer_id",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "events",
        "has_content",
        "has_error",
    ),
    *("is_malformed", "has_usage_event", "created", "model", "is_finished", "fault"),
)


def read(path: str, events: list[Any]) -> list[dict[str, object]]:
    scan, found = AnswerScan(path, SSE), []
    for one in events:
        scan.feed(b"data: " + json.dumps(one).encode() + b"\n\n")
        found.append({name: getattr(scan, name) for name in FACTS})
    return found


@pytest.mark.parametrize("kind", STREAMS)
def test_of_a_large_event_is_read_what_is_read_of_a_small_one(kind: str) -> None:
    path, events = STREAMS[kind]

    assert read(path, [{**one, **PADDING} for one in events]) == read(path, events)


@pytest.mark.parametrize("more", [b"", b"NaN,", b'"\\ud800",', b"1e999,"])
@pytest.mark.parametrize("takes_ids", [True, False])
def test_no_objects_are_made_of_a_large_event(
    more: bytes, takes_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a megabyte of empty lists took 0.15 s, in which no other stream moved."""
    made = list[int]()
    for room in (answer_events, outline):
        monkeypatch.setattr(room, "json_object", lambda data: made.append(len(data)))
    scan = AnswerScan(CHAT, SSE, takes_ids=takes_ids)
    scan.feed(b'data: {"a":[' + more + b"[]," * answer_events.WHOLE + b'[]],"usage": {}}\n\n')
    scan.feed(b'data: {"a":[' + more + b"[]," * answer_events.WHOLE + b"[]]}")
    scan.end()

    assert not scan.is_malformed
    assert scan.rest is not None
    assert made == []


@pytest.mark.parametrize("end", [b"]", b"]}}", b",}", b""])
def test_a_large_event_that_is_no_object_is_garbage(end: bytes) -> None:
    scan = AnswerScan(CHAT, SSE, takes_ids=True)

    assert scan.feed(b'data: {"a":[' + b"[]," * answer_events.WHOLE + b"[]" + end + b"\n\n") == b""
    assert scan.is_malformed


def test_what_is_large_in_a_large_event_is_not_empty() -> None:
    many: list[Any] = [[]] * answer_events.WHOLE
    found = event_of(json.dumps({"delta": many, "item": {}, "choices": [{"delta": {"a": many}}]}).encode())

    assert found is not None
    assert (found["delta"], found["item"]) == (LARGE, {})
    assert found["choices"] == [{"delta": LARGE}]


def test_a_long_text_in_a_large_event_is_whole() -> None:
    text = "\u00e9" * answer_events.WHOLE
    found = event_of(json.dumps({"choices": [{"text": text}]}).encode(), is_exact=True)

    assert found is not None
    assert found["choices"] == [{"text": text}]


def test_the_choices_of_an_answer_with_very_many_objects_are_not_read() -> None:
    texts = [b'{"id":"a","choices":[' + b"{}," * (OBJECTS_LIMIT + more) + b"{}]}" for more in (-2, 0)]

    assert [usual_answer(one) is None for one in texts] == [False, True]
    assert event_of(texts[1].replace(b"{}", b"{   }")) == {
        "id": "a",
        "choices": LARGE,
        **dict.fromkeys(("stop_reason", "finish_reason", "usage", "incomplete_details", "type", "error")),
        **dict.fromkeys(("delta", "response", "message")),
        **dict.fromkeys(("created", "model", "content_block", "item", "part")),
    }


def test_an_answer_with_very_many_values_is_not_compared_with_another() -> None:
    texts = [b'{"choices":[{"text":"a"}],"x":[' + b"1," * (VALUES_LIMIT + more) + b"1]}" for more in (-9, 0)]

    assert [said(one, is_stream=False) for one in texts] == [({"text": "a"},), None]


@pytest.mark.parametrize("more", [{}, {"type": "x", "response": {"id": "r"}}])
def test_the_choices_and_the_delta_of_a_large_event_are_read_once(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[bytes]()

    def noted(reads: Callable[[msgspec.Raw], object]) -> Callable[[msgspec.Raw], object]:
        def reading(raw: msgspec.Raw) -> object:
            read.append(bytes(raw))
            return reads(raw)

        return reading

    for name in ("_choices", "_choices_of_event", "_value", "_part"):
        monkeypatch.setattr(outline, name, noted(getattr(outline, name)))
    event = {**delta("a"), "delta": "b", **more, **PADDING}
    found = event_of(json.dumps(event).encode())

    assert found is not None
    assert found["delta"] == "b"
    assert [read.count(json.dumps(event[name]).encode()) for name in ("choices", "delta")] == [1, 1]
