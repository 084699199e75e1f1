"""Rollouts through reconciler and real store: clocks that jump, late commands, two connections, the lease."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from controller.api.commands import Commands
from controller.auth import Identity, Role
from controller.errors import Conflict, RolloutRunning, StaleToken
from controller.planning.fingerprint import fingerprint_external
from controller.rollout.actions import SetSplit
from controller.rollout.observation import CommandKind
from controller.rollout.plan import VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.runner import Runner
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.controller import FakeEnvironment, NoTicks
from tests.fakes.plane import FakeClock, FakeEvidence, FakeFleet, FakeNotifier, FakeProbes, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

ADA = Identity("ada", Role.ADMIN)
HOUR_S = 3600.0
THIRD = "v-0000000003"


class Mutable(FakeNotifier):
    """A notifier that can be out of order."""

    works = True

    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        return self.works and super().send(key, severity, text)


class Rig:
    """One service on a fake data plane and a real store."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.store = SqlStore(url, clock=lambda: 100.0)
        self.store.put_service(
            ServiceRow("chat", '{"service": "chat", "model": "/m"}', STABLE, "s", 1.0),
            VersionRow("chat", STABLE, '{"model": "/m"}', "{}", 1.0),
        )
        lease = self.store.acquire_lease("test", ttl_s=60.0)
        assert lease is not None
        self.token = lease.token
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.notifier = Mutable()
        self.fleet.ensure("chat", STABLE, 1, token=1)
        self.clock.advance(60.0)
        self.traffic.set_split("chat", "", SetSplit(STABLE, None, 0, 0), token=1)
        probes, evidence = FakeProbes(), FakeEvidence()
        self.reconciler = Reconciler(
            Ports(self.store, self.fleet, self.traffic, evidence, probes, self.notifier, self.clock)
        )
        self.commands = Commands(self.store, FakeEnvironment(), self.clock, NoTicks())

    def deploy(self, id: str, *, stable: str = STABLE, canary: str = CANARY) -> None:
        state = replace(
            a_rollout(id, now_s=self.clock.at_s), stable=VersionRef(stable), canary=VersionRef(canary)
        )
        self.store.create_rollout(state, request="{}", at_s=self.clock.at_s)

    def state(self, id: str) -> RolloutState:
        stored = self.store.load(id)
        assert stored is not None
        return stored.state

    def tick(self, id: str) -> float:
        performed = self.reconciler.perform(id, token=self.token)
        assert performed is not None
        return self.reconciler.decide(performed, self.reconciler.read("chat")).next_in_s

    def drive(self, id: str, until: Callable[[RolloutState], bool]) -> RolloutState:
        for _ in range(1000):
            pause_s = self.tick(id)
            if until(self.state(id)):
                return self.state(id)
            self.clock.advance(max(pause_s, 0.01))
        raise AssertionError(f"still {self.state(id).phase}: {self.state(id).reason}")


@pytest.fixture
def rig(database_url: str) -> Iterator[Rig]:
    rig = Rig(database_url)
    yield rig
    rig.store.close()


def final(state: RolloutState) -> bool:
    return state.is_final


def in_stage(state: RolloutState) -> bool:
    return state.phase is Phase.STAGE and state.acked_at_s is not None


# --- clocks


@pytest.mark.slow
def test_a_rollback_finds_the_running_rollout_after_the_clock_was_an_hour_ahead(rig: Rig) -> None:
    rig.clock.advance(HOUR_S)
    rig.deploy("r-00000001")
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, ADA, reason="", at_s=rig.clock.at_s)
    rig.drive("r-00000001", final)
    rig.clock.advance(-HOUR_S)
    rig.deploy("r-00000002", canary=THIRD)
    rig.drive("r-00000002", in_stage)

    answer = rig.commands.rollback("chat", ADA, reason="bad")

    assert (answer.outcome, rig.drive("r-00000002", final).phase) == ("asked", Phase.ROLLED_BACK)
    assert [row.id for row in rig.store.rollouts("chat")] == ["r-00000002", "r-00000001"]


