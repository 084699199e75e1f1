"""A whole JSON answer of the usual shape, of which only what is recorded is decoded. Pure.

An answer's text is passed over and not made a string. What has another shape is read by `answer_scan.py`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from serving.chat_events import index_of, reason_of
from serving.router.answers.answer_events import has_failed, word_of
from serving.router.answers.outline import has_many_objects
from serving.router.answers.usage import count_of

_ABSENT = msgspec.Raw(b"")


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    index: int = 0


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    # Of other forms of a usage: cached tokens by other names.
    input_tokens_details: msgspec.Raw = _ABSENT
    prompt_cache_hit_tokens: msgspec.Raw = _ABSENT
    cached_tokens: msgspec.Raw = _ABSENT
    cache_read_input_tokens: msgspec.Raw = _ABSENT


class _Answer(msgspec.Struct, gc=False):
    """Of a chat or a completion, as vLLM and OpenAI write it."""

    choices: list[_Choice]
    usage: _Usage | None = None
    id: str | None = None
    # What has a meaning in answers of other shapes.
    error: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    stop_reason: msgspec.Raw = _ABSENT


_DECODER = msgspec.json.Decoder(_Answer)
# Its id, tokens of the prompt and of the answer, finish reason, indices of finished choices, has usage alone,
# and the tokens of the prompt that were cached.
Read: TypeAlias = tuple[str | None, int | None, int | None, str | None, set[int], bool, int | None]


def usual_answer(data: bytes) -> Read | None:
    """What is recorded of the answer; None: it has another shape, or is malformed."""
    if has_many_objects(data):
        return None
    try:
        if not data.isascii():
            data.decode()  # of fields that it skips the decoder reads no text
        found = _DECODER.decode(data)
    except (ValueError, RecursionError):
        return None
    if found.error is not _ABSENT or found.type is not _ABSENT or found.response is not _ABSENT:
        return None
    if found.message is not _ABSENT or found.delta is not _ABSENT or found.stop_reason is not _ABSENT:
        return None
    usage, prompt, completion, cached = found.usage, None, None, None
    if usage is not None:
        if (details := usage.prompt_tokens_details) is not None:
            cached = count_of(details.cached_tokens)
        if not cached and _is_cached_elsewhere(usage):
            return None
        prompt, completion = count_of(usage.prompt_tokens), count_of(usage.completion_tokens)
        if (usage.total_tokens or 0) > usage.prompt_tokens + usage.completion_tokens:
            return None  # with thoughts that no other count has
    reason: str | None = None
    finished: set[int] = set()
    for choice in found.choices:
        if has_failed(choice.finish_reason):
            return None
        if reason_of(choice.finish_reason) is not None:
            if (index := index_of(choice.index)) is not None:
                finished.add(index)
            reason = word_of(choice.finish_reason) or reason
    has_usage_alone = usage is not None and not found.choices
    return word_of(found.id), prompt, completion, reason, finished, has_usage_alone, cached


def _is_cached_elsewhere(usage: _Usage) -> bool:
    """Whether cached tokens may stand by another name."""
    beside = usage.prompt_cache_hit_tokens, usage.cached_tokens, usage.cache_read_input_tokens
    return any(one is not _ABSENT for one in (usage.input_tokens_details, *beside))
