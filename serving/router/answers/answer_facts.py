"""What one answer says of itself: its id, its usage, why it ends, whether its engine gave up.

Read of JSON objects: a whole answer, or the events of a stream, of any of the served APIs.

Rules:
1. A field that is null is one that is absent, and its second name counts where the first says nothing.
2. A choice whose index is no number is the first: some servers write null or a text, and mean 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serving.messages import LIMIT_REASONS
from serving.router.answers.answer_events import LAST_TYPES, count_of, has_failed, index_of, word_of

# Finish reasons that say why an answer holds no text: its limit (which hidden reasoning may have used up), a
# safety filter, a refusal. Not `tool_calls`: it names a call, and an answer without one lacks what it names.
_REASONS_FOR_NO_TEXT = LIMIT_REASONS | {
    "content_filter",
    "guardrail_intervened",
    "model_context_window_exceeded",
    "refusal",
    "safety",
}


@dataclass(slots=True)
class AnswerFacts:
    """What has been read so far. None: it was not said."""

    answer_id: str | None = field(default=None, init=False)
    finish_reason: str | None = field(default=None, init=False)  # of the last choice that has finished
    prompt_tokens: int | None = field(default=None, init=False)
    completion_tokens: int | None = field(default=None, init=False)
    has_error: bool = field(default=False, init=False)  # the engine reported an error inside the answer
    has_usage_event: bool = field(default=False, init=False)  # an event of a stream said only the usage
    _finished: set[int] = field(default_factory=set, init=False)  # indices of choices
    _finishes: int = field(default=0, init=False)  # of choices, whose indices some engines all call 0
    _has_last_event: bool = field(default=False, init=False)
    _has_stopped: bool = field(default=False, init=False)  # an event of Anthropic's API said why it stops

    @property
    def says_why_empty(self) -> bool:
        """True when the finish reason explains an answer without text."""
        return self.finish_reason is not None and self.finish_reason.lower() in _REASONS_FOR_NO_TEXT

    @property
    def lacks_message_stop(self) -> bool:
        """True for a message whose stream said why it stops, but not that it has."""
        return self._has_stopped and not self._has_last_event

    def _read_object(self, data: dict[str, Any]) -> None:
        """Read one JSON object: a whole answer or one event."""
        kind = data.get("type")
        if data.get("error") or kind in ("error", "response.failed"):
            self.has_error = True
        if isinstance(kind, str) and kind in LAST_TYPES:
            self._has_last_event = True
        inner = data.get("response") or data.get("message")
        for fields in (data, inner) if isinstance(inner, dict) else (data,):
            self._read_id_and_usage(fields)
        choices = data.get("choices")
        if isinstance(choices, list):
            self.has_usage_event = self.has_usage_event or (not choices and bool(data.get("usage")))
            for choice in choices:
                if isinstance(choice, dict):
                    self._read_choice(choice)
        delta = data.get("delta")
        if isinstance(delta, dict) and (reason := word_of(delta.get("stop_reason"))):
            self.finish_reason, self._has_stopped = reason, True

    def _read_choice(self, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if not reason:  # some servers write '' where others write null
            return
        self.has_error = self.has_error or has_failed(reason)
        index = index_of(choice.get("index"))
        if index is not None:
            self._finished.add(index)
        self._finishes += 1
        self.finish_reason = word_of(reason) or self.finish_reason

    def _read_id_and_usage(self, fields: dict[str, Any]) -> None:
        if self.answer_id is None:
            self.answer_id = word_of(fields.get("id"))
        self.finish_reason = word_of(fields.get("stop_reason")) or self.finish_reason
        details = fields.get("incomplete_details")
        if isinstance(details, dict):
            self.finish_reason = word_of(details.get("reason")) or self.finish_reason
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = count_of(usage, "prompt_tokens", "input_tokens", self.prompt_tokens)
            self.completion_tokens = count_of(
                usage, "completion_tokens", "output_tokens", self.completion_tokens
            )