@pytest.mark.slow
def test_the_newest_attempt_of_a_version_is_the_last_one_whatever_the_clock_says(rig: Rig) -> None:
    for index, jump_s in enumerate((HOUR_S, -HOUR_S, -HOUR_S)):
        rig.clock.advance(jump_s)
        rig.deploy(f"r-0000000{index}")
        rig.store.append_command(f"r-0000000{index}", CommandKind.ROLLBACK, ADA, reason="", at_s=0.0)
        rig.drive(f"r-0000000{index}", final)

    newest = rig.store.latest_attempt("chat", CANARY)

    assert newest is not None
    assert newest.id == "r-00000002"


# --- the stable version


@pytest.mark.slow
def test_a_notice_that_is_delivered_late_does_not_take_back_a_later_promotion(rig: Rig) -> None:
    rig.notifier.works = False
    rig.deploy("r-00000001")
    rig.drive("r-00000001", final)
    rig.deploy("r-00000002", stable=CANARY, canary=THIRD)
    rig.drive("r-00000002", final)
    assert rig.store.service("chat").stable == THIRD

    rig.notifier.works = True
    rig.tick("r-00000001")

    assert (rig.state("r-00000001").outbox, rig.store.service("chat").stable) == ((), THIRD)


@pytest.mark.slow
def test_a_promotion_from_a_version_that_no_longer_serves_is_refused(rig: Rig) -> None:
    rig.deploy("r-00000001")
    rig.drive("r-00000001", in_stage)
    with rig.store.database.write() as db:  # restored from a backup by hand, say
        db.execute(sa.text(f"UPDATE services SET stable = '{THIRD}'"))

    with pytest.raises(Conflict, match=f"chat serves {THIRD}, not {STABLE}, .*canaryctl rollback chat"):
        rig.drive("r-00000001", final)

    assert rig.store.service("chat").stable == THIRD
    rig.commands.rollback("chat", ADA, reason="")
    assert rig.drive("r-00000001", final).phase is Phase.ROLLED_BACK


# --- commands


