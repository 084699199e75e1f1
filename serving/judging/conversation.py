"""The conversation of a request as one text, for a judge: of any of the APIs with text. Pure.

What is no text has its kind in brackets, `[image_url]`: a judge sees no images. A single turn of a user
stands alone; of several turns each begins with its role. Calls of tools and what came of them are texts too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from serving.json_value import json_value

BODY_LIMIT = 256 << 10  # bytes of a request that is read
VALUES_LIMIT = 20_000  # commas, brackets and braces: objects are made of all
CALLS_LIMIT = 64  # of an answer
KIND_LENGTH = 32  # characters


def conversation(body: bytes) -> str | None:
    """What was said before the answer; None: nothing that can be read.

    Check: b'{"messages":[{"role":"user","content":"Hi"}]}' gives 'Hi'.
    """
    if len(body) > BODY_LIMIT or len(body) - len(body.translate(None, b",[{")) > VALUES_LIMIT:
        return None
    values = json_value(body)
    if not isinstance(values, dict):
        return None
    try:
        turns = [turn for turn in _turns(values) if turn[1]]
    except RecursionError:
        return None
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in turns) or None


def called(name: str, arguments: str) -> str:
    """A call of a tool, as text."""
    return f"[calls {name}({arguments})]"


def _turns(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, text) of each."""
    for name in ("system", "instructions"):
        if body.get(name):
            yield "system", _text(body[name])
    listed = body.get("messages")
    if listed is None:
        listed = body.get("prompt") if body.get("prompt") is not None else body.get("input")
    if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
        listed = listed[0]  # a prompt; of several each has an answer of its own
    if isinstance(listed, str):
        yield "user", listed
        return
    for turn in listed if isinstance(listed, list) else ():
        if isinstance(turn, dict):
            role = turn.get("role") or ("tool" if "output" in turn else "assistant")
            yield str(role)[:KIND_LENGTH], _turn(turn)


def _turn(turn: Mapping[str, Any]) -> str:
    """The text of a turn, or of an item of a response, with its calls."""
    parts = [_text(turn["content"])] if turn.get("content") else []
    if turn.get("output"):
        parts.append(_text(turn["output"]))
    calls = turn.get("tool_calls")
    parts += (
        [_call(one.get("function")) for one in calls if isinstance(one, dict)]
        if isinstance(calls, list)
        else []
    )
    parts += [_call(turn)] if turn.get("type") == "function_call" else []
    return "\n".join(part for part in parts if part)


def _text(content: Any) -> str:
    """A text, or parts: texts, calls of tools and their results, and what is none."""
    if isinstance(content, str):
        return content
    return "\n".join(_part(one) for one in content) if isinstance(content, list) else ""


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return part if isinstance(part, str) else ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type") or "part")
    if kind == "tool_use":
        return _call(part)
    if kind == "tool_result":
        return _text(part.get("content"))
    return f"[{kind[:KIND_LENGTH]}]"


def _call(function: Any) -> str:
    if not isinstance(function, dict):
        return ""
    arguments = function.get("arguments", function.get("input", ""))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return called(str(function.get("name") or ""), text)
