"""What commits a router to a canary's answer, and how often it asks again; no socket, no clock."""

from __future__ import annotations

import json

import pytest

from serving.messages import CANARY
from serving.router.types import Attempt, Deliver, Refusal, Step
from tests.unit.serving.router.exchange.test_exchange import (
    GOOD,
    JSON,
    SSE,
    answer,
    attempt,
    begin,
    core,
    record,
    request,
    table,
)

COMMENT = b": keep-alive\n\n"
ERROR = b'data: {"error":{"message":"engine dead","code":500}}\n\n'


@pytest.mark.parametrize("end", ["cut", "error"])
def test_a_comment_of_the_canary_commits_nobody_to_it(end: str) -> None:
    """Engines send comments before the first token; what fails after one is replaced as without it."""
    router = core()
    exchange = begin(router, request({"stream": True}))
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(COMMENT, now_s=10.2)
    failed = exchange.broken("cut", now_s=10.3) if end == "cut" else exchange.received(ERROR, now_s=10.3)
    answer(exchange)
    one = record(router)

    assert failed is Step.AGAIN
    assert (one.arm, one.error) == (CANARY, True)


def test_a_comment_is_no_first_token() -> None:
    router = core()
    exchange = begin(router, request({"stream": True}))
    attempt(exchange)
    exchange.answered(200, SSE)
    exchange.received(COMMENT, now_s=10.2)
    exchange.received(GOOD, now_s=11.1)
    exchange.ended(now_s=11.2)

    assert record(router).ttft_ms == pytest.approx(1000.0)


@pytest.mark.parametrize("at", range(1, len(ERROR)))
def test_an_error_event_in_two_reads_is_replaced_by_stable(at: int) -> None:
    exchange = begin(core(), request({"stream": True}))
    attempt(exchange)
    exchange.answered(200, SSE)

    assert exchange.received(ERROR[:at], now_s=10.2) is Step.HOLD
    assert exchange.received(ERROR[at:], now_s=10.3) is Step.AGAIN


@pytest.mark.parametrize("message", ["engine dead", {"message": "engine dead", "code": 500}])
def test_a_200_with_an_error_in_its_body_is_an_error_and_replaced_by_stable(message: object) -> None:
    router = core()
    exchange = begin(router)
    attempt(exchange)
    exchange.answered(200, JSON)
    exchange.received(json.dumps({"error": message}).encode(), now_s=10.2)
    ended = exchange.ended(now_s=10.3)
    answer(exchange)
    one = record(router)

    assert ended is Step.AGAIN
    assert (one.arm, one.error, one.served_arm) == (CANARY, True, 0)


@pytest.mark.parametrize(("weight_bp", "most"), [(0, 2), (10_000, 4)])
@pytest.mark.parametrize("why", ["reset", "cut"])
def test_a_request_that_was_sent_is_asked_at_most_twice_an_arm(why: str, weight_bp: int, most: int) -> None:
    """Whatever the number of replicas: each attempt may have cost an engine a whole answer."""
    urls = tuple(f"http://e{n}" for n in range(5))
    exchange = begin(core(table(weight_bp=weight_bp, stable=urls, canary=urls)))
    asked = 0
    while isinstance(step := exchange.next_attempt(), Attempt) and asked < 10:
        asked += 1
        exchange.broken(why, now_s=10.2)  # type: ignore[arg-type]

    assert asked <= most
    assert isinstance(step, Refusal)


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_of_sound_alone_is_not_empty(streams: bool) -> None:
    sound = {"audio": {"id": "a", "data": "UklGRg=="}}
    name = "delta" if streams else "message"
    choice = {"index": 0, name: {"content": None, **sound}, "finish_reason": "stop"}
    body = json.dumps({"id": "a", "choices": [choice]}).encode()
    router = core()
    exchange = begin(router, request({"stream": streams}))
    attempt(exchange)
    exchange.answered(200, SSE if streams else JSON)
    exchange.received(b"data: %b\n\ndata: [DONE]\n\n" % body if streams else body, now_s=10.2)

    assert isinstance(exchange.ended(now_s=10.3), Deliver)
    assert record(router).error is False
