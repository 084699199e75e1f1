"""The router's benchmark: what counts as a whole answer, the goals, the tables."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from benchmarks.router import client, report
from benchmarks.router.engine import ANSWER, END, EVENT, HEAD, LAST, Engine, chunk, whole
from benchmarks.router.peers import PEERS

STREAM = HEAD + chunk(EVENT) * 20 + chunk(LAST) + END


async def answered(*answers: bytes, is_stream: bool) -> client.Load:
    """The load of a server that gives these answers in turn, in pieces of 50 bytes."""

    class Server(asyncio.Protocol):
        count = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            text = answers[Server.count % len(answers)]
            Server.count += 1
            for start in range(0, len(text), 50):
                self.transport.write(text[start : start + 50])

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        return await client.measure(port, "/", clients=2, is_stream=is_stream, seconds=0.05)


@pytest.mark.parametrize(
    ("answer", "is_stream"),
    [
        (whole(ANSWER), False),
        (HEAD.replace(b"text/event-stream", b"application/json") + chunk(ANSWER) + END, False),
        (STREAM, True),
    ],
)
async def test_whole_answers_are_timed_however_they_are_framed(answer: bytes, is_stream: bool) -> None:
    load = await answered(answer, is_stream=is_stream)

    assert load.answers >= 2
    assert 0 < load.p50_ms <= load.p99_ms


@pytest.mark.parametrize(
    ("answer", "is_stream"),
    [
        (whole(b"{}").replace(b"200 OK", b"503 No"), False),
        (HEAD + chunk(EVENT) * 19 + chunk(LAST) + END, True),
    ],
)
async def test_a_wrong_answer_ends_the_measurement(answer: bytes, is_stream: bool) -> None:
    with pytest.raises(ConnectionError):
        await answered(STREAM if is_stream else whole(ANSWER), answer, is_stream=is_stream)


async def test_the_engine_answers_the_load_and_counts_it() -> None:
    Engine.served = 0
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        began = time.monotonic()
        load = await client.measure(port, "/v1/x", clients=3, is_stream=True, seconds=0.05)

    assert Engine.served == load.answers
    assert load.rate <= load.answers / 0.05
    assert time.monotonic() - began < 5


def result_of(ours: dict[str, float], reference: dict[str, float]) -> dict[str, Any]:
    figures = {case: {"canaryctl": ours, "vllm-router": reference} for case in ("whole", "stream")}
    more = {
        "rounds": 1,
        "seconds": 1.0,
        "settings": {"canaryctl": "as it is"},
        "skipped": {"nginx": "not here"},
    }
    result: dict[str, Any] = {"figures": figures, **more}
    result["goals"] = report.goals(result)
    return result


def figures(added: float, rate: float, cpu: float) -> dict[str, float]:
    return {"added_p50_ms": added, "rate": rate, "cpu_us": cpu, "p99_ms": 1.0, "p99_at_32_ms": 2.0}


def test_goals_are_ratios_to_the_reference() -> None:
    result = result_of(figures(0.9, 900, 50), figures(1.0, 1000, 60))

    assert [goal["reached"] for goal in result["goals"]] == [True, False, False, False, True, True]
    assert [goal["figure"] for goal in result["goals"]] == [0.9, 0.9, 0.9, 0.9, 0.83, 0.83]
    text = report.as_markdown(result)
    assert "| **canaryctl** | 0.9 | 1 | 900 | 2 | 50 |" in text
    assert "- nginx: not measured, not here" in text


def test_a_goal_without_its_reference_is_not_measured() -> None:
    result = result_of(figures(1, 1, 1), figures(1, 1, 1))
    for case in result["figures"].values():
        del case["vllm-router"]

    assert {goal["reached"] for goal in report.goals(result)} == {None}


def test_every_peer_states_its_settings() -> None:
    assert all(peer.settings for peer in PEERS)
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 7