@pytest.mark.slow
def test_a_rollback_in_the_last_tick_of_unloading_takes_effect(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.deploy("r-00000001")
    rig.drive("r-00000001", lambda state: state.phase is Phase.UNLOADING)
    commit = rig.store.commit
    answers: list[str] = []

    def commit_after_the_rollback(state: RolloutState, *args: Any, **kwargs: Any) -> int:
        if state.is_final and not answers:
            answers.append(rig.commands.rollback("chat", ADA, reason="too late?")[0])
        return commit(state, *args, **kwargs)

    monkeypatch.setattr(rig.store, "commit", commit_after_the_rollback)

    assert (rig.drive("r-00000001", final).phase, answers) == (Phase.ROLLED_BACK, ["asked"])
    assert (rig.store.service("chat").stable, rig.traffic.tables["chat"].stable) == (STABLE, STABLE)


@pytest.mark.slow
def test_a_rollback_that_comes_after_the_end_is_an_undo(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout ends between the API's reading and its writing."""
    url = "http://127.0.0.1:1"
    fingerprint = json.dumps(asdict(fingerprint_external(url)))
    external = VersionRow("chat", CANARY, json.dumps({"url": url}), fingerprint, 1.0)
    service = rig.store.service("chat")
    rig.store.remove_service("chat", at_s=1.0)
    rig.store.put_service(service, replace(external, id=STABLE))
    rig.store.put_version(external)
    rig.deploy("r-00000001")
    rig.drive("r-00000001", lambda state: state.phase is Phase.UNLOADING)
    append = rig.store.append_command

    def append_after_the_end(*args: Any, **kwargs: Any) -> int | None:
        if not rig.state("r-00000001").is_final:
            rig.drive("r-00000001", final)
        return append(*args, **kwargs)

    monkeypatch.setattr(rig.store, "append_command", append_after_the_end)

    answer = rig.commands.rollback("chat", ADA, reason="")

    assert answer.rollout is not None
    undo = rig.state(answer.rollout)
    assert (answer.outcome, undo.plan.undo, undo.stable.id, undo.canary.id) == ("asked", True, CANARY, STABLE)


def test_a_refused_deploy_does_not_move_the_path_of_the_running_canary(rig: Rig) -> None:
    row = VersionRow("chat", CANARY, '{"model": "/first"}', "{}", 1.0, name="first")
    state = a_rollout("r-00000001")
    rig.store.create_rollout(state, request="{}", at_s=1.0, version=row)

    with pytest.raises(RolloutRunning):
        rig.store.create_rollout(
            a_rollout("r-00000002"), request="{}", at_s=1.0, version=replace(row, spec='{"model": "/b"}')
        )

    assert rig.store.version("chat", CANARY) == row
    assert rig.store.rollouts("chat")[0].name == "first"


def test_a_plan_from_before_another_rollout_creates_none(rig: Rig) -> None:
    """The canary may have been rejected between the check and the creation."""
    rig.deploy("r-00000001")
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, ADA, reason="bad", at_s=1.0)
    rig.drive("r-00000001", final)

    with pytest.raises(Conflict, match=r"chat had rollout r-00000001 meanwhile, .*deploy again"):
        rig.store.create_rollout(a_rollout("r-00000002"), request="{}", at_s=1.0, newest=None)

    rig.store.create_rollout(a_rollout("r-00000003"), request="{}", at_s=1.0, newest="r-00000001")
    assert [row.id for row in rig.store.rollouts("chat")] == ["r-00000003", "r-00000001"]


# --- two connections


@dataclass(frozen=True, slots=True)
class Stall:
    """A statement that waits: `reached` is set when it is about to run, and it runs once `go` is set."""

    reached: threading.Event
    go: threading.Event


def stall(store: SqlStore, prefix: str) -> Stall:
    """Stall the store's first statement that begins with `prefix`."""
    stall = Stall(threading.Event(), threading.Event())

    def wait(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(prefix) and not stall.reached.is_set():
            stall.reached.set()
            assert stall.go.wait(10)

    sa.event.listen(store.database._engine, "before_cursor_execute", wait)
    return stall


def stall_before_commit(store: SqlStore) -> Stall:
    """Stall the store's next commit."""
    stall = Stall(threading.Event(), threading.Event())

    def wait(_connection: Any) -> None:
        if not stall.reached.is_set():
            stall.reached.set()
            assert stall.go.wait(10)

    sa.event.listen(store.database._engine, "commit", wait)
    return stall


def result_of(future: Future[Any]) -> object:
    """The result, or the class of the exception."""
    failed = future.exception(timeout=20)
    return type(failed) if failed is not None else future.result()


@pytest.fixture
def second(rig: Rig, database_url: str) -> Iterator[SqlStore]:
    """Another process's store on the same database."""
    store = SqlStore(database_url, clock=lambda: 100.0)
    yield store
    store.close()


def both(first: Callable[[], object], stalled: Stall, then: Callable[[], object]) -> tuple[object, object]:
    """Results of `first`, which stalls, and of `then`, which starts meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert stalled.reached.wait(10)
        two = pool.submit(then)
        # `then` either ends now, not knowing of `first`, or waits for it.
        wait_for([two], timeout=0.2)
        stalled.go.set()
        return result_of(one), result_of(two)


@pytest.mark.slow
def test_down_and_deploy_take_turns(rig: Rig, second: SqlStore) -> None:
    stalled = stall(rig.store, "INSERT INTO rollouts")

    outcomes = both(
        lambda: rig.deploy("r-00000001"), stalled, lambda: second.mark_removing("chat", ADA, at_s=1.0)
    )

    assert outcomes == (None, RolloutRunning)
    assert not rig.store.service("chat").removing


@pytest.mark.slow
def test_deploy_and_down_take_turns(rig: Rig, second: SqlStore) -> None:
    stalled = stall(second, "UPDATE services")

    outcomes = both(
        lambda: second.mark_removing("chat", ADA, at_s=1.0), stalled, lambda: rig.deploy("r-00000001")
    )

    assert outcomes == (None, Conflict)
    assert rig.store.rollouts("chat") == ()


@pytest.mark.slow
def test_a_command_is_not_visible_before_an_earlier_one(rig: Rig, second: SqlStore) -> None:
    """On PostgreSQL the lower number may be committed later; a cursor that has passed it never sees it."""
    rig.deploy("r-00000001")
    stalled = stall_before_commit(rig.store)

    def ask(store: SqlStore, kind: CommandKind) -> int | None:
        return store.append_command("r-00000001", kind, ADA, reason="", at_s=1.0)

    seen: list[tuple[int, ...]] = []

    def ask_and_look() -> int | None:
        seq = ask(second, CommandKind.PAUSE)
        seen.append(tuple(one.seq for one in second.commands("r-00000001", after_seq=0)))
        return seq

    outcomes = both(lambda: ask(rig.store, CommandKind.ROLLBACK), stalled, ask_and_look)

    assert seen == [outcomes]


@pytest.mark.slow
def test_a_command_to_a_rollout_that_is_just_ending_is_refused(rig: Rig, second: SqlStore) -> None:
    rig.deploy("r-00000001")
    ended = replace(rig.state("r-00000001"), phase=Phase.FAILED)
    stalled = stall_before_commit(rig.store)

    outcomes = both(
        lambda: rig.store.commit(ended, (), expected_version=0, evidence=None),
        stalled,
        lambda: second.append_command("r-00000001", CommandKind.ROLLBACK, ADA, reason="", at_s=1.0),
    )

    assert outcomes == (1, None)
    assert rig.store.commands("r-00000001", after_seq=0) == ()


@pytest.mark.slow
def test_a_line_of_the_log_is_not_visible_before_an_earlier_one(rig: Rig, second: SqlStore) -> None:
    stalled = stall_before_commit(rig.store)
    seen: list[tuple[str, ...]] = []

    def ask_and_look() -> None:
        with pytest.raises(RolloutRunning):
            second.mark_removing("chat", ADA, at_s=1.0)
        seen.append(tuple(event.text for event in second.events("chat")))

    both(lambda: rig.deploy("r-00000001"), stalled, ask_and_look)

    assert seen == [tuple(event.text for event in rig.store.events("chat"))]
    assert len(seen[0]) == 2


@pytest.mark.slow
def test_a_commit_is_whole_before_the_lease_changes_hands_or_refused(rig: Rig, second: SqlStore) -> None:
    """SQLite's writers wait for each other; PostgreSQL's commit locks the lease with its last statement.

    Which of the two comes first is left open: a thread may be late, and then either order is right.
    """
    rig.deploy("r-00000001")
    state = rig.state("r-00000001")
    rig.store.release_lease(rig.token)
    stalled = stall(rig.store, "UPDATE rollouts")

    def commit() -> int:
        return rig.store.commit(state, (), expected_version=0, evidence=None, token=rig.token)

    def acquire() -> bool:
        """True: before the commit went on. False tells nothing: the thread may be late, or have waited."""
        second.acquire_lease("b", ttl_s=5.0)
        return not stalled.go.is_set()

    committed, acquired_before = both(commit, stalled, acquire)
    stored = rig.store.load("r-00000001")

    assert stored is not None
    assert (committed, stored.version) in ((1, 1), (StaleToken, 0))
    if acquired_before:
        assert committed is StaleToken
    with pytest.raises(StaleToken, match="token 1 is not the lease's, 2 is"):
        rig.store.commit(state, (), expected_version=stored.version, evidence=None, token=rig.token)


def test_a_controller_that_lost_the_lease_removes_no_service(rig: Rig, second: SqlStore) -> None:
    rig.store.mark_removing("chat", ADA, at_s=1.0)
    rig.store.release_lease(rig.token)
    second.acquire_lease("b", ttl_s=5.0)

    with pytest.raises(StaleToken):
        rig.store.remove_service("chat", at_s=1.0, token=rig.token)

    assert rig.store.service("chat").removing


# --- the lease


class Pair:
    """Two controllers on hosts whose wall clocks differ by 11 s, and the clock of their database."""

    def __init__(self, url: str) -> None:
        self.at_s = 50_000.0
        self.skews_s = [0.0, 11.0]
        self.stores = [SqlStore(url, clock=lambda: self.at_s) for _ in self.skews_s]
        self.runners = [self._runner(index) for index in range(2)]
        self.leaders: list[int | None] = []

    def _runner(self, index: int) -> Runner:
        wall = SimpleNamespace(now_s=lambda: self.at_s + self.skews_s[index])
        boot = lambda: self.at_s  # noqa: E731 - elapsed time is the same on both hosts
        unused: Any = None
        return Runner(self.stores[index], wall, unused, unused, holder=f"host-{index}", boot_clock=boot)

    def run(self, seconds: int, *, alive: tuple[int, ...] = (0, 1)) -> None:
        """Every second each living controller renews or acquires the lease, as its thread does."""
        for _ in range(seconds):
            self.at_s += 1.0
            for index in alive:
                self.runners[index]._hold_lease()
            leading = [index for index in alive if self.runners[index].is_leading]
            assert len(leading) <= 1
            self.leaders.append(leading[0] if leading else None)

    def changes(self) -> int:
        """How often another controller began to lead."""
        leaders = [leader for leader in self.leaders if leader is not None]
        return sum(before != after for before, after in itertools.pairwise(leaders))

    def close(self) -> None:
        for store in self.stores:
            store.close()


@pytest.fixture
def pair(database_url: str) -> Iterator[Pair]:
    pair = Pair(database_url)
    yield pair
    pair.close()


def test_wall_clocks_that_differ_change_no_leader(pair: Pair) -> None:
    pair.run(30)

    assert (pair.changes(), pair.stores[0].lease().token) == (0, 1)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("host", [0, 1])
def test_a_wall_clock_that_jumps_changes_no_leader(pair: Pair, host: int, jump_s: float) -> None:
    pair.run(10)
    pair.skews_s[host] += jump_s
    pair.run(10)

    assert (pair.changes(), pair.stores[0].lease().token) == (0, 1)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_of_the_databases_clock_changes_the_leader_at_most_once(pair: Pair, jump_s: float) -> None:
    pair.run(10)
    pair.at_s += jump_s
    pair.run(10)
    pair.at_s -= jump_s
    pair.run(10)

    assert pair.changes() <= 2  # one for each of the two faults
    assert pair.stores[0].lease().token <= 3


def test_a_controller_that_dies_is_followed_once(pair: Pair) -> None:
    pair.run(10)
    pair.run(10, alive=(1,))
    pair.run(10)

    assert (pair.changes(), pair.stores[0].lease().token) == (1, 2)


@pytest.mark.slow
def test_a_controller_that_was_suspended_does_not_lead_when_it_wakes(pair: Pair) -> None:
    pair.run(10)
    pair.run(300, alive=(1,))

    assert (pair.runners[0].is_leading, pair.runners[1].is_leading) == (False, True)


@pytest.mark.integration
def test_the_clock_of_postgresql_leases_is_the_servers(postgres: Any, tmp_path: Path) -> None:
    store = SqlStore(postgres.empty_database())
    with store.database.read() as db:
        theirs = db.execute(sa.text("SELECT extract(epoch FROM now())")).scalar_one()
        now_s = store.database.now_s(db)
    store.close()

    assert 0.0 <= now_s - float(theirs) < 5.0
