"""Requests of the fault matrix, and the bytes of their answers: both follow from a number. Pure.

Request `number` asks prompt `number % PROMPTS`, of a kind that the number chooses. What an engine answers
follows from the prompt alone, so that a client knows every byte of it, and a stable engine the rest of what a
canary began. Only the ids of answers name the engine.

Kinds whose name begins with `held` cannot be continued from token ids (`router/bodies/continuable.py`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tests.fakes.token_engine import CONTEXT, EOS, TokenEngine

MODEL = "chat"
PROMPTS = 500
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    *("/v1/chat/completions", "/v1/completions"),
    *("/v1/responses", "/v1/messages"),
)
PROMPT_ID = 300  # token of a byte of a prompt: this and the byte's value; those of answers are below
LIMIT = 4000  # tokens
_WORDS = (
    *("the", "answer", "is", "Zürich", "日本語", "🇫🇷", "naïve", '"quoted"', "back\\slash", "line\n", "\ttab"),
    *("data: {", "[DONE]", "error", ": ids 1,2", "finish_reason", "emoji 👩‍👩‍👧", "\u2028", "ok", "12", "."),
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request. `fields`: of its body, beside the prompt, the model and the user."""

    name: str
    path: str
    fields: Mapping[str, Any]

    @property
    def is_stream(self) -> bool:
        """True when the answer is a stream."""
        return bool(self.fields.get("stream"))

    @property
    def is_continued(self) -> bool:
        """True when stable can continue a stream that was cut."""
        return self.is_stream and not self.name.startswith("held")


_STREAM = {"stream": True, "temperature": 0}
_USAGE = {"stream_options": {"include_usage": True}}
_ALWAYS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
KINDS = (
    Kind("chat stream", CHAT, _STREAM | _USAGE),
    Kind("chat stream, usage always", CHAT, _STREAM | _ALWAYS),
    Kind("chat stream, limit", CHAT, {**_STREAM, "max_tokens": 24}),
    Kind("completion stream", COMPLETIONS, {**_STREAM, **_USAGE, "max_tokens": LIMIT}),
    Kind("chat whole", CHAT, {"temperature": 0}),
    Kind("completion whole", COMPLETIONS, {"max_tokens": LIMIT}),
    Kind("held: stop strings", CHAT, {**_STREAM, **_USAGE, "stop": ["\u0000"]}),
    Kind("held: tools", CHAT, {**_STREAM, "tools": [_TOOL]}),
    Kind("held: two choices", CHAT, {**_STREAM, "n": 2}),
    Kind("held: responses", RESPONSES, {"stream": True}),
    Kind("held: messages", MESSAGES, {"stream": True, "max_tokens": LIMIT}),
)


def kind_of(number: int) -> Kind:
    """The kind of a request; half of all are streams that can be continued."""
    place = random.Random(number).randrange(2 * 4 + len(KINDS) - 4)
    return KINDS[place // 2] if place < 8 else KINDS[place - 4]


def prompt_of(number: int) -> str:
    """The prompt of a request."""
    return f"question {number % PROMPTS}: où est 日本?"


def body_of(number: int) -> bytes:
    """The body of a request; every request has a user of its own, so that each is assigned alone."""
    kind, prompt = kind_of(number), prompt_of(number)
    asked: dict[str, Any] = {"model": MODEL, **kind.fields}
    match kind.path:
        case "/v1/completions":
            asked["prompt"] = prompt
        case "/v1/responses":
            asked["input"] = prompt
        case _:
            asked["messages"] = [{"role": "user", "content": prompt}]
    return json.dumps({**asked, "user": f"u{number}"}).encode()


def prompt_in(body: Mapping[str, Any]) -> str | None:
    """The prompt of a request, or the one that a continuation's ids begin with; None: it has none."""
    if isinstance(body.get("messages"), list):
        content = body["messages"][0].get("content")
        return content if isinstance(content, str) else None
    asked = body.get("prompt", body.get("input"))
    if isinstance(asked, list):
        ids = [one - PROMPT_ID for one in asked if one >= PROMPT_ID]
        return bytes(ids).decode("utf-8", "replace")
    return asked if isinstance(asked, str) else None


@lru_cache(maxsize=4 * PROMPTS)
def engine_of(arm: str, prompt: str) -> TokenEngine:
    """What an engine of this arm knows of this prompt: the text is the same on both."""
    random_ = random.Random(prompt)
    text = " ".join(random_.choice(_WORDS) for _ in range(random_.randint(2, 14)))
    sizes = tuple(random_.randint(1, 7) for _ in range(5))
    name = (
        f"{arm}-{random_.randrange(10**9):09d}"  # equal in length on both arms would hide a mixed `created`
    )
    return TokenEngine(text, sizes, name, prompt=tuple(PROMPT_ID + one for one in prompt.encode()))


def answer_of(arm: str, path: str, body: Mapping[str, Any]) -> list[bytes]:
    """The answer of an engine of this arm: the events of a stream, or one JSON text."""
    prompt = prompt_in(body)
    if prompt is None:
        raise ValueError("the request has no prompt")
    shape = json.dumps({name: value for name, value in body.items() if name != "user"}, sort_keys=True)
    return list(_answer_of(arm, path, prompt, shape))


@lru_cache(maxsize=1 << 16)
def _answer_of(arm: str, path: str, prompt: str, shape: str) -> tuple[bytes, ...]:
    body, engine = json.loads(shape), engine_of(arm, prompt)
    make: Callable[[TokenEngine, dict[str, Any]], list[bytes]]
    if path == RESPONSES:
        make = _responses
    elif path == MESSAGES:
        make = _messages
    elif not body.get("stream"):
        return (_whole(engine, path, body),)
    elif body.get("tools"):
        make = _tools
    elif body.get("n", 1) > 1:
        make = _choices
    else:
        return tuple(engine.events(path, body))
    return tuple(make(engine, body))


def plain(events: list[bytes]) -> bytes:
    """An answer as a client gets it: without the comments that name tokens."""
    lines = b"".join(events).split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(b": ids "))


