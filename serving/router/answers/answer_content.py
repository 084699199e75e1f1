"""Whether an answer, or an event of one, says anything: text, a call of a tool, an image. Pure.

Anything but labels is said: an answer with a kind of content that is not known yet is not empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from serving.router.answers.answer_events import json_object

# Of most answers this finds it; what it does not find is read.
CONTENT = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|refusal|arguments|partial_json|thinking|data'
    rb'|transcript)"\s*:\s*"[^"]'
    rb'|"(?:tool_calls|function_call)"\s*:\s*[\[{]\s*["{]'
)
_USUAL = b'"content":'  # of a chat; most often its text follows, after a blank or none
# Texts that each answer has, whatever it says.
LABELS = frozenset(
    {"id", "type", "role", "status", "object", "finish_reason", "stop_reason", "stop_sequence", "logprobs"}
)
NOT_MADE = ("queued", "in_progress")  # of a response that will be made later
READ_LIMIT = 64 << 10  # bytes
_ANSWER_PARTS = ("choices", "content", "output", "message")
_TOKENS = re.compile(rb'"token_ids"\s*:\s*\[\s*[0-9]')
_EVENT_PARTS = ("choices", "delta", "content_block", "item", "part")
_CHOICE_PARTS = ("message", "delta", "text")


def holds_content(text: bytes) -> bool:
    """`CONTENT` is found in it; of most answers that is known without the search."""
    at = text.find(_USUAL) + len(_USUAL)
    value = text[at : at + 3].lstrip(b" ")
    if at >= len(_USUAL) and value[:1] == b'"' and value[1:2] not in (b'"', b""):
        return True
    return CONTENT.search(text) is not None


def answer_says_something(text: bytes) -> bool:
    """Whether a whole JSON answer holds content, or will be made later (status `queued`). One that is large
    does: making objects of all its values would hold up other requests."""
    if len(text) > READ_LIMIT:
        return True
    answer = json_object(text) or {}
    if answer.get("status") in NOT_MADE:
        return True
    if not isinstance(answer.get("message"), dict):  # a text there tells of an error
        answer["message"] = None
    return any(_holds(_said(answer, part)) for part in _ANSWER_PARTS)


def holds_tokens(text: bytes) -> bool:
    """Whether ids of generated tokens are found in it: the content of an answer without text."""
    return _TOKENS.search(text) is not None


def event_says_something(event: Mapping[str, Any]) -> bool:
    """Whether an event of a stream holds content."""
    return any(_holds(_said(event, part)) for part in _EVENT_PARTS)


def choice_says_something(choice: Mapping[str, Any]) -> bool:
    """Whether one choice of an event, or of a whole answer, holds content."""
    return any(_holds(choice.get(name)) for name in _CHOICE_PARTS)


def _said(data: Mapping[str, Any], part: str) -> Any:
    value = data.get(part)
    if part != "choices" or not isinstance(value, list):
        return value
    return [choice.get(name) for choice in value if isinstance(choice, dict) for name in _CHOICE_PARTS]


def _holds(value: Any) -> bool:
    """Whether there is a text in it that is no label. Not recursive: a client chooses the depth."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest += [inner for name, inner in one.items() if name not in LABELS]
        elif isinstance(one, list):
            rest += one
        elif isinstance(one, str) and one:
            return True
    return False
