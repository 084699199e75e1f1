"""Upstreams of a table file that fail: set aside, tried again, told by the log."""

from __future__ import annotations

from dataclasses import replace
from ssl import SSLCertVerificationError

import pytest

from serving.messages import CANARY, STABLE, RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Attempt, Failure, Refusal, Step
from serving.router.upstreams.health import QUIET_S, TELL_S, UpstreamHealth
from serving.router.upstreams.reachability import Reachability
from tests.unit.serving.router.exchange.test_exchange import SSE, attempt, begin, core, request, table

URL = "http://canary"
JSON = [(b"content-type", b"application/json")]
ANSWER = b'{"id":"a","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'


def routed(now_s: float = 100.0, failures: int = 3) -> tuple[RouterCore, UpstreamHealth]:
    one = table()
    assert one.canary is not None
    router = core(replace(one, canary=replace(one.canary, external=True)))
    router._lease_until_s = 1e9
    router.health = health = UpstreamHealth("chat", failures=failures)
    list(health.tick(now_s, router.table))
    return router, health


def ask(router: RouterCore, why: Failure | None) -> list[int]:
    """The arms that were asked, when each attempt at the canary ends so; None: it answers."""
    exchange = begin(router)
    trial = exchange.begin_trial(11.0)
    if trial is not None:
        trial.stop() if why is None else trial.on_failed(why)
    arms = []
    while True:
        one = attempt(exchange)
        arms.append(one.arm)
        if one.arm == STABLE or why is None:
            break
        assert exchange.broken(why, now_s=11.0) is Step.AGAIN
    answer(exchange)
    return arms


def answer(exchange: Exchange) -> None:
    exchange.answered(200, JSON)
    exchange.received(ANSWER, now_s=11.0)
    exchange.ended(now_s=11.0)


def records_of(router: RouterCore) -> list[RequestRecord]:
    router.on_table(None, sent_s=20.0)
    records = router.outbox.next_batch(now_s=600.0).records
    router.outbox.acknowledge()
    return list(records)


@pytest.mark.parametrize("why", ["reset", "timeout"])
def test_requests_that_stable_does_not_answer_either_set_nobody_aside(why: Failure) -> None:
    """One client whose request broke the connection of any engine kept all others from the canary."""
    router, _ = routed()
    for _ in range(5):
        exchange = begin(router)
        while isinstance(exchange.next_attempt(11.0), Attempt):
            exchange.broken(why, now_s=11.0)

    assert ask(router, None) == [CANARY]


@pytest.mark.parametrize("why", ["refused", "timeout"])
def test_a_canary_without_an_answer_three_times_in_a_row_is_set_aside(why: Failure) -> None:
    router, _ = routed()
    asked = [ask(router, why) for _ in range(5)]
    records = records_of(router)

    assert asked == [[CANARY, STABLE]] * 3 + [[STABLE]] * 2
    assert [(one.arm, one.outcome, one.error, one.cause) for one in records] == [
        (CANARY, "fallback", True, why)
    ] * 5
    assert {tuple((of.arm, of.cause) for of in one.attempts) for one in records} == {
        ((CANARY, why), (STABLE, None))
    }


def test_a_request_is_counted_once_with_its_repetition() -> None:
    router, _ = routed()

    # A reset is repeated once on the same address: three requests, not two, set it aside.
    assert [ask(router, "reset") for _ in range(4)] == [[CANARY, CANARY, STABLE]] * 3 + [[STABLE]]


def test_a_request_whose_repetition_is_answered_had_an_answer() -> None:
    router, health = routed()
    for _ in range(9):
        exchange = begin(router)
        attempt(exchange)
        exchange.broken("reset", now_s=11.0)
        assert attempt(exchange).arm == CANARY
        answer(exchange)

    assert not health.is_aside(URL)


@pytest.mark.parametrize("cause", ["status 500", "cut"])
def test_an_upstream_that_answers_is_not_set_aside(cause: str) -> None:
    health = UpstreamHealth("chat")
    for _ in range(20):
        health.failed(CANARY, URL, "reset")
        health.unanswered(URL)
        health.failed(CANARY, URL, cause)

    assert not health.is_aside(URL)


def test_stable_is_never_set_aside() -> None:
    router, health = routed()
    router.on_table(table(weight_bp=0, canary=None, change=2), sent_s=11.0)
    for _ in range(5):
        exchange = begin(router)
        while isinstance(exchange.next_attempt(), Attempt):
            exchange.broken("refused", now_s=11.0)

    assert attempt(begin(router)).arm == STABLE
    (line,) = [text for _, text in health.tick(101.0, router.table)]
    assert line == "upstream fails: chat stable http://stable: no connection; nobody stands behind it"


@pytest.mark.parametrize(("status", "fails"), [(501, False), (500, True)])
def test_a_route_that_stable_does_not_have_is_no_failure_of_it(status: int, fails: bool) -> None:
    """One GET of /v1/models made the log say that stable fails, for 10 s, while it answered all else."""
    router, health = routed()
    router.on_table(table(weight_bp=0, canary=None, change=2), sent_s=11.0)
    exchange = begin(router)
    assert isinstance(exchange.next_attempt(), Attempt)
    exchange.answered(status, JSON)

    assert bool(list(health.tick(101.0, router.table))) is fails


def test_zero_failures_set_nothing_aside() -> None:
    router, _ = routed(failures=0)

    assert [ask(router, "refused") for _ in range(9)] == [[CANARY, STABLE]] * 9


