"""Counts of tokens in an answer's `usage`, by every vendor's names. Pure.

Rules:
1. A count of 0 replaces no count that the same answer has given: gateways write 0 for what they do not count.
2. Cached tokens: the first count above 0 by any of their names; gateways give several, of which some are 0.
3. Thoughts that are no part of the answer's count, but of the total, are added to it: they are billed.
"""

from __future__ import annotations

from typing import Any

from serving.judging.chat_answer import MAX_TOKENS

# OpenAI and vLLM name cached tokens within the prompt's details; DeepSeek, Moonshot, Anthropic beside.
_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
_OF_CACHES = ("cache_read_input_tokens", "cache_creation_input_tokens")  # may be beside the prompt's


def count_of(value: object) -> int | None:
    """A count of tokens; None: it is none, or too large to be recorded."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    return value if is_count else None  # type: ignore[return-value]


def prompt_of(usage: dict[str, Any], before: int | None) -> int | None:
    """The tokens of the prompt; `before`: what the answer said of them earlier."""
    return _latest(_either(usage, "prompt_tokens", "input_tokens"), before)


def completion_of(usage: dict[str, Any], before: int | None) -> int | None:
    """The tokens of the answer, with thoughts; `before`: what it said of them earlier.

    Check: 20 of the prompt, 198 of the answer and 623 in total are 603.
    """
    completion = _either(usage, "completion_tokens", "output_tokens")
    return _latest(None if completion is None else completion + _hidden(usage, completion), before)


def cached_of(usage: dict[str, Any], before: int | None) -> int | None:
    """The tokens of the prompt that a cache held; `before`: what the answer said of them earlier."""
    details = [usage[name] for name in _DETAILS if isinstance(usage.get(name), dict)]
    values = [one.get("cached_tokens") for one in details] + [usage.get(name) for name in _CACHED]
    counts = [count for value in values if (count := count_of(value)) is not None]
    return _latest(next((count for count in counts if count > 0), 0 if counts else None), before)


def _either(usage: dict[str, Any], name: str, other: str) -> int | None:
    value = usage.get(name)
    return count_of(usage.get(other) if value is None else value)


def _latest(count: int | None, before: int | None) -> int | None:
    return before if count is None or (count == 0 and before is not None) else count


def _hidden(usage: dict[str, Any], completion: int) -> int:
    """Tokens that the total has beside those of the prompt and of the answer, and that are no others' but
    those of thoughts."""
    prompt, total = _either(usage, "prompt_tokens", "input_tokens"), count_of(usage.get("total_tokens"))
    if not prompt or total is None or total <= prompt + completion:
        return 0
    rest = total - prompt - completion
    for name in ("completion_tokens_details", "output_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict) and (named := count_of(details.get("reasoning_tokens"))) is not None:
            return min(rest, named)
    return 0 if any(count_of(usage.get(name)) for name in _OF_CACHES) else rest
