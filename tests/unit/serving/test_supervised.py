"""Background loops that end by an error nobody foresaw go on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from serving.supervised import LoopState, SupervisedLoops


async def wait_until(loops: SupervisedLoops, restarts: int) -> LoopState:
    while loops.states[0].restarts < restarts:  # noqa: ASYNC110 - a few turns
        await asyncio.sleep(0)
    return loops.states[0]


async def test_a_loop_that_raises_starts_again_and_its_error_is_shown() -> None:
    loops, runs = SupervisedLoops(pause_s=0.0), 0
    runs_on = asyncio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs <= 2:
            raise KeyError("surprise")
        runs_on.set()
        await asyncio.Event().wait()

    loops.start("clock", loop)
    before = loops.states[0]
    await asyncio.wait_for(runs_on.wait(), 20)

    assert before == LoopState("clock", 0, None)
    assert loops.states == (LoopState("clock", 2, "'surprise'"),)
    await loops.stop()


async def test_a_loop_that_returns_starts_again() -> None:
    loops = SupervisedLoops(pause_s=0.0)

    async def loop() -> None:
        return

    loops.start("clock", loop)

    assert (await asyncio.wait_for(wait_until(loops, 3), 20)).error == "it returned"
    await loops.stop()


async def test_an_error_is_logged_with_its_trace_once_not_at_every_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loops = SupervisedLoops(pause_s=0.0)

    async def loop() -> None:
        raise ValueError("the same")

    with caplog.at_level(logging.ERROR, "canaryctl.loops"):
        loops.start("clock", loop)
        await asyncio.wait_for(wait_until(loops, 5), 20)
        await loops.stop()

    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_stop_ends_the_loops_although_they_would_start_again() -> None:
    loops = SupervisedLoops(pause_s=0.0)
    ended = asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loops.start("clock", loop)
    await asyncio.sleep(0)
    await asyncio.wait_for(loops.stop(), 20)

    assert (ended.is_set(), loops.are_running) == (True, False)
