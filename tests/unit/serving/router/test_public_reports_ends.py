"""Reports of other projects: what ends an answer, and what only looks so (tests/public_reports.md)."""

from __future__ import annotations

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.types import Deliver, Step
from tests.unit.serving.router.exchange.test_exchange import SSE as EVENTS
from tests.unit.serving.router.exchange.test_exchange import begin, core, record, request, table
from tests.unit.serving.router.test_public_reports_content import (
    CHAT,
    DONE,
    JSON,
    MESSAGES,
    SSE,
    chunk,
    event,
    scanned,
)

# ---- a finish reason that is none


def text(finish: object) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "text": "a", "finish_reason": finish}]})


STOPPED = event({"type": "message_delta", "delta": {"stop_reason": "None"}})
MESSAGE = event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}) + STOPPED


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chunk("a", "null") + chunk("b", "null")),
        (CHAT, chunk("a", "None") + chunk("b", " NULL ") + DONE),
        ("/v1/completions", text("null") + DONE),
        (MESSAGES, MESSAGE),
    ],
)
def test_null_as_a_text_is_no_finish_reason(path: str, body: bytes) -> None:
    one = scanned(body, SSE, path=path)

    assert (one.fault, one.finish_reason) == ("cut", None)


def test_a_whole_answer_may_say_null_as_a_text() -> None:
    body = b'{"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "null"}], "usage": null}'
    one = scanned(body, JSON)

    assert (one.fault, one.finish_reason) == (None, None)


# ---- a choice that speaks after its finish

LONG = [chunk("a" * 5000, "stop"), *(chunk("b") for _ in range(4))]
EARLY = {
    "on each event": [chunk(one, "stop") for one in "abc"],
    "on the first alone": [chunk("a", "stop"), chunk("b"), chunk("c")],
    "after a known shape": [chunk("a"), chunk("b"), chunk("", "stop"), chunk("c")],
    "of long events": LONG,
    "a tool": [chunk(None, "stop"), chunk(None, delta={"tool_calls": [{"function": {"arguments": "{"}}]})],
    "reasoning": [chunk("a", "stop"), chunk(None, delta={"reasoning_content": "hm"})],
}


def is_whole(body: bytes, *, step: int, ends: bool) -> bool:
    one = AnswerScan(CHAT, SSE)
    for at in range(0, len(body), step):
        one.feed(body[at : at + step])
    if ends:
        one.end()
    return one.is_whole


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("name", list(EARLY))
def test_a_choice_that_speaks_after_its_finish_has_not_finished(name: str, step: int) -> None:
    body = b"".join(EARLY[name])

    assert not is_whole(body, step=step, ends=False)
    assert is_whole(body + DONE, step=step, ends=False)
    assert is_whole(body, step=step, ends=True)


@pytest.mark.parametrize(
    "last",
    [
        chunk("", "stop"),
        chunk(None, delta={"role": "assistant", "content": ""}),
        event({"id": "c", "choices": [], "usage": {"prompt_tokens": 1}}),
    ],
)
def test_what_says_nothing_after_a_finish_leaves_it_one(last: bytes) -> None:
    assert is_whole(chunk("a") + chunk("b", "stop") + last, step=10_000, ends=False)


@pytest.mark.parametrize("name", list(EARLY))
@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_the_router_ends_no_stream_whose_connection_broke_in_mid_answer(name: str, weight_bp: int) -> None:
    """Clients raised on this without the router: its [DONE] would make a part of an answer a whole one."""
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, EVENTS)
    for one in EARLY[name]:
        exchange.received(one, now_s=10.2)
    last = exchange.broken("cut", now_s=10.3)

    assert isinstance(last, Deliver)
    assert (b"[DONE]" in last.data, b'"code": "cut"' in last.data) == (False, True)
    assert (record(router).outcome, record(router).error) == ("cut", True)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_a_stream_that_says_stop_on_each_event_is_whole_with_its_done(weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, EVENTS)
    for one in [*EARLY["on each event"], DONE]:
        exchange.received(one, now_s=10.2)
    last = exchange.broken("cut", now_s=10.3)

    assert last == Deliver(None, b"", "end")
    assert (record(router).outcome, record(router).error) == ("answered", False)


def test_a_held_stream_of_the_canary_that_broke_so_is_replaced() -> None:
    exchange = begin(core(table(weight_bp=9_999)), request({"stream": True}))
    exchange.next_attempt()
    exchange.answered(200, EVENTS)
    for one in EARLY["on each event"]:
        exchange.received(one, now_s=10.2)

    assert exchange.broken("cut", now_s=10.3) is Step.AGAIN


# ---- two choices


USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
REPEATED = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **USAGE})
ONE = {"index": 1}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (chunk("", "stop") * 2 + chunk("y", **ONE), "cut"),  # said twice, and the other goes on
        (chunk("", "stop") + chunk("y", **ONE) + REPEATED, "cut"),  # the second brings the usage
        (chunk("", "stop") + chunk("y", "stop", **ONE) + REPEATED, None),
        (chunk("", "stop") + chunk("y", **ONE) + chunk("", "stop"), None),  # every choice finishes as 0
        (chunk("a", "stop") + chunk("b") + REPEATED, None),  # every choice is 0
    ],
)
def test_a_finish_that_is_said_twice_is_none_of_the_other_choice(body: bytes, fault: str | None) -> None:
    assert scanned(chunk("x") + body + DONE, SSE, choices=2).fault == fault
