"""What must not be made twice, and how often a request is sent: of explicit events, and on the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import CANARY, STABLE, Arm, Replica
from serving.router.types import Attempt, Failure, Refusal, Request, Step
from serving.targets import Target
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


MCP = {"messages": [], "tools": [{"type": "mcp", "server_url": "https://mail"}]}
TWO = ("http://a", "http://b")
ONCE = [
    request({"input": "q", "store": True}, path=RESPONSES),
    request(MCP),
    request({"prompt": {"id": "pmpt_1"}}, path=RESPONSES),
    request({"input": "q", "previous_response_id": "r", "store": True}, path=RESPONSES),
    Request("POST", Target(RESPONSES), ((b"content-encoding", b"zstd"),), b"(\xb5/\xfd"),
]
NAMES = ["stored", "tools of the server", "stored prompt", "looked up and stored", "unread"]


@pytest.mark.parametrize("one", ONCE, ids=NAMES)
@pytest.mark.parametrize("why", ["reset", "cut", "timeout"])
def test_stable_is_sent_what_may_be_sent_but_once_no_second_time(one: Request, why: Failure) -> None:
    """An engine may have done it before it fell: tools acted twice."""
    exchange = begin(core(table(weight_bp=0, stable=TWO)), one)
    attempt(exchange)
    exchange.broken(why, now_s=10.2)
    found = exchange.next_attempt(10.2)

    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (502, "may_be_made")
    assert dict(found.headers)[b"x-should-retry"] == b"false"


@pytest.mark.parametrize("one", ONCE, ids=NAMES)
def test_it_goes_on_where_no_engine_can_have_read_it(one: Request) -> None:
    exchange = begin(core(table(weight_bp=0, stable=TWO)), one)
    first = attempt(exchange)
    exchange.broken("refused", now_s=10.2)

    assert attempt(exchange).url != first.url


@pytest.mark.parametrize("one", ONCE[:3], ids=NAMES[:3])
@pytest.mark.parametrize("why", ["reset", "cut", "timeout"])
@pytest.mark.parametrize("then", ["refused", "reset"])
def test_a_canary_that_failed_at_it_is_replaced_by_stable_once(
    one: Request, why: Failure, then: Failure
) -> None:
    exchange = begin(core(table(canary=TWO)), one)
    arms = [attempt(exchange).arm]
    exchange.broken(why, now_s=10.2)
    arms.append(attempt(exchange).arm)
    exchange.broken(then, now_s=10.3)
    found = exchange.next_attempt(10.3)

    assert arms == [CANARY, STABLE]
    assert isinstance(found, Refusal)
    assert found.code == "may_be_made"


@pytest.mark.parametrize("one", [ONCE[0], ONCE[3]], ids=[NAMES[0], NAMES[3]])
@pytest.mark.parametrize(("status", "goes_on"), [(429, True), (503, True), (502, False), (504, False)])
def test_it_is_repeated_where_the_status_says_that_nothing_was_done(
    one: Request, status: int, goes_on: bool
) -> None:
    exchange = begin(core(table(weight_bp=0, stable=TWO)), one)
    attempt(exchange)

    assert (exchange.answered(status, JSON) is Step.AGAIN) is goes_on
