"""The budget of bytes that a router holds back of all answers: beyond it answers stream, and none fails."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from serving.messages import RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.held import FREE, HeldBytes
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.types import Deliver, Refusal, Request, Step
from serving.targets import Target
from tests.fakes.router_rig import CHAT as RIG_CHAT
from tests.fakes.router_rig import NoBackground, router_rig, until
from tests.unit.serving.router.exchange.test_exchange import core
from tests.unit.serving.router.exchange.test_exchange import table as route_table
from tests.unit.serving.router.exchange.test_late_commit import CHAT, DONE, EVENT, FINISH, JSON, SSE, TOOLS

BIG = EVENT.replace(b'"x"', b'"' + b"x" * 30_000 + b'"')
ROLE = b'data: {"id":"a1","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
WEIGHT_BP = 9999


@pytest.fixture
def router() -> RouterCore:
    one = core(route_table(weight_bp=WEIGHT_BP))
    one.held = HeldBytes(limit=50_000)
    return one


def ask(router: RouterCore, number: int, headers: list[tuple[bytes, bytes]] = SSE) -> Exchange:
    """A request with tools, which stable could not continue, answered by the canary."""
    body = {"model": "chat", "messages": [], "stream": headers is SSE, "user": f"u{number}", **TOOLS}
    request = Request("POST", Target(CHAT), (), json.dumps(body).encode())
    exchange = router.begin(request, request_id=f"req-{number}", now_s=10.1, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    exchange.next_attempt()
    exchange.answered(200, headers)
    return exchange


def records(router: RouterCore) -> dict[str, RequestRecord]:
    router.on_table(None, sent_s=20.0)
    return {one.request_id: one for one in router.outbox.next_batch(now_s=600.0).records}


def test_the_answer_that_exceeds_the_budget_streams_whole_and_is_not_covered(router: RouterCore) -> None:
    first, second = ask(router, 1), ask(router, 2)
    held = first.received(BIG, now_s=10.2)
    passed = [second.received(part, now_s=10.3) for part in (BIG, BIG, FINISH + DONE)]
    last = [first.received(FINISH + DONE, now_s=10.4), first.ended(now_s=10.4), second.ended(now_s=10.4)]
    found = records(router)

    assert held is Step.HOLD
    assert b"".join(one.data for one in passed if isinstance(one, Deliver)) == BIG + BIG + FINISH + DONE
    assert isinstance(last[0], Deliver)
    assert last[0].data == BIG + FINISH + DONE
    assert [found[name].covered for name in ("req-1", "req-2")] == [True, False]
    assert {one.outcome for one in found.values()} == {"answered"}
    assert router.held.total == 0


def test_when_the_budget_is_spent_the_next_answer_is_not_held_at_all(router: RouterCore) -> None:
    router.held.total = router.held.limit
    exchange = ask(router, 1)
    actions = [exchange.received(part, now_s=10.2) for part in (ROLE, EVENT, FINISH + DONE)]
    exchange.ended(now_s=10.3)

    assert actions[0] is Step.HOLD  # a role commits nobody to this answer
    assert actions[1] == Deliver(actions[1].head, ROLE + EVENT)  # type: ignore[union-attr]
    assert records(router)["req-1"].covered is False


def test_what_comes_before_the_first_content_is_held_also_when_the_budget_is_spent(
    router: RouterCore,
) -> None:
    router.held.total = router.held.limit
    exchange = ask(router, 1)
    exchange.received(ROLE, now_s=10.2)

    assert exchange.broken("cut", now_s=10.3) is Step.AGAIN
    assert router.held.total == router.held.limit


def test_a_whole_answer_beyond_the_budget_is_passed_on_byte_for_byte(router: RouterCore) -> None:
    router.held.total = router.held.limit
    body = json.dumps({"choices": [{"message": {"content": "x" * 40_000}, "finish_reason": "stop"}]}).encode()
    exchange = ask(router, 1, JSON)
    parts = [body[:FREE], body[FREE:30_000], body[30_000:]]
    actions = [*(exchange.received(part, now_s=10.2) for part in parts), exchange.ended(now_s=10.3)]

    assert actions[0] is Step.HOLD
    assert b"".join(one.data for one in actions if isinstance(one, Deliver)) == body
    assert records(router)["req-1"].outcome == "answered"


@pytest.mark.parametrize("how", ["ended", "broken", "error", "cancelled", "refused", "continued"])
def test_whatever_ends_a_request_gives_its_bytes_back(router: RouterCore, how: str) -> None:
    exchange = ask(router, 1)
    exchange.received(BIG, now_s=10.2)
    held = router.held.total
    if how == "ended":
        exchange.received(FINISH + DONE, now_s=10.3)
        exchange.ended(now_s=10.3)
    elif how == "broken":
        exchange.broken("cut", now_s=10.3)
    elif how == "error":
        exchange.received(b'data: {"error":{"message":"dead","code":500}}\n\n', now_s=10.3)
    elif how == "cancelled":
        exchange.cancelled(now_s=10.3)
    elif how == "refused":
        exchange.refused(Refusal(500, "internal", "x"), now_s=10.3)
    else:
        exchange.received(BIG * 2, now_s=10.3)  # beyond the budget

    assert (held, router.held.total) == (len(BIG), 0)


async def test_services_of_one_port_share_one_budget_and_drawing_stops_at_half_of_it() -> None:
    cores = [RouterCore(name, router="r") for name in ("chat", "code")]
    front = WireFront(cores, NoBackground())

    def overloaded(total: int) -> list[bool]:
        front.held.total = total
        front._sweep()
        return [one.assigner.is_overloaded for one in cores]

    assert {id(one.held) for one in cores} == {id(front.held)}
    assert overloaded(front.held.limit // 2 + 1) == [True, True]
    assert overloaded(front.held.limit // 2) == [False, False]


@pytest.mark.slow
async def test_a_client_that_leaves_gives_back_what_was_held_for_it() -> None:
    async with router_rig() as rig:
        rig.publish(weight_bp=WEIGHT_BP, change=2)
        is_over = asyncio.Event()

        async def wait(request: web.Request) -> web.StreamResponse:
            response = await rig.canary.stream(request, [BIG])
            await is_over.wait()
            return response

        rig.canary.behave = wait
        asking = asyncio.create_task(rig.client.post(RIG_CHAT, json={"stream": True, **TOOLS, "user": "a"}))
        await until(lambda: rig.core.held.total >= len(BIG))
        asking.cancel()
        await until(lambda: rig.core.held.total == 0)
        is_over.set()
