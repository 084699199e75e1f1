"""Spec of what tokens cost: for a service, and for versions that have other prices. Per million tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from controller.quantities import weight_bp
from controller.spec.fields import Checked, FieldError, Strict
from evaluation.costs import Prices, TokenPrice
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy

BUDGET_ALARM = "cost_alarm"
MAX_PRICE = 1e9  # per million tokens: a thousand a token
MAX_ALERT_BP = 100_000  # eleven times as much


def _more_bp(value: object) -> int:
    """Basis points of `20%`, which may be more than the whole."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            value = float(value.strip().removesuffix("%"))
        except ValueError:
            raise ValueError(f"{value!r} is no percentage; write 20%") from None
    if isinstance(value, int | float) and not isinstance(value, bool) and 100.0 < value <= MAX_ALERT_BP / 100:
        return round(value * 100)
    return weight_bp(value)


More = Annotated[
    int,
    BeforeValidator(_more_bp),
    PlainSerializer(lambda points: f"{points / 100:g}%", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "description": "percent: 20% or 20"}),
]


class TokenPriceSpec(Strict):
    """Prices of a version, per million tokens."""

    input: float = Field(ge=0, le=MAX_PRICE, description="a million prompt tokens")
    output: float = Field(ge=0, le=MAX_PRICE, description="a million completion tokens")
    cached_input: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PRICE,
        description="a million prompt tokens of a cache; default: as input",
    )

    def price(self) -> TokenPrice:
        """As the evaluation reads it."""
        return TokenPrice(self.input, self.output, self.cached_input)


class PricesSpec(Checked):
    """What tokens cost. A version without prices of its own has those of the service."""

    currency: str = Field(
        default="USD", pattern=r"^[A-Za-z]{1,16}$", description="a word that is shown beside each sum"
    )
    input: float | None = Field(default=None, ge=0, le=MAX_PRICE, description="a million prompt tokens")
    output: float | None = Field(default=None, ge=0, le=MAX_PRICE, description="a million completion tokens")
    cached_input: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PRICE,
        description="a million prompt tokens of a cache; default: as input",
    )
    versions: dict[str, TokenPriceSpec] = Field(
        default_factory=dict, description="of versions with other prices, by id, name, model or url"
    )
    judge: float | None = Field(
        default=None, ge=0, le=MAX_PRICE, description="a million tokens of the judge's questions and answers"
    )
    alert: More = Field(
        default=2000, description="how much dearer than stable's an answer may be before an alarm is raised"
    )

    def _errors(self) -> Iterator[FieldError]:
        if (self.input is None) != (self.output is None):
            lacking, given = ("input", "output") if self.input is None else ("output", "input")
            yield FieldError(lacking, f"is missing beside {given}; give both, 0 for what is free")
        if self.input is None and self.cached_input is not None:
            yield FieldError("cached_input", "is given without input and output; give these, too")
        if self.input is None and self.output is None and not self.versions:
            yield FieldError("input", "and versions are missing, so nothing has a price; give one of them")
        if self.alert == 0:
            yield FieldError("alert", "0% is no limit: equal versions are at it; use 20%")

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without some prices, whether others are missing cannot be judged."""
        gone = {path.partition(".")[0] for path in paths}
        kept = super().without(data, gone)
        both = {"input": 0.0, "output": 0.0} if gone & {"input", "output", "versions"} else {}
        return kept | both

    def price_of(self, names: Iterable[str | None]) -> TokenPrice | None:
        """The price of a version that has these names, the first one that is known counts; None: none has."""
        for name in names:
            if name is not None and name in self.versions:
                return self.versions[name].price()
        if self.input is None or self.output is None:
            return None
        return TokenPrice(self.input, self.output, self.cached_input)

    def of(self, stable: Iterable[str | None], canary: Iterable[str | None]) -> Prices:
        """The prices of a rollout. stable, canary: names of the versions, most certain first."""
        return Prices(self.currency, self.price_of(stable), self.price_of(canary), self.judge)


def with_budget(policy: GatePolicy, prices: PricesSpec | None) -> GatePolicy:
    """The policy with the alarm at the prices' limit; as it is where it tests the mean cost itself.

    Half of the limit is the alarm's tolerance, as of every gate of the preset `default`.
    """
    own = any(gate.metric == "cost" and gate.kind is Kind.MEAN for gate in policy.gates)
    if prices is None or own or any(gate.name == BUDGET_ALARM for gate in policy.gates):
        return policy
    limit = prices.alert / 10_000
    alarm = Gate(BUDGET_ALARM, "cost", Kind.MEAN, 0.0, limit, limit / 2)
    return replace(policy, gates=(*policy.gates, alarm))
