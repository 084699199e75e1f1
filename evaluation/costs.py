"""What a request costs: tokens times prices. Pure arithmetic; a cost is a metric like others (`cost`).

Prices are per million tokens, in one currency, whose word is only shown. A sum is exact as far as the
engine's own count of tokens is: it is what a vendor bills, or what an own engine is said to cost.
"""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Prices of a million tokens of one version. `cached_input`: None: as `input`."""

    input: float
    output: float
    cached_input: float | None = None

    def cost(
        self, prompt: float, completion: float, cached: float = 0.0, *, is_cached_apart: bool = False
    ) -> float:
        """The cost of one answer, in the currency of the prices.

        prompt, completion, cached: tokens; `cached` are among those of the prompt, or beside them where
        `is_cached_apart` (Anthropic's usage). Check: 2.5 and 10 a million, 1000 and 200 tokens: 0.0045.
        """
        cached = cached if is_cached_apart else min(cached, prompt)
        fresh = prompt if is_cached_apart else prompt - cached
        of_cache = self.input if self.cached_input is None else self.cached_input
        return (fresh * self.input + cached * of_cache + completion * self.output) / MILLION


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a rollout's versions; None: that one has none. `judge`: of a million of its tokens."""

    currency: str
    stable: TokenPrice | None
    canary: TokenPrice | None
    judge: float | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether both versions have a price: else no cost of either is evidence."""
        return self.stable is not None and self.canary is not None

    @property
    def unpriced(self) -> tuple[str, ...]:
        """A line on the version that has no price, as the other has; (): both have one."""
        if self.is_comparable:
            return ()
        which = [name for name in ("stable", "canary") if getattr(self, name) is None]
        return (
            f"cost NOT JUDGED: prices has none for {' and '.join(which)}; give input and output for the "
            "service, or versions by id, name, model or url",
        )

    def of_arm(self, canary: bool) -> TokenPrice | None:
        """The price of an arm's version; None: it has none."""
        return self.canary if canary else self.stable
