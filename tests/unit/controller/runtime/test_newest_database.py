"""A controller whose database does not know what was done last: it moves nothing, and says what to do."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from controller.auth import Identity, Role
from controller.errors import OlderDatabase, Unreachable
from controller.rollout.state import Phase
from controller.runtime import runner, service_loop
from controller.runtime.newest_database import NewestDatabase
from controller.store import lineage
from controller.store.backup import copy_database
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import now_served, older_copy
from controller.wiring.now_served import Served
from evaluation.report import Verdict
from serving.messages import DatabaseMark, SplitStatus
from tests.database_rig import sqlite_url
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.plane import FakeFleet, FakeMarks, FakeTraffic
from tests.fakes.rollouts import STABLE

ADMIN = Identity("ada", Role.ADMIN)
QUICK: dict[str, Any] = {
    "stages": [{"weight": "10%", "duration": "1s", "min_canary": 1}],
    "bake": "1s",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runner, service_loop):
        monkeypatch.setattr(module, "PAUSE_S", 0.05)
    monkeypatch.setattr(runner, "RENEW_S", 0.05)


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def until(holds: Callable[[], object], what: str) -> None:
    ends_at_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends_at_s, f"timed out waiting until {what}"
        time.sleep(0.01)


def on_same_plane(first: FakeController, home: Path) -> FakeController:
    """Another controller of the same cluster."""
    second = FakeController(home)
    second.fleet.engines, second.fleet.fence = first.fleet.engines, first.fleet.fence
    for name in ("tables", "set_at_s", "fence", "marks", "weights"):
        setattr(second.traffic, name, getattr(first.traffic, name))
    return second


def at_ten_percent(home: Path, ending: ExitStack) -> tuple[FakeController, str]:
    """A controller with a rollout in its stage, and a copy of its database from then beside it."""
    first = FakeController(home)
    ending.callback(first.stop)
    first.start()
    first.commands.up({"service": "chat", "model": str(write_checkpoint(home / "a", seed=1))}, ADMIN)
    until(lambda: "chat" in first.traffic.tables and first.traffic.tables["chat"].stable, "chat is served")
    first.evidence.verdict = Verdict.UNDECIDED
    body = {"version": {"model": str(write_checkpoint(home / "b", seed=2))}, "policy": QUICK}
    rollout = first.commands.deploy("chat", {**body, "allow_unproven": "x", "allow_unjudged": "x"}, ADMIN).id
    until(lambda: first.traffic.tables["chat"].weight_bp == 1000, "the canary has 10 %")
    copy_database(home / "canaryctl.db", home / "copy.db")
    return first, rollout


def on_the_copy(first: FakeController, ending: ExitStack) -> FakeController:
    """The next controller, after the copy was put in the place of the database."""
    first.runner.stop()
    first.store.close()
    for name in ("canaryctl.db-wal", "canaryctl.db-shm"):
        (first.home / name).unlink(missing_ok=True)
    os.replace(first.home / "copy.db", first.home / "canaryctl.db")
    second = on_same_plane(first, first.home)
    ending.callback(second.stop)
    return second


def marked(controller: FakeController) -> DatabaseMark:
    """The mark in the route table, once it is of the newest event."""
    newest = controller.store.last_event("chat")
    assert newest is not None
    until(lambda: controller.traffic.marks["chat"].seq >= newest.seq, "the table has the newest event's mark")
    return controller.traffic.marks["chat"]


def problem(controller: FakeController) -> str:
    found = controller.runner.last_tick("chat").problem
    return found.text if found is not None else ""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["rolled back", "promoted"])
def test_a_copy_from_within_a_rollout_moves_nothing_back(
    tmp_path: Path, ending: ExitStack, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """It gave the canary that a person had rolled back its weight again, and promoted it."""
    first, rollout = at_ten_percent(tmp_path, ending)
    if end == "promoted":
        first.evidence.verdict = Verdict.PASS
    else:
        first.commands.rollback("chat", ADMIN, reason="it insults people")
    until(lambda: not first.store.running("chat"), "the rollout has ended")
    second = on_the_copy(first, ending)
    served, weights = first.traffic.tables["chat"], list(first.traffic.weights)
    monkeypatch.setattr(
        now_served,
        "read_tables",
        lambda settings, service, **_: (Served("chat", FakeMarks(first.traffic).observe("chat")),),
    )
    settings: Any = type("S", (), {"database_url": sqlite_url(tmp_path / "canaryctl.db")})

    found = older_copy.older_copies(settings)
    second.start()
    until(lambda: "older copy" in problem(second), "the controller says why it does not act")
    time.sleep(0.3)

    assert [one.service for one in found] == ["chat"]
    assert "canaryctl up --accept-database" in problem(second)
    with pytest.raises(OlderDatabase, match="canaryctl rollback chat --direct"):
        second.commands.rollback("chat", ADMIN, reason="it insults people")
    assert second.runner.last_tick("chat").versions  # what runs is shown all the same
    assert (first.traffic.tables["chat"], first.traffic.weights) == (served, weights)

    older_copy.accept(settings, found)
    until(lambda: not problem(second), "the accepted copy is acted from")
    stored = second.store.load(rollout)
    assert stored is not None
    assert stored.state.phase is Phase.FAILED
    assert set(first.traffic.weights[len(weights) :]) <= {0}
    assert older_copy.older_copies(settings) == ()


@pytest.mark.slow
def test_of_two_databases_on_one_cluster_one_is_acted_from(tmp_path: Path, ending: ExitStack) -> None:
    """Each fenced the other, and took the next token: they acted by turns for ever."""
    first, _ = at_ten_percent(tmp_path, ending)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "copy.db").rename(other / "canaryctl.db")
    second = on_same_plane(first, other)
    ending.callback(second.stop)
    spec = first.store.service("chat").spec
    first.store.set_keys(
        "chat", lambda _: spec, ADMIN, keys=("clients",), at_s=time.time()
    )  # the copy does not know of it
    mark = marked(first)
    for _ in range(3):  # a standby that was promoted: some leases further
        lease = second.store.acquire_lease("x", ttl_s=0.0)
        assert lease is not None

    second.start()
    until(lambda: "second one" in problem(second), "the second says why it does not act")
    time.sleep(0.3)

    assert first.traffic.marks["chat"].holder == mark.holder
    assert first.runner.is_leading
    assert not problem(first)


@pytest.mark.slow
@pytest.mark.parametrize("later_events", [0, 9])
def test_a_copy_restored_into_the_database_in_use_moves_nothing_back(
    tmp_path: Path, ending: ExitStack, later_events: int
) -> None:
    """As by `.restore`, pg_restore --clean or a fail-over to a standby behind: the lease stays the same. The
    canary that a person had rolled back was given its weight again, and promoted."""
    first, _ = at_ten_percent(tmp_path, ending)
    first.commands.rollback("chat", ADMIN, reason="it insults people")
    until(lambda: not first.store.running("chat"), "the rollout has ended")
    mark, weights = marked(first), list(first.traffic.weights)
    first.evidence.verdict = Verdict.PASS

    with (
        closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
        closing(sqlite3.connect(tmp_path / "canaryctl.db")) as used,
    ):
        used.execute("PRAGMA busy_timeout = 10000")
        with copy:
            for _ in range(later_events):  # which have the numbers of those that were lost
                copy.execute(
                    "INSERT INTO events (service, at_s, actor, text) VALUES ('chat', 1.0, 'ada', 'changed')"
                )
        copy.backup(used)
    until(lambda: "older copy" in problem(first), "the controller says why it does not act")
    time.sleep(0.3)

    assert (first.traffic.marks["chat"], first.traffic.weights) == (mark, weights)
    assert first.runner.is_leading


class _Tables:
    """A route table that answers nobody."""

    def observe(self, service: str) -> SplitStatus | None:
        return None

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        return False


class _Marked(_Tables):
    """A route table of stable alone."""

    def __init__(self) -> None:
        self.found: DatabaseMark | None = None

    def observe(self, service: str) -> SplitStatus | None:
        return SplitStatus(1, 1, "", STABLE, None, 0, True, "acknowledged", mark=self.found)

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        assert instead_of == self.found
        self.found = mark
        return True


@pytest.mark.slow
def test_a_service_is_acted_on_after_any_number_of_leases_without_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that was killed before its first tick, 300 times, took the newest database for a copy."""
    monkeypatch.setattr(lineage, "LIMIT", 3)
    tables = _Marked()
    with closing(SqlStore(sqlite_url(tmp_path / "state.db"))) as store:
        store.put_service(
            ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0)
        )
        for unused in (0, 5, 5):
            for _ in range(unused + 1):
                store.release_lease(store.lease().token)
                store.acquire_lease("a", ttl_s=5.0)
            newest = NewestDatabase("chat", store.database, tables, lambda: ["chat"])
            newest.require(store.lease().token)

            assert tables.found == lineage.own_mark(store.database, "chat")


