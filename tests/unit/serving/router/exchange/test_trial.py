"""Trials: what the records say of a canary that is set aside, while stable answers its users."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from serving.messages import CANARY, STABLE, RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.trial import TRY_S, PendingRecord, Trial
from serving.router.router import RouterCore
from serving.router.types import Deliver, Failure, Refusal
from tests.fakes.virtual_wire import LIMITS, Piece, head, virtual_time, wire
from tests.unit.serving.router.exchange.test_exchange import SSE, attempt, request
from tests.unit.serving.router.upstreams.test_upstream_health import (
    ANSWER,
    JSON,
    ROLE,
    URL,
    WORD,
    answer,
    ask,
    routed,
)


def aside() -> RouterCore:
    """A router whose canary has just been set aside, by three requests."""
    router, _ = routed()
    for _ in range(3):
        ask(router, "refused")
    taken(router)
    return router


def drawn(
    router: RouterCore, number: int, body: object = None, *, now_s: float = 11.0, path: str = ""
) -> tuple[Exchange, Trial | None]:
    """A request that is the canary's, and its trial."""
    asked = request(body, path=path) if path else request(body)
    exchange = router.begin(asked, request_id=f"req-{number}", now_s=now_s, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    trial = exchange.begin_trial(now_s)
    if trial is not None:
        trial.is_sent = True
    return exchange, trial


def answered(exchange: Exchange) -> None:
    """Stable answers the user."""
    assert attempt(exchange).arm == STABLE
    answer(exchange)


def taken(router: RouterCore, *, now_s: float = 20.0) -> list[RequestRecord]:
    """The records so far."""
    router.on_table(None, sent_s=now_s)
    records = router.report(now_s=now_s, wall_s=600.0).records
    router.outbox.acknowledge()
    return list(records)


def test_the_record_waits_for_the_trial_and_is_charged_its_failure() -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    answered(exchange)
    before = taken(router)
    trial.on_failed("timeout")
    (one,) = taken(router)

    assert before == []
    assert (one.arm, one.served_arm, one.outcome, one.error, one.cause) == (
        *(CANARY, STABLE, "fallback", True, "timeout"),
    )
    assert one.assigned_by == "request"
    assert [(of.arm, of.cause) for of in one.attempts] == [(CANARY, "timeout"), (STABLE, None)]


def test_a_canary_that_answers_a_trial_is_asked_again_and_not_charged() -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    answered(exchange)
    trial.on_head(200, JSON)
    trial.on_data(ANSWER)
    (one,) = taken(router)

    assert (one.arm, one.outcome, one.error, one.cause, one.latency_ms) == (
        CANARY,
        "fenced",
        False,
        None,
        None,
    )
    assert ask(router, None) == [CANARY]


PING = b": ping\n\n"
ERROR = b'data: {"error":{"message":"no","code":500}}\n\n'


def streamed(number: int, *said: bytes) -> tuple[RouterCore, Trial]:
    """A stream that stable has answered, and its trial, which has a head and this."""
    router = aside()
    exchange, trial = drawn(router, number, {"stream": True})
    assert trial is not None
    answered(exchange)
    trial.on_head(200, SSE)
    for one in said:
        trial.on_data(one)
    return router, trial


@pytest.mark.parametrize("said", [(), (PING, PING), (ROLE,)], ids=["head", "comments", "role"])
@pytest.mark.parametrize("why", ["timeout", "cut"])
def test_a_trial_with_a_head_alone_goes_on_and_its_failure_is_charged(
    said: tuple[bytes, ...], why: Failure
) -> None:
    """A head ended the time aside of a canary that hung, and those who shared the trial were not charged."""
    router, trial = streamed(1, *said)
    before = taken(router)
    trial.on_failed(why)
    (one,) = taken(router)

    assert before == []
    assert (one.outcome, one.error, one.cause) == ("fallback", True, why)
    assert router.health is not None
    assert router.health.is_aside(URL)


def test_a_trial_of_a_stream_ends_with_its_first_content() -> None:
    router, _ = streamed(1, ROLE, WORD)
    (one,) = taken(router)

    assert (one.outcome, one.error, one.latency_ms) == ("fenced", False, None)
    assert ask(router, None) == [CANARY]


@pytest.mark.parametrize(
    ("said", "cause"), [((ERROR,), "error in the answer"), ((ROLE,), "cut"), ((b"data: [DONE]\n\n",), "cut")]
)
def test_a_trial_with_an_answer_of_no_use_is_charged_as_the_request_would_be(
    said: tuple[bytes, ...], cause: str
) -> None:
    router, trial = streamed(1, *said)
    trial.on_end()
    (one,) = taken(router)

    assert (one.outcome, one.error, one.cause) == ("fallback", True, cause)


@pytest.mark.parametrize(
    ("status", "error", "rejected", "cause"),
    [(503, True, False, "status 503"), (404, False, True, "status 404")],
)
def test_a_trial_with_an_answer_that_is_none_is_charged_by_its_status(
    status: int, error: bool, rejected: bool, cause: str
) -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    answered(exchange)
    trial.on_head(status, [])
    (one,) = taken(router)

    assert (one.outcome, one.error, one.rejected, one.cause) == ("fallback", error, rejected, cause)
    assert drawn(router, 2)[1] is None


def test_a_silent_trial_is_shared_for_half_a_second() -> None:
    router = aside()
    made = [drawn(router, n, now_s=11.0 + wait_s) for n, wait_s in enumerate((0, 0.9 * TRY_S, 1.1 * TRY_S))]
    (_, first), (_, second), (_, third) = made
    assert first is not None
    for exchange, _ in made:
        answered(exchange)
    first.on_failed("timeout")
    charged = taken(router)

    assert first is second
    assert third is not first
    assert [one.request_id for one in charged] == ["req-0", "req-1"]


def test_each_request_is_tried_where_connections_are_refused() -> None:
    router = aside()
    trials = []
    for number in range(3):
        _, trial = drawn(router, number)
        assert trial is not None
        trial.on_failed("refused")
        trials.append(trial)

    assert len(set(map(id, trials))) == 3


def test_large_trials_are_shared_however_old_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And hold no small one up: a canary that was back stayed aside, for the sake of one large request."""
    monkeypatch.setattr("serving.router.exchange.trial.BYTES_LIMIT", 1000)
    monkeypatch.setattr("serving.router.exchange.trial.SMALL", 100)
    router, large = aside(), {"x": "y" * 1000}
    _, first = drawn(router, 1, large)
    _, second = drawn(router, 2, large, now_s=11.0 + 10 * TRY_S)
    _, small = drawn(router, 3, now_s=11.0 + 10 * TRY_S)
    assert first is not None
    first.on_failed("timeout")
    _, third = drawn(router, 4, large, now_s=11.0 + 20 * TRY_S)

    assert first is second
    assert len({id(first), id(small), id(third)}) == 3
    assert small is not None
    assert router.trials.bytes == len(small.attempt.body) + len(first.attempt.body)


def test_a_trial_that_is_silent_until_the_record_is_due_has_failed() -> None:
    router = aside()
    ended, trial = drawn(router, 1)
    drawn(router, 2)  # still under way at stable
    assert trial is not None
    answered(ended)
    due_s = 11.0 + router.limits.settle_s
    records = taken(router, now_s=due_s)
    trial.on_failed("timeout")

    assert trial.attempt.first_byte_s == router.limits.settle_s
    assert [(one.outcome, one.error, one.cause) for one in records] == [
        ("fallback", True, "silent"),
        ("open", True, "silent"),
    ]
    assert taken(router, now_s=due_s + 1.0) == []


def test_what_waits_for_a_trial_holds_no_body() -> None:
    router = aside()
    exchange, _ = drawn(router, 1, {"x": "y" * 1000})
    answered(exchange)
    (pending,) = router._unrecorded.values()
    assert isinstance(pending, PendingRecord)
    pending.record_open()
    (one,) = taken(router)

    assert pending.start.request.body == b""
    assert one.body_bytes == len(exchange.start.request.body) > 1000


def test_a_client_that_leaves_before_the_trial_ends_is_no_error() -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    attempt(exchange)
    exchange.cancelled(now_s=11.5)
    trial.on_failed("timeout")
    (one,) = taken(router)

    assert (one.outcome, one.error) == ("cancelled", None)


def test_a_trial_that_the_router_itself_ends_is_not_charged() -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    answered(exchange)
    trial.stop()
    trial.on_failed("reset")
    (one,) = taken(router)

    assert (one.outcome, one.error) == ("fenced", False)
    assert router.health is not None
    assert router.health.is_aside(URL)


def test_a_router_that_stops_records_what_waits_for_a_trial_and_charges_nobody() -> None:
    sound: list[Piece] = [(0.01, head(200, "application/json", length=len(ANSWER)) + ANSWER)]

    async def go() -> list[RequestRecord]:
        limits = replace(LIMITS, canary_whole_s=1.0)
        canary: dict[str, Any] = {"canary": lambda path, body: (), "failures": 1, "external": True}
        made = await wire(lambda path, body: sound if path else (), weight_bp=9999, limits=limits, **canary)
        for user in ("first", "second"):
            made.send("/v1/chat/completions", {"messages": [], "user": user}, more=b"connection: close\r\n")
            await asyncio.sleep(1.5 if user == "first" else 0.5)
        records = await made.records()
        await made.front.stop(drain_s=0.2)
        return records + await made.records()

    with virtual_time() as loop:
        charged, waiting = loop.run_until_complete(go())

    assert (charged.outcome, charged.error, charged.cause) == ("fallback", True, "timeout")
    assert (waiting.arm, waiting.outcome, waiting.error, waiting.cause) == (CANARY, "fenced", False, None)


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"background": True}, "/v1/responses"),
        ({"tools": [{"type": "mcp", "server_url": "m"}]}, "/v1/responses"),
        ({"store": True}, "/v1/responses"),
        ({"store": True}, "/v1/chat/completions"),
    ],
)
def test_what_may_be_sent_but_once_is_not_drawn_while_the_canary_is_aside(
    more: dict[str, object], path: str
) -> None:
    """A copy of what lets its server run tools sent a mail twice."""
    router = aside()
    exchange, trial = drawn(router, 1, {**more, "input": "a"}, path=path)

    assert trial is None
    assert (exchange.start.assignment.arm, exchange.start.assignment.assigned_by) == (STABLE, "no-capacity")


@pytest.mark.parametrize("more", [{"store": False}, {"store": None}, {}])
def test_what_is_not_asked_to_be_stored_is_tried_at_the_canary(more: dict[str, object]) -> None:
    exchange, trial = drawn(aside(), 1, {**more, "input": "a"}, path="/v1/responses")

    assert trial is not None
    assert exchange.start.assignment.assigned_by == "request"


def test_a_stable_that_fails_as_well_leaves_the_canary_charged_once() -> None:
    router = aside()
    exchange, trial = drawn(router, 1)
    assert trial is not None
    trial.on_failed("refused")
    attempt(exchange)
    exchange.broken("refused", now_s=11.0)
    refusal = exchange.next_attempt()
    assert isinstance(refusal, Refusal | Deliver)
    assert isinstance(refusal, Refusal)
    exchange.refused(refusal, now_s=11.0)
    (one,) = taken(router)

    assert (one.arm, one.outcome, one.error, one.cause) == (CANARY, "failed", True, "refused")
