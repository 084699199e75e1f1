"""Tokens times prices."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.costs import TokenPrice

PRICES = st.floats(0.0, 1e6)
TOKENS = st.integers(0, 10**9)


@given(PRICES, PRICES, TOKENS, TOKENS)
def test_a_cache_with_the_price_of_the_prompt_changes_nothing(
    price: float, output: float, prompt: int, completion: int
) -> None:
    plain, cached = TokenPrice(price, output), TokenPrice(price, output, price)

    expected = plain.cost(prompt, completion)
    for found in (plain.cost(prompt, completion, prompt), cached.cost(prompt, completion, prompt // 2)):
        assert abs(found - expected) <= 1e-9 * max(expected, 1.0)


@given(PRICES, TOKENS, TOKENS)
def test_more_cached_tokens_than_the_prompt_has_are_the_whole_prompt(
    price: float, prompt: int, more: int
) -> None:
    cheap = TokenPrice(price, 0.0, 0.0)

    assert cheap.cost(prompt, 0, prompt + more) == 0.0
    assert cheap.cost(prompt, 0, more, is_cached_apart=True) == prompt * price / 1e6
