"""What a chat completion says, whole or streamed, and what a refusal of one says. Pure.

An answer is read as far as a router passes it on to users (`serving/chat_events.py`): heartbeats, usage
without choices, a mark of byte order and content in parts are no faults of it.

Invariant: no text of an answer is in a `repr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.chat_events import data_of, events_in, index_of, name_of, reason_of, says_nothing, text_of
from serving.json_value import json_value

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
MAX_TOKENS = 10**9  # of one answer; a larger count is none
NO_WORD = "no word"  # in place of a finish reason that is a text: the endpoint's own, which may hold anything
# As OpenAI, Azure, Anthropic's and Alibaba's APIs and the gateways before them name it.
_FILTERED = re.compile(
    rb"content_?filter|content_?policy|content_management_policy|ResponsibleAIPolicyViolation"
    rb"|data_inspection_failed|guardrail_intervened",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function: its name and its arguments as the model wrote them."""

    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a chat completion."""

    text: str = field(repr=False)
    finish: str | None  # finish reason, or NO_WORD; None: there is none
    calls: tuple[ToolCall, ...] = ()
    is_reasoning: bool = False  # it holds reasoning beside its text
    tokens: int = 0  # of prompt and answer, as the endpoint counts them; 0: it does not


def is_filtered(refusal: bytes) -> bool:
    """Whether an endpoint's body of a 4xx says that a filter of contents refused the request."""
    return _FILTERED.search(refusal) is not None


def whole_answer(value: Any) -> Answer | None:
    """The first choice of a whole answer; None: it has another form."""
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    calls = message.get("tool_calls")
    read = [_call(one) for one in calls] if isinstance(calls, list) else []
    return Answer(
        text_of(message.get("content")),
        _finish(choice),
        tuple(one for one in read if one is not None),
        _reasons(message),
        _tokens(value),
    )


def streamed_answer(data: bytes) -> Answer | None:
    """The first choice of a stream of events; None: it is none, or it did not end.

    Calls of tools are not put together: nothing here asks for them in a stream.
    """
    texts: list[str] = []
    finish, tokens, is_reasoning, has_ended, has_choice = None, 0, False, False, False
    for event in events_in(data):
        lines = event.split(b"\n")
        content = data_of(lines)
        if says_nothing(name_of(lines), content):
            continue
        if content == b"[DONE]":
            has_ended = True
            break
        value = json_value(content)
        if not isinstance(value, dict) or _is_error(value):
            return None
        tokens = max(tokens, _tokens(value))
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or index_of(choice.get("index")) != 0:
                continue
            has_choice = True
            delta = choice.get("delta") or choice.get("message")
            if isinstance(delta, dict):
                texts.append(text_of(delta.get("content")))
                is_reasoning = is_reasoning or _reasons(delta)
            finish = _finish(choice) or finish
    if not has_choice or (not has_ended and finish is None):
        return None
    return Answer("".join(texts), finish, (), is_reasoning, tokens)


def _is_error(event: Mapping[str, Any]) -> bool:
    return bool(event.get("error")) or "error" in (event.get("object"), event.get("type"))


def _call(value: Any) -> ToolCall | None:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments")
    return ToolCall(function["name"], arguments if isinstance(arguments, str) else "")


def _finish(choice: Mapping[str, Any]) -> str | None:
    reason = reason_of(choice.get("finish_reason"))
    if not isinstance(reason, str):
        return None
    return reason if _WORD.fullmatch(reason) else NO_WORD


def _reasons(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in ("reasoning_content", "reasoning"))


def _tokens(value: Mapping[str, Any]) -> int:
    usage = value.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and 0 < total <= MAX_TOKENS else 0
