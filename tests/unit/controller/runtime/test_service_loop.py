"""One service's loop body: how often the data plane is read, and what a failing front does not stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceLoop, ServiceWorkers
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.database_rig import sqlite_url
from tests.fakes.counted import Counted
from tests.fakes.plane import (
    FakeClock,
    FakeEvidence,
    FakeFleet,
    FakeIngress,
    FakeNotifier,
    FakeProbes,
    FakeTraffic,
)
from tests.fakes.rollouts import STABLE, a_rollout

OPERATOR = Identity("ada", Role.OPERATOR)


class Rig:
    """A service loop on fakes, with its service in the store."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = SqlStore(sqlite_url(folder / "state.db"))
        self.store.put_service(
            ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0)
        )
        assert self.store.acquire_lease("test", ttl_s=60.0) is not None  # token 1
        traffic = FakeTraffic(self.clock)
        self.ingress = FakeIngress(traffic)
        self.fleet, self.traffic = Counted(FakeFleet(self.clock)), Counted(traffic)
        self.loop = ServiceLoop("chat", self.store, self.clock, self._workers, lambda row: 1)

    def _workers(self, _: str) -> ServiceWorkers:
        evidence, probes, notifier = FakeEvidence(), FakeProbes(), FakeNotifier()
        ports = Ports(self.store, self.fleet, self.traffic, evidence, probes, notifier, self.clock)
        keeper = Keeper(self.fleet, self.traffic, self.ingress, self.store, self.clock)
        return ServiceWorkers(Reconciler(ports), keeper, lambda now_s: None)

    def deploy(self) -> None:
        """Stable is served, and a rollout of another version has started."""
        self.loop.tick(1)
        self.clock.advance(60.0)
        self.loop.tick(1)
        state = a_rollout(now_s=self.clock.at_s)
        self.store.create_rollout(state, request="{}", at_s=self.clock.at_s)

    def state(self) -> RolloutState:
        stored = self.store.load("r-00000001")
        assert stored is not None
        return stored.state

    def tick_until(self, phase: Phase) -> None:
        for _ in range(500):
            self.clock.advance(max(self.loop.tick(1), 0.01))
            if self.state().phase is phase:
                return
        raise AssertionError(f"still {self.state().phase}: {self.state().reason}")

    def reads_of_a_tick(self) -> tuple[int, int]:
        """Reads of the fleet and of the route table in one tick that also keeps the service."""
        self.clock.advance(5.0)
        self.fleet.reads = self.traffic.reads = 0
        self.loop.tick(1)
        return self.fleet.reads, self.traffic.reads


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_tick_with_a_running_rollout_reads_fleet_and_table_once(rig: Rig) -> None:
    rig.deploy()
    rig.tick_until(Phase.STAGE)

    assert rig.reads_of_a_tick() == (1, 1)


def test_a_tick_without_a_rollout_reads_fleet_and_table_once(rig: Rig) -> None:
    rig.loop.tick(1)

    assert rig.reads_of_a_tick() == (1, 1)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("no route to host")])
def test_a_front_that_fails_does_not_block_a_rollback(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    rig.deploy()
    rig.tick_until(Phase.STAGE)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FakeIngress, "open", fails)
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=rig.clock.at_s)

    rig.tick_until(Phase.ROLLED_BACK)
    assert rig.traffic.tables["chat"].canary is None
