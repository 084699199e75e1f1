"""Stable asked beside a silent canary, 20 s after a stop with 40 s to drain, on a clock that jumps."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange import beside
from serving.router.exchange.beside import Beside
from serving.router.turns import Turns
from serving.router.types import Limits
from serving.router.upstreams.decompressed import PIECE
from tests.fakes.virtual_wire import LAST_CHUNK, Behaviour, Piece, chunked, head, virtual_time, wire

CHAT = "/v1/chat/completions"
ERROR = b'{"error":{"message":"engine died","code":500}}'
HALF = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"half"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
EMPTY = [(0.1, head(503, "application/json", length=2) + b"{}")]


def json_of(data: bytes, after_s: float, status: int = 200) -> list[Piece]:
    return [(after_s, head(status, "application/json", length=len(data)) + data)]


def whole(name: str, after_s: float) -> list[Piece]:
    message = {"role": "assistant", "content": f"from {name}"}
    answer = {"id": name, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return json_of(json.dumps(answer).encode(), after_s)


def stopped(
    canary: Sequence[Sequence[Piece]],
    stable: Sequence[Sequence[Piece]],
    *,
    replicas: int = 1,
    **body: Any,
) -> tuple[bytes, dict[str, list[float]], float]:
    """(what the client of a canary's request read, when each arm was asked, when the client had its end); the
    engines answer their requests in turn, the last again and again. Times in seconds since the stop."""

    async def go() -> tuple[bytes, dict[str, list[float]], float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        asked: dict[str, list[float]] = {"stable": [], "canary": []}

        def engine(name: str, answers: Sequence[Sequence[Piece]]) -> Behaviour:
            def behave(path: str, body: dict[str, Any]) -> Sequence[Piece]:
                if not path:
                    return ()
                asked[name].append(round(loop.time() - began_s, 1))
                return answers[min(len(asked[name]), len(answers)) - 1]

            return behave

        made = await wire(
            engine("stable", stable),
            weight_bp=9999,
            canary=engine("canary", canary),
            replicas=replicas,
            limits=Limits(),
        )
        transport = made.send(CHAT, {"messages": [{"role": "user", "content": "q"}], "user": "u", **body})
        stopping = loop.create_task(made.front.stop(drain_s=40.0))
        while not transport.has_left:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        took_s = loop.time() - began_s
        await stopping
        return transport.read, asked, took_s

    with virtual_time() as loop:
        return loop.run_until_complete(go())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("canary", "asked"),
    [
        ([[]], [0.0]),
        ([json_of(b"{}", 30.0, 500)], [0.0]),
        ([[(30.0, "reset")], []], [0.0, 30.0]),
    ],
)
def test_the_answer_that_is_under_way_is_kept_whatever_becomes_of_the_canary(
    canary: list[list[Piece]], asked: list[float]
) -> None:
    read, times, took_s = stopped(canary, [whole("stable", 15.0)])

    assert b"from stable" in read
    assert times == {"canary": asked, "stable": [20.0]}
    assert took_s == pytest.approx(35.0, abs=0.5)


@pytest.mark.parametrize(
    "body", [{"tools": [{"type": "mcp", "server_url": "https://mail", "require_approval": "never"}]}]
)
def test_a_request_whose_server_acts_is_not_sent_beside_a_canary_that_may_be_acting(
    body: dict[str, Any],
) -> None:
    read, times, took_s = stopped([whole("canary", 30.0)], [whole("stable", 1.0)], **body)

    assert b"from canary" in read
    assert times == {"canary": [0.0], "stable": []}
    assert took_s == pytest.approx(30.0, abs=0.5)


def test_a_stream_of_stable_reaches_the_client_from_the_moment_the_canary_fails() -> None:
    stable: list[Piece] = [(1.0, head()), (1.0, chunked(HALF)), (14.0, chunked(FINISH)), (0.0, LAST_CHUNK)]
    read, times, took_s = stopped([json_of(b"{}", 30.0, 500)], [stable], stream=True)

    assert times["stable"] == [20.0]
    assert (read.count(b'"half"'), read.count(b"[DONE]")) == (1, 1)
    assert took_s == pytest.approx(36.0, abs=0.5)


@pytest.mark.parametrize("failing", [[(0.1, "reset")], EMPTY])
@pytest.mark.parametrize("replicas", [1, 2])
def test_where_stable_fails_it_is_asked_once_more(failing: list[Piece], replicas: int) -> None:
    read, times, _ = stopped([[]], [failing, whole("stable", 5.0)], replicas=replicas)

    assert b"from stable" in read
    assert times["stable"] == [20.0, 20.1]


STREAMED = {"stream": True}
FAULTY: list[tuple[dict[str, bool], list[Piece]]] = [
    ({}, json_of(ERROR, 2.0)),
    ({}, json_of(b'{"choices":[{"messag', 2.0)),
    (STREAMED, [(2.0, head()), (0.0, chunked(b"data: " + ERROR + b"\n\n")), (0.0, LAST_CHUNK)]),
    (STREAMED, [(2.0, head()), (0.0, chunked(HALF)), (0.0, LAST_CHUNK)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "stable"), FAULTY)
def test_a_faulty_answer_of_stable_does_not_take_the_place_of_the_canarys(
    body: dict[str, bool], stable: list[Piece]
) -> None:
    canary = whole("canary", 35.0)
    if body:
        word = HALF.replace(b"half", b"from canary")
        canary = [(35.0, head()), (0.0, chunked(word + FINISH)), (0.0, LAST_CHUNK)]
    read, _, took_s = stopped([canary], [stable], **body)

    assert b"from canary" in read
    assert took_s == pytest.approx(35.0, abs=0.5)


def test_a_request_that_stable_rejects_is_answered_so() -> None:
    read, times, took_s = stopped([[]], [json_of(b'{"error":"too long"}', 1.0, 400)])

    assert read.startswith(b"HTTP/1.1 400 ")
    assert times["stable"] == [20.0]
    assert took_s == pytest.approx(21.0, abs=0.5)


@pytest.mark.slow
def test_a_large_answer_of_stable_is_read_and_passed_on_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB of small events was scanned at once at its end, and again where the canary failed: 0.5 s each."""
    fed: list[int] = []
    feed = AnswerScan.feed

    def counted(self: AnswerScan, data: bytes) -> bytes:
        fed.append(len(data))
        return feed(self, data)

    monkeypatch.setattr(AnswerScan, "feed", counted)
    monkeypatch.setattr(beside, "turn_end_s", lambda: 0.0)  # over at once
    words = HALF * 8_000
    stable: list[Piece] = [(1.0, head()), (1.0, chunked(words)), (0.0, chunked(FINISH)), (0.0, LAST_CHUNK)]
    waited: list[object] = []
    join = Turns.join

    def joined(self: Turns, work: Callable[[], None], least_s: float = 0.0, client: str = "") -> None:
        waited.append(getattr(work, "__self__", None))
        join(self, work, least_s, client)

    monkeypatch.setattr(Turns, "join", joined)
    read, _, _ = stopped([json_of(b"{}", 30.0, 500)], [stable], stream=True)

    assert (read.count(b'"half"'), read.count(b"[DONE]")) == (8_000, 1)
    assert max(fed) <= 64 << 10
    assert sum(isinstance(one, Beside) for one in waited) >= len(words) / PIECE


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(0.0, LAST_CHUNK), (0.0, "reset"), (9.0, LAST_CHUNK)])
@pytest.mark.parametrize("turn_end_s", [0.0, math.inf])
def test_what_follows_while_it_is_passed_on_comes_after_it(
    monkeypatch: pytest.MonkeyPatch, turn_end_s: float, ends: Piece
) -> None:
    monkeypatch.setattr(beside, "turn_end_s", lambda: turn_end_s)
    stable: list[Piece] = [(1.0, head()), (1.0, chunked(HALF * 4_000))]
    stable += [(8.0, chunked(HALF * 500)), (0.0, chunked(FINISH)), ends]
    read, times, _ = stopped([json_of(b"{}", 30.0, 500)], [stable], stream=True)

    assert (read.count(b'"half"'), read.count(b"[DONE]"), len(times["stable"])) == (4_500, 1, 1)