@pytest.mark.parametrize(("names", "acts"), [(["chat"], False), (None, False), ([], True)])
def test_a_table_that_cannot_be_read_is_not_taken_for_none(
    tmp_path: Path, names: list[str] | None, acts: bool
) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    lease = store.acquire_lease("a", ttl_s=5.0)
    assert lease is not None
    newest = NewestDatabase("chat", store.database, _Tables(), lambda: names)
    try:
        if acts:
            newest.require(lease.token)
        else:
            with pytest.raises(Unreachable, match="the route table of chat does not answer"):
                newest.require(lease.token)
    finally:
        store.close()


@pytest.mark.slow
def test_the_mark_is_in_the_table_before_what_was_committed_is_done(
    tmp_path: Path, ending: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind: list[str] = []

    def compared(call: Callable[..., Any]) -> Callable[..., Any]:
        def compare(plane: Any, service: str, *values: Any, token: int) -> Any:
            newest, mark = first.store.last_event(service), first.traffic.marks.get(service)
            if newest is not None and (mark is None or mark.seq < newest.seq):
                behind.append(f"{mark} for {newest.text}")
            return call(plane, service, *values, token=token)

        return compare

    first, _ = at_ten_percent(tmp_path, ending)
    monkeypatch.setattr(FakeTraffic, "set_split", compared(FakeTraffic.set_split))
    for name in ("ensure", "drain", "stop"):
        monkeypatch.setattr(FakeFleet, name, compared(getattr(FakeFleet, name)))
    first.evidence.verdict = Verdict.PASS
    until(lambda: not first.store.running("chat"), "the canary is promoted")
    time.sleep(0.3)  # the keeper's ticks after it

    assert first.traffic.tables["chat"].weight_bp == 0
    assert behind == []
