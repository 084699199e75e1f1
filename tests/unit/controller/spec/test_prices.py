"""Prices in a service's spec: what is refused, and which price a version has."""

from __future__ import annotations

from typing import Any

import pytest

from controller.errors import BadSpec
from controller.spec.differences import changed_in_place
from controller.spec.prices import PricesSpec
from controller.spec.service import ServiceSpec, dump, parse_service
from evaluation.costs import TokenPrice

PRICES = {"currency": "EUR", "input": 2.5, "output": 10, "versions": {"mini": {"input": 0.15, "output": 0.6}}}


def service(prices: Any) -> ServiceSpec:
    return parse_service({"service": "chat", "url": "http://127.0.0.1:1/v1", "prices": prices})


def spec(prices: Any = PRICES) -> PricesSpec:
    found = service(prices).prices
    assert found is not None
    return found


def test_a_version_has_its_own_prices_by_any_of_its_names_else_the_services() -> None:
    own, of_all = TokenPrice(0.15, 0.6), TokenPrice(2.5, 10.0)

    assert spec().price_of(("v-1", None, "mini", "http://a")) == own
    assert spec().price_of(("v-1", "large", None)) == of_all
    assert spec({"versions": {"mini": {"input": 0, "output": 0}}}).price_of(("large",)) is None


def test_the_first_name_counts() -> None:
    both = spec({"versions": {"a": {"input": 1, "output": 1}, "b": {"input": 2, "output": 2}}})

    assert both.price_of(("b", "a")) == TokenPrice(2.0, 2.0)


def test_a_version_without_a_price_is_named() -> None:
    prices = spec({"versions": {"mini": {"input": 1, "output": 2}}}).of(("mini",), ("large",))

    assert not prices.is_comparable
    assert prices.unpriced == (
        "cost NOT JUDGED: prices has none for canary; give input and output for the service, or versions by "
        "id, name, model or url",
    )
    assert spec().of(("mini",), ("large",)).unpriced == ()


@pytest.mark.parametrize(
    ("prices", "line"),
    [
        ({"input": 1}, "prices.output is missing beside input; give both, 0 for what is free"),
        ({"output": 1}, "prices.input is missing beside output; give both, 0 for what is free"),
        ({}, "prices.input and versions are missing, so nothing has a price; give one of them"),
        (
            {"versions": {"a": {"input": 1, "output": 1}}, "cached_input": 1},
            "prices.cached_input is given without input and output; give these, too",
        ),
        ({"input": 1, "output": 1, "alert": "0%"}, "prices.alert 0% is no limit: equal versions are at it;"),
        ({"input": -1, "output": 1}, "prices.input"),
        ({"input": 1, "output": 1, "currency": "US$"}, "prices.currency"),
        ({"input": 1, "output": 1, "alert": "1e9%"}, "prices.alert"),
        ({"input": 1, "output": 1, "alert": "much"}, "prices.alert"),
        ({"input": 1, "output": 1, "tokens": 1}, "prices: unknown key 'tokens'"),
        ({"versions": {"a": {"input": 1}}}, "prices.versions.a.output"),
    ],
)
def test_bad_prices_are_one_line(prices: dict[str, Any], line: str) -> None:
    with pytest.raises(BadSpec) as caught:
        service(prices)

    assert len(caught.value.details) == 1
    assert caught.value.details[0].removeprefix("service.").startswith(line)


@pytest.mark.parametrize(("text", "points"), [("20%", 2000), ("150%", 15_000), (35, 3500), (250, 25_000)])
def test_the_alarms_limit_may_be_more_than_the_whole(text: object, points: int) -> None:
    read = spec({"input": 1, "output": 1, "alert": text})

    assert read.alert == points
    assert spec(dump(read)) == read


def test_up_changes_prices_in_place() -> None:
    before, after = service(PRICES), service({"input": 3, "output": 9})

    assert changed_in_place(after, before) == {"prices": after.prices}
