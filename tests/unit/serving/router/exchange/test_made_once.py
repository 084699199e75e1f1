"""What must not be made twice, and how often a request is sent: of explicit events, and on the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import Arm, Replica
from serving.router.types import Attempt, Refusal, Step
from tests.unit.serving.router.exchange.test_exchange import JSON, attempt, begin, core, request, table

RESPONSES = "/v1/responses"
CHAINED = [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}]


@pytest.mark.parametrize("named", CHAINED)
@pytest.mark.parametrize("why", ["reset", "timeout", "cut", "malformed"])
def test_a_background_response_that_names_an_earlier_one_is_made_once(
    named: dict[str, str], why: str
) -> None:
    """Both arms may know the id: two models of one account."""
    exchange = begin(core(), request({"background": True, "input": "q", **named}, path=RESPONSES))
    attempt(exchange)
    exchange.broken(why, now_s=10.2)  # type: ignore[arg-type]
    found = exchange.next_attempt()

    assert isinstance(found, Refusal)
    assert (found.code, dict(found.headers)[b"x-should-retry"]) == ("may_be_made", b"false")


@pytest.mark.parametrize(
    ("status", "goes_on"),
    [(status, True) for status in (400, 404, 429, 501, 503)]
    + [(status, False) for status in (200, 500, 502, 504, 524)],
)
@pytest.mark.parametrize("named", [{"previous_response_id": "r"}, {}])  # a lookup, or drawn for the canary
def test_it_goes_on_where_the_answer_says_that_nothing_was_made(
    status: int, goes_on: bool, named: dict[str, str]
) -> None:
    stable = Arm("v-1", (Replica("http://stable"),), external=True)
    exchange = begin(
        core(replace(table(), stable=stable)),
        request({"background": True, "input": "q", **named}, path=RESPONSES),
    )
    attempt(exchange)
    step = exchange.answered(status, JSON)

    assert (step is Step.AGAIN) is goes_on
    assert not goes_on or isinstance(exchange.next_attempt(), Attempt)


def test_stable_is_asked_where_a_canary_only_names_another_place() -> None:
    exchange = begin(core(), request({"background": True, "input": "q"}, path=RESPONSES))
    attempt(exchange)

    assert exchange.answered(307, JSON) is Step.AGAIN


@pytest.mark.parametrize("why", ["refused", "key refused"])
def test_it_goes_on_where_it_was_never_sent_or_not_taken(why: str) -> None:
    exchange = begin(core(), request({"background": True, "previous_response_id": "r"}, path=RESPONSES))
    first = attempt(exchange)
    exchange.broken(why, now_s=10.2)  # type: ignore[arg-type]
    second = attempt(exchange)

    assert (first.endpoint.origin, second.endpoint.origin) == ("http://stable", "http://canary")


def test_a_response_that_is_not_made_in_the_background_is_asked_of_the_next() -> None:
    exchange = begin(core(), request({"previous_response_id": "r"}, path=RESPONSES))
    attempt(exchange)
    exchange.broken("reset", now_s=10.2)

    assert isinstance(exchange.next_attempt(), Attempt)
