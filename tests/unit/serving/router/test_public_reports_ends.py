"""Reports of other projects: what ends an answer, and what only looks so (tests/public_reports.md)."""

from __future__ import annotations

import httpx
import pytest

from serving.messages import RequestRecord
from serving.router.answers.answer_scan import AnswerScan
from serving.router.types import Deliver, Step
from tests.fakes.router_rig import router_rig
from tests.unit.serving.router.exchange.test_exchange import SSE as EVENTS
from tests.unit.serving.router.exchange.test_exchange import begin, core, record, request, table
from tests.unit.serving.router.test_public_reports_content import (
    CHAT,
    DONE,
    JSON,
    MESSAGES,
    RESPONSES,
    SSE,
    WHOLE,
    answers,
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
        (CHAT, chunk("a", "None") + chunk("b", "NULL") + DONE),
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


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (chunk("", "stop") * 2 + chunk("y", index=1), "cut"),  # said twice, and the other goes on
        (chunk("", "stop") + chunk("y", index=1) + REPEATED, "cut"),  # the second brings the usage
        (chunk("", "stop") + chunk("y", "stop", index=1) + REPEATED, None),
        (chunk("", "stop") + chunk("y", index=1) + chunk("", "stop"), None),  # every choice finishes as 0
        (chunk("a", "stop") + chunk("b") + REPEATED, None),  # every choice is 0
    ],
)
def test_a_finish_that_is_said_twice_is_none_of_the_other_choice(body: bytes, fault: str | None) -> None:
    assert scanned(chunk("x") + body + DONE, SSE, choices=2).fault == fault


# ---- events where a whole answer was asked for


EVENTS_OF = {
    CHAT: chunk("hi") + chunk("", "stop") + DONE,
    "/v1/completions": text("stop") + DONE,
    MESSAGES: event({"type": "message_start", "message": {"id": "m"}})
    + event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}})
    + event({"type": "message_stop"}),
    RESPONSES: event({"type": "response.output_text.delta", "delta": "x"})
    + event({"type": "response.completed", "response": {"id": "r"}}),
}
FIRST = [b"", b": PROCESSING\n\n", b"\n"]


async def posted(
    path: str, body: bytes, asked: bytes, *, is_canary: bool, **headers: str
) -> tuple[httpx.Response, RequestRecord, int]:
    """The client's answer, the record, and how often both engines were asked; stable's is the usual whole one
    where the canary's is tried."""
    async with router_rig() as rig:
        rig.canary.behave = answers(body, SSE)
        rig.stable.behave = answers(WHOLE, JSON) if is_canary else answers(body, SSE)
        if not is_canary:
            rig.publish(change=2, canary=False)
        named = {"content-type": JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
        answer = await rig.client.post(f"/chat{path}", content=asked, headers=named)
        return answer, await rig.record(), len(rig.stable.seen) + len(rig.canary.seen)


@pytest.mark.parametrize("asked", [b"{}", b'{"stream": false}', b'{"stream": null}'])
@pytest.mark.parametrize("path", list(EVENTS_OF))
async def test_who_asked_for_a_whole_answer_gets_stables_where_the_canary_sends_events(
    path: str, asked: bytes
) -> None:
    """openai's client gives such an answer out as a text, on which `.choices` fails."""
    answer, one, _ = await posted(path, EVENTS_OF[path], asked, is_canary=True)

    assert answer.content == WHOLE
    assert (one.error, one.cause, one.outcome) == (True, "malformed", "fallback")


@pytest.mark.parametrize("first", FIRST)
async def test_a_comment_before_the_events_changes_nothing(first: bytes) -> None:
    answer, one, _ = await posted(CHAT, first + EVENTS_OF[CHAT], b"{}", is_canary=True)

    assert (answer.content, one.cause) == (WHOLE, "malformed")


@pytest.mark.parametrize("path", list(EVENTS_OF))
async def test_stables_events_are_passed_on_as_they_came_and_an_error(path: str) -> None:
    answer, one, count = await posted(path, EVENTS_OF[path], b"{}", is_canary=False)

    assert (answer.content, count) == (EVENTS_OF[path], 1)
    assert (one.error, one.cause, one.outcome) == (True, "malformed", "answered")


@pytest.mark.parametrize("is_canary", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "headers"),
    [
        (CHAT, b'{"stream": "true"}', {}),
        (CHAT, b'{"stream": 1}', {}),
        (CHAT, b"{}", {"accept": "application/json, text/event-stream"}),
        (f"{CHAT}?stream=true", b"{}", {}),
        (RESPONSES, b'{"background": true}', {}),
        ("/v1/audio/transcriptions", b"{}", {}),
    ],
)
async def test_events_are_right_where_they_may_have_been_asked_for(
    path: str, asked: bytes, headers: dict[str, str], is_canary: bool
) -> None:
    events = EVENTS_OF.get(path.partition("?")[0], EVENTS_OF[CHAT])
    answer, one, count = await posted(path, events, asked, is_canary=is_canary, **headers)

    assert (answer.content, count) == (events, 1)
    assert (one.error, one.outcome, one.served_arm) == (False, "answered", int(is_canary))


async def test_events_in_a_form_may_have_been_asked_for() -> None:
    form = b'--B\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n--B--\r\n'
    kind = {"content_type": "multipart/form-data; boundary=B"}
    answer, one, _ = await posted(CHAT, EVENTS_OF[CHAT], form, is_canary=True, **kind)

    assert (answer.content, one.error) == (EVENTS_OF[CHAT], False)
