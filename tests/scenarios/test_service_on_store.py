"""A service's rollouts through service loop, reconciler, keeper and a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.rollout.actions import Action
from controller.rollout.machine import begin
from controller.rollout.observation import CommandKind
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import DepartureStep, Phase, RolloutState
from controller.runtime.newest_database import NewestDatabase
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceLoop, ServiceWorkers
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.controller import FakeEnvironment, NoTicks
from tests.fakes.plane import (
    FakeClock,
    FakeEvidence,
    FakeFleet,
    FakeIngress,
    FakeMarks,
    FakeProbes,
    FakeTraffic,
)

ADA = Identity("ada", Role.OPERATOR)
PLAN = Plan("medium", (), (Stage(1000, 3.0, 10, 600.0, 1),), holdback_bp=500, bake_s=3.0, drain_s=10.0)
TICKS = 400


class SilentNotifier:
    """Delivers nothing while it is down."""

    def __init__(self) -> None:
        self.is_down = True

    def send(self, key: str, severity: str, text: str) -> bool:
        return not self.is_down


class Rig:
    """The service `chat` on `v-1`, its store, and one controller that leads."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.store = SqlStore(url, clock=self.clock.boot_s)
        for version in ("v-1", "v-2", "v-3"):
            self.store.put_version(VersionRow("chat", version, '{"model": "/m"}', "{}", 1.0))
        self.store.put_service(
            ServiceRow("chat", "{}", "v-1", "secret", 1.0),
            VersionRow("chat", "v-1", '{"model": "/m"}', "{}", 1.0),
        )
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.evidence, self.notifier = FakeEvidence(), SilentNotifier()
        self.before_commit: Callable[[RolloutState], None] = lambda state: None
        lease = self.store.acquire_lease("one", ttl_s=1e6)
        assert lease is not None
        self.token = lease.token
        self.loop = ServiceLoop("chat", self.store, self.clock, self._workers, lambda row: 1)
        self.tick_until(lambda: "chat" in self.traffic.tables and bool(self.fleet.engines))
        self.clock.advance(30.0)
        self.loop.tick(self.token)

    def _workers(self, _: str) -> ServiceWorkers:
        rig = self

        class Store:
            def __getattr__(self, name: str) -> Any:
                return getattr(rig.store, name)

            def commit(self, state: RolloutState, pending: Sequence[Action], **more: Any) -> int:
                rig.before_commit(state)
                return rig.store.commit(state, pending, **more)

        ports = Ports(
            Store(), self.fleet, self.traffic, self.evidence, FakeProbes(), self.notifier, self.clock
        )
        keeper = Keeper(self.fleet, self.traffic, FakeIngress(self.traffic), self.store, self.clock)
        marks = FakeMarks(self.traffic)
        newest = NewestDatabase("chat", self.store.database, marks, marks.names)
        return ServiceWorkers(Reconciler(ports), keeper, lambda now_s: None, newest.require)

    def deploy(self, rollout: str, version: str) -> None:
        stable = self.store.service("chat").stable
        refs, now_s = (VersionRef(stable), VersionRef(version)), self.clock.now_s()
        state = begin(rollout, "chat", stable=refs[0], canary=refs[1], plan=PLAN, now_s=now_s)
        self.store.create_rollout(state, request="{}", at_s=now_s)

    def state(self, rollout: str) -> RolloutState:
        stored = self.store.load(rollout)
        assert stored is not None
        return stored.state

    def tick_until(self, holds: Callable[[], bool]) -> None:
        for _ in range(TICKS):
            if holds():
                return
            self.clock.advance(max(self.loop.tick(self.token), 0.25))
        raise AssertionError([self.state(row.id).reason for row in self.store.rollouts("chat")])

    def run_to(self, rollout: str, phase: Phase) -> None:
        self.tick_until(lambda: self.state(rollout).phase is phase)

    def settle(self) -> None:
        for _ in range(40):
            self.clock.advance(max(self.loop.tick(self.token), 0.2))

    def serving(self) -> tuple[str, str | None, str | None, list[str]]:
        """Stable in the row; stable and canary in the route table; engines."""
        table = self.traffic.tables["chat"]
        engines = sorted(one.version for one in self.fleet.observe("chat") or ())
        return self.store.service("chat").stable, table.stable, table.canary, engines


