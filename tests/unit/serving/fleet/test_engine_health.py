"""Health of an engine replica whose engine stalls, dies, or goes on; it is a stand-in for vLLM's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serving.fleet import engine_ray
from serving.fleet.engine_ray import EngineReplica, _note_steps
from serving.fleet.progress import STALL_S, Progress


class Processor:
    """The part of vLLM's output processor that is used."""

    def __init__(self) -> None:
        self.unfinished = 0
        self.updates: list[object] = []

    def get_num_unfinished_requests(self) -> int:
        return self.unfinished

    def update_scheduler_stats(self, stats: object) -> None:
        self.updates.append(stats)


class Bare(EngineReplica):
    """A replica that was not started, so nothing is to be closed."""

    def __del__(self) -> None:  # type: ignore[override]
        return


class Checked:
    """A ready replica, whose clock the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(engine_ray, "boot_s", lambda: self.now_s)
        self.processor = Processor()
        self.engine = SimpleNamespace(
            errored=False, output_processor=self.processor, check_health=self._check_health
        )
        self.replica: Any = object.__new__(Bare)
        self.replica._phase, self.replica._error, self.replica._failed_s = "ready", None, 0.0
        self.replica._engine, self.replica._changed = self.engine, asyncio.Event()
        self.replica._progress = Progress(now_s=self.now_s)
        self.replica._serving = asyncio.get_running_loop().create_future()
        _note_steps(self.engine, self.replica._progress)

    async def _check_health(self) -> None:
        return

    def wait(self, seconds: float) -> str:
        """Time passes, with the replica's checks; its phase then."""
        for _ in range(int(seconds * 2)):
            self.now_s += 0.5
            self.replica._check_engine()
        return str(self.replica._phase)


async def test_an_engine_that_makes_no_step_stalls_and_serve_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Checked(monkeypatch)
    idle = one.wait(3 * STALL_S)
    one.processor.unfinished = 2
    before = one.wait(STALL_S - 1)
    after = one.wait(1)
    with pytest.raises(RuntimeError, match="no step for 60 s although it has 2 requests"):
        await one.replica.check_health()

    assert (idle, before, after) == ("ready", "ready", "stalled")


async def test_a_step_of_the_engine_is_noted_and_passed_on_and_ends_a_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Checked(monkeypatch)
    one.processor.unfinished = 1
    stalled = one.wait(STALL_S)
    one.processor.update_scheduler_stats("stats")
    resumed = one.wait(0.5)
    await one.replica.check_health()

    assert (stalled, resumed, one.processor.updates) == ("stalled", "ready", ["stats"])
    assert one.replica._error is None


async def test_an_engine_whose_core_has_stopped_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Checked(monkeypatch)
    one.engine.errored = True

    assert one.wait(0.5) == "failed"
    assert one.replica._error == "the engine died: its core has stopped"


async def test_a_replica_whose_http_server_has_ended_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Checked(monkeypatch)
    one.replica._serving.set_result(None)

    with pytest.raises(RuntimeError, match="HTTP server has ended"):
        await one.replica.check_health()


async def test_a_closing_replica_stays_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Checked(monkeypatch)
    one.replica._set("closing", None)
    one.processor.unfinished = 1

    assert one.wait(2 * STALL_S) == "closing"
