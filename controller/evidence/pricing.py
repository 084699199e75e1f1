"""The tokens of a record's answer, and what they cost.

A request without an own answer has no cost: it is missing. So is a cost whose tokens were not counted: a
gateway's 0 is no count of a prompt, or of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evaluation.costs import Prices, TokenPrice
from evaluation.records import is_number
from serving.messages import CANARY, MirrorRecord, RequestRecord
from serving.router.answers.answer_facts import REFUSAL_REASONS
from serving.targets import TEXT_PATHS

APART = "/v1/messages"  # where cached tokens are counted beside those of the prompt
MAX_TOKENS = 1e12


def has_own_answer(record: RequestRecord) -> bool:
    """Whether the assigned version itself answered, so that the tokens are its own."""
    is_answered = record.error is False and not record.rejected and record.taken_over_by is None
    return is_answered and record.served_arm == record.arm


def priced(record: RequestRecord, prices: Prices | None) -> float | None:
    """The cost of the answer, in the currency of the prices; None: not its own version's, or not known."""
    if prices is None or not has_own_answer(record):
        return None
    price = prices.of_arm(record.arm == CANARY)
    return None if price is None else cost_at(price, record)


class Tokens(NamedTuple):
    """Of one answer; None: not known."""

    prompt: int | None
    cached: int | None  # of the prompt, or beside it (`APART`)
    completion: int | None


def tokens_of(record: RequestRecord | MirrorRecord) -> Tokens:
    """The tokens of a record that were counted.

    A prompt has a token, of itself or of a cache, and so has an answer with text; an embedding has none, and
    an answer that was refused may have none.
    """
    prompt, completion = _count(record.prompt_tokens), _count(record.completion_tokens)
    cached, is_empty = None, False
    if isinstance(record, RequestRecord):
        cached, is_empty = _count(record.cached_tokens), record.empty
    if prompt == 0 and not (record.path == APART and cached):
        prompt = None
    is_silent = is_empty or (record.finish_reason or "").lower() in REFUSAL_REASONS
    if completion == 0 and record.path in TEXT_PATHS and not is_silent:
        completion = None
    return Tokens(prompt, cached, completion)


def cost_at(price: TokenPrice, record: RequestRecord) -> float | None:
    """The cost of the record's tokens at this price; None: they are not known."""
    prompt, cached, completion = tokens_of(record)
    if prompt is None or completion is None:
        return None
    return price.cost(prompt, completion, cached or 0, is_cached_apart=record.path == APART)


def is_count(tokens: int | None) -> bool:
    """Whether an endpoint's count of tokens can be one; whatever else it says is not known."""
    return is_number(tokens) and 0 <= tokens <= MAX_TOKENS  # type: ignore[operator]


def _count(tokens: int | None) -> int | None:
    return tokens if is_count(tokens) else None


def pinned(prices: Prices | None) -> dict[str, Any] | None:
    """JSON values for a rollout's stored request, which `prices_of` reads; None: there are no prices."""
    if prices is None:
        return None
    arms = {"stable": prices.stable, "canary": prices.canary}
    plain = {
        name: None if price is None else [price.input, price.output, price.cached_input]
        for name, price in arms.items()
    }
    return {"currency": prices.currency, "judge": prices.judge, **plain}


def prices_of(data: Mapping[str, Any] | None) -> Prices | None:
    """The prices of `pinned`; None: none, or of an older release."""
    if data is None:
        return None
    stable, canary = (None if data[arm] is None else TokenPrice(*data[arm]) for arm in ("stable", "canary"))
    return Prices(data["currency"], stable, canary, data["judge"])
