"""Continuation of a stream by another engine: its requests, and its events in the shape of the first. Pure.

The other engine is asked for the ids of the prompt (`/tokenize`), then to complete the prompt and the ids of
what the client has (`/v1/completions`). Its events become events of the stream that the client reads: one id,
one model name, one role, one finish, one usage, one [DONE]; no text is lost or repeated.

Rules:
1. The ids that the client has are those of whole events, and each has its whole text (an engine names no
   other, `fleet/token_notes.py`).
2. The length limit is what is left of the first answer's, and what fits into the other engine's context.
3. A seed is moved by the number of tokens that are there. With the same seed the random numbers of the first
   tokens would be drawn again, which favours those tokens.
4. Usage adds up: the prompt's tokens once, and the tokens of both parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from serving.json_value import decoded
from serving.router.answers.outline import event_of
from serving.router.bodies.continuable import LIMITS, SENT, TEMPLATE, count_ids, fields_of, one_text
from serving.router.bodies.raw_values import NOTHING

DEFAULT_COMPLETION = 16  # tokens of a completion without max_tokens, in OpenAI's API
_SEED_LIMIT = 1 << 62
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
Fields: TypeAlias = Mapping[str, msgspec.Raw]  # of a request's body
CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is the same in every event of a stream. created: None: the events have none."""

    is_chat: bool
    id: str
    model: str
    created: int | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt's ids, and how many tokens the engine's context holds; None: not known.

    The ids stay as they are written: a million of them would take 0.15 s to become objects and text again.
    """

    ids: bytes  # a list in JSON, of integers
    count: int
    context: int | None = None


class _Tokenized(msgspec.Struct, gc=False):
    tokens: msgspec.Raw = NOTHING
    max_model_len: msgspec.Raw = NOTHING


_TOKENIZED = msgspec.json.Decoder(_Tokenized)


def tokenize_body(fields: Fields) -> bytes | Prompt:
    """The body of `/tokenize` for this request's prompt; the prompt itself where the request has its ids.

    Raises ValueError for a request that cannot be continued, which is none that `continuable.py` lets pass.
    """
    if "messages" in fields:
        return msgspec.json.encode({name: fields[name] for name in TEMPLATE if name in fields})
    prompt = fields.get("prompt", NOTHING)
    if count := count_ids(prompt):
        return Prompt(bytes(prompt), count)
    text = one_text(prompt)
    if text is None:
        raise ValueError("the prompt is no text")
    kept = {name: fields[name] for name in ("model", "add_special_tokens") if name in fields}
    return msgspec.json.encode({**kept, "prompt": text})


def read_prompt(answer: bytes) -> Prompt | None:
    """The prompt in an answer of `/tokenize`; None: it has none."""
    try:
        found = _TOKENIZED.decode(answer)
    except (ValueError, RecursionError):
        return None
    count = count_ids(found.tokens)
    return Prompt(bytes(found.tokens), count, _integer(found.max_model_len)) if count is not None else None


def _integer(raw: msgspec.Raw) -> int | None:
    """The value of an integer; None: it is anything else, of whatever size."""
    is_short = len(memoryview(raw)) < 20
    return int(bytes(raw)) if is_short and _INTEGER.fullmatch(bytes(raw)) else None


def tokens_left(fields: Fields, prompt: Prompt, sent: int, limit: int | None) -> int | None:
    """How many tokens the answer may still have; None: no limit is known.

    sent: how many the client has. limit: of the whole answer, as its engine named it; None: it did not.
    """
    limits = [limit] if limit is not None else [_requested_limit(fields)]
    left = [one - sent for one in limits if one is not None]
    if prompt.context is not None:
        left.append(prompt.context - prompt.count - sent)
    return min(left) if left else None


def _requested_limit(fields: Fields) -> int | None:
    for name in LIMITS:
        if (value := _integer(fields.get(name, NOTHING))) is not None:
            return value
    return None if "messages" in fields or "max_tokens" in fields else DEFAULT_COMPLETION


def continuation_body(fields: Fields, prompt: Prompt, sent: Sequence[int], left: int | None) -> bytes:
    """The body of `/v1/completions` that continues a request after the ids in `sent`."""
    request: dict[str, Any] = {name: fields[name] for name in SENT if name in fields}
    if "seed" in fields:
        seed = _integer(fields["seed"])
        request["seed"] = fields["seed"] if seed is None else (seed + len(sent)) % _SEED_LIMIT
    usage = {"include_usage": True, "continuous_usage_stats": usage_of(fields) == "always"}
    ids = [prompt.ids[1:-1].strip(), *(b"%d" % one for one in sent)]
    request["prompt"] = msgspec.Raw(b"[" + b",".join(filter(None, ids)) + b"]")
    request |= {"max_tokens": left, "stream": True, "stream_options": usage}
    return msgspec.json.encode(request)


Usage = Literal["no", "once", "always"]


def wanted_usage(body: bytes) -> Usage:
    """Whether the client asked for the usage: in an event of its own, or in every event too.

    No, of what cannot be read: a compressed body, or a number that no float holds.
    """
    try:
        return usage_of(fields_of(body))
    except (ValueError, RecursionError):
        return "no"


def usage_of(fields: Fields) -> Usage:
    """The same of the fields of a body."""
    try:
        raw = fields.get("stream_options")
        options = decoded(raw) if raw is not None else None
    except (ValueError, RecursionError):
        return "no"
    if not isinstance(options, dict) or options.get("include_usage") is not True:
        return "no"
    return "always" if options.get("continuous_usage_stats") is True else "once"


@dataclass(slots=True)
class Rewriter:
    """Makes events of the first stream of those of a continuation. `feed` it whole events, then call `end`.

    sent: tokens that the client has, before this continuation. prompt_tokens: of the request itself.
    has_finish, has_usage: the client has these already.
    """

    shape: Shape
    usage: Usage
    prompt_tokens: int
    sent: int
    has_finish: bool = False
    has_usage: bool = False
    has_error: bool = False
    finish_reason: str | None = None
    completion_tokens: int | None = field(default=None)  # of the whole answer, when its end is known

    def feed(self, block: bytes) -> bytes:
        """The events for the client; after an error in the continuation none."""
        events = []
        for event in block.replace(b"\r\n", b"\n").split(b"\n\n"):
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines and not self.has_error:
                events.append(self._event(b"\n".join(lines)))
        return b"".join(events)

    def end(self, tokens: int) -> bytes:
        """The end of the stream, with what is still missing. tokens: of the answer, if no event said it."""
        events = []
        if not self.has_finish:
            events.append(self.finish("length"))
        if self.completion_tokens is None:
            self.completion_tokens = tokens
        if self.usage != "no" and not self.has_usage:
            self.has_usage = True
            events.append(self._written([], {"usage": self._usage(self.completion_tokens)}))
        return b"".join([*events, DONE])

    def finish(self, reason: str) -> bytes:
        """An event that only finishes the answer."""
        self.has_finish, self.finish_reason = True, reason
        return self._written([self._choice("", {"finish_reason": reason})], {})

    def _event(self, data: bytes) -> bytes:
        if data == b"[DONE]":
            return b""
        event = event_of(data, is_exact=True)
        if event is None or event.get("error"):
            self.has_error = True
            return b""
        usage = event.get("usage")
        others = {}
        if isinstance(usage, dict):
            self.completion_tokens = self.sent + _count(usage.get("completion_tokens"))
            if self.usage == "always":
                others["usage"] = self._usage(self.completion_tokens)
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return b""  # the usage, which comes at the end
        choice = choices[0]
        text, reason = choice.get("text"), choice.get("finish_reason")
        if reason and not self.has_finish:
            self.has_finish, self.finish_reason = True, str(reason)
        return self._written([self._choice(text if isinstance(text, str) else "", choice)], others)

    def _choice(self, text: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"delta": {"content": text}} if self.shape.is_chat else {"text": text}
        made = {"index": 0, **shown, "logprobs": None, "finish_reason": choice.get("finish_reason")}
        if choice.get("finish_reason") and "stop_reason" in choice:
            made["stop_reason"] = choice["stop_reason"]
        return made

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        total = self.prompt_tokens + completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": total,
            "completion_tokens": completion_tokens,
        }

    def _written(self, choices: list[dict[str, Any]], others: Mapping[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self.shape.is_chat else "text_completion"
        event: dict[str, Any] = {"id": self.shape.id, "object": kind}
        if self.shape.created is not None:
            event["created"] = self.shape.created
        event |= {"model": self.shape.model, "choices": choices, **others}
        try:
            text = msgspec.json.encode(event)
        except (ValueError, UnicodeEncodeError):  # half of a surrogate pair, which an engine wrote escaped
            text = json.dumps(event, separators=(",", ":")).encode()
        return b"data: " + text + b"\n\n"


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
