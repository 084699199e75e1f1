"""What an answer says about itself, read from its bytes as they pass: finish, usage, id, errors.

Made to be cheap: a stream's events are searched with one regular expression and only the few that say
something are parsed. The bytes that pass to the client are never touched.

Invariant: no text of an answer is kept; only whether there was any.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

PARSE_LIMIT = 1 << 20  # bytes of one JSON answer, or of one event, beyond which it is passed unread

_TELLING = re.compile(
    rb'"(?:finish_reason|stop_reason)":\s*"|"usage":\s*\{|"error":\s*[{"]|"message":\s*\{'
    rb'|"type":\s*"(?:response\.(?:completed|incomplete|failed)|message_stop|error)"'
)
_CONTENT = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|refusal|arguments|partial_json|thinking)":\s*"[^"]'
    rb'|"(?:tool_calls|function_call)":\s*[\[{]\s*["{]'
)
# What ends a stream properly, where a path has such a thing; elsewhere the end of the body is enough.
_DONE_PATHS = {"/v1/chat/completions", "/v1/completions"}
_TYPED_PATHS = {"/v1/responses", "/v1/messages"}
_WORDED_PATHS = _DONE_PATHS | _TYPED_PATHS


@dataclass(slots=True)
class AnswerScan:
    """Feed it every byte of one answer with status 200, then `end` it.

    path: of the request, decides what a proper finish is. content_type: of the answer, lower case.
    """

    path: str
    content_type: str
    answer_id: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    events: int = 0  # of a stream, without [DONE]
    has_content: bool = False
    has_error: bool = False  # the engine reported an error inside the answer
    is_malformed: bool = False
    _is_finished: bool = False
    _rest: bytes = b""
    _is_unread: bool = False
    _is_between: bool = True

    @property
    def is_stream(self) -> bool:
        """True for server-sent events."""
        return self.content_type.startswith("text/event-stream")

    @property
    def is_between_events(self) -> bool:
        """True when the bytes so far are whole events of a stream."""
        return self.is_stream and self._is_between

    @property
    def is_finished(self) -> bool:
        """True when a stream has said that it is complete, though its body may not have ended."""
        return self._is_finished

    @property
    def is_empty(self) -> bool:
        """True when the answer was of a kind that has words, and had none."""
        return self.path in _WORDED_PATHS and not (self.has_content or self._is_unread or self.has_error)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        if self._is_unread:
            return
        if not self.is_stream:
            self._keep(self._rest + data)
            return
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._keep(lines.pop())
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
        if lines:
            self._is_between = not lines[-1].strip() and not self._rest
        else:
            self._is_between = False

    def end(self) -> str | None:
        """What was wrong with an answer whose body ended cleanly, in one word; None: nothing."""
        if self.is_stream:
            if self._rest.startswith(b"data:"):
                self._event(self._rest[5:].strip())
            needs_finish = self.path in _WORDED_PATHS and not self._is_unread
            if needs_finish and not self._is_finished and not self.has_error:
                return "cut"
        elif self.content_type.startswith("application/json") and not self._is_unread:
            self._whole()
        if self.has_error:
            return "error in the answer"
        if self.is_malformed:
            return "malformed"
        return "empty" if self.is_empty else None

    def _keep(self, rest: bytes) -> None:
        self._is_unread = len(rest) > PARSE_LIMIT
        self._rest = b"" if self._is_unread else rest

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_finished = True
            return
        self.events += 1
        if not self.has_content and _CONTENT.search(data):
            self.has_content = True
        if self.events == 1 or _TELLING.search(data):
            self._told(_parsed(data))

    def _whole(self) -> None:
        answer = _parsed(self._rest)
        if answer is None:
            self.is_malformed = True
            return
        self.has_content = _CONTENT.search(self._rest) is not None
        self._told(answer)

    def _told(self, data: dict[str, Any] | None) -> None:
        """Takes what one JSON object says: a whole answer or one event, of any of the served dialects."""
        if data is None:
            return
        kind = data.get("type")
        if data.get("error") or kind in ("error", "response.failed"):
            self.has_error = True
        if kind in ("response.completed", "response.incomplete", "response.failed", "message_stop"):
            self._is_finished = True
        inner = data.get("response") or data.get("message")
        for one in (data, inner) if isinstance(inner, dict) else (data,):
            self._named(one)
        choices = data.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str):
                    self.finish_reason = choice["finish_reason"]
        delta = data.get("delta")
        if isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str):
            self.finish_reason = delta["stop_reason"]

    def _named(self, one: dict[str, Any]) -> None:
        if self.answer_id is None and isinstance(one.get("id"), str):
            self.answer_id = one["id"]
        if isinstance(one.get("stop_reason"), str):
            self.finish_reason = one["stop_reason"]
        usage = one.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage, "prompt_tokens", "input_tokens", self.prompt_tokens)
            self.completion_tokens = _count(
                usage, "completion_tokens", "output_tokens", self.completion_tokens
            )


def _count(usage: dict[str, Any], name: str, other: str, before: int | None) -> int | None:
    value = usage.get(name, usage.get(other))
    return value if isinstance(value, int) and value >= 0 else before


def _parsed(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None when it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
