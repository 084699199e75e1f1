"""Metadata of an answer, scanned from its bytes in transit: finish reason, usage, id, errors.

Cheap by design: a stream's events are searched with one regular expression and only the few that hold
metadata are parsed. The bytes sent to the client are never changed.

Invariant: no text of an answer is kept, only whether there was any.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

WORD_LIMIT = 256  # characters of an answer's id and finish reason; a longer one is not recorded
MAX_TOKENS = 10**9  # of one answer; a larger count is not recorded
PARSE_LIMIT = 1 << 20  # bytes; a JSON answer or an event beyond this is passed on without being scanned

_METADATA = re.compile(
    rb'"(?:finish_reason|stop_reason)":\s*"|"usage":\s*\{|"error":\s*[{"]|"message":\s*\{'
    rb'|"type":\s*"(?:response\.(?:completed|incomplete|failed)|message_stop|error)"'
)
_CONTENT = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|refusal|arguments|partial_json|thinking)":\s*"[^"]'
    rb'|"(?:tool_calls|function_call)":\s*[\[{]\s*["{]'
)
# Paths whose answers hold text, and whose streams end with [DONE] or a final event. On other paths the end of
# the body is enough.
_TEXT_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}


@dataclass(slots=True)
class AnswerScan:
    """Scanner of one answer with status 200: `feed` it every byte, then call `end`.

    path: of the request; determines how a stream must finish. content_type: of the answer, lower case.
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
    is_finished: bool = False  # a stream declared its end, though its body may not have ended
    _buffer: bytes = b""  # an incomplete line of a stream, or a JSON answer so far
    _is_too_large: bool = False  # beyond PARSE_LIMIT; no longer scanned
    _is_between: bool = True

    @property
    def is_stream(self) -> bool:
        """True for server-sent events."""
        return self.content_type.startswith("text/event-stream")

    @property
    def is_between_events(self) -> bool:
        """True when the bytes so far are complete events of a stream."""
        return self.is_stream and self._is_between

    @property
    def is_empty(self) -> bool:
        """True when an answer that should hold text has none."""
        return self.path in _TEXT_PATHS and not (self.has_content or self._is_too_large or self.has_error)

    def feed(self, data: bytes) -> None:
        """Scan the next bytes."""
        if self._is_too_large:
            return
        if not self.is_stream:
            self._set_buffer(self._buffer + data)
            return
        lines = (self._buffer + data if self._buffer else data).split(b"\n")
        self._set_buffer(lines.pop())
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip())
        self._is_between = bool(lines) and not lines[-1].strip() and not self._buffer

    def end(self) -> str | None:
        """The defect of an answer whose body ended cleanly, as a fixed word; None: none."""
        if self.is_stream:
            if self._buffer.startswith(b"data:"):
                self._read_event(self._buffer[5:].strip())
            needs_finish = self.path in _TEXT_PATHS and not self._is_too_large
            if needs_finish and not self.is_finished and not self.has_error:
                return "cut"
        elif self.content_type.startswith("application/json") and not self._is_too_large:
            self._read_json_answer()
        if self.has_error:
            return "error in the answer"
        if self.is_malformed:
            return "malformed"
        return "empty" if self.is_empty else None

    def _set_buffer(self, data: bytes) -> None:
        self._is_too_large = len(data) > PARSE_LIMIT
        self._buffer = b"" if self._is_too_large else data

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.is_finished = True
            return
        self.events += 1
        if not self.has_content and _CONTENT.search(data):
            self.has_content = True
        if self.events == 1 or _METADATA.search(data):
            self._read_object(json_object(data))

    def _read_json_answer(self) -> None:
        answer = json_object(self._buffer)
        if answer is None:
            self.is_malformed = True
            return
        self.has_content = _CONTENT.search(self._buffer) is not None
        self._read_object(answer)

    def _read_object(self, data: dict[str, Any] | None) -> None:
        """Read one JSON object: a whole answer or one event, of any of the served APIs."""
        if data is None:
            return
        kind = data.get("type")
        if data.get("error") or kind in ("error", "response.failed"):
            self.has_error = True
        if kind in ("response.completed", "response.incomplete", "response.failed", "message_stop"):
            self.is_finished = True
        inner = data.get("response") or data.get("message")
        for fields in (data, inner) if isinstance(inner, dict) else (data,):
            self._read_id_and_usage(fields)
        choices = data.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict):
                    self.finish_reason = _word(choice.get("finish_reason")) or self.finish_reason
        delta = data.get("delta")
        if isinstance(delta, dict):
            self.finish_reason = _word(delta.get("stop_reason")) or self.finish_reason

    def _read_id_and_usage(self, fields: dict[str, Any]) -> None:
        if self.answer_id is None:
            self.answer_id = _word(fields.get("id"))
        self.finish_reason = _word(fields.get("stop_reason")) or self.finish_reason
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage, "prompt_tokens", "input_tokens", self.prompt_tokens)
            self.completion_tokens = _count(
                usage, "completion_tokens", "output_tokens", self.completion_tokens
            )


def _count(usage: dict[str, Any], name: str, other: str, before: int | None) -> int | None:
    value = usage.get(name, usage.get(other))
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    return value if is_count else before


def _word(value: object) -> str | None:
    """A short printable text of an answer; None for anything else, which could not be recorded."""
    is_word = isinstance(value, str) and 0 < len(value) <= WORD_LIMIT and value.isprintable()
    return value if is_word else None  # type: ignore[return-value]


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None when it is malformed or not an object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
