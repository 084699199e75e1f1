"""White space of an engine's front, which may keep a client waiting, is no answer and no progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from serving.messages import RequestRecord
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.usable import has_begun
from serving.router.types import Deliver, Step
from tests.fakes.virtual_wire import LAST_CHUNK, LIMITS, Piece, chunked, head, traffic, virtual_time
from tests.unit.serving.router.exchange.test_exchange import attempt, begin, core, request, table
from tests.unit.serving.router.exchange.test_trial import aside, drawn
from tests.unit.serving.router.test_asked_beside import CHAT, whole
from tests.unit.serving.router.upstreams.test_upstream_health import ANSWER, JSON, URL, WORD

PATIENT = replace(LIMITS, canary_stream_s=2.0, canary_whole_s=2.0, settle_s=30.0)
SSE = "text/event-stream"


def records(canary: Sequence[Piece], weight_bp: int = 9999, **body: Any) -> list[RequestRecord]:
    """Those of five requests, one a second, to a canary that answers so; stable answers after 0.2 s."""
    asked = {"messages": [{"role": "user", "content": "q"}], "user": "u", **body}
    with virtual_time() as loop:
        found, _ = loop.run_until_complete(
            traffic(
                [(float(one), CHAT, asked) for one in range(5)],
                lambda path, _: whole("stable", 0.2) if path else (),
                weight_bp=weight_bp,
                canary=lambda path, _: canary if path else (),
                limits=PATIENT,
                failures=3,
            )
        )
    return found


def waits(blank: bytes, kind: str = "application/json", first: bytes = b"") -> list[Piece]:
    """An answer that begins so, and then this every half second, for ever."""
    return [(0.1, head(200, kind) + chunked(first)), *[(0.5, chunked(blank))] * 400]


@pytest.mark.parametrize("blank", [b"\n", b" ", b"\r\n", b"\n\n", b" \t\r\n"])
@pytest.mark.parametrize("body", [{}, {"stream": True}], ids=["whole", "stream"])
def test_a_canary_of_which_only_white_space_comes_is_replaced_and_charged(
    blank: bytes, body: dict[str, bool]
) -> None:
    """Users waited for ever, and the canary, which was dead, collected no error and was never set aside."""
    found = records(waits(blank), **body)

    assert [(one.arm, one.error, one.outcome, one.served_arm) for one in found] == [
        (1, True, "fallback", 0)
    ] * 5


@pytest.mark.parametrize("blank", [b"\n", b" ", b"\r\n", b"\n\n", b": p\n\n", b"event: ping\n"])
def test_white_space_in_mid_stream_is_no_progress(blank: bytes) -> None:
    found = records(waits(blank, SSE, WORD), stream=True)

    assert {one.cause for one in found} == {"stalled"}


@pytest.mark.parametrize("blank", [b"\n", b" "])
def test_nor_is_it_in_the_middle_of_an_event_or_of_an_answer(blank: bytes) -> None:
    found = records(waits(blank, SSE, WORD + b'data: {"id"'), stream=True)
    also = records(waits(blank, first=b'{"id"'))

    assert {one.cause for one in [*found, *also]} == {"stalled"}


def test_an_answer_after_white_space_is_passed_on_as_it_came() -> None:
    late = [(0.5, chunked(b"\n")), (0.5, chunked(ANSWER) + LAST_CHUNK)]
    (one, *_) = records([(0.1, head(200, "application/json")), *late])

    assert (one.outcome, one.error, one.served_arm) == ("answered", False, 1)


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_begins_with_the_first_byte_that_is_no_white_space(kind: str, streams: bool) -> None:
    scan = AnswerScan(CHAT, kind, streams=streams)
    found = []
    for data in (b"\n", b" \r\n\t", b"", b" {"):
        scan.feed(data)
        found.append(has_begun(scan, is_canary=True))

    assert found == [False, False, False, True]


def test_white_space_ends_no_trial() -> None:
    router = aside()
    _, trial = drawn(router, 1)
    assert trial is not None
    trial.on_head(200, JSON)
    trial.on_data(b"\n")
    trial.on_data(b" \n")
    is_over = trial.is_over
    trial.on_data(ANSWER)

    assert router.health is not None
    assert (is_over, trial.is_over, router.health.is_aside(URL)) == (False, True, False)


@pytest.mark.parametrize("weight_bp", [0, 10_000])
def test_an_answer_that_no_scan_reads_does_not_begin_with_white_space(weight_bp: int) -> None:
    router = core(table(weight_bp=weight_bp))
    exchange = begin(router, request({"n": 2}, path="/v1/models/x", method="GET"))
    attempt(exchange)
    exchange.answered(200, JSON)
    waiting = exchange.received(b"\n", now_s=10.2), exchange.has_begun
    begun = exchange.received(b" {", now_s=10.3)
    later = exchange.received(b"\n", now_s=10.9)

    assert waiting == (Step.HOLD, False)
    assert (exchange.has_begun, exchange.seen.last_byte_s) == (True, 10.3)
    assert [one.data for one in (begun, later) if isinstance(one, Deliver)] == [b"\n {", b"\n"]
