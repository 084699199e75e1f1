"""Upstreams of a table file that fail: set aside, tried again, told by the log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import CANARY, STABLE, RequestRecord
from serving.router.exchange import Exchange
from serving.router.health import FIRST_S, LONGEST_S, QUIET_S, TELL_S, UpstreamHealth
from serving.router.router import RouterCore
from serving.router.types import Attempt, Failure, Step
from tests.unit.serving.router.test_exchange import attempt, begin, core, table

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


def last_record(router: RouterCore) -> RequestRecord:
    router.on_table(None, sent_s=20.0)
    records = router.outbox.next_batch(now_s=600.0).records
    router.outbox.acknowledge()
    return records[-1]


@pytest.mark.parametrize("why", ["refused", "timeout"])
def test_a_canary_without_an_answer_three_times_in_a_row_is_set_aside(why: Failure) -> None:
    router, _ = routed()
    asked = [ask(router, why) for _ in range(5)]
    record = last_record(router)

    assert asked == [[CANARY, STABLE]] * 3 + [[STABLE]] * 2
    assert (record.arm, record.served_arm, record.error, record.cause) == (CANARY, STABLE, True, "set aside")
    assert record.outcome == "fallback"


def test_one_request_tries_it_again_and_an_answer_brings_it_back() -> None:
    router, health = routed()
    for _ in range(3):
        ask(router, "refused")
    list(health.tick(100.0 + FIRST_S, router.table))
    probe = attempt(begin(router))  # its answer takes a while
    meanwhile = ask(router, None)
    other = begin(router)
    list(health.tick(100.0 + 2 * FIRST_S, router.table))
    late = attempt(other)
    answer(other)

    assert (probe.arm, meanwhile, late.arm) == (CANARY, [STABLE], CANARY)
    assert ask(router, None) == [CANARY]


def test_it_is_set_aside_for_longer_each_time() -> None:
    health = UpstreamHealth("chat")
    now_s, pauses = 100.0, []
    list(health.tick(now_s, None))
    for _ in range(6):
        while not health.is_aside(URL):
            health.failed(CANARY, URL, "timeout")
        began_s = now_s
        while health.is_aside(URL):
            now_s += 0.25
            list(health.tick(now_s, None))
        pauses.append(now_s - began_s)
        health.failed(CANARY, URL, "timeout")

    assert pauses == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S, LONGEST_S, LONGEST_S]


def test_late_failures_of_earlier_requests_do_not_lengthen_it() -> None:
    health = UpstreamHealth("chat")
    for _ in range(20):
        health.failed(CANARY, URL, "timeout")
    list(health.tick(FIRST_S, None))

    assert not health.is_aside(URL)


@pytest.mark.parametrize("cause", ["status 500", "cut"])
def test_an_upstream_that_answers_is_not_set_aside(cause: str) -> None:
    health = UpstreamHealth("chat")
    for _ in range(20):
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


def test_zero_failures_set_nothing_aside() -> None:
    router, _ = routed(failures=0)

    assert [ask(router, "refused") for _ in range(9)] == [[CANARY, STABLE]] * 9


def test_the_log_says_when_an_upstream_begins_and_ends_to_fail() -> None:
    router, health = routed()
    for _ in range(4):
        ask(router, "refused")
    lines = [[text for _, text in health.tick(100.0 + wait_s, router.table)] for wait_s in (0.25, 0.5, 0.75)]
    quiet = list(health.tick(101.0 + TELL_S, router.table))
    health.failed(CANARY, URL, "refused")  # of the request that tries it again
    later = [text for _, text in health.tick(101.0 + TELL_S, router.table)]
    ask(router, None)
    health.answered(CANARY, URL)
    ends = [text for _, text in health.tick(102.0 + TELL_S + QUIET_S, router.table)]

    assert lines[0] == [f"upstream fails: chat canary {URL}: no connection; stable is asked instead"]
    assert lines[1][0].startswith(f"upstream set aside: chat canary {URL}: 3 requests in a row had no answer")
    assert (lines[2], quiet) == ([], [])
    assert later[0].endswith("no connection; in 61 s 4 failed attempts, 4 requests went to stable")
    assert ends == [
        f"upstream answers again: chat canary {URL} after 72 s: 4 failed attempts, 4 requests went to stable"
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
    assert ended[0].endswith("after 10 s: 3 failed attempts, 3 requests went to stable")
