"""A canary that leaves the table file while requests wait for it, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from serving.messages import RequestRecord, RouteTable
from serving.router.types import Limits
from tests.fakes.virtual_wire import LAST_CHUNK, Behaviour, Piece, chunked, head, virtual_time, wire

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ASKED = {"messages": [{"role": "user", "content": "q"}], "user": "u"}
JOB = b'{"id":"r","object":"response","status":"queued","output":[]}'
ANSWER = b'{"id":"a","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'


LIMITS = Limits()


def json_of(data: bytes, after_s: float) -> list[Piece]:
    return [(after_s, head(200, "application/json", length=len(data)) + data)]


def after_leaving(
    path: str,
    body: dict[str, Any],
    answer: bytes | Sequence[Piece],
    *,
    promotes: bool = False,
    stays: bool = False,
    limits: Limits = LIMITS,
) -> tuple[list[tuple[float, str]], bytes, float, list[RequestRecord]]:
    """(when which engine was asked, what the client read, until when, the records) of a request to a canary
    that answers after 20 s, or by these pieces, and at 18 s is not the table's canary any more; stays: it
    is, with a weight of 0. Times: seconds since the request.
    """

    async def go() -> tuple[list[tuple[float, str]], bytes, float, list[RequestRecord]]:
        loop = asyncio.get_running_loop()
        began_s, asked = loop.time(), []

        def engine(name: str) -> Behaviour:
            def behave(path: str, body: dict[str, Any]) -> Sequence[Piece]:
                if not path:
                    return ()
                asked.append((round(loop.time() - began_s, 1), name))
                if not isinstance(answer, bytes):
                    return answer
                return json_of(answer, 20.0 if name == "canary" else 1.0)

            return behave

        made = await wire(engine("stable"), weight_bp=9999, canary=engine("canary"), limits=limits)
        transport = made.send(path, body, more=b"connection: close\r\n")
        await asyncio.sleep(18.0)
        table: RouteTable = replace(made.table, canary=None, weight_bp=0, change=3, revision=3)
        if stays:
            table = replace(table, canary=made.table.canary)
        if promotes:
            table = replace(table, stable=made.table.canary)
        made.core.on_table(table, sent_s=loop.time())
        made.front.serve([made.core])
        while not transport.has_left:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        took_s = loop.time() - began_s
        records = await made.records()
        await made.close()
        return asked, transport.read, took_s, records

    with virtual_time() as loop:
        return loop.run_until_complete(go())


def test_a_background_response_that_was_sent_is_not_made_a_second_time() -> None:
    asked, read, took_s, _ = after_leaving(RESPONSES, {"input": "q", "background": True}, JOB)

    assert asked == [(0.0, "canary")]
    assert read.endswith(JOB)
    assert took_s == pytest.approx(20.0, abs=0.3)


def test_one_that_stays_unanswered_may_be_made() -> None:
    limits = replace(LIMITS, canary_whole_s=19.0)
    asked, read, _, _ = after_leaving(RESPONSES, {"input": "q", "background": True}, JOB, limits=limits)

    assert asked == [(0.0, "canary")]
    assert b'"may_be_made"' in read


def test_what_makes_nothing_gets_stables_answer() -> None:
    asked, _, took_s, _ = after_leaving(CHAT, ASKED, ANSWER)

    assert asked == [(0.0, "canary"), (18.0, "stable")]
    assert took_s == pytest.approx(19.0, abs=0.3)


def test_a_canary_that_is_promoted_keeps_its_requests() -> None:
    """The same address is stable's now: to ask it again would do the work twice."""
    asked, _, took_s, (record,) = after_leaving(CHAT, ASKED, ANSWER, promotes=True)

    assert asked == [(0.0, "canary")]
    assert took_s == pytest.approx(20.0, abs=0.3)
    assert (record.outcome, record.served_arm, record.error) == ("answered", 1, False)
    assert record.latency_ms == pytest.approx(20_000, abs=1)


EVENT = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"w"}}]}\n\n'
LAST = b'data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
SLOW_STREAM: list[Piece] = [
    (1.0, head() + chunked(EVENT)),
    *[(10.0, chunked(EVENT))] * 4,
    (10.0, chunked(LAST) + LAST_CHUNK),
]


@pytest.mark.parametrize(
    ("body", "answer", "took_s"),
    [(ASKED, ANSWER, 20.0), ({**ASKED, "stream": True}, SLOW_STREAM, 51.0)],
    ids=["whole", "stream"],
)
def test_a_weight_of_0_ends_nothing_that_is_under_way(
    body: dict[str, Any], answer: bytes | Sequence[Piece], took_s: float
) -> None:
    """However slow it is: it has not failed, and its record says how slow it was."""
    asked, _, ended_s, (record,) = after_leaving(CHAT, body, answer, stays=True)

    assert asked == [(0.0, "canary")]
    assert ended_s == pytest.approx(took_s, abs=0.3)
    assert (record.outcome, record.served_arm, record.error) == ("answered", 1, False)
    assert record.latency_ms == pytest.approx(took_s * 1000, abs=1)