def _event(data: Mapping[str, Any], name: str = "") -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + text + b"\n\n"


def _pieces(engine: TokenEngine) -> list[str]:
    return [engine.text[start : start + 5] for start in range(0, len(engine.text), 5)]


def _usage(engine: TokenEngine) -> dict[str, int]:
    prompt, answer = len(engine.prompt), len(engine.answer)
    return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}


def _whole(engine: TokenEngine, path: str, body: dict[str, Any]) -> bytes:
    is_chat = path == CHAT
    limit = body.get("max_tokens") or CONTEXT
    ids = engine.answer[:limit]
    finish = "stop" if ids[-1] == EOS else "length"
    text = bytes(one for one in ids if one < EOS).decode("utf-8", "ignore")
    shown: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    return json.dumps(
        {
            "id": f"id-{engine.name}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, **shown, "finish_reason": finish}],
            "usage": _usage(engine),
        }
    ).encode()


def _chunk(engine: TokenEngine, index: int, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    event = {"id": f"id-{engine.name}", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return _event({**event, "choices": [choice]})


def _tools(engine: TokenEngine, body: dict[str, Any]) -> list[bytes]:
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
    written = json.dumps({"q": engine.text})
    parts = [written[start : start + 9] for start in range(0, len(written), 9)]
    calls = [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts]
    return [
        _chunk(engine, 0, {"role": "assistant", "content": None, "tool_calls": [call]}),
        *(_chunk(engine, 0, one) for one in calls),
        _chunk(engine, 0, {}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]


def _choices(engine: TokenEngine, body: dict[str, Any]) -> list[bytes]:
    events = [_chunk(engine, index, {"role": "assistant", "content": ""}) for index in (0, 1)]
    for piece in _pieces(engine):
        events += [_chunk(engine, index, {"content": piece}) for index in (0, 1)]
    events += [_chunk(engine, index, {}, "stop") for index in (0, 1)]
    return [*events, b"data: [DONE]\n\n"]


def _responses(engine: TokenEngine, body: dict[str, Any]) -> list[bytes]:
    made = {"id": f"resp-{engine.name}", "object": "response", "model": MODEL}
    events: list[tuple[str, dict[str, Any]]] = [("response.created", {"response": made})]
    events += [("response.output_text.delta", {"delta": piece}) for piece in _pieces(engine)]
    usage = _usage(engine)
    counts = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    last = {**made, "status": "completed", "usage": counts}
    events.append(("response.completed", {"response": last}))
    numbered = enumerate(events)
    return [_event({"type": name, "sequence_number": n, **more}, name) for n, (name, more) in numbered]


def _messages(engine: TokenEngine, body: dict[str, Any]) -> list[bytes]:
    usage = _usage(engine)
    made: dict[str, Any] = {"id": f"msg-{engine.name}", "type": "message", "role": "assistant", "content": []}
    made |= {"model": MODEL, "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": 0}}
    block = {"type": "text", "text": ""}
    deltas = [{"index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in _pieces(engine)]
    end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": usage["completion_tokens"]}}
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": made}),
        ("content_block_start", {"index": 0, "content_block": block}),
        *(("content_block_delta", one) for one in deltas),
        ("content_block_stop", {"index": 0}),
        ("message_delta", end),
        ("message_stop", {}),
    ]
    return [_event({"type": name, **more}, name) for name, more in events]
