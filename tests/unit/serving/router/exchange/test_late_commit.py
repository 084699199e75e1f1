"""Streams that cannot be continued are held back on the canary until their last event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from serving.messages import RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.outgoing import HOLD_LIMIT, KEEP_ALIVE
from serving.router.router import RouterCore
from serving.router.types import Attempt, Deliver, Head, Request, Step
from serving.targets import Target
from tests.properties.test_takeover import core

CHAT = "/v1/chat/completions"
SSE = [(b"content-type", b"text/event-stream"), (b"x-canaryctl-tokens", b"d1 40")]
PARSED = [SSE[0], (b"x-canaryctl-tokens", b"none")]
JSON = [(b"content-type", b"application/json")]
EVENT = b'data: {"id":"a1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"a1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
TOOLS = {"tools": [{"type": "function"}]}
ERROR = b'data: {"error":{"message":"dead","code":500}}\n\n'


def begin(
    fields: Mapping[str, object], *, path: str = CHAT, weight_bp: int = 9999, late_commit: str = "hold"
) -> tuple[RouterCore, Exchange]:
    router = core(weight_bp)
    assert router.table is not None
    changed = replace(router.table, late_commit=late_commit, change=2)  # type: ignore[arg-type]
    router.on_table(changed, sent_s=10.0)
    body = {"model": "chat", "messages": [], "stream": True, "user": "u1", **fields}
    request = Request("POST", Target(path), (), json.dumps(body).encode())
    exchange = router.begin(request, request_id="req-1", now_s=10.1, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    return router, exchange


def attempt(exchange: Exchange, headers: object = SSE) -> Attempt:
    one = exchange.next_attempt()
    assert isinstance(one, Attempt)
    assert exchange.answered(200, headers) is Step.HOLD  # type: ignore[arg-type]
    return one


def record(router: RouterCore) -> RequestRecord:
    router.on_table(None, sent_s=20.0)
    (one,) = router.outbox.next_batch(now_s=600.0).records
    return one


@pytest.mark.parametrize(
    ("fields", "path", "headers"),
    [
        (TOOLS, CHAT, SSE),
        ({"stop": ["a"]}, CHAT, SSE),
        ({"n": 1, "logprobs": True}, CHAT, SSE),
        ({}, CHAT, PARSED),
        ({"input": "x"}, "/v1/responses", SSE),
        ({}, "/v1/messages", SSE),
    ],
)
def test_such_a_stream_is_held_until_its_last_event(
    fields: dict[str, object], path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    router, exchange = begin(fields, path=path)
    one = attempt(exchange, headers)
    held = [exchange.received(EVENT, now_s=10.5), exchange.received(FINISH, now_s=11.0)]
    end = {"/v1/messages": b'data: {"type":"message_stop"}\n\n'}.get(path, DONE)
    if path == "/v1/responses":
        end = b'data: {"type":"response.completed"}\n\n'
    last = exchange.received(end, now_s=12.0)
    rest = exchange.ended(now_s=12.5)
    found = record(router)

    assert (one.arm, held) == (1, [Step.HOLD] * 2)
    assert isinstance(last, Deliver)
    assert last.data == EVENT + FINISH + end
    assert last.head is not None
    assert rest == Deliver(None, b"", "end")
    assert (found.error, found.outcome, found.covered) == (False, "answered", True)
    assert found.ttft_ms == pytest.approx(400)  # of the engine's bytes, not of the client's
    assert found.latency_ms == pytest.approx(1900)


@pytest.mark.parametrize("how", ["cut", "reset", "timeout", "ended", "error", "garbage"])
def test_a_held_stream_that_fails_is_redone_whole_by_stable(how: str) -> None:
    router, exchange = begin(TOOLS)
    attempt(exchange)
    exchange.received(EVENT, now_s=10.5)
    if how == "error":
        action = exchange.received(ERROR, now_s=10.6)
    elif how == "ended":
        action = exchange.ended(now_s=10.6)
    else:
        exchange.received(b'data: {"id":"a1","cho', now_s=10.6)
        action = exchange.broken("cut" if how == "garbage" else how, now_s=10.7)  # type: ignore[arg-type]
    tried = 1
    while (one := attempt(exchange)).arm == 1:
        action, tried = exchange.broken("cut", now_s=10.8), tried + 1
    stable = exchange.received(EVENT + FINISH + DONE, now_s=11.0)
    exchange.ended(now_s=11.5)
    found = record(router)

    assert action is Step.AGAIN
    assert one.path == CHAT
    assert json.loads(bytes(one.body))["tools"]
    assert isinstance(stable, Deliver)
    assert stable.data == EVENT + FINISH + DONE
    assert dict(stable.head.headers)[b"x-canaryctl-arm"] == b"stable" if stable.head else False
    assert (found.outcome, found.error, found.served_arm, found.takeover_at) == ("fallback", True, 0, None)
    assert len(found.attempts) == tried + 1


def test_stables_streams_and_what_can_be_continued_are_not_held() -> None:
    for fields, weight_bp in ((TOOLS, 1), ({}, 9999)):
        _, exchange = begin(fields, weight_bp=weight_bp)
        one = attempt(exchange)

        assert one.arm == (weight_bp > 1)
        assert isinstance(exchange.received(EVENT, now_s=10.5), Deliver)


PLAIN = [(b"content-type", b"text/event-stream")]  # of an endpoint, which names no ids


def begin_plain(external: str, *, late_commit: str = "hold") -> tuple[RouterCore, Exchange]:
    """A plain chat stream, with these arms ("stable", "canary") as external endpoints."""
    router = core(9999)
    table = router.table
    assert table is not None
    assert table.stable is not None
    assert table.canary is not None
    changed = replace(
        table,
        change=3,
        late_commit=late_commit,  # type: ignore[arg-type]
        stable=replace(table.stable, external="stable" in external),
        canary=replace(table.canary, external="canary" in external),
    )
    router.on_table(changed, sent_s=10.0)
    body = {"model": "chat", "messages": [], "stream": True, "user": "u1"}
    request = Request("POST", Target(CHAT), (), json.dumps(body).encode())
    exchange = router.begin(request, request_id="req-1", now_s=10.1, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    return router, exchange


@pytest.mark.parametrize("external", ["canary", "stable", "stable canary"])
@pytest.mark.parametrize("how", ["broken", "ended", "error"])
def test_a_plain_stream_of_an_endpoint_is_held_and_redone_when_it_fails(external: str, how: str) -> None:
    _, exchange = begin_plain(external)
    steps: list[object] = []
    while attempt(exchange, PLAIN if "canary" in external else SSE).arm == 1:  # a cut is repeated once
        steps += [exchange.received(EVENT, now_s=10.2 + index) for index in range(3)]
        if how == "broken":
            steps.append(exchange.broken("cut", now_s=14.0))
        elif how == "ended":
            steps.append(exchange.ended(now_s=14.0))
        else:
            steps.append(exchange.received(ERROR, now_s=14.0))

    assert steps in [[Step.HOLD, Step.HOLD, Step.HOLD, Step.AGAIN] * times for times in (1, 2)]


def test_a_plain_stream_of_an_endpoint_passes_where_the_table_says_stream() -> None:
    _, exchange = begin_plain("stable canary", late_commit="stream")
    attempt(exchange, PLAIN)

    assert isinstance(exchange.received(EVENT, now_s=10.2), Deliver)


def test_a_plain_stream_of_stable_is_not_held() -> None:
    _, exchange = begin_plain("stable canary")
    while attempt(exchange, PLAIN).arm == 1:
        exchange.broken("cut", now_s=10.3)

    assert isinstance(exchange.received(EVENT, now_s=10.4), Deliver)


@pytest.mark.parametrize(("weight_bp", "late_commit"), [(10_000, "hold"), (9999, "stream")])
def test_it_ends_with_the_promotion_and_by_the_tables_word(weight_bp: int, late_commit: str) -> None:
    router, exchange = begin(TOOLS, weight_bp=weight_bp, late_commit=late_commit)
    attempt(exchange)
    first = exchange.received(EVENT, now_s=10.5)
    last = exchange.broken("cut", now_s=10.6)
    found = record(router)

    assert isinstance(first, Deliver)
    assert isinstance(last, Deliver)
    assert b'"code": "cut"' in last.data
    assert (found.outcome, found.covered) == ("cut", False)


def test_beyond_the_limit_it_streams_and_is_not_covered() -> None:
    router, exchange = begin(TOOLS)
    attempt(exchange)
    big = EVENT.replace(b'"x"', b'"' + b"x" * 60_000 + b'"')
    actions = [exchange.received(big, now_s=10.5) for _ in range(HOLD_LIMIT // len(big) + 2)]
    exchange.received(FINISH + DONE, now_s=11)
    exchange.ended(now_s=11.0)

    assert actions[0] is Step.HOLD
    assert isinstance(actions[-1], Deliver)
    sent = b"".join(one.data for one in actions if isinstance(one, Deliver))
    assert sent == big * len(actions)
    assert record(router).covered is False


@pytest.mark.slow
def test_beyond_the_limit_what_lacks_only_its_usage_is_not_sent_a_second_time() -> None:
    router, exchange = begin({**TOOLS, "stream_options": {"include_usage": True}})
    attempt(exchange)
    streamed = exchange.received(EVENT * (HOLD_LIMIT // len(EVENT) + 1), now_s=11.0)
    exchange.received(FINISH, now_s=12.0)
    last = exchange.broken("cut", now_s=12.5)

    assert isinstance(streamed, Deliver)
    assert last == Deliver(None, DONE, "end")
    assert (record(router).error, exchange.is_over) == (False, True)


def test_a_client_that_waits_gets_the_head_and_comments_and_then_the_answer_without_a_head() -> None:
    _, exchange = begin(TOOLS)
    early = [exchange.waited(99.0)]
    attempt(exchange)
    early.append(exchange.waited(12.0))
    exchange.received(EVENT, now_s=11.0)
    waited = [exchange.waited(now_s) for now_s in (14.0, 15.2, 16.0, 21.0)]
    last = [exchange.received(FINISH + DONE, now_s=22.0), exchange.ended(now_s=22.0)]

    assert early == [Step.HOLD] * 2
    assert waited[0] is waited[2] is Step.HOLD
    assert isinstance(waited[1], Deliver)
    assert isinstance(waited[1].head, Head)
    assert waited[1].data == KEEP_ALIVE
    assert waited[3] == Deliver(None, KEEP_ALIVE)
    assert last == [Deliver(None, EVENT + FINISH + DONE), Deliver(None, b"", "end")]
    assert exchange.waited(99.0) is Step.HOLD


def test_after_a_comment_stable_redoes_the_stream_under_the_first_head() -> None:
    router, exchange = begin(TOOLS)
    attempt(exchange)
    exchange.received(EVENT, now_s=11.0)
    first = exchange.waited(15.2)
    exchange.broken("timeout", now_s=16.0)
    attempt(exchange)
    comment = exchange.waited(20.3)
    stable = exchange.received(EVENT, now_s=21.0)
    exchange.received(FINISH + DONE, now_s=22.0)
    exchange.ended(now_s=22.0)

    assert isinstance(first, Deliver)
    assert comment == Deliver(None, KEEP_ALIVE)
    assert stable == Deliver(None, EVENT)
    assert exchange.waited(90.0) is Step.HOLD
    assert record(router).outcome == "fallback"


def test_after_a_comment_an_answer_that_is_no_stream_becomes_an_error_event() -> None:
    for status, headers in ((400, JSON), (200, JSON)):
        _, exchange = begin(TOOLS)
        attempt(exchange)
        exchange.received(EVENT, now_s=11.0)
        exchange.waited(15.2)
        exchange.broken("timeout", now_s=16.0)
        exchange.next_attempt()
        exchange.answered(status, headers)
        actions = [exchange.received(part, now_s=17.0) for part in (b'{"choices"', b": []}")]
        sent = [one for one in (*actions, exchange.ended(now_s=17.0)) if isinstance(one, Deliver)]
        data = b"".join(one.data for one in sent)

        assert (sent[-1].then, {one.head for one in sent}) == ("end", {None})
        assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "no_stream"


@pytest.mark.parametrize("body", [b'{"choices": []}', b'{"error": {"message": "dead"}}'])
def test_a_whole_answer_that_was_named_a_stream_is_not_written_among_its_comments(body: bytes) -> None:
    """The client, which has the head of a stream, would drop what is no event."""
    _, exchange = begin({}, weight_bp=0)
    attempt(exchange, [(b"content-type", b"text/event-stream")])
    comment = exchange.waited(20.0)
    action = exchange.received(body, now_s=21.0)
    sent = [one for one in (action, exchange.ended(now_s=21.0)) if isinstance(one, Deliver)]
    data = b"".join(one.data for one in sent)

    assert isinstance(comment, Deliver)
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "no_stream"


def test_the_first_byte_counts_where_much_white_space_was_passed_on_before_it() -> None:
    _router, exchange = begin({"stream": False}, weight_bp=0)
    attempt(exchange, JSON)
    passed = [exchange.received(b" " * (HOLD_LIMIT // 4), now_s=11.0 + n) for n in range(6)]
    exchange.received(
        b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}', now_s=20.0
    )

    assert any(isinstance(one, Deliver) for one in passed)
    assert exchange.has_begun
    assert exchange.seen.first_byte_s == 20.0


def test_a_stream_of_another_name_has_not_begun_before_its_first_bytes_are_known() -> None:
    _, exchange = begin({}, weight_bp=0)
    attempt(exchange, JSON)
    for part in (b"d", b"ata: "):
        exchange.received(part, now_s=11.0)
    assert not exchange.has_begun
    exchange.received(EVENT.removeprefix(b"data: "), now_s=12.0)
    assert exchange.has_begun


def test_after_a_comment_a_stable_without_replicas_is_an_error_event() -> None:
    router, exchange = begin(TOOLS)
    attempt(exchange)
    exchange.received(EVENT, now_s=11.0)
    exchange.waited(15.2)
    exchange.broken("timeout", now_s=16.0)
    while isinstance(one := exchange.next_attempt(), Attempt):
        exchange.broken("refused", now_s=17.0)

    assert isinstance(one, Deliver)
    assert (one.head, one.then) == (None, "end")
    assert json.loads(one.data.removeprefix(b"data: "))["error"]["code"] == "no_capacity"
    assert record(router).outcome == "failed"
    assert exchange.is_over


@pytest.mark.parametrize("how", ["broken", "ended"])
def test_a_held_stream_that_breaks_between_its_finish_and_its_usage_is_answered_anew(how: str) -> None:
    """The usage that the client asked for is missing; its finish is no failure of the arm, on either arm."""
    usage = b'data: {"id":"a2","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    router, exchange = begin({**TOOLS, "stream_options": {"include_usage": True}})
    attempt(exchange)
    exchange.received(EVENT + FINISH, now_s=10.5)
    end = exchange.broken("cut", now_s=11.0) if how == "broken" else exchange.ended(now_s=11.0)
    assert end is Step.AGAIN
    again = attempt(exchange)
    whole = (EVENT + FINISH).replace(b"a1", b"a2") + usage + DONE
    first = exchange.received(whole, now_s=12.0)
    exchange.ended(now_s=12.5)
    found = record(router)

    assert again.arm == 0
    assert isinstance(first, Deliver)
    assert first.data == whole
    assert (found.outcome, found.error, found.cause, found.arm, found.served_arm) == (
        *("answered", False, None),
        *(1, 0),
    )
    assert [(one.arm, one.cause) for one in found.attempts] == [(1, "cut"), (0, None)]


@pytest.mark.parametrize("weight_bp", [0, 9999])
def test_a_message_that_has_stopped_gets_the_event_that_says_so(weight_bp: int) -> None:
    """Its engine ended the body behind the reason: nothing of it is missing but the end."""
    router, exchange = begin({}, path="/v1/messages", weight_bp=weight_bp)
    attempt(exchange, PARSED)
    text = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n'
    stop = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
    actions = [exchange.received(text + stop, now_s=11.0), exchange.ended(now_s=12.0)]
    data = b"".join(one.data for one in actions if isinstance(one, Deliver))

    assert data == text + stop + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert record(router).error is False
