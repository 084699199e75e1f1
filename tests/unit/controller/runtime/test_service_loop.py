"""One service's loop body: how often the data plane is read, and what a failing front does not stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.errors import BadInput, CanaryctlError, OlderDatabase, StaleToken, StaleWrite, Unreachable
from controller.rollout.observation import CommandKind, VersionPhase
from controller.rollout.serialization import UnreadableState
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import Problem, ServiceLoop, ServiceWorkers
from controller.store import schema as t
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
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

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
        self.newest_error: CanaryctlError | None = None
        self.measured: list[float] = []
        self.measuring_error: Exception | None = None
        self.outage: str | None = None
        traffic = FakeTraffic(self.clock)
        self.ingress = FakeIngress(traffic)
        self.fleet, self.traffic = Counted(FakeFleet(self.clock)), Counted(traffic)
        self.loop = ServiceLoop("chat", self.store, self.clock, self._workers, lambda row: 1)

    def _workers(self, _: str) -> ServiceWorkers:
        evidence, probes, notifier = FakeEvidence(), FakeProbes(), FakeNotifier()
        ports = Ports(self.store, self.fleet, self.traffic, evidence, probes, notifier, self.clock)
        keeper = Keeper(self.fleet, self.traffic, self.ingress, self.store, self.clock)
        return ServiceWorkers(Reconciler(ports), keeper, self._measure, self._require_newest, self)  # type: ignore[arg-type]

    def look(self, versions: object, now_s: float) -> str | None:
        """As an outage watch."""
        return self.outage

    def _measure(self, now_s: float) -> None:
        if self.measuring_error is not None:
            raise self.measuring_error
        self.measured.append(now_s)

    def _require_newest(self, token: int) -> None:
        if self.newest_error is not None:
            raise self.newest_error

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


@pytest.mark.slow
def test_a_tick_with_a_running_rollout_reads_fleet_and_table_once(rig: Rig) -> None:
    rig.deploy()
    rig.tick_until(Phase.STAGE)

    assert rig.reads_of_a_tick() == (1, 1)


def test_a_tick_without_a_rollout_reads_fleet_and_table_once(rig: Rig) -> None:
    rig.loop.tick(1)

    assert rig.reads_of_a_tick() == (1, 1)


def test_what_users_do_not_get_is_in_the_last_tick_until_they_do(rig: Rig) -> None:
    rig.outage = "no request was answered"
    rig.reads_of_a_tick()
    seen = rig.loop.last.outage
    rig.loop.tick(1)  # without the keeper's turn nothing new is known
    kept = rig.loop.last.outage
    rig.outage = None
    rig.reads_of_a_tick()

    assert (seen, kept, rig.loop.last.outage) == ("no request was answered", "no request was answered", None)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("a bug"), UnreadableState("rollout state cannot be read")])
def test_traffic_that_cannot_be_measured_stops_no_tick(rig: Rig, error: Exception) -> None:
    rig.measuring_error = error
    rig.deploy()
    rig.tick_until(Phase.STAGE)

    assert rig.loop.last.problem is None

    rig.measuring_error = None
    rig.clock.advance(5.0)
    rig.loop.tick(1)
    assert rig.measured


def test_the_last_notices_of_a_rollout_that_another_release_ended_stop_no_tick(rig: Rig) -> None:
    rig.deploy()
    with rig.store.database.write() as db:
        values = {
            "state": '{"format": 99}',
            "is_final": True,
            "ended_at_s": 9.0,
            "pending": '[{"kind": "x"}]',
        }
        db.execute(sa.update(t.rollouts).values(**values))

    rig.loop.tick(1)

    assert rig.loop.last.problem is None


def test_a_running_rollout_that_another_release_wrote_stops_the_ticks(rig: Rig) -> None:
    rig.deploy()
    with rig.store.database.write() as db:
        db.execute(sa.update(t.rollouts).values(state='{"format": 99}'))

    rig.loop.tick(1)

    assert rig.loop.last.problem is not None


def fail_commits(rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(rig.store, "commit", fails)


@pytest.mark.integration
@pytest.mark.parametrize("error", [BadInput("a text that cannot be stored"), StaleWrite("another")])
def test_heartbeats_stop_while_nothing_can_be_committed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The route table withdraws the canary when it hears nothing."""
    rig.deploy()
    rig.tick_until(Phase.STAGE)
    fail_commits(rig, monkeypatch, error)
    rig.fleet.engines["chat", CANARY].phase = VersionPhase.FAILED  # this would roll back

    started_s = rig.clock.booted_s
    for _ in range(120):
        rig.clock.advance(1.0)
        rig.loop.tick(1)
    silent_s = rig.clock.booted_s - rig.traffic.heartbeat_at_s["chat"]

    monkeypatch.undo()
    rig.tick_until(Phase.ROLLED_BACK)
    assert (rig.traffic.heartbeat_at_s["chat"] - started_s > 120.0, silent_s >= 60.0) == (True, True)


