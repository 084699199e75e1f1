"""What one answer says of itself: its id, its usage, why it ends, whether its engine gave up.

Read of JSON objects: a whole answer, or the events of a stream, of any of the served APIs.

Rules:
1. A field that is null is one that is absent, and its second name counts where the first says nothing.
2. A choice whose index is no number is the first: some servers write null or a text, and mean 0.
3. A choice that says something after its finish had not finished: some servers write "stop" on each event.
   From then on a finish of that stream is believed with [DONE], or when its body has ended.
4. Some engines call each choice 0 where it finishes, so two finishes of one index are two. One that is said
   again while another choice still speaks is none, if that one goes on, or if it only brings the usage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serving.chat_events import index_of, reason_of
from serving.messages import LIMIT_REASONS
from serving.router.answers.answer_content import choice_says_something
from serving.router.answers.answer_events import LAST_TYPES, has_failed, word_of
from serving.router.answers.usage import cached_of, completion_of, prompt_of

# Finish reasons that say why an answer holds no text: its limit (which hidden reasoning may have used up), a
# safety filter, a refusal. Not `tool_calls`: it names a call, and an answer without one lacks what it names.
REFUSAL_REASONS = frozenset({"content_filter", "guardrail_intervened", "refusal", "safety"})
_REASONS_FOR_NO_TEXT = LIMIT_REASONS | REFUSAL_REASONS | {"model_context_window_exceeded"}


@dataclass(slots=True)
class AnswerFacts:
    """What has been read so far. None: it was not said."""

    answer_id: str | None = field(default=None, init=False)
    finish_reason: str | None = field(default=None, init=False)  # of the last choice that has finished
    prompt_tokens: int | None = field(default=None, init=False)
    completion_tokens: int | None = field(default=None, init=False)
    cached_tokens: int | None = field(default=None, init=False)  # of the prompt, read from a cache
    has_error: bool = field(default=False, init=False)  # the engine reported an error inside the answer
    has_usage_event: bool = field(default=False, init=False)  # an event of a stream said only the usage
    _finished: set[int] = field(default_factory=set, init=False)  # indices of choices
    _finishes: int = field(default=0, init=False)  # of choices, whose indices some engines all call 0
    _goes_on: bool = field(default=False, init=False)  # a choice has spoken after its finish
    _is_other_open: bool = field(default=False, init=False)  # one without a finish has, since the last one
    _has_last_event: bool = field(default=False, init=False)
    _names_end: bool = field(default=False, init=False)  # it is of an API whose streams name their end
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
        if data.get("error") or kind in ("error", "response.failed") or data.get("object") == "error":
            self.has_error = True
        if isinstance(kind, str) and kind in LAST_TYPES:
            self._has_last_event = True
        inner = data.get("response") or data.get("message")
        had_usage = self.completion_tokens is not None
        for fields in (data, inner) if isinstance(inner, dict) else (data,):
            self._read_id_and_usage(fields)
        choices = data.get("choices")
        if isinstance(choices, list):
            self.has_usage_event = self.has_usage_event or (not choices and bool(data.get("usage")))
            brings_usage = bool(data.get("usage")) and not had_usage
            for choice in choices:
                if isinstance(choice, dict):
                    self._read_choice(choice, brings_usage=brings_usage)
        self._names_end = self._names_end or isinstance(choices, list) or _is_transcript(kind)
        delta = data.get("delta")
        if isinstance(delta, dict):
            self._read_end(delta)
            if reason := word_of(reason_of(delta.get("stop_reason"))):
                self.finish_reason, self._has_stopped = reason, True

    def _read_choice(self, choice: dict[str, Any], *, brings_usage: bool) -> None:
        index, reason = index_of(choice.get("index")), reason_of(choice.get("finish_reason"))
        has_finished = index in self._finished
        if self._finished and choice_says_something(choice):
            self._goes_on = self._goes_on or has_finished
            self._is_other_open = self._is_other_open or not has_finished
        if reason is None:
            return
        self.has_error = self.has_error or has_failed(reason)
        if index is not None:
            self._finished.add(index)
        if not (has_finished and brings_usage and self._is_other_open):
            self._finishes += 1
            self._is_other_open = False
        self.finish_reason = word_of(reason) or self.finish_reason

    def _read_id_and_usage(self, fields: dict[str, Any]) -> None:
        if self.answer_id is None:
            self.answer_id = word_of(fields.get("id"))
        self.finish_reason = word_of(reason_of(fields.get("stop_reason"))) or self.finish_reason
        details = fields.get("incomplete_details")
        if isinstance(details, dict):
            self.finish_reason = word_of(details.get("reason")) or self.finish_reason
        self._read_end(fields)

    def _read_end(self, fields: dict[str, Any]) -> None:
        """Read the usage, and a reason that is of no choice: Cohere's last event has both in its delta."""
        reason = reason_of(fields.get("finish_reason"))
        self.has_error = self.has_error or has_failed(reason)
        self.finish_reason = word_of(reason) or self.finish_reason
        usage = fields.get("usage")
        if isinstance(usage, dict):
            tokens = usage.get("tokens")
            usage = tokens if isinstance(tokens, dict) else usage
            self.prompt_tokens = prompt_of(usage, self.prompt_tokens)
            self.cached_tokens = cached_of(usage, self.cached_tokens)
            self.completion_tokens = completion_of(usage, self.completion_tokens)


def _is_transcript(kind: object) -> bool:
    """Whether this is the type of an event of OpenAI's transcriptions."""
    return isinstance(kind, str) and kind.startswith("transcript.")
