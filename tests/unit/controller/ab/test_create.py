"""Creating an A/B test on the real commands and a database: one transaction, and gates without a source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from controller.ab.service import AbTests
from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.errors import BadSpec
from controller.planning.baseline import MeasuredBaseline
from controller.rollout.state import RolloutState
from controller.store.ab import AbStore
from controller.store.sql import SqlStore
from tests.database_rig import sqlite_url
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeEnvironment, NoTicks

ADA = Identity("ada", Role.ADMIN)


class Crash(Exception):
    """The process ends here."""


class Rig:
    """The service `chat` and B's checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.store, self.environment = SqlStore(sqlite_url(folder / "ab.db")), FakeEnvironment()
        clock: Any = SimpleNamespace(now_s=lambda: 5000.0)
        commands = Commands(self.store, self.environment, clock, NoTicks())
        self.ab = AbStore(self.store.database)
        self.tests = AbTests(self.ab, commands, clock, rollout_of=self.rollout)
        commands.up({"model": str(write_checkpoint(folder / "a", seed=1)), "service": "chat"}, ADA)
        self.body: dict[str, Any] = {
            "version": {"model": str(write_checkpoint(folder / "b", seed=2))},
            "metric": "error",
        }

    def rollout(self, id: str) -> RolloutState | None:
        stored = self.store.load(id)
        return stored.state if stored is not None else None


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.mark.slow
def test_a_crash_at_any_write_leaves_the_rollout_and_its_test_or_neither(rig: Rig) -> None:
    """A rollout without its test gives B half of the traffic, and nothing would end it."""
    writes, crashes = 0, 0

    def crash(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal writes
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            writes += 1
            if writes == crashes + 1:
                raise Crash

    sa.event.listen(rig.store.database._engine, "before_cursor_execute", crash)
    for _ in range(20):
        writes = 0
        try:
            view = rig.tests.create("chat", rig.body, ADA)
        except Crash:
            crashes += 1
            assert (rig.store.rollouts("chat"), rig.ab.newest("chat")) == ((), None)
        else:
            break
    else:
        raise AssertionError("more than 20 writes")

    assert crashes >= 3
    test, [rollout] = rig.ab.newest("chat"), rig.store.rollouts("chat")
    assert test is not None
    assert (test.id, test.rollout) == (view.id, rollout.id)


@pytest.mark.slow
def test_a_gate_without_a_source_is_left_out_for_a_reason(rig: Rig) -> None:
    rig.environment.traffic = MeasuredBaseline(
        requests=20_000,
        events=Counter(error=200),
        latency_p50_ms=50.0,
        latency_p99_ms=200.0,
        latency_log_sd=0.5,
        scores={},
        unit_requests=1.0,
        values=Counter(latency_ms=19_800, tokens=19_800),
        settled=19_000,
    )

    with pytest.raises(BadSpec, match="--allow-unjudged"):
        rig.tests.create("chat", rig.body, ADA)
    view = rig.tests.create("chat", rig.body | {"allow_unjudged": "there is no grader"}, ADA)

    rollout = rig.rollout(rig.store.rollouts("chat")[0].id)
    assert rollout is not None
    assert view.id
    assert "there is no grader" in rollout.log[0].text
