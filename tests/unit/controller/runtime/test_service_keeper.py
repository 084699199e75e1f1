"""A service is kept as its row says, whatever was found; only what nobody owns is stopped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from controller.errors import StaleToken
from controller.rollout.actions import SetSplit
from controller.rollout.observation import DataPlaneStatus, VersionPhase
from controller.rollout.state import Phase, RolloutState
from controller.runtime.service_keeper import Keeper
from controller.store.rows import ServiceRow
from tests.fakes.plane import FakeClock, FakeFleet, FakeFront, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)


@dataclass(slots=True)
class Removals:
    removed: list[str] = field(default_factory=list)

    def remove_service(self, name: str, *, at_s: float) -> None:
        self.removed.append(name)


class Environment:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.front = FakeFront(self.traffic)
        self.removals = Removals()
        self.keeper = Keeper(self.fleet, self.traffic, self.front, self.removals, self.clock)

    def keep(
        self, row: ServiceRow = CHAT, *, rollout: RolloutState | None = None, ticks: int = 1
    ) -> float | None:
        """Tick a number of times, as far apart as the ticks return."""
        next_in_s: float | None = None
        for _ in range(ticks):
            assert self.keeper.prepare(row, token=1)
            plane = DataPlaneStatus(
                self.clock.now_s(), self.traffic.observe("chat"), self.fleet.observe("chat")
            )
            next_in_s = self.keeper.tick(row, 1, rollout, plane, token=1)
            self.clock.advance(next_in_s or 0.0)
        return next_in_s

    def versions(self) -> dict[str, VersionPhase]:
        return {one.version: one.phase for one in self.fleet.observe("chat") or ()}


def test_a_new_service_is_loaded_and_gets_all_traffic() -> None:
    world = Environment()
    world.keep(ticks=10)

    table = world.traffic.tables["chat"]
    assert world.versions() == {STABLE: VersionPhase.READY}
    assert (table.stable, table.canary, world.front.opened) == (STABLE, None, {"chat": "s3cret"})


def test_a_settled_service_is_left_in_peace() -> None:
    world = Environment()
    world.keep(ticks=10)
    loads, weights = world.fleet.loads, list(world.traffic.weights)

    next_in_s = world.keep(ticks=10)

    assert (world.fleet.loads, world.traffic.weights, next_in_s) == (loads, weights, 1.0)


def test_every_look_tells_the_table_that_the_controller_lives() -> None:
    world = Environment()
    world.keep(ticks=3)
    before_s = world.traffic.heard["chat"]

    world.clock.advance(5.0)
    world.keep()

    assert world.traffic.heard["chat"] > before_s + 5.0


def test_a_stable_that_vanished_is_loaded_again() -> None:
    world = Environment()
    world.keep(ticks=10)
    world.fleet.engines.clear()

    world.keep(ticks=10)

    assert world.versions() == {STABLE: VersionPhase.READY}


def test_a_stable_that_failed_is_tried_again_but_not_at_once() -> None:
    world = Environment()
    world.fleet.broken[STABLE] = "out of memory"
    world.keep(ticks=20)
    loads = world.fleet.loads
    del world.fleet.broken[STABLE]

    world.clock.advance(31.0)
    world.keep(ticks=20)

    assert (loads, world.versions()) == (1, {STABLE: VersionPhase.READY})


def test_a_version_that_nobody_owns_is_stopped() -> None:
    world = Environment()
    world.fleet.ensure("chat", CANARY, 1, token=1)
    world.keep(ticks=20)

    assert world.versions() == {STABLE: VersionPhase.READY}


def test_a_running_rollouts_canary_and_table_are_not_touched() -> None:
    world = Environment()
    world.keep(ticks=10)
    world.fleet.ensure("chat", CANARY, 1, token=1)
    world.traffic.set_split("chat", "r-00000001", SetSplit(STABLE, CANARY, 1000, 0), token=1)
    rollout = replace(a_rollout(), phase=Phase.STAGE, launched=True, exposed=True)

    world.keep(rollout=rollout, ticks=10)

    assert CANARY in world.versions()
    assert world.traffic.tables["chat"].weight_bp == 1000


def test_a_table_that_came_back_empty_gets_its_stable_again() -> None:
    world = Environment()
    world.keep(ticks=10)
    world.traffic.tables.clear()

    world.keep(ticks=2)

    assert world.traffic.tables["chat"].stable == STABLE


def test_a_fleet_that_cannot_be_read_is_left_alone() -> None:
    world = Environment()
    world.keep(ticks=10)
    loads = world.fleet.loads
    world.fleet.blind = True

    world.keep(ticks=5)

    assert world.fleet.loads == loads


def test_a_removed_service_closes_its_front_before_its_engines_stop() -> None:
    world = Environment()
    world.keep(ticks=10)

    world.keep(replace(CHAT, removing=True))

    assert (world.front.opened, world.removals.removed) == ({}, [])
    assert world.versions() == {STABLE: VersionPhase.STOPPING}


def test_a_removed_service_is_forgotten_once_its_memory_is_free() -> None:
    world = Environment()
    world.keep(ticks=10)

    next_in_s = world.keep(replace(CHAT, removing=True), ticks=10)

    assert (world.versions(), set(world.removals.removed), next_in_s) == ({}, {"chat"}, None)


def test_another_controllers_token_ends_the_look() -> None:
    world = Environment()
    world.fleet.fence.check(7)

    with pytest.raises(StaleToken):
        world.keep()