@pytest.mark.slow
def test_heartbeats_stop_also_where_the_lease_lapses_between_failing_ticks(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk, a rollback that was accepted waited for minutes while each new tick kept the canary."""
    rig.deploy()
    rig.tick_until(Phase.STAGE)
    fail_commits(rig, monkeypatch, StaleToken("the lease lapsed while it waited for the disk"))
    rig.fleet.engines["chat", CANARY].phase = VersionPhase.FAILED  # this would roll back

    for second in range(120):
        rig.clock.advance(1.0)
        if second % 10:
            rig.loop.tick(None)
        else:
            with pytest.raises(StaleToken):
                rig.loop.tick(1)

    assert rig.clock.booted_s - rig.traffic.heartbeat_at_s["chat"] >= 80.0


@pytest.mark.slow
def test_a_stuck_rollout_does_not_bring_its_canary_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split that it committed last is published with every tick, which would undo the withdrawal."""
    rig.deploy()
    rig.tick_until(Phase.STAGE)
    fail_commits(rig, monkeypatch, BadInput("a text that cannot be stored"))
    for _ in range(40):
        rig.clock.advance(1.0)
        rig.loop.tick(1)

    rig.traffic.withdraw("chat")
    for _ in range(10):
        rig.clock.advance(1.0)
        rig.loop.tick(1)

    assert rig.traffic.tables["chat"].canary is None


@pytest.mark.slow
@pytest.mark.parametrize("has_rollout", [False, True])
def test_a_tick_reads_the_services_row_before_its_front_and_after_its_rollouts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, has_rollout: bool
) -> None:
    """And not a third time: a removed service is noticed by the first of the two."""
    if has_rollout:
        rig.deploy()
        rig.tick_until(Phase.STAGE)
    else:
        rig.loop.tick(1)
    reads: list[str] = []
    read = rig.store.service

    def counted(name: str) -> ServiceRow:
        reads.append(name)
        return read(name)

    monkeypatch.setattr(rig.store, "service", counted)

    rig.clock.advance(5.0)
    rig.loop.tick(1)

    assert reads == ["chat", "chat"]


def test_the_last_tick_says_why_ticks_fail_until_one_works(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk froze what `status` shows, with no word that nothing can be decided."""
    rig.deploy()
    assert rig.loop.last.problem is None

    def full(*args: object, **more: object) -> None:
        raise Unreachable("database or disk is full; free disk space")

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "commit", full)
        rig.loop.tick(1)
        assert rig.loop.last.problem == Problem("database or disk is full; free disk space")
        assert rig.loop.last.versions
    rig.loop.tick(1)
    assert rig.loop.last.problem is None


@pytest.mark.parametrize("broken", ["commit", "workers"])
def test_a_tick_that_fails_by_a_bug_says_so_and_the_next_one_is_tried(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    rig.deploy()

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug\n[SQL: with a secret]")

    with monkeypatch.context() as patch:
        if broken == "commit":
            patch.setattr(rig.store, "commit", fails)
        else:
            patch.setattr(Keeper, "__init__", fails)
        pauses_s = [rig.loop.tick(2 if broken == "workers" else 1) for _ in range(3)]
        problem = rig.loop.last.problem

    found = Problem("a bug of canaryctl, see its log: ZeroDivisionError: a bug")
    assert (pauses_s, problem) == ([1.0] * 3, found)
    logged = [one for one in caplog.records if one.levelname == "ERROR"]
    assert [one.getMessage() for one in logged] == ["failed, will be retried"]  # not once a tick
    assert logged[0].exc_info is not None
    rig.store.release_lease(1)
    assert rig.store.acquire_lease("test", ttl_s=60.0) is not None
    rig.loop.tick(2)
    assert rig.loop.last.problem is None


@pytest.mark.slow
def test_a_service_that_is_stuck_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.deploy()
    rig.tick_until(Phase.STAGE)
    fail_commits(rig, monkeypatch, StaleWrite("another writer"))
    rig.fleet.engines["chat", CANARY].phase = VersionPhase.FAILED

    for _ in range(40):
        rig.clock.advance(1.0)
        rig.loop.tick(1)

    assert rig.loop.last.problem is not None
    assert rig.loop.last.problem.text.startswith("no tick of chat was completed for 30 s")


def test_a_standby_takes_commands_again(rig: Rig) -> None:
    """By now another controller may act from the database, because a person accepted it."""
    rig.newest_error = OlderDatabase("not acting: an older copy")
    rig.loop.tick(1)
    assert rig.loop.last.problem == Problem("not acting: an older copy", loses_commands=True)

    rig.loop.tick(None)

    assert rig.loop.last.problem == Problem("not acting: an older copy")


@pytest.mark.parametrize("is_of_lease", [False, True])
def test_a_standby_shows_a_failing_read_until_it_works(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, is_of_lease: bool
) -> None:
    """One second without the database was today's problem of a standby for weeks."""
    before = None
    if is_of_lease:
        rig.newest_error = Unreachable("the route table does not answer")
        rig.loop.tick(1)
        before = Problem("the route table does not answer")

    def fails(name: str) -> ServiceRow:
        raise Unreachable("the database system is starting up")

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "service", fails)
        rig.loop.tick(None)
        meanwhile = rig.loop.last.problem
    rig.loop.tick(None)

    assert meanwhile == (before or Problem("the database system is starting up", is_of_lease=False))
    assert rig.loop.last.problem == before


def test_a_token_behind_the_data_planes_is_named_as_a_problem(rig: Rig) -> None:
    """An older copy of the database: nothing acts until the next lease, and status said nothing of it."""
    rig.ingress.traffic.fence.token = 7

    with pytest.raises(StaleToken) as caught:
        rig.loop.tick(1)

    assert caught.value.newest == 7
    assert rig.loop.last.problem == Problem(
        "not acting until the next lease: token 1 is older than 7; another controller acts",
        is_of_lease=False,
    )
    rig.loop.tick(None)
    assert rig.loop.last.problem is None
