"""What has come of an event, or of an answer, that is not whole counts in the budget of held bytes."""

from __future__ import annotations

import pytest

from serving.router.exchange.beside import Beside
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.held import FREE, HeldBytes
from serving.router.router import RouterCore
from serving.router.types import Deliver, Failure, Refusal
from serving.router.upstreams.engine_connection import Headers
from serving.router.upstreams.upstream import Call
from tests.unit.serving.router.exchange.test_exchange import begin, core, request, table
from tests.unit.serving.router.exchange.test_late_commit import CHAT, DONE, EVENT, FINISH, JSON, SSE

BIG = EVENT.replace(b'"x"', b'"' + b"x" * 30_000 + b'"')
PART = EVENT[:40] + b"x" * 20_000
REST = b'"},"finish_reason":null}]}\n\n'
LIMIT = 100_000


@pytest.fixture
def router() -> RouterCore:
    one = core(table(weight_bp=1))
    one.held = HeldBytes(limit=LIMIT)
    return one


def asked(router: RouterCore, headers: list[tuple[bytes, bytes]] = SSE) -> Exchange:
    exchange = begin(router, request({"messages": [], "stream": headers is SSE, "user": "u"}, path=CHAT))
    exchange.next_attempt()
    exchange.answered(200, headers)
    return exchange


def test_an_event_counts_until_it_is_whole(router: RouterCore) -> None:
    exchange = asked(router)
    totals = []
    for data in (EVENT, PART, b"x" * 100, REST + EVENT[:10], EVENT[10:] + FINISH + DONE):
        exchange.received(data, now_s=10.2)
        totals.append(router.held.total)
    exchange.ended(now_s=10.3)

    assert totals == [0, len(PART), len(PART) + 100, 10, 0]
    assert router.held.total == 0


def test_an_answer_that_is_no_stream_counts_as_often_as_it_is_kept(router: RouterCore) -> None:
    exchange = asked(router, JSON)
    exchange.received(b'{"choices": [' + b" " * 10_000, now_s=10.2)
    held = router.held.total
    exchange.ended(now_s=10.3)

    assert (held, router.held.total) == (2 * 10_013, 0)


@pytest.mark.parametrize("weight_bp", [1, 9999])
@pytest.mark.parametrize("how", ["ended", "cut", "cancelled", "refused"])
def test_whatever_ends_a_request_gives_them_back(how: str, weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = asked(router)
    exchange.received(EVENT + PART, now_s=10.2)
    counted = router.held.total
    if how == "ended":
        exchange.ended(now_s=10.3)
    elif how == "cut":
        exchange.broken("cut", now_s=10.3)
    elif how == "cancelled":
        exchange.cancelled(now_s=10.3)
    else:
        exchange.refused(Refusal(500, "internal", "x"), now_s=10.3)
    if not exchange.is_over:  # another engine is to continue it
        exchange.cancelled(now_s=10.4)

    assert (counted >= len(PART), router.held.total) == (True, 0)


def test_beyond_the_budget_an_event_is_passed_on_unread(router: RouterCore) -> None:
    exchange = asked(router)
    router.held.total = LIMIT
    read = [exchange.received(data, now_s=10.2) for data in (EVENT, PART, b"y" * 100, REST, FINISH + DONE)]
    read.append(exchange.ended(now_s=10.3))
    passed = [one.data if isinstance(one, Deliver) else None for one in read]

    assert len(PART) > FREE
    assert passed == [EVENT, PART, b"y" * 100, REST, FINISH + DONE, b""]
    assert router.held.total == LIMIT


def test_beyond_the_budget_a_small_part_of_an_event_is_read(router: RouterCore) -> None:
    exchange = asked(router)
    exchange.received(EVENT, now_s=10.2)
    router.held.total = LIMIT
    first = exchange.received(EVENT[:50], now_s=10.3)
    second = exchange.received(EVENT[50:] + FINISH + DONE, now_s=10.4)

    assert not isinstance(first, Deliver)
    assert isinstance(second, Deliver)
    assert exchange.seen.scan is not None
    assert exchange.seen.scan.is_finished


# ---- stable's answer beside a silent canary's, while the router is being stopped


class Taker:
    """Takes what was kept."""

    def __init__(self) -> None:
        self.read = b""

    def may_start(self) -> bool:
        return True

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_data(self, data: bytes) -> None:
        self.read += data

    def on_end(self) -> None: ...

    def on_silent(self) -> bool:
        return True

    def on_failed(self, why: Failure) -> None: ...

    def took(self, call: Call | None) -> None: ...


def beside(router: RouterCore) -> Beside:
    one = begin(router, request({"messages": [], "stream": True}, path=CHAT))
    kept = Beside(one.start, one.held, on_whole=lambda: None, on_failed=lambda: None)
    kept.on_head(200, SSE)
    return kept


@pytest.mark.parametrize("is_taken", [True, False])
def test_what_is_kept_beside_a_canary_counts_until_it_is_passed_on_or_given_up(
    router: RouterCore, is_taken: bool
) -> None:
    kept, taker = beside(router), Taker()
    kept.on_data(BIG[:10_000])
    before = router.held.total
    kept.on_data(BIG[10_000:] + FINISH + DONE)
    kept.on_end()
    held = router.held.total
    if is_taken:
        kept.pass_on(taker)
    else:
        kept.close()

    assert (before, held, router.held.total) == (20_000, len(BIG + FINISH + DONE), 0)
    assert taker.read == (BIG + FINISH + DONE if is_taken else b"")


def test_what_is_kept_beside_a_canary_is_given_up_beyond_the_budget(router: RouterCore) -> None:
    kept = beside(router)
    router.held.total = LIMIT
    kept.on_data(EVENT)
    before = kept.is_over
    kept.on_data(PART)

    assert (before, kept.is_over, router.held.total) == (False, True, LIMIT)
