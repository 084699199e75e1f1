"""What an answer says, choice by choice, however it was sent: whole or as a stream. Pure.

Two answers of different engines are compared by this, and a judge reads it: without ids, times, usage, and
the places where a stream was cut into events.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any, TypeAlias, cast

from serving.chat_events import data_of, events_in, index_of, text_of
from serving.router.answers.answer_events import json_object
from serving.router.answers.call_numbers import CallNumbers, index_of_call

Said: TypeAlias = dict[str, Any]  # 'text', 'reasoning', 'refusal', 'tool_calls' of one choice; absent: none

MAX_CHOICES = 256  # of one answer
VALUES_LIMIT = 64 << 10  # commas, brackets and braces of an answer that is read: objects are made of all
_TEXTS = {
    "content": "text",
    "text": "text",
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "refusal": "refusal",
}


def said(body: bytes, *, is_stream: bool) -> tuple[Said, ...] | None:
    """The choices of a whole answer, by their index; None: it has none that can be read, or too many values.

    Check: b'{"choices":[{"text":"Hi"}]}' gives ({'text': 'Hi'},).
    """
    steps = reading(body, is_stream=is_stream)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(tuple[Said, ...] | None, end.value)


def reading(body: bytes, *, is_stream: bool) -> Generator[None, None, tuple[Said, ...] | None]:
    """`said` in small steps, one an event: 256 KiB of events take up to 0.1 s."""
    if len(body) - len(body.translate(None, b",[{")) > VALUES_LIMIT:
        return None
    choices: dict[int, Said] = {}
    for one in _events(body) if is_stream else (json_object(body),):
        listed = one.get("choices") if one is not None else None
        for choice in listed if isinstance(listed, list) else ():
            if isinstance(choice, dict):
                _read_choice(choices, choice)
        yield
    if not choices:
        return None
    return tuple(_joined(choices[index]) for index in sorted(choices))


def _events(body: bytes) -> Iterator[dict[str, Any] | None]:
    """What each event holds; None: nothing that can be read."""
    for event in events_in(body):
        data = data_of(event.split(b"\n"))
        yield json_object(data) if data and data != b"[DONE]" else None


def _read_choice(choices: dict[int, Said], choice: Mapping[str, Any]) -> None:
    index = index_of(choice.get("index"))
    if index is None or (index not in choices and len(choices) >= MAX_CHOICES):
        return
    parts = choices.setdefault(index, {})
    message = choice.get("message") or choice.get("delta")
    for fields in (choice, message):
        if not isinstance(fields, dict):
            continue
        seen = set()
        for name, kind in _TEXTS.items():
            value = text_of(fields.get(name))  # of a `content` in parts: what they say
            if value and kind not in seen:  # some servers write both names
                seen.add(kind)
                parts.setdefault(kind, []).append(value)
        calls = fields.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                _read_call(parts, call, index_of_call(call, place, is_whole=fields is choice.get("message")))


def _read_call(parts: Said, call: Mapping[str, Any], index: int | None) -> None:
    function = call.get("function")
    if index is None or not isinstance(function, dict):
        return
    known, numbers = parts.setdefault("tool_calls", ({}, CallNumbers()))
    if len(known) >= MAX_CHOICES and index not in numbers:
        return
    number = numbers.number(index, call.get("id"), function.get("name"))
    if len(known) >= MAX_CHOICES and number not in known:
        return
    one = known.setdefault(number, {"name": [], "arguments": []})
    for name in one:
        if isinstance(function.get(name), str):
            one[name].append(function[name])


def _joined(parts: Said) -> Said:
    whole: Said = {kind: "".join(texts) for kind, texts in parts.items() if kind != "tool_calls"}
    if "tool_calls" in parts:
        calls, _ = parts["tool_calls"]
        whole["tool_calls"] = [
            {name: "".join(texts) for name, texts in calls[number].items()} for number in sorted(calls)
        ]
    return whole