def test_the_log_says_when_an_upstream_begins_and_ends_to_fail() -> None:
    router, health = routed()
    for _ in range(4):
        ask(router, "refused")
    lines = [[text for _, text in health.tick(100.0 + wait_s, router.table)] for wait_s in (0.25, 0.5, 0.75)]
    quiet = list(health.tick(101.0 + TELL_S, router.table))
    health.failed(CANARY, URL, "refused")  # of an earlier request
    later = [text for _, text in health.tick(101.0 + TELL_S, router.table)]
    ask(router, None)
    health.answered(CANARY, URL)
    ends = [text for _, text in health.tick(102.0 + TELL_S + QUIET_S, router.table)]

    assert lines[0] == [f"upstream fails: chat canary {URL}: no connection; stable is asked instead"]
    assert lines[1][0].startswith(
        f"upstream set aside: chat canary {URL}: 3 requests in a row had no answer (no c"
    )
    assert (lines[2], quiet) == ([], [])
    assert later[0].endswith("no connection; in 61 s 5 failed attempts, 4 requests went to stable")
    assert ends == [
        f"upstream answers again: chat canary {URL} after 61 s: 5 failed attempts, 5 requests went to stable"
    ]


def test_a_key_that_is_refused_or_unreadable_is_told_with_its_file() -> None:
    from serving.credentials import KeyReference

    router, health = routed()
    assert router.table is not None
    assert router.table.canary is not None
    canary = replace(router.table.canary, api_key=KeyReference("file", "/no/such/key"))
    keyed = replace(router.table, canary=canary, change=2)
    health.failed(CANARY, URL, "refused")
    (missing,) = [text for _, text in health.tick(100.0, keyed)]
    health = UpstreamHealth("chat")
    health.failed(CANARY, URL, "key refused")
    (refused,) = [text for _, text in health.tick(100.0, keyed)]

    assert f"chat canary {URL}: api_key_file /no/such/key: No such file or directory; name a" in missing
    assert (
        "it refuses our API key; correct the key, which is read again for each request (api_key_f" in refused
    )


def test_a_canary_that_answers_404_to_all_is_told_with_the_requests_that_stable_took() -> None:
    router, health = routed()
    for _ in range(3):
        exchange = begin(router)
        attempt(exchange)
        assert exchange.answered(404, JSON) is Step.AGAIN
        attempt(exchange)
        answer(exchange)
    began = [text for _, text in health.tick(100.0, router.table)]
    ask(router, None)
    health.answered(CANARY, URL)
    ended = [text for _, text in health.tick(100.0 + QUIET_S, router.table)]

    assert began == [f"upstream fails: chat canary {URL}: status 404; stable is asked instead"]
    assert ended[0].endswith("after 0 s: 3 failed attempts, 3 requests went to stable")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SSLCertVerificationError(1, "it has expired"), "its certificate is not valid (it has expired);"),
        (ConnectionRefusedError(111, "x"), "connection refused;"),
    ],
)
def test_the_log_has_the_reason_and_what_else_the_error_says(error: OSError, said: str) -> None:
    router, health = routed()
    reachability = Reachability()
    reachability.failed(URL, error, now_s=11.0)
    ask(router, "refused")
    ((_, line),) = health.tick(100.0, router.table, reachability.reasons)

    assert line.startswith(f"upstream fails: chat canary {URL}: {said}")


ROLE = b'data: {"id":"a","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
WORD = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'


def fail_after(router: RouterCore, said: bytes, why: Failure) -> None:
    """A stream whose canary writes the head and this, and then fails so; stable answers if it is asked."""
    exchange = begin(router, request({"stream": True}))
    while attempt(exchange).arm == CANARY:
        exchange.answered(200, SSE)
        exchange.received(said, now_s=11.0)
        if exchange.broken(why, now_s=11.0) is not Step.AGAIN:
            return
    answer(exchange)


@pytest.mark.parametrize("why", ["timeout", "cut"])
@pytest.mark.parametrize("said", [b"", b": ping\n\n", ROLE], ids=["head", "comment", "role"])
def test_a_head_alone_is_no_answer(why: Failure, said: bytes) -> None:
    """The front of an engine that hangs still writes it: such a canary was never set aside."""
    router, health = routed()
    for _ in range(3):
        fail_after(router, said, why)

    assert health.is_aside(URL)


def test_what_breaks_off_after_a_content_is_an_answer() -> None:
    router, health = routed()
    for _ in range(5):
        fail_after(router, WORD, "cut")

    assert not health.is_aside(URL)


def test_a_stream_that_stable_does_not_begin_either_sets_nobody_aside() -> None:
    router, health = routed()
    for _ in range(5):
        exchange = begin(router, request({"stream": True}))
        while isinstance(exchange.next_attempt(11.0), Attempt):
            exchange.answered(200, SSE)
            exchange.broken("timeout", now_s=11.0)

    assert not health.is_aside(URL)


def test_the_log_names_stable_only_where_stable_was_asked() -> None:
    """What a canary may have created is not asked for again, nor can each broken stream be continued."""
    router, health = routed()
    creating = begin(router, request({"background": True}, path="/v1/responses"))
    attempt(creating)
    assert creating.broken("reset", now_s=11.0) is Step.AGAIN
    assert isinstance(creating.next_attempt(11.0), Refusal)
    created = [text for _, text in health.tick(101.0, router.table)]
    router, health = routed()
    fail_after(router, WORD, "cut")
    cut = [text for _, text in health.tick(101.0, router.table)]

    assert created == [
        f"upstream fails: chat canary {URL}: the connection broke before an answer; "
        "no request of it went to stable"
    ]
    assert cut == [f"upstream fails: chat canary {URL}: an answer broke off; no request of it went to stable"]
