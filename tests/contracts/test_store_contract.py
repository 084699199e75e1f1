"""Contract of the port `Store`: the fake, SQLite, and in `make test` PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.errors import RolloutRunning, StaleWrite, UnknownService, UnreadCommand
from controller.rollout.actions import SetSplit
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.database_rig import PostgresServer, sqlite_url
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line
from tests.fakes.store_memory import MemoryStore

OPERATOR = Identity("ada", Role.OPERATOR)
Store = MemoryStore | SqlStore


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        sql = SqlStore(server.empty_database())
    else:
        sql = SqlStore(sqlite_url(tmp_path / "state.db"))
    sql.put_service(
        ServiceRow("chat", "{}", STABLE, "s3cret", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0)
    )
    yield sql
    sql.close()


def test_an_unknown_rollout_is_none(store: Store) -> None:
    assert store.load("r-nowhere0") is None


def test_a_committed_state_is_loaded_unchanged(store: Store) -> None:
    state = a_rollout()
    split = SetSplit(STABLE, CANARY, 100, 0)
    store.create_rollout(state, request="{}", at_s=1.0)

    store.commit(with_log_line(state, "moved", 2.0), (split,), expected_version=0, evidence=None)

    stored = store.load(state.id)
    assert stored is not None
    assert (stored.state, stored.pending, stored.version) == (with_log_line(state, "moved", 2.0), (split,), 1)


def test_the_second_of_two_writers_is_refused(store: Store) -> None:
    state = a_rollout()
    store.create_rollout(state, request="{}", at_s=1.0)
    store.commit(with_log_line(state, "first", 2.0), (), expected_version=0, evidence=b"first")

    with pytest.raises(StaleWrite):
        store.commit(with_log_line(state, "second", 3.0), (), expected_version=0, evidence=b"second")

    stored = store.load(state.id)
    assert stored is not None
    assert (stored.state.log[-1].text, store.evidence(state.id)) == ("first", b"first")


def test_a_commit_without_evidence_keeps_the_last_one(store: Store) -> None:
    state = a_rollout()
    store.create_rollout(state, request="{}", at_s=1.0)
    store.commit(state, (), expected_version=0, evidence=b"1")

    store.commit(state, (), expected_version=1, evidence=None)

    assert store.evidence(state.id) == b"1"


def test_a_service_has_one_rollout_at_a_time(store: Store) -> None:
    store.create_rollout(a_rollout("r-00000001"), request="{}", at_s=1.0)

    with pytest.raises(RolloutRunning, match="r-00000001"):
        store.create_rollout(a_rollout("r-00000002"), request="{}", at_s=2.0)

    assert store.load("r-00000002") is None


def test_a_service_accepts_a_rollout_after_a_final_one(store: Store) -> None:
    ended = replace(a_rollout("r-00000001"), phase=Phase.ROLLED_BACK)
    store.create_rollout(a_rollout("r-00000001"), request="{}", at_s=1.0)
    store.commit(ended, (), expected_version=0, evidence=None)

    store.create_rollout(a_rollout("r-00000002"), request="{}", at_s=2.0)

    assert store.running() == ("r-00000002",)


def test_a_final_rollout_is_running_until_its_notices_are_delivered(store: Store) -> None:
    ended = replace(a_rollout(), phase=Phase.ROLLED_BACK)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.commit(ended, (SetSplit(STABLE, None, 0, 0),), expected_version=0, evidence=None)

    assert store.running() == (ended.id,)


def test_commands_are_returned_in_order_after_the_given_one(store: Store) -> None:
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    first = store.append_command("r-00000001", CommandKind.PAUSE, OPERATOR, reason="lunch", at_s=2.0)
    assert first is not None
    store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=3.0)

    commands = store.commands("r-00000001", after_seq=first)

    assert [(command.kind, command.actor, command.role, command.reason) for command in commands] == [
        (CommandKind.ROLLBACK, "ada", "operator", "bad")
    ]


def test_a_command_to_an_unknown_rollout_is_refused(store: Store) -> None:
    with pytest.raises(UnknownService, match=r"rollout r-nowhere0 does not exist"):
        store.append_command("r-nowhere0", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=1.0)


def test_a_command_to_an_ended_rollout_is_refused(store: Store) -> None:
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.commit(replace(a_rollout(), phase=Phase.SUCCEEDED), (), expected_version=0, evidence=None)

    queued = store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=2.0)

    assert (queued, store.commands("r-00000001", after_seq=0)) == (None, ())


def test_a_rollout_does_not_end_before_it_has_read_a_command(store: Store) -> None:
    ended = replace(a_rollout(), phase=Phase.SUCCEEDED)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    seq = store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=2.0)
    assert seq is not None

    with pytest.raises(UnreadCommand, match=r"r-00000001 got a command meanwhile"):
        store.commit(ended, (), expected_version=0, evidence=None)

    assert store.commit(replace(ended, commands_through=seq), (), expected_version=0, evidence=None) == 1


def test_the_notices_of_an_ended_rollout_are_committed_whatever_was_asked(store: Store) -> None:
    ended = replace(a_rollout(), phase=Phase.SUCCEEDED)
    store.create_rollout(ended, request="{}", at_s=1.0)

    assert store.commit(ended, (), expected_version=0, evidence=None) == 1