@pytest.fixture
def rig(database_url: str) -> Iterator[Rig]:
    rig = Rig(database_url)
    yield rig
    rig.store.close()


@pytest.mark.slow
def test_a_version_that_serves_is_kept_when_the_old_one_does_not_load(rig: Rig) -> None:
    rig.deploy("r-1", "v-2")
    rig.tick_until(lambda: _step(rig.state("r-1")) is DepartureStep.UNLOAD)
    rig.clock.advance(1.0)
    rig.fleet.broken["v-1"] = "out of memory"
    rig.store.append_command("r-1", CommandKind.ROLLBACK, ADA, reason="bad", at_s=rig.clock.now_s())

    rig.run_to("r-1", Phase.FAILED)
    rig.settle()

    assert rig.serving() == ("v-2", "v-2", None, ["v-2"])


@pytest.mark.slow
def test_the_late_notice_of_an_earlier_promotion_moves_no_stable_version(rig: Rig) -> None:
    rig.deploy("r-1", "v-2")
    rig.run_to("r-1", Phase.SUCCEEDED)
    rig.deploy("r-2", "v-3")
    rig.run_to("r-2", Phase.SUCCEEDED)
    assert set(rig.store.running("chat")) == {"r-1", "r-2"}

    rig.notifier.is_down = False
    rig.settle()

    assert rig.store.running("chat") == ()
    assert rig.serving() == ("v-3", "v-3", None, ["v-3"])


@pytest.mark.slow
def test_a_rollback_requested_in_the_last_tick_is_not_lost(rig: Rig) -> None:
    """It comes between the read of the commands and the commit that would end the rollout."""
    asked: list[object] = []

    def ask(state: RolloutState) -> None:
        if state.phase is Phase.SUCCEEDED and not asked:
            now_s = rig.clock.now_s()
            asked.append(rig.store.append_command("r-1", CommandKind.ROLLBACK, ADA, reason="bad", at_s=now_s))

    rig.before_commit = ask
    rig.deploy("r-1", "v-2")
    rig.tick_until(lambda: rig.state("r-1").is_final)
    rig.settle()

    assert asked != [None]
    assert rig.state("r-1").phase is Phase.ROLLED_BACK
    assert rig.serving() == ("v-1", "v-1", None, ["v-1"])


@pytest.mark.slow
def test_the_newest_rollout_is_found_whatever_the_clock_said(rig: Rig) -> None:
    """A rollout that was started while the clock was an hour ahead does not hide the next one."""
    rig.clock.set_wall(3600.0)
    rig.deploy("r-1", "v-2")
    rig.store.append_command("r-1", CommandKind.ROLLBACK, ADA, reason="", at_s=rig.clock.now_s())
    rig.tick_until(lambda: rig.state("r-1").is_final)
    rig.clock.set_wall(-3600.0)
    rig.deploy("r-2", "v-3")
    rig.run_to("r-2", Phase.BAKING)
    commands = Commands(rig.store, FakeEnvironment(), rig.clock, NoTicks())

    answer = commands.rollback("chat", ADA, reason="bad")
    rig.tick_until(lambda: rig.state("r-2").is_final)
    rig.settle()

    assert (answer.outcome, answer.rollout) == ("asked", "r-2")
    assert rig.serving() == ("v-1", "v-1", None, ["v-1"])


@pytest.mark.slow
@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_drain_takes_its_time_whatever_the_clock_says(rig: Rig, by_s: float) -> None:
    rig.deploy("r-1", "v-2")
    rig.run_to("r-1", Phase.STAGE)
    rig.tick_until(lambda: rig.traffic.tables["chat"].weight_bp == 1000)
    rig.fleet.engines["chat", "v-2"].in_flight = 1
    rig.store.append_command("r-1", CommandKind.ROLLBACK, ADA, reason="bad", at_s=rig.clock.now_s())
    rig.tick_until(lambda: _step(rig.state("r-1")) is DepartureStep.DRAIN)
    began_s = rig.clock.boot_s()

    rig.clock.set_wall(by_s)
    rig.run_to("r-1", Phase.ROLLED_BACK)

    assert 10.0 <= rig.clock.boot_s() - began_s < 15.0


def _step(state: RolloutState) -> DepartureStep | None:
    return state.departure.step if state.departure is not None else None
