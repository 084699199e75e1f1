"""What an event, or a whole answer, says to the user, taken by its place: texts and calls of tools. Pure.

For the few events that hold more than text: thinking, quotations of sources, results of the endpoint's own
tools, and calls of the client's. Of the forms of chats, text completions, messages and responses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.chat_events import index_of, text_of
from serving.router.answers.call_numbers import index_of_call

# An event, or an answer, without any of these has no text but the answer's, and no call. Not empty lists and
# nulls, which many servers write into each event.
_KINDS = (
    rb'"type"\s*:\s*"(?:thinking|tool_use|input_json_delta|function_call'
    rb'|[a-z_]{1,40}_tool_result|[a-z_]{1,40}_call)"'
)
_CALLS = rb'"(?:tool_calls|function_call)"\s*:\s*(?:\[\s*)?\{'
_BESIDE = rb'"(?:reasoning_details|thinking|annotations|citations)"\s*:\s*[\[{]\s*[\[{"]'
_ODD = re.compile(rb"|".join((_KINDS, _CALLS, _BESIDE)))
# One of these is in each; looking for them is several times as fast as the pattern.
_WORDS = (b"thinking", b'_details"', b'tations"', b"tool_", b'_call"', b'_json_delta"')
_CALLED = re.compile(rb'"type"\s*:\s*"(?:tool_use|input_json_delta|function_call)"|' + _CALLS)


@dataclass(slots=True)
class CallPart:
    """A part of a call. name: '' in later parts. arguments: a part of their JSON text."""

    index: int
    name: str
    arguments: str
    call_id: str = ""  # of chats; '': it is not told
    is_rest: bool = False  # of a call that has begun, or of no call of the client's tools


@dataclass(slots=True)
class Places:
    """texts: the answer's, in order. calls: None: some, which are not known."""

    texts: list[str] = field(default_factory=list)
    calls: list[CallPart] | None = field(default_factory=list)

    def add_call(
        self, index: object, name: object, arguments: object, *, call_id: object = None, is_rest: bool = False
    ) -> None:
        """Take a part of a call. arguments: their JSON text, or the object itself."""
        place = index_of(index)
        if place is None or self.calls is None:
            self.calls = None
            return
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments) if arguments else ""
        text = arguments if isinstance(arguments, str) else ""
        names = (one if isinstance(one, str) else "" for one in (name, call_id))
        self.calls.append(CallPart(place, next(names), text, next(names), is_rest))


def is_odd(data: bytes) -> bool:
    """Whether these bytes, events or an answer, may hold more than the answer's text."""
    return any(word in data for word in _WORDS) and _ODD.search(data) is not None


def may_call(data: bytes) -> bool:
    """Whether there may be a call of a tool in these bytes."""
    return _CALLED.search(data) is not None


def places_of(data: Mapping[str, Any]) -> Places:
    """Of one event's data, or of a whole answer."""
    found = Places()
    choices = data.get("choices")
    if isinstance(choices, list):
        _choices(found, choices)
    elif isinstance(data.get("output"), list):
        _items(found, data["output"])
    elif isinstance(data.get("content"), list):
        _blocks(found, data["content"])
    else:
        _event(found, data)
    return found


def _choices(found: Places, choices: list[Any]) -> None:
    """Of chats and text completions. The calls of one choice alone are known."""
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        if isinstance(choice.get("text"), str):
            found.texts.append(choice["text"])
        message = choice.get("delta") or choice.get("message")
        if not isinstance(message, dict):
            continue
        found.texts.append(text_of(message.get("content")))
        if isinstance(message.get("refusal"), str):
            found.texts.append(message["refusal"])
        called = [*_listed(message.get("tool_calls"))]
        if isinstance(message.get("function_call"), dict):
            called.append({"index": 0, "function": message["function_call"]})
        if called and len(choices) != 1:
            found.calls = None
        for place, call in enumerate(called):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                found.calls = None
                return
            index = index_of_call(call, place, is_whole=message is choice.get("message"))
            parts = function.get("name"), function.get("arguments")
            found.add_call(index, *parts, call_id=call.get("id"))


def _items(found: Places, items: list[Any]) -> None:
    """Of a response. Calls that the endpoint makes itself (`web_search_call`) are none of the client's."""
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        if item.get("type") == "function_call":
            found.add_call(place, item.get("name"), item.get("arguments"))
        elif isinstance(item.get("content"), list) and item.get("type") in (None, "message"):
            found.texts.append(text_of(item["content"]))
            refusals = (one.get("refusal") for one in item["content"] if isinstance(one, dict))
            found.texts += [one for one in refusals if isinstance(one, str)]


def _blocks(found: Places, blocks: list[Any]) -> None:
    """Of a message."""
    found.texts.append(text_of(blocks))
    for place, block in enumerate(blocks):
        if isinstance(block, dict) and block.get("type") == "tool_use":
            found.add_call(place, block.get("name"), block.get("input"))


def _event(found: Places, event: Mapping[str, Any]) -> None:
    """Of a stream of messages, or of a response: its texts are known by the events' names."""
    block, delta, item = event.get("content_block"), event.get("delta"), event.get("item")
    if isinstance(block, dict):
        found.texts.append(text_of([block]))
        if block.get("type") == "tool_use":
            found.add_call(event.get("index"), block.get("name"), block.get("input"))
    elif isinstance(delta, dict):
        if delta.get("type") == "text_delta" and isinstance(delta.get("text"), str):
            found.texts.append(delta["text"])
        if delta.get("type") == "input_json_delta":
            found.add_call(event.get("index"), "", delta.get("partial_json"), is_rest=True)
    elif isinstance(item, dict) and event.get("type") == "response.output_item.done":  # whole, at last
        called = [item] if item.get("type") == "function_call" else []
        for one in called:
            found.add_call(event.get("output_index"), one.get("name"), one.get("arguments"))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
