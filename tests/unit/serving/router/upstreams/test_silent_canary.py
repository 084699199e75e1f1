"""A canary that takes requests and says nothing: the operator is told before its time-out, at 300 s, ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.router.exchange.exchange import Exchange
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.upstreams.health import TELL_S, UpstreamHealth
from tests.fakes.router_rig import NoBackground
from tests.unit.serving.router.exchange.test_exchange import attempt, begin
from tests.unit.serving.router.test_metrics import read, value
from tests.unit.serving.router.upstreams.test_upstream_health import URL, answer, routed


@pytest.fixture
def made() -> tuple[RouterCore, UpstreamHealth]:
    return routed()


def waiting(router: RouterCore, count: int) -> list[Exchange]:
    """Requests that were sent to the canary at 10.1 s."""
    exchanges = [
        router.begin(begin(router).start.request, request_id=f"r-{n}", now_s=10.1, wall_s=500.0)
        for n in range(count)
    ]
    assert all(isinstance(one, Exchange) and attempt(one) for one in exchanges)
    return [one for one in exchanges if isinstance(one, Exchange)]


def lines(router: RouterCore, health: UpstreamHealth, now_s: float) -> Iterator[str]:
    return (line for _, line in health.tick(now_s, router.table))


TOLD = (
    f"upstream is silent: chat canary {URL}: 3 requests in a row had no word of it for 30 s or more; "
    "who waits gets stable's answer when its time is over"
)


def test_requests_that_are_open_at_60_s_are_told_and_set_nobody_aside(
    made: tuple[RouterCore, UpstreamHealth],
) -> None:
    router, health = made
    waiting(router, 3)
    before = list(lines(router, health, 120.0))
    router.report(now_s=70.2, wall_s=560.0)

    assert before == []
    assert list(lines(router, health, 170.0)) == [TOLD]
    assert list(lines(router, health, 171.0)) == []
    assert not health.is_aside(URL)


def test_clients_that_leave_after_half_a_minute_of_silence_count_as_well(
    made: tuple[RouterCore, UpstreamHealth],
) -> None:
    """Their requests never reach a time-out: nobody was ever told."""
    router, health = made
    for one, after_s in zip(waiting(router, 4), (29.0, 30.0, 31.0, 45.0), strict=True):
        one.cancelled(now_s=10.1 + after_s)

    assert list(lines(router, health, 170.0)) == [TOLD]


@pytest.mark.parametrize("count", [2, 5])
def test_one_answer_among_them_says_that_it_does_not_hang(
    made: tuple[RouterCore, UpstreamHealth], count: int
) -> None:
    router, health = made
    for one in waiting(router, count):
        one.cancelled(now_s=50.0)
        if count > 2:
            answer(waiting(router, 1)[0])

    assert list(lines(router, health, 170.0)) == []


def test_an_answer_after_the_line_ends_it(made: tuple[RouterCore, UpstreamHealth]) -> None:
    router, health = made
    for one in waiting(router, 3):
        one.cancelled(now_s=50.0)
    told = list(lines(router, health, 170.0))
    answer(waiting(router, 1)[0])

    assert told == [TOLD]
    assert list(lines(router, health, 172.0)) == [f"upstream is silent no more: chat canary {URL} after 2 s"]
    assert list(lines(router, health, 173.0)) == []


def test_it_is_told_again_each_minute_while_it_goes_on(made: tuple[RouterCore, UpstreamHealth]) -> None:
    router, health = made
    for one in waiting(router, 3):
        one.cancelled(now_s=50.0)
    told = list(lines(router, health, 170.0))
    waiting(router, 1)[0].cancelled(now_s=50.0)

    assert len(told) == 1
    assert list(lines(router, health, 170.0 + TELL_S - 1)) == []
    assert list(lines(router, health, 170.0 + TELL_S)) == [TOLD.replace("3 requests", "4 requests")]
    assert list(lines(router, health, 171.0 + 2 * TELL_S)) == []  # none more came


def test_the_metrics_say_so(made: tuple[RouterCore, UpstreamHealth]) -> None:
    router, health = made
    for one in waiting(router, 2):
        one.cancelled(now_s=50.0)
    front = WireFront(router, NoBackground())
    silent = value(read(front), "canaryctl_router_canary_silent_requests", service="chat")
    for _ in range(3):
        health.failed(1, URL, "timeout")
        health.unanswered(URL)

    assert silent == 2.0
    assert value(read(front), "canaryctl_router_canary_set_aside", service="chat") == 1.0
