"""Order of the writers of one process: the lease and a rollback never queue behind evidence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.errors import Unreachable
from controller.rollout.observation import CommandKind
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.store.turns import Turn, Turns
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE, a_rollout

OPERATOR = Identity("ada", Role.OPERATOR)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout("r-00000001"), request="{}", at_s=1.0)
    yield store
    store.close()


def order_of(turns: Turns, writers: Mapping[str, Callable[[], object]]) -> list[str]:
    """Names of the writers in the order in which they were done; all queued while another had the turn."""
    done: list[str] = []

    def write(name: str, call: Callable[[], object]) -> None:
        call()
        done.append(name)

    threads = [threading.Thread(target=write, args=item, daemon=True) for item in writers.items()]
    with turns.take(Turn.ROUTINE, timeout_s=1.0):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while turns.waiting < number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join(20.0)
    return done


def test_the_lease_then_a_rollback_go_before_what_queued_earlier(store: SqlStore) -> None:
    """On a slow disk a controller lost its lease to its own evidence, and no rollback came through."""
    lease = store.acquire_lease("ctl", ttl_s=60.0)
    assert lease is not None
    state = a_rollout("r-00000001")

    def snapshot() -> None:
        store.commit(state, (), expected_version=0, evidence=b"{}", token=lease.token)

    def roll_back() -> None:
        store.append_command(state.id, CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=1.0)

    def renew() -> None:
        assert store.renew_lease(lease.token, ttl_s=60.0)

    writers = {"snapshot": snapshot, "rollback": roll_back, "lease": renew}
    assert order_of(store.database.turns, writers) == ["lease", "rollback", "snapshot"]


def test_equal_writers_go_in_the_order_in_which_they_came() -> None:
    turns = Turns()

    def routine() -> None:
        with turns.take(Turn.ROUTINE, timeout_s=20.0):
            pass

    assert order_of(turns, dict.fromkeys("abcd", routine)) == ["a", "b", "c", "d"]


def test_a_writer_that_gives_up_lets_the_next_one_go() -> None:
    turns = Turns()
    with (
        turns.take(Turn.ROUTINE, timeout_s=1.0),
        pytest.raises(Unreachable, match="disk is too slow"),
        turns.take(Turn.URGENT, timeout_s=0.0),
    ):
        raise AssertionError("two writers at once")
    with turns.take(Turn.ROUTINE, timeout_s=1.0):
        assert turns.waiting == 0


def test_a_renewal_of_the_lease_does_not_wait_for_the_disk_and_everything_else_does(store: SqlStore) -> None:
    def synchronous(is_lease: bool, **options: bool) -> int:
        database = store.database
        with database.lead(**options) if is_lease else database.write() as db:
            return int(db.exec_driver_sql("PRAGMA synchronous").scalar_one())

    normal, full = 1, 2
    assert synchronous(True, is_durable=False) == normal
    assert synchronous(True) == full  # the same connection, for a new token
    assert synchronous(False) == full
